"""Memory maps: a model's sharded weights as files that a run maps and does not read.

A folder holds one safetensors file a part of the program (`embeddings`, each `layer_<n>`, `head`),
the checkpoint's tokenizer, and `manifest.json`, which is written when everything else is complete.
"""

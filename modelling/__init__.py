"""Language models as PopXL builders, sharded by two-dimensional tensor parallelism.

Here is what models have in common, and the program made of their parts. What is one model's alone
is in a folder called as its checkpoints' `model_type`: see `architecture`.
"""

"""What a BLOOM checkpoint looks like: its settings, and its tensors' names and shapes."""

from __future__ import annotations

from config import ModelConfig

TABLE = "word_embeddings.weight"

SETTINGS = {
    "layers": (("num_hidden_layers", "n_layer"), 2),
    "hidden_size": (("n_embed", "hidden_size"), 64),
    "heads": (("num_attention_heads", "n_head"), 8),
    "vocab_size": (("vocab_size",), 250880),
    "layer_norm_epsilon": (("layer_norm_epsilon",), 1e-5),
    "residual_after_norm": (("apply_residual_connection_post_layernorm",), False),
    "tie_word_embeddings": (("tie_word_embeddings",), True),
    "sequence_length": (("seq_length",), 2048),  # what BLOOM was trained on
    "precision": (("dtype", "torch_dtype"), "float32"),
}
"""As transformers' `BloomConfig` takes them: `slow_but_exact` changes nothing that is computed."""


def tensor_shapes(model: ModelConfig) -> dict[str, tuple[int, ...]]:
    """By their names without ``transformer.``, the head's included, which may not be stored."""
    width, embedding = model.hidden_size, (model.vocab_size, model.hidden_size)
    shapes: dict[str, tuple[int, ...]] = {
        TABLE: embedding,
        "lm_head.weight": embedding,
    }
    shapes |= _norm("word_embeddings_layernorm", width) | _norm("ln_f", width)
    for layer in range(model.layers):
        place = f"h.{layer}"
        shapes |= _norm(f"{place}.input_layernorm", width)
        shapes |= _linear(f"{place}.self_attention.query_key_value", width, 3 * width)
        shapes |= _linear(f"{place}.self_attention.dense", width, width)
        shapes |= _norm(f"{place}.post_attention_layernorm", width)
        shapes |= _linear(f"{place}.mlp.dense_h_to_4h", width, 4 * width)
        shapes |= _linear(f"{place}.mlp.dense_4h_to_h", 4 * width, width)
    return shapes


def _norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _linear(name: str, inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}

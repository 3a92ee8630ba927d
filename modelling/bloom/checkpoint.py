"""What a BLOOM checkpoint looks like: its settings, and its tensors' names and shapes."""

from __future__ import annotations

from config import ModelConfig

TABLE = "word_embeddings.weight"

SHAPE_SETTINGS = {
    "layers": ("n_layer", "num_hidden_layers"),
    "hidden_size": ("hidden_size", "n_embed"),
    "heads": ("n_head", "num_attention_heads"),
    "vocab_size": ("vocab_size",),
}
FIXED_SETTINGS = {
    "apply_residual_connection_post_layernorm": False,
    "slow_but_exact": False,
}


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

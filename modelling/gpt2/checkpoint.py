"""What a GPT-2 checkpoint looks like: its settings, and its tensors' names and shapes."""

from __future__ import annotations

from config import ModelConfig

TABLE = "wte.weight"

SETTINGS = {
    "layers": (("num_hidden_layers", "n_layer"), 12),
    "hidden_size": (("hidden_size", "n_embd"), 768),
    "heads": (("num_attention_heads", "n_head"), 12),
    "vocab_size": (("vocab_size",), 50257),
    "layer_norm_epsilon": (("layer_norm_epsilon",), 1e-5),
    "tie_word_embeddings": (("tie_word_embeddings",), True),
    "sequence_length": (("max_position_embeddings", "n_positions"), 1024),
    "precision": (("dtype", "torch_dtype"), "float32"),
}
"""As transformers' `GPT2Config` takes them."""

FIXED_SETTINGS = {
    "activation_function": "gelu_new",
    "n_inner": None,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
}


def tensor_shapes(model: ModelConfig) -> dict[str, tuple[int, ...]]:
    """By their names without ``transformer.``, the head's included, which may not be stored."""
    width = model.hidden_size
    shapes: dict[str, tuple[int, ...]] = {
        TABLE: (model.vocab_size, width),
        "wpe.weight": (model.sequence_length, width),
        "lm_head.weight": (model.vocab_size, width),
        **_norm("ln_f", width),
    }
    for layer in range(model.layers):
        place = f"h.{layer}"
        shapes |= _norm(f"{place}.ln_1", width) | _norm(f"{place}.ln_2", width)
        shapes |= _conv(f"{place}.attn.c_attn", width, 3 * width)
        shapes |= _conv(f"{place}.attn.c_proj", width, width)
        shapes |= _conv(f"{place}.mlp.c_fc", width, 4 * width)
        shapes |= _conv(f"{place}.mlp.c_proj", 4 * width, width)
    return shapes


def _norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _conv(name: str, inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (inputs, outputs), f"{name}.bias": (outputs,)}

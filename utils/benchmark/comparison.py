"""A peer to compare with: transformers on the same weights, with its own cache."""

from __future__ import annotations

import numpy as np
import torch

from config import BloomConfig
from modelling.program import InferenceSession, hf_mapping
from utils.checkpoints.random_weights import DEVIATION, POOL


class Transformers:
    """A `BloomForCausalLM` with random weights, in the model's precision.

    Attention is what transformers takes by itself; the head is computed for the last token alone,
    as its own generation does. Logits are float32 `(rows, vocab_size)`.
    """

    def __init__(self, config: BloomConfig, seed: int):
        self.model = _random_model(config, seed)
        self._cache = None

    def write(self, config: BloomConfig, session: InferenceSession) -> None:
        """Make the model's weights the session's; the same memory, where the program allows."""
        for _, mapping in hf_mapping(config, session.state, self.model):
            session.write_variables_data(mapping())

    def prefill(self, prompts: np.ndarray) -> np.ndarray:
        """Start over with tokens `(rows, tokens)`; logits after the last of every row."""
        self._cache = None
        return self._run(prompts)

    def decode(self, tokens: np.ndarray) -> np.ndarray:
        """One token more for every row, `(rows,)`."""
        return self._run(tokens[:, None])

    def _run(self, tokens: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            result = self.model(
                torch.from_numpy(tokens.astype(np.int64)),
                past_key_values=self._cache,
                use_cache=True,
                logits_to_keep=1,
            )
        self._cache = result.past_key_values
        return result.logits[:, -1].float().numpy()


def _random_model(config: BloomConfig, seed: int):
    from transformers import BloomConfig as TransformersConfig
    from transformers import BloomForCausalLM

    settings = config.model
    of = TransformersConfig(
        vocab_size=settings.vocab_size,
        hidden_size=settings.hidden_size,
        n_layer=settings.layers,
        n_head=settings.heads,
        layer_norm_epsilon=settings.layer_norm_epsilon,
        tie_word_embeddings=settings.tie_word_embeddings,
        dtype=settings.precision,
    )
    with torch.device("meta"):
        model = BloomForCausalLM(of)
    model.to(getattr(torch, settings.precision)).to_empty(device="cpu")
    model.tie_weights()
    generator = torch.Generator().manual_seed(seed)
    pool = (torch.randn(POOL, generator=generator) * DEVIATION).to(model.dtype)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            _fill(parameter, pool)
            if "layernorm.weight" in name or name.endswith("ln_f.weight"):
                parameter.add_(1)
    return model.eval()


def _fill(parameter: torch.Tensor, pool: torch.Tensor) -> None:
    """Values of the pool, over and over."""
    flat = parameter.view(-1)
    for start in range(0, len(flat), len(pool)):
        part = flat[start : start + len(pool)]
        part.copy_(pool[: len(part)])

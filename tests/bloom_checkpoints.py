"""Small random models by transformers, and sessions of ours with their weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch

from config import BloomConfig, ExecutionConfig, ModelConfig
from modelling.program import hf_mapping, inference
from utils.generation.passes import Passes

if TYPE_CHECKING:  # it takes seconds, also in ranks that need none of it
    from transformers import BloomForCausalLM


def random_bloom(
    heads: int = 4, vocab_size: int = 130, layers: int = 2, head_dim: int = 16, seed: int = 0
) -> BloomForCausalLM:
    """A model whose every parameter, also biases and norms, is away from its initial value."""
    import transformers

    torch.manual_seed(seed)
    config = transformers.BloomConfig(
        vocab_size=vocab_size, hidden_size=head_dim * heads, n_layer=layers, n_head=heads
    )
    model = transformers.BloomForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


def config_of(
    model: BloomForCausalLM,
    tp1: int = 1,
    tp2: int = 1,
    sequence_length: int = 24,
    batch_size: int = 3,
    precision: str = "float32",
    prompt_chunks: tuple[int, ...] = (4, 16),
    weight_precision: str = "full",
    group_size: int = 64,
    device: str = "cpu",
) -> BloomConfig:
    """Settings for a transformers model."""
    of = model.config
    return BloomConfig(
        ModelConfig(
            hf_model="none",
            layers=of.n_layer,
            hidden_size=of.hidden_size,
            heads=of.n_head,
            vocab_size=of.vocab_size,
            sequence_length=sequence_length,
            precision=precision,
            weight_precision=weight_precision,
            group_size=group_size,
            tie_word_embeddings=of.tie_word_embeddings,
            residual_after_norm=of.apply_residual_connection_post_layernorm,
        ),
        ExecutionConfig(
            tensor_parallel_1=tp1,
            tensor_parallel_2=tp2,
            batch_size=batch_size,
            prompt_chunks=prompt_chunks,
            device=device,
        ),
    ).validate()


@contextmanager
def passes_of(model: BloomForCausalLM, config: BloomConfig, **options) -> Iterator[Passes]:
    """The passes of a session with the model's weights."""
    session = inference(config, **options)
    for _, mapping in hf_mapping(config, session.state, model):
        session.write_variables_data(mapping())
    with session:
        yield Passes(config, session)


def logits_of(model: BloomForCausalLM, tokens) -> np.ndarray:
    """transformers' logits after each token, float32 `(tokens, vocab_size)`."""
    with torch.no_grad():
        return model(torch.as_tensor(np.asarray(tokens))[None]).logits[0].float().numpy()

"""The public GPT-3 (2.7B) program on tiny random checkpoints, greedy, against transformers."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from run_generative_inference import run_inference_popxl
from tiny import (
    LENGTH,
    PROMPTS,
    STD,
    TOKENS,
    VOCABULARY,
    checkpoint,
    greedy,
    make_tokenizer,
    write_preset,
)
from transformers import GPT2Config, GPT2LMHeadModel

from utils.setup import gpt_config_setup

HIDDEN, HEADS, LAYERS = 64, 4, 3


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("shards", [2, 4])  # at 1 the program takes a batch for replicas
def test_same_text(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, shards: int, batch: int
) -> None:
    torch.manual_seed(1)
    settings = GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=LENGTH,
        n_embd=HIDDEN,
        n_inner=4 * HIDDEN,
        n_layer=LAYERS,
        n_head=HEADS,
        initializer_range=STD,
    )
    model = checkpoint(GPT2LMHeadModel(settings), tmp_path)
    preset = write_preset(
        tmp_path,
        {
            "layers": LAYERS,
            "hidden_size": HIDDEN,
            "eval": True,
            "attention": {"heads": HEADS},
            "embedding": {"vocab_size": VOCABULARY, "max_positional_length": LENGTH},
        },
        {"tensor_parallel": shards, "micro_batch_size": batch},
    )
    config, *_ = gpt_config_setup(preset, "release", "tiny", CLI_args=[], wandb_setup=False)
    tokenizer = make_tokenizer()
    prompts = [torch.tensor(tokenizer.encode(text)) for text in PROMPTS[:batch]]
    logging.getLogger().addHandler(caplog.handler)  # the program's set-up removed it
    with caplog.at_level(logging.INFO):
        run_inference_popxl(config, prompts, tokenizer, model, LENGTH, TOKENS)
    answers = [line for line in caplog.messages if line.startswith("Answer: ")]
    expected = [greedy(model, prompt.tolist()) for prompt in prompts]
    assert answers == [f"Answer: {tokenizer.decode(tokens)}" for tokens in expected]

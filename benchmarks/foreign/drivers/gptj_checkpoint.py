"""The public GPT-J program on tiny random checkpoints, greedy, against transformers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from api import GPTJPipeline
from tiny import PROMPTS, STD, TOKENS, VOCABULARY, checkpoint, greedy, make_tokenizer, write_preset
from transformers import GPTJConfig, GPTJForCausalLM

from utils.setup import gptj_config_setup

HIDDEN, HEADS, LAYERS, ROTARY = 64, 4, 3, 8


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("shards", [2, 4])  # at 1 the program takes a batch for replicas
def test_same_text(tmp_path: Path, shards: int, batch: int) -> None:
    torch.manual_seed(1)
    settings = GPTJConfig(
        vocab_size=VOCABULARY,
        n_embd=HIDDEN,
        n_inner=4 * HIDDEN,
        n_layer=LAYERS,
        n_head=HEADS,
        rotary_dim=ROTARY,
        initializer_range=STD,
    )
    model = checkpoint(GPTJForCausalLM(settings), tmp_path)
    preset = write_preset(
        tmp_path,
        {
            "layers": LAYERS,
            "hidden_size": HIDDEN,
            "eval": True,
            "attention": {"heads": HEADS, "rotary_dim": ROTARY},
        },
        {"tensor_parallel": shards, "micro_batch_size": batch},
    )
    config, *_ = gptj_config_setup(preset, "release", "tiny", CLI_args=[], wandb_setup=False)
    tokenizer = make_tokenizer("<|extratoken_1|>")  # which the program pads with
    pipeline = GPTJPipeline(config, model, tokenizer=tokenizer, print_live=False)
    prompts = PROMPTS[:batch]
    texts = pipeline(prompts, output_length=TOKENS)
    expected = [greedy(model, tokenizer.encode(prompt)) for prompt in prompts]
    assert texts == [tokenizer.decode(tokens) for tokens in expected]

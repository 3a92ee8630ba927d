"""The public Dolly program on tiny random checkpoints, greedy, against transformers.

It has neither a KV cache nor grouped queries.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from api import DollyPipeline
from tiny import PROMPTS, STD, TOKENS, VOCABULARY, checkpoint, greedy, make_tokenizer, write_preset
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from utils.setup import dolly_config_setup

HIDDEN, HEADS, LAYERS = 128, 8, 3
ROTARY = HIDDEN // HEADS // 4
END_KEY = "###End"


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("shards", [2, 4])
def test_same_text(tmp_path: Path, shards: int, batch: int) -> None:
    torch.manual_seed(1)
    settings = GPTNeoXConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=4 * HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        rotary_pct=0.25,
        initializer_range=STD,
    )
    model = checkpoint(GPTNeoXForCausalLM(settings), tmp_path)
    preset = write_preset(
        tmp_path,
        {
            "layers": LAYERS,
            "hidden_size": HIDDEN,
            "attention": {"heads": HEADS, "rotary_dim": ROTARY},
        },
        {"tensor_parallel": shards, "micro_batch_size": batch},
    )
    config, *_ = dolly_config_setup(preset, "release", "tiny", CLI_args=[])
    tokenizer = make_tokenizer(END_KEY)
    pipeline = DollyPipeline(
        config,
        hf_dolly_checkpoint=model,
        tokenizer=tokenizer,
        prompt_format="{instruction}",
        end_key=END_KEY,
    )
    prompts = PROMPTS[:batch]
    texts = pipeline(prompts, temperature=0, k=0, output_length=TOKENS)
    expected = [greedy(model, tokenizer.encode(prompt)) for prompt in prompts]
    assert texts == [tokenizer.decode(tokens) for tokens in expected]

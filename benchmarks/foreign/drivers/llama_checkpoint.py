"""The public LLaMA program on tiny random checkpoints, greedy, against transformers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from api import LlamaPipeline
from tiny import PROMPTS, STD, TOKENS, VOCABULARY, checkpoint, greedy, make_tokenizer, write_preset
from transformers import LlamaConfig, LlamaForCausalLM

from utils.setup import llama_config_setup

HIDDEN, INNER, HEADS, LAYERS = 64, 96, 8, 3


@pytest.mark.parametrize("kv_heads", [8, 4])
@pytest.mark.parametrize("use_cache", [False, True])
@pytest.mark.parametrize("shards", [2, 4])
def test_same_text(tmp_path: Path, shards: int, use_cache: bool, kv_heads: int) -> None:
    torch.manual_seed(1)
    settings = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=kv_heads,
        initializer_range=STD,
    )
    model = checkpoint(LlamaForCausalLM(settings), tmp_path)
    preset = write_preset(
        tmp_path,
        {
            "layers": LAYERS,
            "hidden_size": HIDDEN,
            "intermediate_size": INNER,
            "attention": {"heads": HEADS, "kv_heads": kv_heads},
        },
        {"tensor_parallel": shards, "use_cache": use_cache},
    )
    config, *_ = llama_config_setup(preset, "release", "tiny", CLI_args=[])
    tokenizer = make_tokenizer()
    pipeline = LlamaPipeline(
        config, hf_llama_checkpoint=model, tokenizer=tokenizer, prompt_format="{prompt}"
    )
    text = pipeline(PROMPTS[0], temperature=0, k=0, output_length=TOKENS)[0]
    assert text == tokenizer.decode(greedy(model, tokenizer.encode(PROMPTS[0])))

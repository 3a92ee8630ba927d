"""The public LLaMA program on tiny random checkpoints, greedy, against transformers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from api import LlamaPipeline
from tiny import PROMPT, STD, TOKENS, VOCABULARY, greedy, make_tokenizer, write_preset
from transformers import LlamaConfig, LlamaForCausalLM

from utils.setup import llama_config_setup

HIDDEN, INNER, HEADS, LAYERS, LENGTH = 64, 96, 8, 3, 32


@pytest.mark.parametrize("kv_heads", [8, 4])
@pytest.mark.parametrize("use_cache", [False, True])
@pytest.mark.parametrize("shards", [2, 4])
def test_same_text(tmp_path: Path, shards: int, use_cache: bool, kv_heads: int) -> None:
    torch.manual_seed(1)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=HIDDEN,
            intermediate_size=INNER,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            num_key_value_heads=kv_heads,
            max_position_embeddings=LENGTH,
            initializer_range=STD,
        )
    ).eval()
    model.save_pretrained(tmp_path / "checkpoint")
    model = LlamaForCausalLM.from_pretrained(tmp_path / "checkpoint").eval()
    preset = write_preset(
        tmp_path,
        {
            "layers": LAYERS,
            "hidden_size": HIDDEN,
            "intermediate_size": INNER,
            "sequence_length": LENGTH,
            "precision": "float32",
            "embedding": {"vocab_size": VOCABULARY},
            "attention": {"heads": HEADS, "kv_heads": kv_heads},
        },
        {"tensor_parallel": shards, "use_cache": use_cache},
    )
    config, *_ = llama_config_setup(preset, "release", "tiny", CLI_args=[])
    tokenizer = make_tokenizer()
    pipeline = LlamaPipeline(
        config, hf_llama_checkpoint=model, tokenizer=tokenizer, prompt_format="{prompt}"
    )
    text = pipeline(PROMPT, temperature=0, k=0, output_length=TOKENS)[0]
    expected = greedy(model, tokenizer.encode(PROMPT), tokenizer.eos_token_id)
    assert text == tokenizer.decode(expected)
    assert len(set(expected)) > 2

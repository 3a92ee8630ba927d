"""The public Dolly program on tiny random checkpoints, greedy, against transformers.

It has neither a KV cache nor grouped queries.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from api import DollyPipeline
from tiny import PROMPT, STD, TOKENS, VOCABULARY, greedy, make_tokenizer, write_preset
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from utils.setup import dolly_config_setup

HIDDEN, HEADS, LAYERS, LENGTH = 128, 8, 3, 32
ROTARY = HIDDEN // HEADS // 4
END = "###End"


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("shards", [2, 4])
def test_same_text(tmp_path: Path, shards: int, batch: int) -> None:
    torch.manual_seed(1)
    model = GPTNeoXForCausalLM(
        GPTNeoXConfig(
            vocab_size=VOCABULARY,
            hidden_size=HIDDEN,
            intermediate_size=4 * HIDDEN,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            rotary_pct=0.25,
            max_position_embeddings=LENGTH,
            initializer_range=STD,
        )
    ).eval()
    model.save_pretrained(tmp_path / "checkpoint")
    model = GPTNeoXForCausalLM.from_pretrained(tmp_path / "checkpoint").eval()
    preset = write_preset(
        tmp_path,
        {
            "layers": LAYERS,
            "hidden_size": HIDDEN,
            "sequence_length": LENGTH,
            "precision": "float32",
            "embedding": {"vocab_size": VOCABULARY},
            "attention": {"heads": HEADS, "rotary_dim": ROTARY},
        },
        {"tensor_parallel": shards, "micro_batch_size": batch},
    )
    config, *_ = dolly_config_setup(preset, "release", "tiny", CLI_args=[])
    tokenizer = make_tokenizer(END)
    pipeline = DollyPipeline(
        config,
        hf_dolly_checkpoint=model,
        tokenizer=tokenizer,
        prompt_format="{instruction}",
        end_key=END,
    )
    prompts = [PROMPT, "w30 w31 w64"][:batch]
    texts = pipeline(prompts, temperature=0, k=0, output_length=TOKENS)
    for prompt, text in zip(prompts, texts, strict=True):
        expected = greedy(model, tokenizer.encode(prompt), tokenizer.eos_token_id)
        assert text == tokenizer.decode(expected)
        assert len(set(expected)) > 2

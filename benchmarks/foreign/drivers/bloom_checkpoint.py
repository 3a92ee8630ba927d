"""The public BLOOM program on a tiny random checkpoint, greedy, against transformers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny import PROMPT, STD, TOKENS, VOCABULARY, greedy, make_tokenizer, write_preset
from transformers import BloomConfig, BloomForCausalLM

from run_inference import next_token, setup_session, tokenize_initial
from utils.setup import bloom_config_setup

HIDDEN, HEADS, LAYERS, LENGTH = 64, 4, 3, 32


@pytest.mark.parametrize(("tp1", "tp2"), [(1, 1), (2, 2), (4, 4)])
def test_same_tokens(tmp_path: Path, tp1: int, tp2: int) -> None:
    torch.manual_seed(1)
    model = BloomForCausalLM(
        BloomConfig(
            vocab_size=VOCABULARY,
            hidden_size=HIDDEN,
            n_layer=LAYERS,
            n_head=HEADS,
            initializer_range=STD,
        )
    ).eval()
    model.save_pretrained(tmp_path / "checkpoint")
    model = BloomForCausalLM.from_pretrained(tmp_path / "checkpoint").eval()
    preset = write_preset(
        tmp_path,
        {
            "layers": LAYERS,
            "hidden_size": HIDDEN,
            "sequence_length": LENGTH,
            "precision": "float32",
            "embedding": {"vocab_size": VOCABULARY},
            "attention": {"heads": HEADS},
        },
        {"tensor_parallel_1": tp1, "tensor_parallel_2": tp2},
    )
    config, *_ = bloom_config_setup(preset, "release", "tiny", CLI_args=[])
    tokenizer = make_tokenizer()
    session = setup_session(config, model)
    padded, prompt, length = tokenize_initial(PROMPT, tokenizer, config)
    tokens: list[int] = []
    with session:
        for _ in range(TOKENS):
            token = int(next_token(session, padded, length[0], tp1, tp2, temperature=0, k=0))
            if token == tokenizer.eos_token_id:
                break
            tokens.append(token)
            padded[length[0]] = token
            length[0] += 1
    assert tokens == greedy(model, prompt.tolist(), tokenizer.eos_token_id)
    assert len(set(tokens)) > 2

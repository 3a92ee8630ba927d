"""The public BLOOM program on a tiny random checkpoint, greedy, against transformers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from popxl_addons import TaskSession
from tiny import PROMPTS, STD, TOKENS, VOCABULARY, checkpoint, greedy, make_tokenizer, write_preset
from transformers import BloomConfig, BloomForCausalLM

from run_inference import next_token, setup_session, tokenize_initial
from utils.setup import bloom_config_setup

HIDDEN, HEADS, LAYERS = 64, 4, 3


@pytest.mark.parametrize(("tp1", "tp2"), [(1, 1), (2, 2), (4, 4)])
def test_same_tokens(tmp_path: Path, tp1: int, tp2: int) -> None:
    torch.manual_seed(1)
    settings = BloomConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        n_layer=LAYERS,
        n_head=HEADS,
        initializer_range=STD,
    )
    model = checkpoint(BloomForCausalLM(settings), tmp_path)
    preset = write_preset(
        tmp_path,
        {"layers": LAYERS, "hidden_size": HIDDEN, "attention": {"heads": HEADS}},
        {"tensor_parallel_1": tp1, "tensor_parallel_2": tp2},
    )
    config, *_ = bloom_config_setup(preset, "release", "tiny", CLI_args=[])
    session = setup_session(config, model)
    padded, prompt, length = tokenize_initial(PROMPTS[0], make_tokenizer(), config)
    tokens: list[int] = []
    with session:
        for _ in range(TOKENS):
            token = _next_token(session, padded, length[0], tp1, tp2)
            tokens.append(token)
            padded[length[0]] = token
            length[0] += 1
    assert tokens == greedy(model, prompt.tolist())


def _next_token(session: TaskSession, padded: np.ndarray, length: int, tp1: int, tp2: int) -> int:
    """The likeliest token after the first `length` of `padded`.

    The program's own `next_token` asks for an axis of replicas, which arrays have not where there
    is one.
    """
    if tp1 * tp2 > 1:
        return int(next_token(session, padded, length, tp1, tp2, temperature=0, k=0))
    inputs = session.inputs
    outputs = session.run({inputs.words: padded, inputs.last_token_indices: np.array(length - 1)})
    return int(np.argmax(outputs[session.outputs.next_token_logits]))

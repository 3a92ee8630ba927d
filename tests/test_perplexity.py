"""Perplexity from one command, against transformers; random weights of every precision."""

from __future__ import annotations

import json
import math
import sys

import numpy as np
import pytest
import torch
from dequantized import dequantized
from memmap_checkpoints import Small, refusal
from torch.nn import functional
from transformers import AutoTokenizer

from config import REPOSITORY

sys.path.insert(0, str(REPOSITORY / "benchmarks"))

import perplexity  # noqa: E402 - found just above

from config import ConfigError, load_config  # noqa: E402
from modelling.program import inference  # noqa: E402
from utils.checkpoints.random_weights import fill_randomly  # noqa: E402
from utils.generation.passes import Passes  # noqa: E402
from utils.planning.needs import needs_of  # noqa: E402

TEXT = "A dog is a dog.</s>\n" + "The sea is wide. " * 8 + "</s>\n"


def transformers_perplexity(small: Small, model, length: int = 48) -> float:
    tokenizer = AutoTokenizer.from_pretrained(small.folder)
    nats, tokens = 0.0, 0
    for document in TEXT.split("</s>\n")[:-1]:
        ids = torch.tensor([tokenizer.eos_token_id, *tokenizer(document + "</s>")["input_ids"]])
        for at in range(0, len(ids) - 1, length):
            piece = ids[at : at + length + 1]
            with torch.no_grad():
                logits = model(piece[None, :-1]).logits[0]
            nats += functional.cross_entropy(logits, piece[1:], reduction="sum").item()
            tokens += len(piece) - 1
    return math.exp(nats / tokens)


@pytest.mark.parametrize("tp", [1, 2])
def test_perplexity_is_that_of_transformers_with_the_same_weights(tp, small, tmp_path, capsys):
    (tmp_path / "text").write_text(TEXT)
    words = [*small.words(None, tp, tp), "--text", str(tmp_path / "text"), "--json"]
    perplexity.main([*words, "--precisions", "float32", "int8", "int4:8"])
    results = json.loads(capsys.readouterr().out)["results"]
    models = [small.model, *(dequantized(small.model, p, 8) for p in ("int8", "int4"))]
    expected = [transformers_perplexity(small, model) for model in models]
    np.testing.assert_allclose([r["perplexity"] for r in results], expected, rtol=1e-4)
    changes = [e / expected[0] - 1 for e in expected]
    np.testing.assert_allclose([r["change"] for r in results], changes, atol=2e-4)


def test_the_table_has_a_row_for_each_precision(small, tmp_path, capsys):
    (tmp_path / "text").write_text(TEXT)
    words = [*small.words(None), "--text", str(tmp_path / "text")]
    perplexity.main([*words, "--precisions", "int4:8", "bfloat16"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].startswith("| int4:8 |") and lines[2].endswith("| +0.00 % |")
    assert lines[3].startswith("| bfloat16 |") and len(lines) == 4


@pytest.mark.parametrize("name", ["int3", "int8:4", "int4:x", "full", ""])
def test_a_precision_that_does_not_exist_is_refused(name, small):
    with pytest.raises(ConfigError, match="precisions must be"):
        perplexity.main([*small.words(None), "--precisions", name])


def test_a_text_that_is_not_there_is_refused(small):
    words = [*small.words(None), "--precisions", "int8", "--text", "no/text"]
    assert "cannot read no/text" in refusal(lambda: perplexity.main(words))


@pytest.mark.parametrize("weight_precision", ["int8", "int4"])
def test_random_quantised_weights_are_of_the_size_of_random_full_ones(weight_precision):
    found = []
    for kind in ("full", weight_precision):
        overrides = {"layers": 2, "weight_precision": kind, "tensor_parallel_2": 2}
        config = load_config("bloom_tiny", overrides)
        session = inference(config)
        fill_randomly(session, np.random.default_rng(0))
        with session:
            found.append(Passes(config, session).prefill(0, [1, 2, 3]).std())
    assert 0.5 < found[1] / found[0] < 2


@pytest.mark.parametrize("preset", ["bloom_560M", "bloom_176B_pod16"])
def test_a_plan_counts_the_bytes_of_quantised_weights_and_the_models_parameters(preset):
    plans = {
        kind: needs_of(load_config(preset, {"weight_precision": kind}))
        for kind in ("full", "int8", "int4")
    }
    full = plans["full"]
    for kind, share in (("int8", 8 / 16), ("int4", (4 + 32 / 64) / 16)):
        assert plans[kind].parameters_all_replicas == full.parameters_all_replicas
        assert plans[kind].token.weight_bytes / full.token.weight_bytes == pytest.approx(
            share, rel=0.01
        )
        assert plans[kind].weight_bytes_all_replicas / full.weight_bytes_all_replicas == (
            pytest.approx(share, rel=0.01)
        )
        assert plans[kind].token.operations == full.token.operations

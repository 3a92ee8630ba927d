"""Settings of config.json in all spellings: those that transformers takes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from bloom_checkpoints import config_of, logits_of, passes_of, random_bloom
from transformers import BloomConfig as TransformersConfig
from transformers import BloomForCausalLM

from utils.checkpoints.checkpoint import CheckpointError
from utils.checkpoints.model_settings import model_settings

SPELLED = {
    "n_layer": [3, 7],
    "num_hidden_layers": [5],
    "hidden_size": [64, 96],
    "n_embed": [32, None],
    "n_head": [4],
    "num_attention_heads": [2],
    "vocab_size": [99],
    "layer_norm_epsilon": [1e-6, 0.5],
    "tie_word_embeddings": [True, False],
    "apply_residual_connection_post_layernorm": [True, False],
    "torch_dtype": ["float16", "bfloat16"],
    "dtype": ["float32", "bfloat16"],
    "slow_but_exact": [True],
    "hidden_dropout": [0.1],
}


def test_any_mixture_of_spellings_is_taken_as_transformers_takes_it():
    rng = np.random.default_rng(0)
    for _ in range(300):
        names = rng.permutation(list(SPELLED))[: rng.integers(len(SPELLED) + 1)]
        given = {str(n): SPELLED[n][rng.integers(len(SPELLED[n]))] for n in names}
        theirs = TransformersConfig.from_dict(dict(given))
        ours = model_settings(given, "config.json")
        assert ours["layers"] == theirs.n_layer, given
        assert ours["hidden_size"] == theirs.hidden_size, given
        assert ours["heads"] == theirs.n_head, given
        assert ours["vocab_size"] == theirs.vocab_size, given
        assert ours["layer_norm_epsilon"] == theirs.layer_norm_epsilon, given
        assert ours["tie_word_embeddings"] == theirs.tie_word_embeddings, given
        shortcut = theirs.apply_residual_connection_post_layernorm
        assert ours["residual_after_norm"] == shortcut, given
        dtype = "float32" if theirs.dtype is None else str(theirs.dtype)
        assert ours["precision"] == dtype.removeprefix("torch."), given


@pytest.mark.parametrize(
    ("name", "value"),
    [("n_layer", "3"), ("n_layer", 3.0), ("vocab_size", True), ("tie_word_embeddings", 1)],
)
def test_a_value_of_a_wrong_type_is_named(name, value):
    with pytest.raises(CheckpointError, match=f"{name} must be .*{value!r}"):
        model_settings({name: value}, "config.json")


@pytest.mark.parametrize("wrong", ["n_layer", "num_hidden_layers"])
def test_a_value_of_a_wrong_type_is_named_whichever_spelling_counts(wrong):
    with pytest.raises(CheckpointError, match=f"{wrong} must be an integer, not '3'"):
        model_settings({"n_layer": 3, "num_hidden_layers": 3} | {wrong: "3"}, "config.json")


@pytest.mark.parametrize("tp", [(1, 1), (2, 2)])
def test_shortcuts_behind_the_norms_are_those_of_transformers(tp):
    made = random_bloom()
    settings = made.config.to_dict() | {"apply_residual_connection_post_layernorm": True}
    model = BloomForCausalLM(TransformersConfig(**settings)).eval()
    model.load_state_dict(made.state_dict())
    config = config_of(model, *tp)
    tokens = torch.randint(0, 130, (9,), generator=torch.Generator().manual_seed(1)).tolist()
    with passes_of(model, config) as passes:
        np.testing.assert_allclose(
            passes.prefill(0, tokens), logits_of(model, tokens)[-1], rtol=2e-4, atol=2e-4
        )
    plain = logits_of(made, tokens)[-1]
    assert np.abs(plain - logits_of(model, tokens)[-1]).max() > 0.01

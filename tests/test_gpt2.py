"""A second model: GPT-2 by its folder and preset, against transformers on the same checkpoint."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from byte_level import byte_level_tokenizer
from dequantized import by_channel, by_group
from transformers import GPT2Config, GPT2LMHeadModel

import run_inference
from config import load_config
from generate_memmap import main as generate_memmap
from utils.checkpoints.checkpoint import CheckpointError
from utils.generation.loading import load

SHAPE = {"layers": 2, "hidden_size": 32, "heads": 4, "vocab_size": 401, "sequence_length": 64}
PROMPT = "A dog is a friend, and a cat is"
TOKENS, GROUP = 24, 16


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A random GPT-2 and its tokenizer, as transformers saves them."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=SHAPE["vocab_size"],
        n_positions=SHAPE["sequence_length"],
        n_embd=SHAPE["hidden_size"],
        n_layer=SHAPE["layers"],
        n_head=SHAPE["heads"],
        bos_token_id=1,
        eos_token_id=2,
    )
    model = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # biases and norms, too, are no initial values
            parameter.add_(torch.randn_like(parameter) * 0.2)
    folder = tmp_path_factory.mktemp("gpt2")
    model.save_pretrained(folder)
    byte_level_tokenizer(SHAPE["vocab_size"] - 1).save_pretrained(folder)
    return folder


def words(folder: Path, tp1: int = 1, tp2: int = 1) -> list[str]:
    """The preset's command line, with the small model's shape."""
    settings = SHAPE | {"hf_model": folder, "tensor_parallel_1": tp1, "tensor_parallel_2": tp2}
    given = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    return ["--config", "gpt2", "--device", "cpu", *given]


def greedy(folder: Path) -> tuple[list[int], list[int]]:
    """The prompt's ids, and those that transformers continues them with."""
    model = GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float32)
    prompt = byte_level_tokenizer(SHAPE["vocab_size"] - 1)(PROMPT).input_ids
    ids = torch.tensor([prompt])
    made = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=TOKENS, do_sample=False
    )
    return prompt, made[0, len(prompt) :].tolist()


@pytest.mark.parametrize("tp1, tp2", [(1, 1), (2, 2), (4, 2)])
def test_greedy_text_is_that_of_transformers(folder, tp1, tp2, capsys):
    _, expected = greedy(folder)
    arguments = ["--prompt", PROMPT, "--num_tokens", str(TOKENS), "--json"]
    run_inference.main([*words(folder, tp1, tp2), *arguments])
    assert json.loads(capsys.readouterr().out)["ids"] == expected
    assert len(set(expected)) > 4, "a text that repeats one token would show little"


def test_greedy_text_from_memory_maps_is_that_of_transformers(folder, tmp_path, capsys):
    _, expected = greedy(folder)
    maps = ["--memmap_dir", str(tmp_path / "maps")]
    generate_memmap([*words(folder, 2, 2), *maps])
    capsys.readouterr()
    arguments = ["--prompt", PROMPT, "--num_tokens", str(TOKENS), "--json"]
    run_inference.main([*words(folder, 2, 2), *maps, *arguments])
    assert json.loads(capsys.readouterr().out)["ids"] == expected


def quantised(model: GPT2LMHeadModel, weight_precision: str) -> GPT2LMHeadModel:
    """The model with matrices of the values that quantised ones stand for; positions are not."""
    convert = {"full": np.asarray, "int8": by_channel, "int4": partial(by_group, group_size=GROUP)}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2 and "wpe" not in name:
                rows = parameter.T if ".c_" in name else parameter  # (out, in)
                values = convert[weight_precision](np.ascontiguousarray(rows.numpy()))
                rows.copy_(torch.from_numpy(values))
    return model


@pytest.mark.parametrize("weight_precision", ["full", "int8", "int4"])
@pytest.mark.parametrize("tp1, tp2", [(1, 1), (2, 2)])
def test_logits_are_those_of_transformers_by_every_pass(folder, tp1, tp2, weight_precision):
    changes = SHAPE | {"hf_model": str(folder), "tensor_parallel_1": tp1, "tensor_parallel_2": tp2}
    changes |= {"weight_precision": weight_precision, "group_size": GROUP, "lookup_tokens": 7}
    config = load_config("gpt2", changes | {"device": "cpu"})
    model = quantised(GPT2LMHeadModel.from_pretrained(folder), weight_precision)
    text = np.random.default_rng(0).integers(SHAPE["vocab_size"], size=40).tolist()
    with torch.no_grad():
        wanted = model(torch.tensor([text])).logits[0].numpy()
    passes = load(config).passes
    with passes.session:
        np.testing.assert_allclose(passes.prompt(0, text[:21]), wanted[20], atol=1e-4)
        token = passes.token(np.array(text[21:22], np.int32), np.array([21], np.int32))
        np.testing.assert_allclose(token[0], wanted[21], atol=1e-4)
        np.testing.assert_allclose(passes.verify(0, text[22:30], 22), wanted[22:30], atol=1e-4)


def test_a_checkpoint_of_another_kind_of_model_is_refused(folder):
    config = load_config("bloom_tiny", SHAPE | {"hf_model": str(folder)})
    with pytest.raises(CheckpointError, match=r"model_type *\| bloom *\| gpt2"):
        load(config)

"""Where texts end and how they are sampled, as a checkpoint says."""

from __future__ import annotations

import json
import logging
from types import SimpleNamespace

import pytest
from transformers import GenerationConfig

from config import REPOSITORY
from run_inference import main
from utils.generation import SamplingConfig, generate, load
from utils.generation.defaults import ends_of, sampling_of
from utils.setup import UserError

TINY = REPOSITORY / "models" / "bloom_tiny"


def folder(tmp_path, generation=None, model=None):
    for name, values in (("generation_config.json", generation), ("config.json", model)):
        if values is not None:
            (tmp_path / name).write_text(json.dumps(values))
    return tmp_path


@pytest.mark.parametrize(
    ("generation", "model", "ends"),
    [
        ({"eos_token_id": 5}, {"eos_token_id": 6}, {5}),
        ({"eos_token_id": [5, 7]}, {"eos_token_id": 6}, {5, 7}),
        ({}, {"eos_token_id": 6}, {6}),
        (None, {"eos_token_id": [6, 8]}, {6, 8}),
        (None, {}, {2}),
        (None, None, {2}),
        ({"eos_token_id": None}, {"eos_token_id": None}, {2}),
    ],
)
def test_the_end_is_that_of_the_first_file_that_says(generation, model, ends, tmp_path):
    tokenizer = SimpleNamespace(eos_token_id=2)
    assert ends_of(folder(tmp_path, generation, model), tokenizer) == ends


@pytest.mark.parametrize("wrong", ["</s>", 2.5, [1, "2"], -1, True, {"id": 2}])
def test_an_end_that_is_no_token_is_named(wrong, tmp_path):
    with pytest.raises(UserError, match="eos_token_id must be a token"):
        ends_of(folder(tmp_path, {"eos_token_id": wrong}), SimpleNamespace(eos_token_id=2))


def test_sampling_is_that_of_a_generation_config_that_transformers_wrote(tmp_path):
    wanted = {"temperature": 0.6, "top_k": 30, "top_p": 0.9, "repetition_penalty": 1.2}
    GenerationConfig(do_sample=True, max_new_tokens=17, **wanted).save_pretrained(tmp_path)
    assert sampling_of(tmp_path) == {**wanted, "num_tokens": 17}


def test_without_do_sample_it_stays_greedy(tmp_path):
    values = {"temperature": 0.6, "top_k": 30, "repetition_penalty": 1.1}
    assert sampling_of(folder(tmp_path, values)) == {"repetition_penalty": 1.1}
    said = sampling_of(folder(tmp_path, values | {"do_sample": False}))
    assert said == {"repetition_penalty": 1.1, "temperature": 0.0}


def test_drawing_without_a_word_on_how_is_that_of_transformers(tmp_path):
    found = sampling_of(folder(tmp_path, {"do_sample": True, "top_p": 0.5}))
    defaults = GenerationConfig._get_default_generation_params()
    wanted = {name: defaults[name] for name in ("temperature", "top_k")}
    assert found == {**wanted, "top_p": 0.5}


@pytest.mark.parametrize("wrong", [{"top_p": 7}, {"temperature": "hot"}, {"top_k": -3}])
def test_impossible_sampling_is_one_line(wrong, tmp_path):
    with pytest.raises(UserError, match=r"generation_config\.json: t") as error:
        sampling_of(folder(tmp_path, {"do_sample": True, **wrong}))
    assert "\n" not in str(error.value)


@pytest.fixture
def mine(tmp_path):
    """The shipped checkpoint, that ends a text with " the" too and asks for seven tokens."""
    for path in TINY.iterdir():
        (tmp_path / path.name).symlink_to(path)
    vocabulary = json.loads((TINY / "tokenizer.json").read_text())["model"]["vocab"]
    (tmp_path / "generation_config.json").unlink()
    ends = [2, vocabulary["\u0120the"]]
    return folder(tmp_path, {"eos_token_id": ends, "max_new_tokens": 7, "repetition_penalty": 1.5})


def answer(capsys, *words) -> dict:
    assert main(["--json", "--prompt", "And the king said", *words]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_run_takes_all_of_it_and_says_so(mine, capsys, caplog):
    with caplog.at_level(logging.WARNING):
        found = answer(capsys, "--hf_model", str(mine))
    assert found["settings"]["num_tokens"] == 7
    assert found["settings"]["repetition_penalty"] == 1.5
    (line,) = [r.getMessage() for r in caplog.records if "generation_config" in r.getMessage()]
    assert "num_tokens 7" in line
    assert "repetition_penalty 1.5" in line


def test_what_a_person_gives_counts_more(mine, capsys):
    words = ("--num_tokens", "30", "--repetition_penalty", "1")
    found = answer(capsys, "--hf_model", str(mine), *words)
    assert found["settings"]["repetition_penalty"] == 1.0
    assert found["settings"]["num_tokens"] == 30
    whole = answer(capsys, *words)
    at = [i for i, token in enumerate(whole["ids"]) if token in (2, found["ids"][-1])]
    assert found["ids"] == whole["ids"][: at[0] + 1]
    assert found["finish_reason"] == "end_of_text"


def test_the_python_interface_takes_it_too_and_says_so(mine, caplog):
    with caplog.at_level(logging.WARNING):
        model = load("bloom_tiny", hf_model=str(mine))
    assert [r for r in caplog.records if "num_tokens 7" in r.getMessage()]
    found = generate(model, "And the king said")
    assert found.last.generated_tokens <= 7
    wanted = SamplingConfig(repetition_penalty=1.5)
    assert found.tokens == generate(model, "And the king said", wanted, num_tokens=7).tokens
    assert model.sampling == wanted

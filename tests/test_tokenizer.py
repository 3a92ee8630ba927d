"""Tokenizers opened without transformers, against transformers on the same files."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
from byte_level import byte_level_tokenizer
from commands import run_python
from transformers import AutoTokenizer

from config import REPOSITORY
from utils.generation.text import TextStream
from utils.generation.tokenizer import Tokenizer, load_tokenizer
from utils.setup import UserError

TINY = REPOSITORY / "models" / "bloom_tiny"
TEXTS = [
    "A dog is",
    "",
    " two  spaces\n\tand a tab ",
    "naïve 東京 🐕",
    "<s>inside</s> text<pad>",
    "12,5 %",
]
NOT_NEEDED = ("transformers", "huggingface_hub", "prompt_toolkit", "sympy")
PUBLISHED = {
    "tokenizer_config.json": {
        "unk_token": "<unk>",
        "eos_token": "</s>",
        "bos_token": "<s>",
        "pad_token": "<pad>",
        "name_or_path": "bigscience/tokenizer",
        "special_tokens_map_file": None,
        "tokenizer_class": "BloomTokenizerFast",
        "padding_side": "left",
    },
    "special_tokens_map.json": {
        "unk_token": "<unk>",
        "eos_token": "</s>",
        "bos_token": "<s>",
        "pad_token": "<pad>",
    },
}
"""What stands beside the published BLOOM models' tokenizer.json."""


def saved(folder: Path, **changed: object) -> Path:
    """A small tokenizer, as transformers writes it now, with settings changed."""
    byte_level_tokenizer().save_pretrained(folder)
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changed))
    return folder


def published(folder: Path) -> Path:
    saved(folder)
    for name, settings in PUBLISHED.items():
        (folder / name).write_text(json.dumps(settings))
    return folder


def assert_equal(folder: Path) -> None:
    ours, theirs = load_tokenizer(folder), AutoTokenizer.from_pretrained(folder)
    generator = np.random.default_rng(0)
    random = ["".join(map(chr, generator.integers(1, 0x2FFF, size=20))) for _ in range(50)]
    for text in TEXTS + random:
        assert ours(text).input_ids == theirs(text).input_ids
    assert ours.eos_token_id == theirs.eos_token_id
    assert sorted(ours.all_special_ids) == sorted(theirs.all_special_ids)
    assert len(ours) == len(theirs)
    ids = range(len(theirs) + 2)
    assert [ours.convert_ids_to_tokens(i) for i in ids] == [
        theirs.convert_ids_to_tokens(i) for i in ids
    ]
    text = "A dog — 東京"
    stream = TextStream(ours)
    assert "".join(stream.push(i) for i in ours(text).input_ids) + stream.flush() == text


def test_the_shipped_tokenizer_is_as_transformers_has_it():
    assert isinstance(load_tokenizer(TINY), Tokenizer)
    assert_equal(TINY)


@pytest.mark.parametrize("form", [saved, published])
def test_a_saved_tokenizer_is_as_transformers_has_it(tmp_path, form):
    folder = form(tmp_path)
    assert isinstance(load_tokenizer(folder), Tokenizer)
    assert_equal(folder)


@pytest.mark.parametrize(
    "changed",
    [{"add_prefix_space": True}, {"additional_special_tokens": ["<x>"]}, {"mask_token": "<mask>"}],
)
def test_settings_that_change_ids_are_left_to_transformers(tmp_path, changed):
    folder = saved(tmp_path, **changed)
    assert not isinstance(load_tokenizer(folder), Tokenizer)
    assert_equal(folder)


def test_special_tokens_in_two_places_that_differ_are_left_to_transformers(tmp_path):
    folder = published(tmp_path)
    (folder / "special_tokens_map.json").write_text('{"eos_token": "<s>"}')
    assert not isinstance(load_tokenizer(folder), Tokenizer)


def test_truncation_that_a_file_asks_for_is_off(tmp_path):
    folder = saved(tmp_path)
    file = folder / "tokenizer.json"
    cut = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    file.write_text(json.dumps(json.loads(file.read_text()) | {"truncation": cut}))
    assert len(load_tokenizer(folder)("A dog is a kind of dog").input_ids) > 2
    assert_equal(folder)


@pytest.mark.parametrize("broken", [None, "{", "[]"])
def test_a_folder_without_a_tokenizer_is_one_line(tmp_path, broken):
    saved(tmp_path)
    for file in tmp_path.iterdir():
        file.unlink() if broken is None else file.write_text(broken)
    with pytest.raises(UserError, match="no tokenizer in") as caught:
        load_tokenizer(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_start_imports_nothing_that_takes_long_and_is_not_needed():
    script = (
        "import sys; sys.argv = ['run_inference.py', '--prompt', 'A dog', '--num_tokens', '1']\n"
        "import run_inference\n"
        "run_inference.main()\n"
        f"print([m for m in {NOT_NEEDED} if m in sys.modules])"
    )
    done = run_python("-c", script, run=subprocess.run, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("opened", [load_tokenizer, AutoTokenizer.from_pretrained])
def test_tokens_marked_special_only_in_tokenizer_json_are_not_printed(opened, tmp_path):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((TINY / name).read_bytes())
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    last = max(vocabulary, key=vocabulary.__getitem__)  # what no merge goes on from
    number = vocabulary["<|turn|>"] = vocabulary.pop(last)
    merges = content["model"]["merges"]
    content["model"]["merges"] = [m for m in merges if "".join(m).replace(" ", "") != last]
    turn = content["added_tokens"][0] | {"id": number, "content": "<|turn|>", "special": True}
    content["added_tokens"].append(turn)
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    ids = theirs("A dog<|turn|> is here").input_ids
    assert number in ids
    stream = TextStream(opened(tmp_path))
    text = "".join([*map(stream.push, ids), stream.flush()])
    assert text == theirs.decode(ids, skip_special_tokens=True)
    assert "turn" not in text

"""Folders that a stranger made: used, or refused by one line; nothing hangs, and no code runs."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from commands import run_python
from memmap_checkpoints import Small

from config import ConfigError, load_config
from utils.checkpoints.checkpoint import open_checkpoint
from utils.checkpoints.memmap.folder import MapFolder
from utils.checkpoints.memmap.manifest import read_manifest
from utils.checkpoints.memmap.reader import MemoryMaps
from utils.checkpoints.memmap.tensor_file import map_tensors
from utils.generation.tokenizer import load_tokenizer
from utils.planning.machines import load_machine
from utils.setup import UserError

SECONDS = 60
ROOM = 8 << 30
BRACKETS = "[" * 100_000
ESCAPE = "\x1b]0;owned\x07"
WEIGHT = "transformer.h.0.input_layernorm.weight"


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Small:
    return Small.save(tmp_path_factory.mktemp("checkpoint") / "bloom", layers=2)


@pytest.fixture(scope="module")
def maps(small, tmp_path_factory) -> Path:
    return small.generate(tmp_path_factory.mktemp("maps") / "maps")


class HangError(BaseException):
    """No Exception, and no OSError as a TimeoutError is: nobody is to catch it."""


@pytest.fixture(autouse=True)
def limits() -> Iterator[None]:
    """Of time and memory: what would hang or take all there is fails instead."""

    def end(*_: object) -> None:
        raise HangError(f"not done after {SECONDS} s")

    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    previous = signal.signal(signal.SIGALRM, end)
    resource.setrlimit(resource.RLIMIT_AS, (used + ROOM, before[1]))
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, previous)
    resource.setrlimit(resource.RLIMIT_AS, before)


def line(action: Callable[[], object]) -> str:
    """The error that it ends in, of one line."""
    with pytest.raises((UserError, ConfigError)) as error:
        action()
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 2000
    return str(error.value)


def read_checkpoint(small: Small, folder: Path) -> None:
    checkpoint = open_checkpoint(folder)
    checkpoint.check_against(small.config(None))
    for name in checkpoint.keys():  # noqa: SIM118 (no dict)
        checkpoint.tensor(name)


def read_maps(small: Small, folder: Path) -> None:
    MemoryMaps(small.config(folder))
    map_tensors(folder / "layer_0000.safetensors")


def go_on_with_maps(small: Small, folder: Path) -> None:
    wanted = read_manifest(folder / "manifest.json")
    files = MapFolder(folder, list(wanted.files), wanted)
    files.begin(False, lambda names, size: None)
    files.finish()


READERS: dict[str, Callable[[Small, Path], object]] = {
    "config.json": read_checkpoint,
    "model.safetensors.index.json": read_checkpoint,
    "model-00001": read_checkpoint,
    "pytorch_model.bin": read_checkpoint,
    "tokenizer.json": lambda small, folder: load_tokenizer(folder),
    "tokenizer_config.json": lambda small, folder: load_tokenizer(folder),
    "special_tokens_map.json": lambda small, folder: load_tokenizer(folder),
    "manifest.json": read_maps,
    "layer_0000.safetensors": read_maps,
    "note": go_on_with_maps,
    "presets.yml": lambda small, folder: load_config(None, file=folder / "presets.yml"),
    "machines.yml": lambda small, folder: load_machine("this", folder / "machines.yml"),
}
MAPS = ("manifest.json", "layer_0000.safetensors", "note")


@pytest.fixture
def place(small, maps, tmp_path) -> Callable[[str], Path]:
    """Makes a folder that a file belongs to, and gives the path of that file."""

    def make(name: str) -> Path:
        folder = tmp_path / "folder"
        shutil.copytree(maps if name in MAPS else small.folder, folder)
        if name == "note":
            (folder / ".generation").mkdir()
            return folder / ".generation" / "layer_0000.safetensors.json"
        if name == "model-00001":
            return next(folder.glob("model-00001-*"))
        if name == "pytorch_model.bin":
            for path in folder.glob("model*"):
                path.unlink()
        return folder / name

    return make


def folder_of(path: Path) -> Path:
    return path.parent.parent if path.parent.name == ".generation" else path.parent


@pytest.mark.parametrize("kind", ["pipe", "device"])
@pytest.mark.parametrize("name", READERS)
def test_what_is_no_file_is_refused_at_once(name, kind, small, place):
    path = place(name)
    path.unlink(missing_ok=True)
    os.mkfifo(path) if kind == "pipe" else path.symlink_to("/dev/zero")
    assert path.name in line(lambda: READERS[name](small, folder_of(path)))


@pytest.mark.parametrize(
    "name", [name for name in READERS if name.endswith(("json", "yml", "note"))]
)
def test_brackets_that_are_never_closed_are_refused(name, small, place):
    path = place(name)
    path.write_text(BRACKETS)
    assert path.parent.name in line(lambda: READERS[name](small, folder_of(path)))


@pytest.mark.parametrize("value", ["1" + "0" * 400, "1" * 5000, "NaN", "1e999", '"' + ESCAPE + '"'])
def test_an_impossible_epsilon_is_refused(value, small, place):
    path = place("config.json")
    settings = json.loads(path.read_text())
    del settings["layer_norm_epsilon"]
    path.write_text(json.dumps(settings)[:-1] + f', "layer_norm_epsilon": {value}}}')
    with pytest.raises(UserError) as error:
        read_checkpoint(small, path.parent)
    assert "\x1b" not in str(error.value)


@pytest.mark.parametrize("token", [7, ["</s>"], {"content": 7}, {}, True])
@pytest.mark.parametrize("name", ["tokenizer_config.json", "special_tokens_map.json"])
def test_a_special_token_that_is_no_text_is_refused(name, token, place):
    path = place(name)
    found = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(found | {"eos_token": token}))
    message = line(lambda: load_tokenizer(path.parent))
    assert "eos_token" in message
    assert name in message


@pytest.mark.parametrize("name", ["a\0b", "..", "", "a" * 300, "../x", "a\x1bb", "\ud800"])
def test_a_manifest_lists_names_of_its_own_files_only(name, small, place):
    path = place("manifest.json")
    content = json.loads(path.read_text())
    content["files"][name] = next(iter(content["files"].values()))
    path.write_text(json.dumps(content))
    assert "manifest.json" in line(lambda: read_maps(small, path.parent))


@pytest.mark.parametrize(
    "change",
    [
        {"settings": 7},
        {"settings": {"precision": ESCAPE}},
        {"hf_model": ["x"]},
        {"fingerprint": None},
        {"more": 1},
        {"files": []},
        {"files": {"x": {"size": "1", "sha256": ""}}},
        {"files": {"x": {"size": 10**30, "sha256": ""}}},
        {"files": {"x": {"size": 1, "sha256": 7, "header_sha256": {}}}},
    ],
)
def test_a_manifest_has_a_schema(change, small, place):
    path = place("manifest.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert "\x1b" not in line(lambda: read_maps(small, path.parent))


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        ("shape", [-1, 5]),
        ("shape", [2**40, 2**40]),
        ("dtype", "F99"),
        ("dtype", ["F32"]),
        ("data_offsets", [0, 2**60]),
        ("data_offsets", [-5, 7]),
        ("data_offsets", "ab"),
    ],
)
def test_a_header_that_does_not_fit_its_file_is_refused(entry, value, place):
    path = place("layer_0000.safetensors")
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    name = next(name for name in header if name != "__metadata__")
    header[name][entry] = value
    path.write_bytes(data[:8] + json.dumps(header).encode().ljust(length) + data[8 + length :])
    assert path.name in line(lambda: map_tensors(path))


ODD: dict[str, Callable[[torch.Tensor], object]] = {
    "sparse": lambda tensor: tensor.to_sparse(),
    "compressed": lambda tensor: tensor.reshape(1, -1).to_sparse_csr(),
    "meta": lambda tensor: tensor.to("meta"),
    "quantised": lambda tensor: torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8),
    "complex": lambda tensor: tensor.to(torch.complex64),
    "larger than its file": lambda tensor: torch.zeros(1).expand(1 << 40),
    "of another shape": lambda tensor: tensor[:-1],
    "a list": lambda tensor: tensor.tolist(),
}


@pytest.mark.parametrize("kind", ODD)
def test_a_tensor_that_holds_no_weights_is_refused_by_name(kind, small, place):
    path = place("pytorch_model.bin")
    tensors = dict(small.model.state_dict())
    torch.save(tensors | {WEIGHT: ODD[kind](tensors[WEIGHT])}, path)
    assert "input_layernorm.weight" in line(lambda: read_checkpoint(small, path.parent))


@pytest.mark.parametrize("key", [7, None, ("a",), "", "a\0b", "a" * 300, "\ud800", ESCAPE])
def test_names_of_tensors_are_texts(key, small, place):
    path = place("pytorch_model.bin")
    torch.save(dict(small.model.state_dict()) | {key: torch.zeros(2)}, path)
    message = line(lambda: read_checkpoint(small, path.parent))
    assert path.name in message
    assert "\x1b" not in message


def test_a_tensor_in_a_modules_place_is_refused(small, place):
    path = place("pytorch_model.bin")
    torch.save(dict(small.model.state_dict()) | {"transformer.h.0": torch.zeros(2)}, path)
    assert "h.0" in line(lambda: read_checkpoint(small, path.parent))


def yaml_bombs() -> dict[str, str]:
    def grown(first: str, each: str) -> str:
        lines = [f"a0: &a0 {first}"]
        for number in range(1, 12):
            before = ", ".join([f"*a{number - 1}"] * 9)
            lines.append(f"a{number}: &a{number} {each.replace('?', before)}")
        return "\n".join([*lines, "bomb: {model: {layers: *a11}}"])

    return {
        "aliases": grown("[x, x]", "[?]"),
        "merges": grown("{x: 1}", "{<<: [?]}"),
        "itself": "bomb: &a {model: *a}",
        "deep": "bomb: " + "[" * 50_000,
        "a date": "bomb: 2001-99-99",
        "a type": "bomb: !!int x",
        "a large file": "# " + "x" * (1 << 25),
    }


@pytest.mark.parametrize("bomb", yaml_bombs())
@pytest.mark.parametrize("name", ["presets.yml", "machines.yml"])
def test_a_yaml_bomb_is_refused(name, bomb, tmp_path):
    path = tmp_path / name
    path.write_text(yaml_bombs()[bomb])
    read = load_config if name == "presets.yml" else lambda preset, file: load_machine(preset, file)
    assert name in line(lambda: read("bomb", file=path))


def test_names_that_no_file_can_have_are_refused(small):
    config = {"hf_model": "a" * 5000}
    assert "hf_model" in line(lambda: load_config("bloom_tiny", config))
    assert "no folder" in line(lambda: open_checkpoint("/" + "a" * 5000))


@pytest.fixture
def planted(small, tmp_path) -> Path:
    """A checkpoint whose tokenizer is said to be in Python."""
    folder = tmp_path / "planted"
    shutil.copytree(small.folder, folder)
    code = f"open({str(tmp_path / 'it-ran')!r}, 'w')\n"
    (folder / "evil.py").write_text(code + "class Evil:\n    from_pretrained = print\n")
    path = folder / "tokenizer_config.json"
    mapped = {"auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}, "tokenizer_class": "Evil"}
    path.write_text(json.dumps(json.loads(path.read_text()) | mapped))
    return folder


def test_a_checkpoints_python_is_not_run_nor_asked_about(planted, small, tmp_path):
    signal.setitimer(signal.ITIMER_REAL, 0)
    words = small.words(None)
    words[words.index("--hf_model") + 1] = str(planted)
    done = run_python("run_inference.py", *words, "--prompt", "A dog", input="y\n" * 1000)
    assert not (tmp_path / "it-ran").exists()
    assert (done.returncode, done.stdout) == (2, "")
    assert "auto_map" in done.stderr.splitlines()[-1]
    assert "never run" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("token", [{"content": "x", ESCAPE: 1}, {ESCAPE: "x"}])
@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_tokens_unknown_settings_are_not_printed(name, token, place, capfd):
    path = place(name)
    setting = "added_tokens" if name == "tokenizer.json" else "additional_special_tokens"
    path.write_text(json.dumps(json.loads(path.read_text()) | {setting: [token]}))
    assert "\x1b" not in line(lambda: load_tokenizer(path.parent))
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize("length", ["512", [512], None])
def test_a_length_that_is_no_number_is_refused_or_of_no_effect(length, place):
    path = place("tokenizer_config.json")
    settings = {"model_max_length": length, "add_prefix_space": True}
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    try:
        assert load_tokenizer(path.parent)("A dog").input_ids
    except UserError as error:
        assert str(path.parent) in str(error)


def test_a_tokenizer_names_no_files_outside_its_folder(small, place):
    path = place("tokenizer_config.json")
    settings = json.loads(path.read_text()) | {"vocab_file": "/dev/zero", "add_prefix_space": True}
    path.write_text(json.dumps(settings))
    assert load_tokenizer(path.parent)("A dog").input_ids


def test_a_settings_text_cannot_control_the_terminal(small, place):
    signal.setitimer(signal.ITIMER_REAL, 0)
    path = place("config.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_type": f"{ESCAPE}\u202e\n"}))
    words = small.words(None)
    words[words.index("--hf_model") + 1] = str(path.parent)
    done = run_python("run_inference.py", *words, "--prompt", "A dog", text=False)
    assert done.returncode == 2
    assert rb"\x1b]0;owned\x07\u202e\n" in done.stderr
    assert b"\x1b" not in done.stderr

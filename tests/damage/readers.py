"""Whole folders of each kind, and what reads them once they are damaged."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
from memmap_checkpoints import Small

from config import REPOSITORY, load_config
from damage.cache import of_cache
from damage.changes import change_header, change_member, odd_values, yaml_bomb
from damage.nasty import CANARY, Nasty
from utils.checkpoints.checkpoint import open_checkpoint
from utils.checkpoints.memmap.fingerprint import fingerprint
from utils.checkpoints.memmap.folder import MapFolder
from utils.checkpoints.memmap.manifest import read_manifest
from utils.checkpoints.memmap.reader import MemoryMaps
from utils.checkpoints.memmap.tensor_file import map_tensors
from utils.checkpoints.memmap.verification import verify
from utils.generation.loading import build, write_weights
from utils.generation.text import TextStream
from utils.generation.tokenizer import load_tokenizer
from utils.planning.machines import load_machine


class Readers:
    """Whole folders of each kind, and what reads them. It takes seconds to set up."""

    def __init__(self, folder: Path):
        self.small = Small.save(folder / "shards", layers=2)
        self.config = self.small.config(None)
        self.single = folder / "single"
        Small.save(self.single, layers=2, shard="1GB")
        self.pickled = folder / "pickled"
        shutil.copytree(self.single, self.pickled)
        (self.pickled / "model.safetensors").unlink()
        self.tensors = dict(self.small.model.state_dict())
        torch.save(self.tensors, self.pickled / "pytorch_model.bin")
        with contextlib.redirect_stdout(None):
            self.maps = self.small.generate(folder / "maps")
        self.session = build(self.config)
        self.targets: dict[str, tuple[Path | None, Callable[[Path, Nasty], Iterator[str]]]] = {
            "config": (self.single, self.of_config),
            "tokenizer": (self.single, self.of_tokenizer),
            "index": (self.small.folder, self.of_index),
            "safetensors": (self.single, self.of_safetensors),
            "header": (self.single, self.of_header),
            "bin": (self.pickled, self.of_bin),
            "tensors": (self.pickled, self.of_tensors),
            "manifest": (self.maps, self.of_manifest),
            "notes": (self.maps, self.of_notes),
            "part": (self.maps, self.of_part),
            "presets": (None, of_presets),
            "cache": (None, of_cache),
        }

    def run(self, target: str, place: Path, nasty: Nasty) -> Iterator[str]:
        """Make the case in an empty folder and read it; what was changed."""
        whole, read = self.targets[target]
        if whole:
            shutil.copytree(whole, place, dirs_exist_ok=True)
        return read(place, nasty)

    def _read(self, place: Path) -> None:
        checkpoint = open_checkpoint(place)
        checkpoint.check_against(self.config)
        fingerprint(checkpoint)
        if checkpoint.tied:
            write_weights(self.config, self.session, checkpoint)

    def of_config(self, place: Path, nasty: Nasty) -> Iterator[str]:
        yield nasty.file(place / "config.json")
        self._read(place)

    def of_tokenizer(self, place: Path, nasty: Nasty) -> Iterator[str]:
        (place / "evil.py").write_text(f"import os; os.mkdir({str(place / CANARY)!r})\n")
        settings = json.loads((place / "tokenizer_config.json").read_text())
        code = {"auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}}
        more = nasty.draw.choice([{}, {}, {}, code, {"vocab_file": "/dev/zero"}])
        (place / "tokenizer_config.json").write_text(json.dumps(settings | more))
        if nasty.draw.random() < 0.3:
            token = {"eos_token": nasty.value()}
            (place / "special_tokens_map.json").write_text(json.dumps(token))
        name = nasty.draw.choice(["tokenizer.json", "tokenizer_config.json"])
        yield f"{more} {name} {nasty.file(place / name)}"
        tokenizer = load_tokenizer(place)
        stream = TextStream(tokenizer)
        for token in tokenizer("A dog — 東京").input_ids:
            stream.push(token)
        assert isinstance(tokenizer.eos_token_id, int | None)

    def of_index(self, place: Path, nasty: Nasty) -> Iterator[str]:
        yield nasty.file(place / "model.safetensors.index.json")
        self._read(place)

    def of_safetensors(self, place: Path, nasty: Nasty) -> Iterator[str]:
        yield nasty.file(place / "model.safetensors")
        self._read(place)

    def of_header(self, place: Path, nasty: Nasty) -> Iterator[str]:
        change_header(place / "model.safetensors", nasty)
        yield "header"
        self._read(place)

    def of_bin(self, place: Path, nasty: Nasty) -> Iterator[str]:
        path = place / "pytorch_model.bin"
        if nasty.draw.random() < 0.3:
            yield nasty.kind(path)
        else:
            yield f"member {change_member(path, nasty)}"
        self._read(place)

    def of_tensors(self, place: Path, nasty: Nasty) -> Iterator[str]:
        tensors = dict(self.tensors)
        name = nasty.draw.choice(list(tensors))
        kinds = odd_values(tensors[name], place / CANARY)
        kind = nasty.draw.choice([*kinds, "name", "number", "whole"])
        if kind == "name":
            tensors[nasty.text()] = tensors.pop(name)
        elif kind == "number":
            tensors[nasty.draw.choice([7, None, ("a",), b"x", 1.5])] = tensors[name]
        elif kind == "whole":
            tensors = nasty.draw.choice([[], tensors[name], {"state_dict": tensors}, nasty.value()])
        else:
            tensors[name] = kinds[kind]()
        legacy = nasty.draw.random() < 0.2
        path = place / "pytorch_model.bin"
        torch.save(tensors, path, _use_new_zipfile_serialization=not legacy)
        yield f"{name} {kind}"
        self._read(place)

    def of_manifest(self, place: Path, nasty: Nasty) -> Iterator[str]:
        yield nasty.file(place / "manifest.json")
        self._open_maps(place)

    def of_part(self, place: Path, nasty: Nasty) -> Iterator[str]:
        path = place / "layer_0000.safetensors"
        if nasty.draw.random() < 0.5:
            change_header(path, nasty)
            yield "header"
        else:
            yield nasty.file(path)
        map_tensors(path)
        self._open_maps(place)

    def _open_maps(self, place: Path) -> None:
        execution = replace(self.config.execution, memmap_dir=str(place))
        maps = MemoryMaps(replace(self.config, execution=execution))
        maps.write(self.session)
        verify(place)

    def of_notes(self, place: Path, nasty: Nasty) -> Iterator[str]:
        wanted = read_manifest(place / "manifest.json")
        notes = place / ".generation"
        notes.mkdir()
        shutil.copy(place / "manifest.json", notes / "job.json")
        first = next(iter(wanted.files))
        note = notes / f"{first}.json"
        note.write_text(
            json.dumps(json.loads((place / "manifest.json").read_text())["files"][first])
        )
        changed = nasty.draw.choice([note, notes / "job.json", place / "manifest.json"])
        if nasty.draw.random() < 0.5:
            (place / "manifest.json").unlink()
            changed = nasty.draw.choice([note, notes / "job.json"])
        yield f"{changed.name} {nasty.file(changed)}"
        folder = MapFolder(place, list(wanted.files), wanted)
        folder.begin(nasty.draw.random() < 0.5, lambda names, size: None)
        folder.finish()


def of_presets(place: Path, nasty: Nasty) -> Iterator[str]:
    path = place / "presets.yml"
    which = nasty.draw.choice(["inference.yml", "machines.yml"])
    text = (REPOSITORY / "config" / which).read_text()
    path.write_text(text)
    if nasty.draw.random() < 0.3:
        path.write_text(yaml_bomb(nasty.draw))
        yield f"{which} bomb"
    else:
        yield f"{which} {nasty.file(path)}"
    if which == "machines.yml":
        load_machine(nasty.draw.choice(["bow_pod16", "h200_x1", "bomb"]), path)
    else:
        load_config(nasty.draw.choice([None, "bloom_560M", "bomb"]), file=path)

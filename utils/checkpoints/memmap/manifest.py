"""What a folder of memory maps says of itself: which model, how sharded, and its files."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field, fields
from hashlib import sha256
from pathlib import Path
from typing import Any

from config import BloomConfig
from utils.checkpoints.memmap.tensor_file import read_header
from utils.escaping import cell
from utils.outside import Fields, is_file_name, open_regular, read_json
from utils.setup import UserError

FORMAT, VERSION = "bloom memory maps", 1
MANIFEST = "manifest.json"

BEFORE = {"model_type": "bloom", "weight_precision": "full", "group_size": None}
"""Settings of maps that do not say them: they were made before there was a choice."""


@dataclass(frozen=True)
class FileEntry:
    """A file's size in bytes, its checksum, and that of its header where it has one."""

    size: int
    sha256: str
    header_sha256: str | None = None

    def fault(self, path: Path) -> str | None:
        """What is wrong with the file as far as its size and header tell, or None."""
        try:
            with open_regular(path, UserError, absent=True) as file:
                size = os.fstat(file.fileno()).st_size
        except FileNotFoundError:
            return "missing"
        except UserError as error:
            return str(error).removeprefix(f"{path} ")
        if size != self.size:
            return f"{size:,} bytes long, not {self.size:,}"
        if self.header_sha256 is None:
            return None
        try:
            same = sha256(read_header(path)).hexdigest() == self.header_sha256
        except UserError:
            same = False
        return None if same else "altered: its header is not what was written"


@dataclass(frozen=True)
class Manifest:
    """What maps are made of and for.

    Attributes:
        hf_model: the name of the checkpoint.
        fingerprint: of its settings and tensors.
        settings: those of the configuration that the files' contents depend on.
        files: by name; none while the maps are being made.
    """

    hf_model: str
    fingerprint: str
    settings: dict[str, Any]
    files: dict[str, FileEntry] = field(default_factory=dict)

    def differences(self, other: Manifest) -> list[str]:
        """Why the maps of `other` cannot be used as these; empty if they can."""
        ours, theirs = self.settings, other.settings
        found = [
            f"{cell(name)} is {cell(theirs.get(name))} there, {cell(ours.get(name))} here"
            for name in dict.fromkeys([*ours, *theirs])
            if ours.get(name) != theirs.get(name)
        ]
        if self.fingerprint != other.fingerprint:
            there = cell(other.hf_model)
            found.insert(0, f"{there} there has other weights than {self.hf_model} here")
        return found

    def to_json(self) -> str:
        """The contents of the manifest's file, always the same for the same maps."""
        content = {"format": FORMAT, "version": VERSION, **asdict(self)}
        return json.dumps(content, indent=1) + "\n"


def map_settings(config: BloomConfig) -> dict[str, Any]:
    """The settings that the maps' contents depend on, by name."""
    model, execution = config.model, config.execution
    return {
        "model_type": model.model_type,
        "layers": model.layers,
        "hidden_size": model.hidden_size,
        "heads": model.heads,
        "vocab_size": model.vocab_size,
        "layer_norm_epsilon": model.layer_norm_epsilon,
        "tie_word_embeddings": model.tie_word_embeddings,
        "residual_after_norm": model.residual_after_norm or None,  # older maps do not have it
        "lora": [Path(adapter).name for adapter in model.lora] or None,
        "precision": model.precision,
        "weight_precision": model.weight_precision,
        "group_size": model.group_size if model.weight_precision == "int4" else None,
        "tensor_parallel_1": execution.tensor_parallel_1,
        "tensor_parallel_2": execution.tensor_parallel_2,
    }


def read_manifest(path: Path) -> Manifest:
    """The manifest in the file `path`.

    Raises:
        FileNotFoundError: where there is no such file.
        UserError: where it cannot be read, or is no manifest that this version knows.
    """
    content = read_json(path, UserError, absent=True)
    if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
        raise UserError(f"{path} is no manifest of memory maps")
    version = content.pop("version", None)
    if version != VERSION:
        raise UserError(f"{path} has version {cell(version)}, this program knows version {VERSION}")
    given = Fields(content, str(path), UserError)
    given.check_names(*(field.name for field in fields(Manifest)))
    files = given.mapping("files")
    for name in files:
        if not is_file_name(name):  # nothing outside the folder
            raise UserError(f"{path} is damaged: {cell(name)} cannot be a file's name")
    return Manifest(
        hf_model=given.text("hf_model"),
        fingerprint=given.text("fingerprint"),
        settings=BEFORE | given.mapping("settings"),
        files={name: file_entry(entry, f"{path}, {name}") for name, entry in files.items()},
    )


def file_entry(content: Any, place: str) -> FileEntry:
    """What a file is, from what a manifest or a note says of it.

    Raises:
        UserError: where it says something else; it begins with `place`.
    """
    given = Fields(content, place, UserError)
    given.check_names(*(field.name for field in fields(FileEntry)))
    header = given.values.get("header_sha256")
    return FileEntry(
        size=given.count("size"),
        sha256=given.text("sha256"),
        header_sha256=None if header is None else given.text("header_sha256"),
    )

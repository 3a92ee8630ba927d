"""What a folder of memory maps says of itself: which model, how sharded, and its files."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from config import BloomConfig
from utils.memmap.tensor_file import read_header
from utils.setup import UserError

FORMAT, VERSION = "bloom memory maps", 1
MANIFEST = "manifest.json"

UNQUANTIZED = {"weight_precision": "full", "group_size": None}
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
            size = path.stat().st_size
        except FileNotFoundError:
            return "missing"
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
        hf_model: name of the checkpoint.
        fingerprint: of its settings and tensors.
        settings: those of the configuration that the files' contents depend on.
        files: by name; none while the maps are being made.
    """

    hf_model: str
    fingerprint: str
    settings: dict[str, Any]
    files: dict[str, FileEntry] = field(default_factory=dict)

    def differences(self, other: Manifest) -> list[str]:
        """What keeps maps that are there, `other`, from being used as these, which are wanted."""
        ours, theirs = self.settings, other.settings
        found = [
            f"{name} is {theirs.get(name)} there, {ours.get(name)} here"
            for name in dict.fromkeys([*ours, *theirs])
            if ours.get(name) != theirs.get(name)
        ]
        if self.fingerprint != other.fingerprint:
            found.insert(0, f"{other.hf_model} there has other weights than {self.hf_model} here")
        return found

    def to_json(self) -> str:
        """The contents of the manifest's file, always the same for the same maps."""
        content = {"format": FORMAT, "version": VERSION, **asdict(self)}
        return json.dumps(content, indent=1) + "\n"


def map_settings(config: BloomConfig) -> dict[str, Any]:
    """The settings that the maps' contents depend on, by name."""
    model, execution = config.model, config.execution
    return {
        "layers": model.layers,
        "hidden_size": model.hidden_size,
        "heads": model.heads,
        "vocab_size": model.vocab_size,
        "layer_norm_epsilon": model.layer_norm_epsilon,
        "tie_word_embeddings": model.tie_word_embeddings,
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
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"{path} is damaged, it is not JSON: {error}") from None
    if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
        raise UserError(f"{path} is no manifest of memory maps")
    version = content.pop("version", None)
    if version != VERSION:
        raise UserError(f"{path} has version {version}, this program knows version {VERSION}")
    return _from_content(path, content)


def _from_content(path: Path, content: dict[str, Any]) -> Manifest:
    try:
        files = {name: FileEntry(**entry) for name, entry in content.pop("files").items()}
        content["settings"] = UNQUANTIZED | content["settings"]
        manifest = Manifest(**content, files=files)
        plain = all(Path(name).name == name for name in files)  # nothing outside the folder
        sizes = all(type(entry.size) is int for entry in files.values())
        if not (plain and sizes and isinstance(manifest.settings, dict)):
            raise ValueError("a file's name or size is not possible")
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UserError(f"{path} is damaged: {error}") from None
    return manifest

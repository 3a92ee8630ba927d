"""A model's tokenizer, opened with the `tokenizers` library alone where its settings allow that.

transformers opens any tokenizer, but importing it and having it look through a large vocabulary
take longer than all else between a start and the first token from memory maps.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as BackendTokenizer

from utils.setup import UserError

SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token")
"""Settings that name one special token each."""

KNOWN = {
    *SPECIAL,
    *("mask_token", "add_prefix_space", "clean_up_tokenization_spaces", "model_input_names"),
    *("model_max_length", "name_or_path", "padding_side", "special_tokens_map_file"),
    *("tokenizer_class", "truncation_side", "backend", "is_local"),
}
"""Settings that are either followed here or make no difference to ids; others are transformers'."""

CLASSES = ("PreTrainedTokenizerFast", "BloomTokenizerFast", "TokenizersBackend", None)
"""Classes that change nothing of what `tokenizer.json` says."""


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer in a folder: with `input_ids` of a call, as transformers' have them.

    Raises:
        UserError: where there is none.
    """
    return open_tokenizer(folder) or open_with_transformers(folder)


def open_tokenizer(folder: Path) -> Tokenizer | None:
    """The tokenizer in a folder, or None where there is none or transformers must open it."""
    settings = _settings(folder)
    backend = _backend(folder) if settings is not None else None
    if settings is None or backend is None:
        return None
    tokenizer = Tokenizer(backend, settings)
    return tokenizer if tokenizer.is_complete else None


def open_with_transformers(folder: Path) -> Any:
    """The tokenizer in a folder, whatever its settings.

    Raises:
        UserError: where there is none.
    """
    from transformers import AutoTokenizer  # late: it takes seconds

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # whatever it trips over in files that are no tokenizer's
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"no tokenizer in {folder}: {reason}") from None


@dataclass(frozen=True)
class Encoding:
    """What a text became."""

    input_ids: list[int]


class Tokenizer:
    """A tokenizer by the names that transformers uses.

    Attributes:
        backend_tokenizer: the `tokenizers.Tokenizer`.
    """

    def __init__(self, backend: BackendTokenizer, settings: dict[str, Any]):
        backend.no_truncation()
        backend.no_padding()
        self.backend_tokenizer = backend
        self._special = {name: _content(settings.get(name)) for name in (*SPECIAL, "mask_token")}

    @property
    def is_complete(self) -> bool:
        """Whether the vocabulary has every special token that the settings name."""
        ids = [self._id(name) for name, token in self._special.items() if token is not None]
        return None not in ids

    def __call__(self, text: str) -> Encoding:
        return Encoding(self.backend_tokenizer.encode(text).ids)

    def __bool__(self) -> bool:
        return True  # also of no tokens

    def __len__(self) -> int:
        return self.backend_tokenizer.get_vocab_size()

    @cached_property
    def all_special_ids(self) -> list[int]:
        """Ids of the special tokens that the settings name."""
        ids = (self._id(name) for name in self._special)
        return list(dict.fromkeys(i for i in ids if i is not None))

    @property
    def eos_token(self) -> str | None:
        """The end of text."""
        return self._special["eos_token"]

    @cached_property
    def eos_token_id(self) -> int | None:
        """The id of the end of text."""
        return self._id("eos_token")

    def convert_ids_to_tokens(self, token: int) -> str | None:
        """The piece of the vocabulary with an id, or None."""
        return self.backend_tokenizer.id_to_token(token)

    def _id(self, name: str) -> int | None:
        token = self._special[name]
        return None if token is None else self.backend_tokenizer.token_to_id(token)


def _settings(folder: Path) -> dict[str, Any] | None:
    """The tokenizer's settings; None where transformers must make sense of them."""
    settings = _read(folder / "tokenizer_config.json")
    if settings is None or (folder / "added_tokens.json").exists():
        return None
    extra = folder / "special_tokens_map.json"  # of older transformers: what the settings say too
    special = _read(extra) if extra.exists() else {}
    plain = (
        settings.keys() <= KNOWN
        and settings.get("tokenizer_class") in CLASSES
        and not settings.get("add_prefix_space")
        and special is not None
        and all(_content(settings.get(name)) == _content(t) for name, t in special.items())
    )
    return settings if plain else None


def _read(file: Path) -> dict[str, Any] | None:
    """A JSON file's mapping, or None."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _backend(folder: Path) -> BackendTokenizer | None:
    try:
        return BackendTokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception:  # of no class of its own; transformers says what is wrong
        return None


def _content(token: Any) -> str | None:
    """A special token as the settings write it: its text, or a mapping that has it."""
    return token.get("content") if isinstance(token, dict) else token

"""A model's tokenizer, opened with the `tokenizers` library alone where its settings allow that.

transformers opens any tokenizer, but importing it and having it look through a large vocabulary
take longer than all else between a start and the first token from memory maps.

A tokenizer's files may be a stranger's. Each is read once; transformers is given copies of those
that hold data, in a folder of our own, so that no code of theirs can be found there, let alone run.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as BackendTokenizer

from utils.checkpoints.gguf_file import SUFFIX, GgufFile, tokenizer_of
from utils.escaping import in_one_line, shown
from utils.generation.text import TextStream
from utils.outside import is_regular, parse_json, read_bytes, read_mapping
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


CODE = "auto_map"
"""The setting that names Python files of the folder's to be run."""

LISTED = (
    *("added_tokens", "added_tokens_decoder"),
    *("additional_special_tokens", "extra_special_tokens", "model_specific_special_tokens"),
)
"""Settings that have a list or mapping of tokens each."""

ADDED = {"__type", "id", "content", "single_word", "lstrip", "rstrip", "normalized", "special"}
"""What a file says of an added token."""

BESIDE = ("added_tokens.json", "chat_template.jinja", "chat_template.json")
"""Files of a tokenizer that transformers must make sense of."""

GGUF_SPECIAL = {
    "bos_token": "bos",
    "eos_token": "eos",
    "unk_token": "unknown",
    "pad_token": "padding",
}
"""Special tokens -> what GGUF calls them."""

LARGEST_VOCABULARY = 20_000_000
"""Values in a tokenizer.json; BLOOM's has 750,000."""

COPIED = (".json", ".txt", ".model", ".jinja")
"""Endings of the files that tokenizers consist of."""

TOKENIZER_BYTES = 1 << 28
"""Of any of them; BLOOM's vocabulary of 250,880 takes 14 MB."""


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer in a folder: with `input_ids` of a call, as transformers' have them.

    Raises:
        UserError: where there is none.
    """
    return open_tokenizer(folder) or open_with_transformers(folder)


def open_tokenizer(folder: Path) -> Tokenizer | None:
    """The tokenizer in a folder, or None where there is none or transformers must open it.

    Of a GGUF file it is that of the folder, or what the file itself says.
    """
    if folder.suffix == SUFFIX:
        beside = open_tokenizer(folder.parent)
        return beside or _of_gguf(folder)
    settings = _settings(folder)
    backend = _backend(folder) if settings is not None else None
    if settings is None or backend is None:
        return None
    tokenizer = Tokenizer(backend, settings)
    if not tokenizer.is_complete:
        return None
    _check_decoder(tokenizer, folder)
    return tokenizer


def _of_gguf(path: Path) -> Tokenizer:
    file = GgufFile(path)
    content = tokenizer_of(file)
    tokens = file.field("tokenizer.ggml.tokens")
    ids = {name: file.field(f"tokenizer.ggml.{key}_token_id") for name, key in GGUF_SPECIAL.items()}
    named = {name: tokens[i] for name, i in ids.items() if i is not None and 0 <= i < len(tokens)}
    try:
        tokenizer = Tokenizer(BackendTokenizer.from_str(json.dumps(content)), named)
    except BaseException as error:  # of no class of its own
        if not _is_fault(error):
            raise
        raise UserError(f"no tokenizer in {path}: {in_one_line(str(error))[:200]}") from None
    _check_decoder(tokenizer, path)
    return tokenizer


def open_with_transformers(folder: Path) -> Any:
    """The tokenizer in a folder, whatever its settings.

    Raises:
        UserError: where there is none.
    """
    from transformers import AutoTokenizer  # late: it takes seconds

    with tempfile.TemporaryDirectory(prefix="bloom-tokenizer-") as copies:
        _copy(folder, Path(copies))
        try:
            tokenizer = AutoTokenizer.from_pretrained(
                copies, local_files_only=True, trust_remote_code=False
            )
            # What is used of it: some settings are only looked at then.
            _ = tokenizer("A dog").input_ids, tokenizer.eos_token_id, tokenizer.all_special_ids
            _check_decoder(tokenizer, folder)
            return tokenizer
        except UserError:
            raise
        except BaseException as error:  # whatever it trips over in files that are no tokenizer's
            if not _is_fault(error):
                raise
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            reason = in_one_line(reason.replace(copies, str(folder))[:300])
            raise UserError(f"no tokenizer in {folder}: {reason}") from None


def _check_decoder(tokenizer: Any, folder: Path) -> None:
    try:
        TextStream(tokenizer)
    except UserError as error:
        raise UserError(f"no tokenizer in {folder} that can be used: {error}") from None


def _copy(folder: Path, copies: Path) -> None:
    """Put the data of a tokenizer in an empty folder: no code, and no paths to other files."""
    try:
        names = sorted(path.name for path in folder.iterdir() if path.suffix in COPIED)
    except OSError as error:
        raise UserError(f"cannot read {folder}: {error.strerror}") from None
    for name in names:
        if _is_weights(name) or not is_regular(folder / name):
            continue
        if name in ("tokenizer_config.json", "config.json", "special_tokens_map.json"):
            settings = _read(folder / name) or {}
            _refuse_code(settings, folder / name)
            plain = {key: value for key, value in settings.items() if not key.endswith("_file")}
            _check_tokens(plain, folder / name)
            _check_added(plain, folder / name)
            (copies / name).write_text(json.dumps(plain))
        else:
            data = read_bytes(folder / name, UserError, TOKENIZER_BYTES)
            if name == "tokenizer.json":
                found = parse_json(data, folder / name, UserError, LARGEST_VOCABULARY)
                _check_added(found if isinstance(found, dict) else {}, folder / name)
            (copies / name).write_bytes(data)


def _check_added(settings: dict[str, Any], path: Path) -> None:
    """Raises where a token says more than transformers knows: that would be printed as it is."""
    tokens = [settings.get(name) for name in (*SPECIAL, "mask_token")]
    for name in LISTED:
        found = settings.get(name)
        tokens += found.values() if isinstance(found, dict) else []
        tokens += found if isinstance(found, list) else []
    for token in tokens:
        if isinstance(token, dict) and not token.keys() <= ADDED:
            raise UserError(f"{path}: a token has unknown settings: {shown(token)}")


def _is_weights(name: str) -> bool:
    return name.endswith(".index.json") or name.startswith(("model", "pytorch_model"))


def _is_fault(error: BaseException) -> bool:
    """Whether it is of the files: a library in Rust may panic at them, which is no Exception."""
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


def _refuse_code(settings: dict[str, Any], path: Path) -> None:
    if CODE in settings:
        raise UserError(
            f"{path} asks for Python code of its own ({CODE}), which is never run; if its "
            f"tokenizer.json does without, remove {CODE} from it, else give a tokenizer that does"
        )


@dataclass(frozen=True)
class Encoding:
    """What a text became."""

    input_ids: list[int]


class Tokenizer:
    """A tokenizer by the names that transformers uses.

    Attributes:
        backend_tokenizer: the `tokenizers.Tokenizer`.
        ends: tokens that end a text, where the checkpoint says more than the tokenizer.
    """

    ends: frozenset[int] = frozenset()

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

    def __call__(self, text: str, add_special_tokens: bool = True) -> Encoding:
        encode = self.backend_tokenizer.encode
        return Encoding(encode(text, add_special_tokens=add_special_tokens).ids)

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
    if settings is None:
        return None
    _refuse_code(settings, folder / "tokenizer_config.json")
    extra = folder / "special_tokens_map.json"  # of older transformers: what the settings say too
    special = _read(extra) or {}
    _check_tokens(settings, folder / "tokenizer_config.json")
    _check_tokens(special, extra)
    plain = (
        not any((folder / name).exists() for name in BESIDE)
        and settings.keys() <= KNOWN
        and settings.get("tokenizer_class") in CLASSES
        and not settings.get("add_prefix_space")
        and all(_content(settings.get(name)) == _content(t) for name, t in special.items())
    )
    return settings if plain else None


def _read(file: Path) -> dict[str, Any] | None:
    """A JSON file's mapping, or None where there is no such file."""
    try:
        return read_mapping(file, UserError, absent=True)
    except FileNotFoundError:
        return None
    except UserError as error:
        raise UserError(f"no tokenizer in {file.parent}: {error}") from None


def _check_tokens(settings: dict[str, Any], path: Path) -> None:
    """Raises a `UserError` where a special token is something else than a text."""
    for name in (*SPECIAL, "mask_token"):
        token = settings.get(name)
        if token is not None and not isinstance(_content(token), str):
            raise UserError(f"{path}: {name} must be a text, not {shown(token)}")


def _backend(folder: Path) -> BackendTokenizer | None:
    try:
        data = read_bytes(folder / "tokenizer.json", UserError, TOKENIZER_BYTES, absent=True)
    except FileNotFoundError:
        return None
    try:
        return BackendTokenizer.from_buffer(data)
    except BaseException as error:  # of no class of its own; transformers says what is wrong
        if not _is_fault(error):
            raise
        return None


def _content(token: Any) -> Any:
    """A special token as the settings write it: its text, or a mapping that has it."""
    return token.get("content") if isinstance(token, dict) else token

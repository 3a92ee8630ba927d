"""A BLOOM checkpoint in one GGUF file, as llama.cpp writes it, read as transformers' tensors.

The `gguf` package reads the file, mapped, and dequantises; rows are independent, so one tensor at a
time is dequantised when it is read. GGUF keeps query, key and value apart, `[3, heads, head_dim]`;
BLOOM has them side by side for each head, `[heads, 3, head_dim]`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from utils.checkpoints.weight_files import CheckpointError, Stored
from utils.escaping import cell
from utils.outside import open_regular

SUFFIX = ".gguf"
MODULES = {
    "token_embd": "word_embeddings",
    "token_embd_norm": "word_embeddings_layernorm",
    "output_norm": "ln_f",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_qkv": "self_attention.query_key_value",
    "attn_output": "self_attention.dense",
    "ffn_norm": "post_attention_layernorm",
    "ffn_up": "mlp.dense_h_to_4h",
    "ffn_down": "mlp.dense_4h_to_h",
}
"""GGUF's names of modules -> transformers'."""

FUSED = "attn_qkv"
PLAIN = {"F32": "float32", "F16": "float16", "F64": "float64"}
TOKENIZER_PATTERNS = {"bloom": r" ?[^(\s|[.,!?…。，、।۔،])]+"}
"""GGUF's name of a pre-tokenizer -> what it splits off; others split as GPT-2 does."""

CONTROL = 3
"""The type of a token that is never text."""


class GgufFile:
    """The tensors of one file, by transformers' names.

    Attributes:
        config: what config.json would say.

    Raises:
        CheckpointError: it cannot be read, or is of another model.
    """

    def __init__(self, path: Path):
        from gguf import GGUFReader  # late: few need it

        self._path = path
        open_regular(path, CheckpointError).close()
        self._fields: dict[str, Any] = {}
        try:
            reader = GGUFReader(path)
            self._fields = {name: field.contents for name, field in reader.fields.items()}
            self._tensors = {plain_name(t.name): t for t in reader.tensors}
        except Exception as error:  # whatever it trips over in a damaged file
            reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
            raise CheckpointError(f"cannot read {path}, which may be damaged: {reason}") from error
        self.config = self._config()
        self._heads = self.config["n_head"]

    mapped = False
    """Most tensors are dequantised or put in another order."""

    @property
    def files(self) -> list[Path]:
        return [self._path]

    def names(self) -> list[str]:
        return list(self._tensors)

    def place(self, name: str) -> Path:
        """The file itself."""
        return self._path

    def stored(self, name: str) -> Stored:
        found = self._tensors[name]
        shape = tuple(int(size) for size in reversed(found.shape))
        # What is quantised is given in float32.
        return Stored(found.name, self._path, shape, PLAIN.get(found.tensor_type.name, "float32"))

    def tensor(self, name: str) -> torch.Tensor:
        from gguf.quants import dequantize

        found, stored = self._tensors[name], self.stored(name)
        try:
            plain = found.tensor_type.name in PLAIN
            data = np.asarray(found.data) if plain else dequantize(found.data, found.tensor_type)
            values = torch.from_numpy(data).reshape(stored.shape)
        except (NotImplementedError, ValueError) as error:
            raise CheckpointError(
                f"{stored} is of type {found.tensor_type.name}, which cannot be read: {error}"
            ) from None
        if FUSED not in found.name:
            return values
        apart = values.reshape(3, self._heads, -1, *values.shape[1:])
        return apart.transpose(0, 1).reshape(values.shape)

    def field(self, name: str, default: Any = None) -> Any:
        """A value of the file's header."""
        read: Callable[[], Any] | None = self._fields.get(name)
        return default if read is None else read()

    def _config(self) -> dict[str, Any]:
        family = self.field("general.architecture", "")
        if family != "bloom":
            raise CheckpointError(
                f"{self._path} is of a model of the family {cell(family)}, this program runs bloom"
            )
        if "word_embeddings.weight" not in self._tensors:
            raise CheckpointError(f"{self._path} has no tensor token_embd.weight")
        return {
            "model_type": family,
            "n_layer": self.field("bloom.block_count"),
            "hidden_size": self.field("bloom.embedding_length"),
            "n_head": self.field("bloom.attention.head_count"),
            "vocab_size": self.stored("word_embeddings.weight").shape[0],
            "layer_norm_epsilon": round(self.field("bloom.attention.layer_norm_epsilon", 1e-5), 12),
            "seq_length": self.field("bloom.context_length"),
            "eos_token_id": self.field("tokenizer.ggml.eos_token_id"),
        }


def plain_name(name: str) -> str:
    """transformers' name of a GGUF tensor, or the name itself where it is none of BLOOM's."""
    match = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)", name)
    if match is None or match[2] not in MODULES:
        return name
    layer = "" if match[1] is None else f"h.{match[1]}."
    return f"{layer}{MODULES[match[2]]}.{match[3]}"


def tokenizer_of(file: GgufFile) -> dict[str, Any]:
    """The content of a tokenizer.json for the vocabulary in a file.

    Raises:
        CheckpointError: it has none, or not one of bytes as GPT-2's and BLOOM's.
    """
    tokens = file.field("tokenizer.ggml.tokens")
    merges = file.field("tokenizer.ggml.merges")
    if file.field("tokenizer.ggml.model") != "gpt2" or not tokens or merges is None:
        raise CheckpointError(
            f"{file.place('')} has no byte-level tokenizer: put a tokenizer.json beside it"
        )
    kinds = file.field("tokenizer.ggml.token_type") or [1] * len(tokens)
    special = [i for i, kind in enumerate(kinds) if kind == CONTROL]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    pattern = TOKENIZER_PATTERNS.get(file.field("tokenizer.ggml.pre", ""))
    if pattern is None:
        split: dict[str, Any] = byte_level | {"use_regex": True}
    else:
        cut = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated"}
        parts = [cut | {"invert": False}, byte_level | {"use_regex": False}]
        split = {"type": "Sequence", "pretokenizers": parts}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {
        "version": "1.0",
        "added_tokens": [
            {"id": i, "content": tokens[i], "special": True, **flags} for i in special
        ],
        "pre_tokenizer": split,
        "decoder": byte_level | {"use_regex": True},
        "model": {
            "type": "BPE",
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": [list(merge.split(" ", 1)) for merge in merges],
            "ignore_merges": False,
        },
    }

"""What a checkpoint says of generating with it: where a text ends, and how it is sampled.

`generation_config.json` counts before `config.json`, and that before the tokenizer, as in
transformers.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from utils.checkpoints.gguf_file import SUFFIX, GgufFile
from utils.escaping import shown
from utils.generation.settings import settings_of
from utils.outside import read_mapping
from utils.setup import UserError

GENERATION, MODEL = "generation_config.json", "config.json"
SAMPLING = ("temperature", "top_k", "top_p", "min_p", "typical_p", "repetition_penalty")
RENAMED = {"num_tokens": "max_new_tokens"}

logger = logging.getLogger(__name__)


def ends_of(folder: Path, tokenizer: Any) -> frozenset[int]:
    """The tokens that end a text; none where nobody says.

    Raises:
        UserError: a file names something else than tokens.
    """
    for name in (GENERATION, MODEL):
        found = _values(folder, name).get("eos_token_id")
        if found is None:
            continue
        tokens = found if isinstance(found, list) else [found]
        if not all(type(token) is int and token >= 0 for token in tokens):
            raise UserError(
                f"{folder / name}: eos_token_id must be a token or a list of tokens, not "
                f"{shown(found)}"
            )
        return frozenset(tokens)
    return frozenset() if tokenizer.eos_token_id is None else frozenset([tokenizer.eos_token_id])


def sampling_of(folder: Path) -> dict[str, Any]:
    """Settings of `utils.generation.settings` that a checkpoint asks for, by name.

    Where it does not ask to sample, the likeliest token is taken, whatever else it says.

    Raises:
        UserError: one is out of bounds.
    """
    values = _values(folder, GENERATION)
    asked = {"num_tokens": values.get(RENAMED["num_tokens"])}
    if values.get("do_sample"):
        asked |= {name: values.get(name) for name in SAMPLING}
        asked["temperature"] = values.get("temperature", 1.0)
    else:
        asked["repetition_penalty"] = values.get("repetition_penalty")
    found = {name: value for name, value in asked.items() if value is not None}
    for name, value in found.items():
        setting = settings_of()[name]
        if type(value) not in (int, float):
            raise UserError(
                f"{folder / GENERATION}: {name} must be {setting.allowed}, not {shown(value)}"
            )
        try:
            setting.check(name, value)
        except UserError as error:
            raise UserError(f"{folder / GENERATION}: {error}") from None
        found[name] = setting.kind(value)
    return found


def tell(found: Mapping[str, Any], given: set[str]) -> None:
    """One line with what is taken from the checkpoint, as nobody gave it."""
    taken = [f"{name} {value}" for name, value in found.items() if name not in given]
    if taken:
        logger.warning("the checkpoint's %s: %s", GENERATION, ", ".join(taken))


def _values(folder: Path, name: str) -> Mapping[str, Any]:
    if folder.suffix == SUFFIX:
        return GgufFile(folder).config if name == MODEL else {}
    try:
        return read_mapping(folder / name, UserError, absent=True)
    except FileNotFoundError:
        return {}

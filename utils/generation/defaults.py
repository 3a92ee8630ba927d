"""What a checkpoint says of generating with it: where a text ends, and how it is sampled.

`generation_config.json` counts before `config.json`, and that before the tokenizer, as in
transformers.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from utils.checkpoints.gguf_file import SUFFIX, GgufFile
from utils.escaping import shown
from utils.generation.settings import settings_of
from utils.outside import read_mapping
from utils.setup import UserError

GENERATION, MODEL = "generation_config.json", "config.json"
SAMPLING = ("temperature", "top_k", "top_p", "min_p", "typical_p", "repetition_penalty")
NUM_TOKENS = "max_new_tokens"
DRAWN = {"temperature": 1.0, "top_k": 50}
"""What transformers takes where tokens are drawn and nobody says how."""

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

    Where it does not ask to sample, the likeliest token is taken, whatever else it says, as
    transformers does; the temperature is 0 where it says that it does not.

    Raises:
        UserError: one is out of bounds.
    """
    values = _values(folder, GENERATION)
    greedy = not values.get("do_sample")
    names = ("repetition_penalty",) if greedy else SAMPLING
    asked = {name: values.get(name) for name in names} | {"num_tokens": values.get(NUM_TOKENS)}
    found = {name: value for name, value in asked.items() if value is not None}
    if not greedy:
        found = DRAWN | found
    elif values.get("do_sample") is False:
        found["temperature"] = 0.0
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


def tell(found: Mapping[str, Any], given: Collection[str] = ()) -> None:
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

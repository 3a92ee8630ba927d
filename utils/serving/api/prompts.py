"""The prompts of a request: texts or token ids, one or many."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from utils.generation.request import check_ids
from utils.generation.text import TextStream
from utils.serving.api.errors import ApiError
from utils.serving.service import Service
from utils.setup import UserError

FORMS = "prompt must be a text, a list of texts, token ids, or a list of lists of token ids"


@dataclass(frozen=True)
class Prompt:
    """Token ids, and the text that they stand for, where it is known."""

    ids: list[int]
    text: str | None


async def read_prompts(
    service: Service,
    given: Any,
    *,
    special: bool = True,
    last: int | None = None,
    with_text: bool = False,
) -> list[Prompt]:
    """The prompts of a body, one or more.

    Args:
        special: with the special tokens that the tokenizer adds to texts, if any.
        last: only so many tokens of each, the last ones.
        with_text: find out what token ids stand for.

    Raises:
        ApiError: they are none, too many, or one of them cannot be used.
    """
    prompts = given if _is_list_of(given, (str, list)) else [given]
    most = service.limits.choices
    if len(prompts) > most:
        raise ApiError(
            400, f"a request may have {most} prompts, not {len(prompts)}", param="prompt"
        )
    try:
        found = [await _read(service, prompt, special, last) for prompt in prompts]
    except UserError as error:
        raise ApiError(400, str(error), param="prompt") from None
    return await asyncio.to_thread(_with_texts, service, found) if with_text else found


def _with_texts(service: Service, prompts: list[Prompt]) -> list[Prompt]:
    return [
        Prompt(p.ids, text_of(service.tokenizer, p.ids)) if p.text is None else p for p in prompts
    ]


async def _read(service: Service, prompt: Any, special: bool, last: int | None) -> Prompt:
    if isinstance(prompt, str):
        ids = await service.ids(prompt, special=special, last=last)
        cut = last is not None and len(ids) == last
        return Prompt(ids, None if cut else prompt)
    if not isinstance(prompt, list) or not all(type(i) is int and i >= 0 for i in prompt):
        raise UserError(f"{FORMS}, which are whole numbers from 0 up")
    ids = prompt if last is None else prompt[-last:]
    return Prompt(check_token_ids(service, ids), None)


def check_token_ids(service: Service, ids: list[int]) -> list[int]:
    """The ids themselves. Raises a `UserError` where they are no prompt for the model."""
    passes = service.engine.passes
    if ids and max(ids) >= passes.vocab_size:
        raise UserError(
            f"token ids must be from 0 to {passes.vocab_size - 1}, not {str(max(ids))[:20]}"
        )
    return check_ids(ids, passes)


def text_of(tokenizer: Any, ids: Sequence[int]) -> str:
    """What tokens add up to, without special ones."""
    stream = TextStream(tokenizer)
    return "".join(stream.push(token) for token in ids) + stream.flush()


def _is_list_of(given: Any, kinds: tuple[type, ...]) -> bool:
    return isinstance(given, list) and bool(given) and all(isinstance(g, kinds) for g in given)

"""Turns of a conversation as one prompt, by the template of a checkpoint's tokenizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from utils.escaping import in_one_line
from utils.generation.request import Room, encode_prompt
from utils.setup import UserError

Message = Mapping[str, str]
"""One turn: its `role` ("system", "user", "assistant") and its `content`."""

NO_TEMPLATE = (
    "the tokenizer has no chat template: give a checkpoint that has one (chat_template in "
    "tokenizer_config.json, or chat_template.jinja), or continue a text without --chat"
)


def chat_text(tokenizer: Any, messages: Sequence[Message]) -> str:
    """The text that the model continues with its turn.

    Raises:
        UserError: the tokenizer has no template, or it refuses the messages.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise UserError(NO_TEMPLATE)
    try:
        text = tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=True
        )
    except Exception as error:  # a template is a program of the checkpoint's
        reason = in_one_line(str(error) or type(error).__name__)[:200]
        raise UserError(f"the chat template refuses the messages: {reason}") from None
    return str(text)


def encode_chat(tokenizer: Any, messages: Sequence[Message], room: Room) -> list[int]:
    """The token ids of `chat_text`, which has the special tokens that it needs.

    Raises:
        UserError: as `chat_text`, or they do not fit the context.
    """
    return encode_prompt(tokenizer, chat_text(tokenizer, messages), room, add_special_tokens=False)

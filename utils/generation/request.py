"""One prompt being continued: its token ids, sampler, text and limits, and a step for each token.

It touches no session: an engine drives it (`utils.generation.engine`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from utils.generation.extras import Extras
from utils.generation.logprobs import PromptLogprobs, TokenLogprob, token_logprob
from utils.generation.lookup import PromptLookup
from utils.generation.sampling import Sampler, SamplingConfig
from utils.generation.text import StopStrings, TextStream
from utils.generation.ticket import FinishReason, Work
from utils.setup import UserError

NO_EXTRAS = Extras()


class Room(Protocol):
    """What a prompt must fit: a session's passes have it."""

    sequence_length: int
    vocab_size: int


@dataclass(frozen=True)
class GenerationStep:
    """One generated token.

    `text` is what the token adds to the text, '' while a character or a possible stop string is
    incomplete; the last step has all that is left. The speeds are None until there is something to
    measure: decoding is timed from the first token on, which the prompt's time ends with.

    Of look-up so far: `verify_passes` made, tokens proposed to them, and how many were right.
    """

    text: str
    token: int
    finish_reason: FinishReason | None
    prompt_tokens: int
    generated_tokens: int
    time_to_first_token: float  # seconds
    tokens_per_second: float | None
    prompt_tokens_per_second: float | None
    verify_passes: int = 0
    proposed_tokens: int = 0
    accepted_tokens: int = 0
    logprob: TokenLogprob | None = None  # where it was asked for


def encode_prompt(
    tokenizer: Any, prompt: str, room: Room, *, last: int | None = None, **options: Any
) -> list[int]:
    """The prompt's token ids.

    Args:
        last: only so many, the last ones.
        options: of the tokenizer.

    Raises:
        UserError: the prompt is empty, longer than the context, or no valid Unicode, or the
            tokenizer is not the model's.
    """
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"the prompt is no valid text at character {error.start}") from None
    ids = list(tokenizer(prompt, **options).input_ids)
    return check_ids(ids if last is None else ids[-last:], room)


def check_ids(ids: list[int], room: Room) -> list[int]:
    """The ids themselves. Raises a `UserError` where they are no prompt for this model."""
    if not ids:
        raise UserError("the prompt must have at least one token, not none: give it some text")
    if len(ids) > room.sequence_length:
        raise UserError(
            f"the prompt has {len(ids)} tokens, but the context (sequence_length) holds "
            f"{room.sequence_length}: shorten the prompt"
        )
    if max(ids) >= room.vocab_size:
        raise UserError(
            f"the prompt has token {max(ids)}, but the model's vocab_size is {room.vocab_size}: "
            "the tokenizer belongs to another model"
        )
    return ids


class Request(Work):
    """The state of one prompt being continued: ids, sampler, text, limits and times.

    `ids` are those of prompt and continuation; the last one is at `position` and, unless the
    request is finished, is what the next decode pass runs.

    Raises:
        UserError: `num_tokens` is not positive, or a stop string is empty.
        ValueError: `ids` are none, or more than the context holds.
    """

    def __init__(
        self,
        ids: Sequence[int],
        tokenizer: Any,
        sampling: SamplingConfig,
        num_tokens: int,
        stop: Sequence[str] = (),
        *,
        sequence_length: int,
        extras: Extras = NO_EXTRAS,
        clock: Callable[[], float] = time.perf_counter,
    ):
        if not 1 <= len(ids) <= sequence_length:
            raise ValueError(f"ids must be 1 to {sequence_length} tokens, not {len(ids)}")
        if num_tokens < 1:
            raise UserError(f"num_tokens must be 1 or more, not {num_tokens}")
        self.ids = list(ids)
        self.prompt_tokens = len(ids)
        self.sampler = Sampler(sampling)
        if extras.score_prompt:
            self.prompt_logprobs = PromptLogprobs(ids, extras.logprobs or 0)
        self._extras = extras
        self._ends = set() if extras.ignore_eos else set(ends_of(tokenizer))
        self._ends |= extras.stop_token_ids
        self._num_tokens = num_tokens
        self._sequence_length = sequence_length
        self._text = TextStream(tokenizer)
        self._stops = StopStrings(stop)
        self._lookup = PromptLookup(())
        self._clock = clock
        self._started = self._first = clock()

    @property
    def generated_tokens(self) -> int:
        return len(self.ids) - self.prompt_tokens

    def start(self, lookup: PromptLookup) -> None:
        """Times count from here, as prefill begins; `lookup` is told of the tokens chosen."""
        self._started, self._lookup = self._clock(), lookup

    def accept(self, logits: np.ndarray) -> GenerationStep:
        """Chooses the next token from its logits `[vocab_size]` and says what it adds.

        Raises:
            RuntimeError: the request is finished.
            UserError: the logits are not finite numbers.
        """
        if self.finished:
            raise RuntimeError(f"the request is finished ({self.finish_reason}): start another")
        extras = self._extras
        token = self.sampler(extras.shaped(logits), self.ids, self.prompt_tokens)
        self.ids.append(token)
        self._lookup.confirm(token)
        if extras.constraint is not None:
            extras.constraint.advance(token)
        count = extras.logprobs
        logprob = None if count is None else token_logprob(logits, token, count)
        text = self._stops.push(self._text.push(token))
        self.finish_reason = self._reason_to_finish(token)
        if self.finished:
            text += self._stops.push(self._text.flush()) + self._stops.flush()
        return self._step(text, token, logprob)

    def _reason_to_finish(self, token: int) -> FinishReason | None:
        constraint = self._extras.constraint
        if token in self._ends or (constraint is not None and constraint.complete):
            return "end_of_text"
        if self._stops.found is not None:
            return "stop_string"
        if self.generated_tokens >= self._num_tokens:
            return "budget"
        if self.position >= self._sequence_length:
            return "context_full"
        return None

    def _step(self, text: str, token: int, logprob: TokenLogprob | None) -> GenerationStep:
        now = self._clock()
        if self.generated_tokens == 1:
            self._first = now
        return GenerationStep(
            text=text,
            token=token,
            finish_reason=self.finish_reason,
            prompt_tokens=self.prompt_tokens,
            generated_tokens=self.generated_tokens,
            time_to_first_token=self._first - self._started,
            tokens_per_second=_rate(self.generated_tokens - 1, now - self._first),
            prompt_tokens_per_second=_rate(self.prompt_tokens, self._first - self._started),
            verify_passes=self._lookup.passes,
            proposed_tokens=self._lookup.proposed,
            accepted_tokens=self._lookup.accepted,
            logprob=logprob,
        )


class PromptScore(Work):
    """The engine's work for the log-likelihoods of a prompt's tokens: prefill and no decoding.

    Its one event is the list of them, as `PromptLogprobs.found` has it.
    """

    def __init__(self, ids: Sequence[int], count: int):
        self.ids = list(ids)
        self.prompt_logprobs = PromptLogprobs(ids, count)

    def accept(self, logits: np.ndarray) -> list[TokenLogprob | None]:
        """All log-likelihoods; what would follow the prompt is not asked."""
        self.finish_reason = "done"
        return self.prompt_logprobs.found


def ends_of(tokenizer: Any) -> frozenset[int]:
    """The tokens that end a text: what the checkpoint says, else the tokenizer's."""
    return frozenset(getattr(tokenizer, "ends", None) or {tokenizer.eos_token_id})


def _rate(count: int, seconds: float) -> float | None:
    return count / seconds if count and seconds > 0 else None

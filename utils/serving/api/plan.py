"""What a request wants run: how many texts of which prompts, with which settings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from utils.generation.extras import Constraint, Extras
from utils.generation.request import PromptScore, Request
from utils.generation.settings import GenerationSettings
from utils.serving.api.errors import ApiError
from utils.serving.api.prompts import Prompt
from utils.serving.api.schema import SETTINGS
from utils.serving.given_settings import checked
from utils.serving.service import Service
from utils.setup import UserError

DEFAULTS = {"temperature": 1.0}
"""Where OpenAI's API has another default than the settings; the checkpoint's counts before it."""


@dataclass(frozen=True)
class Plan:
    """The texts of one request.

    Attributes:
        each: texts of a prompt that are made, of which `shown` are the answer.
        max_tokens: of a text; 0 makes none.
        extras: of every text, but for the constraint, which each has of its own.
    """

    prompts: list[Prompt]
    each: int
    shown: int
    max_tokens: int
    settings: GenerationSettings
    extras: Extras
    constraint: Callable[[], Constraint] | None = None

    def work(self, service: Service, number: int) -> Request | PromptScore:
        """That of a number: those of the first prompt come first.

        Raises:
            UserError: the constraint cannot be followed.
        """
        prompt, which = self.prompts[number // self.each], number % self.each
        if not self.max_tokens:
            return PromptScore(prompt.ids, self.extras.logprobs or 0)
        settings = self.settings
        assert settings.seed is not None
        extras = self.extras
        if self.constraint is not None:
            extras = replace(extras, constraint=self.constraint())
        return Request(
            prompt.ids,
            service.tokenizer,
            replace(settings, seed=settings.seed + which),
            self.max_tokens,
            settings.stop,
            sequence_length=service.engine.passes.sequence_length,
            extras=extras,
        )

    def __len__(self) -> int:
        return len(self.prompts) * self.each


def settings_of_body(service: Service, body: Any, max_tokens: int) -> GenerationSettings:
    """The settings of a body, with a seed.

    Raises:
        ApiError: they are not possible.
    """
    given = {name: value for name in SETTINGS if (value := getattr(body, name)) is not None}
    stop = [body.stop] if isinstance(body.stop, str) else body.stop or []
    values = {**given, "stop": stop, "num_tokens": max(max_tokens, 1)}
    defaults = {**DEFAULTS, **service.defaults}
    try:
        return checked(values, service.max_tokens, service.limits, defaults)
    except UserError as error:
        raise ApiError(400, str(error)) from None


def extras_of_body(service: Service, body: Any, logprobs: int | None, score: bool) -> Extras:
    """What a body asks besides settings. Raises an `ApiError` where that is not possible."""
    most, vocab_size = service.limits.logprobs, service.engine.passes.vocab_size
    if logprobs is not None and logprobs > most:
        raise ApiError(
            400, f"log-likelihoods of at most {most} tokens are told, not {logprobs}",
            param="logprobs",
        )  # fmt: skip
    ends = frozenset(body.stop_token_ids or ())
    if ends and max(ends) >= vocab_size:
        raise ApiError(400, _no_token(max(ends), vocab_size), param="stop_token_ids")
    return Extras(
        logprobs=logprobs,
        score_prompt=score,
        logit_bias=_bias(body.logit_bias or {}, vocab_size),
        ignore_eos=bool(body.ignore_eos),
        stop_token_ids=ends,
    )


def _bias(given: dict[str, float], vocab_size: int) -> dict[int, float]:
    found = {}
    for token, bias in given.items():
        if not token.isdecimal() or len(token) > 9 or int(token) >= vocab_size:
            raise ApiError(400, _no_token(token[:20], vocab_size), param="logit_bias")
        found[int(token)] = bias
    return found


def _no_token(token: Any, vocab_size: int) -> str:
    return f"token ids are from 0 to {vocab_size - 1}, not {str(token)[:20]!r}"


def tokens_asked(service: Service, given: int | None, default: int) -> int:
    """The most tokens of a text, 0 or more, and no more than the server gives.

    Raises:
        ApiError: it is negative.
    """
    if given is not None and given < 0:
        raise ApiError(400, f"max_tokens must be 0 or more, not {given}", param="max_tokens")
    return min(default if given is None else given, service.max_tokens)


def check_count(service: Service, prompts: int, each: int) -> None:
    """Raises an `ApiError` where a request would make too many texts."""
    most = service.limits.choices
    if prompts * each > most:
        raise ApiError(
            400, f"a request may have {most} texts in all, not {prompts} times {each}", param="n"
        )


def check_logprobs(service: Service, plan: Plan) -> None:
    """Raises an `ApiError` where an answer would have more log-likelihoods than one may."""
    if plan.extras.logprobs is None:
        return
    most, tokens = service.limits.logprobs_in_all, len(plan) * plan.max_tokens
    if plan.extras.score_prompt:
        tokens += plan.each * sum(len(prompt.ids) for prompt in plan.prompts)
    if (count := tokens * (plan.extras.logprobs + 1)) > most:
        raise ApiError(
            400, f"an answer may have {most} log-likelihoods, not {count}: ask for fewer texts, "
            "tokens or logprobs", param="logprobs",
        )  # fmt: skip

"""One choice of an answer: its text and log-likelihoods as they come, and why it ended."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from utils.generation.logprobs import TokenLogprob
from utils.generation.request import GenerationStep
from utils.generation.text import TextStream, token_bytes
from utils.generation.ticket import Ticket
from utils.serving.api.errors import ApiError
from utils.serving.api.prompts import Prompt

FINISH = {
    "end_of_text": "stop",
    "stop_string": "stop",
    "budget": "length",
    "context_full": "length",
    "time_limit": "length",
    "done": "length",
}
"""Why a text ended -> how OpenAI's API calls it."""


class Choice:
    """Collects what an engine says of one work.

    Attributes:
        generated_tokens, generated_logprob: so far; the latter where log-likelihoods are asked for.
        finish: why it ended, in OpenAI's words; None until then.
    """

    def __init__(self, prompt: Prompt, echo: bool = False):
        self._prompt, self._echo = prompt, echo
        self.generated_tokens = 0
        self.generated_logprob = 0.0
        self.finish: str | None = None

    def add(
        self, ticket: Ticket, events: Sequence[Any]
    ) -> tuple[str, list[int], list[TokenLogprob | None]]:
        """What is new: text, the tokens it is told of, and their log-likelihoods.

        Raises:
            ApiError: the server ended it.
        """
        text, tokens, found = "", [], []
        if events and self._echo:
            self._echo = False
            text = self._prompt.text or ""
            scores = ticket.work.prompt_logprobs
            if scores is not None:
                tokens, found = list(self._prompt.ids), list(scores.found)
        for step in events:
            if isinstance(step, GenerationStep):
                text += step.text
                tokens.append(step.token)
                if step.logprob is not None:
                    found.append(step.logprob)
                    self.generated_logprob += step.logprob.logprob
        self.generated_tokens = ticket.generated_tokens
        if ticket.end is not None and ticket.end.reason != "error":  # whose error comes next
            self.finish = self._reason(ticket.end.reason)
        return text, tokens, found

    @property
    def mean_logprob(self) -> float:
        """Of a generated token: by it the best of several texts are chosen."""
        return self.generated_logprob / max(self.generated_tokens, 1)

    @staticmethod
    def _reason(reason: str) -> str:
        if reason not in FINISH:
            raise ApiError(503, "the server is shutting down: the text was not finished")
        return FINISH[reason]


class LogprobsForm:
    """Log-likelihoods of one choice as completions have them.

    Each token has the place in the choice's text where it begins.
    """

    def __init__(self, tokenizer: Any, top: int):
        self._tokenizer, self._top = tokenizer, top
        self._text = TextStream(tokenizer)
        self._length = 0

    def of(self, tokens: Sequence[int], found: Sequence[TokenLogprob | None]) -> dict[str, Any]:
        """Of the tokens that come next."""
        offsets = []
        for token in tokens:
            offsets.append(self._length)
            self._length += len(self._text.push(token))
        return {
            "tokens": [token_name(self._tokenizer, token) for token in tokens],
            "token_logprobs": [None if one is None else one.logprob for one in found],
            "top_logprobs": [self._likeliest(one) for one in found] if self._top else None,
            "text_offset": offsets,
        }

    def _likeliest(self, found: TokenLogprob | None) -> dict[str, float] | None:
        if found is None:
            return None
        names = unique_names(self._tokenizer, [token for token, _ in found.top])
        return dict(zip(names, (chance for _, chance in found.top), strict=True))


class ChatLogprobsForm:
    """Log-likelihoods of one choice as chats have them."""

    def __init__(self, tokenizer: Any):
        self._tokenizer = tokenizer

    def of(self, tokens: Sequence[int], found: Sequence[TokenLogprob | None]) -> dict[str, Any]:
        """Of the tokens that come next."""
        content = [
            {
                **self._named(one.token, one.logprob),
                "top_logprobs": [self._named(*likely) for likely in one.top],
            }
            for one in found
            if one is not None
        ]
        return {"content": content, "refusal": None}

    def _named(self, token: int, logprob: float) -> dict[str, Any]:
        name, data = token_name(self._tokenizer, token), token_bytes(self._tokenizer, token)
        return {"token": name, "logprob": logprob, "bytes": list(data)}


def token_name(tokenizer: Any, token: int) -> str:
    r"""Its text; `bytes:\xe2\x80` for what is no whole character, as OpenAI writes it."""
    data = token_bytes(tokenizer, token)
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def unique_names(tokenizer: Any, tokens: Sequence[int]) -> list[str]:
    """Names of several tokens, told apart by their ids where they would be the same."""
    names = [token_name(tokenizer, token) for token in tokens]
    return [
        name if names.count(name) == 1 else f"{name}<{token}>"
        for name, token in zip(names, tokens, strict=True)
    ]


def joined(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The log-likelihoods of all parts of a text."""
    whole: dict[str, Any] = {}
    for part in parts:
        for key, value in part.items():
            whole[key] = whole.get(key, []) + value if isinstance(value, list) else value
    return whole

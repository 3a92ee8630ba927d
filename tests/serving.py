"""For tests of the engine and the page: passes that can be held up, a server in this process."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from reference import TransformersPasses
from transformers import BloomForCausalLM

from utils.generation import Engine, Request, SamplingConfig
from utils.generation.request import encode_prompt
from utils.serving.service import Service

TIMEOUT = 60
"""Seconds after which a test that waits has failed; none waits for time to pass."""


class ReferencePasses(TransformersPasses):
    """transformers' BLOOM in chunks of 4, noting each pass in `log`.

    The log has `("prefill", slot)`, `("score", slot)`, `("decode", slots)` and
    `("verify", (slot, tokens))`.
    """

    def __init__(self, *arguments: Any, **settings: Any):
        super().__init__(*arguments, **settings)
        self.log: list[tuple[str, Any]] = []

    def prefill_chunk(
        self, slot: int, tokens: Sequence[int], start: int
    ) -> tuple[int, np.ndarray | None]:
        self.log.append(("prefill", slot))
        return super().prefill_chunk(slot, tokens, start)

    def score_chunk(self, slot: int, tokens: Sequence[int], start: int) -> np.ndarray:
        self.log.append(("score", slot))
        return super().score_chunk(slot, tokens, start)

    def decode(self, tokens: np.ndarray, positions: np.ndarray, slots: np.ndarray) -> np.ndarray:
        self.log.append(("decode", slots.tolist()))
        return super().decode(tokens, positions, slots)

    def verify(self, slot: int, tokens: Sequence[int], position: int) -> np.ndarray:
        self.log.append(("verify", (slot, len(tokens))))
        return super().verify(slot, tokens, position)


class ScriptedPasses(ReferencePasses):
    """Continues any prompt with the tokens of a text and then with the end of text, or for ever.

    The end of text is everywhere the second likeliest.
    """

    def __init__(
        self,
        tokenizer: Any,
        text: str,
        batch_size: int = 1,
        sequence_length: int = 512,
        endless: bool = False,
    ):
        self.batch_size, self.sequence_length = batch_size, sequence_length
        self.vocab_size = len(tokenizer)
        self.log = []
        self._rows = np.zeros((batch_size, sequence_length), np.int64)
        self._text, self._end = tokenizer(text).input_ids, tokenizer.eos_token_id
        self._endless = endless
        self._begin = [0] * batch_size

    def prefill_chunk(
        self, slot: int, tokens: Sequence[int], start: int
    ) -> tuple[int, np.ndarray | None]:
        self._begin[slot] = len(tokens)
        return super().prefill_chunk(slot, tokens, start)

    def _logits(self, row: int, length: int) -> np.ndarray:
        logits = np.full(self.vocab_size, -20, np.float32)
        logits[self._end] = -15  # so far behind that no temperature of a test draws it
        logits[self._token(max(length - self._begin[row], 0))] = 0
        return logits

    def _token(self, number: int) -> int:
        if self._endless:
            return self._text[number % len(self._text)]
        return self._text[number] if number < len(self._text) else self._end


class HeldPasses:
    """Passes that wait for leave: `let(n)` lets the next n pass, `let_all` those that follow.

    At first all pass; `hold` has the next ones wait.
    """

    def __init__(self, passes: ReferencePasses):
        self.passes = passes
        self.batch_size, self.sequence_length = passes.batch_size, passes.sequence_length
        self.vocab_size, self.verify_sizes = passes.vocab_size, passes.verify_sizes
        self._leave = threading.Semaphore(0)
        self._held = False

    def prefill_chunks(self, prompts: Sequence[Any]) -> list[tuple[int, np.ndarray | None]]:
        self._wait()
        return self.passes.prefill_chunks(prompts)

    def score_chunk(self, slot: int, tokens: Sequence[int], start: int) -> np.ndarray:
        self._wait()
        return self.passes.score_chunk(slot, tokens, start)

    def decode(self, tokens: np.ndarray, positions: np.ndarray, slots: np.ndarray) -> np.ndarray:
        self._wait()
        return self.passes.decode(tokens, positions, slots)

    def verify(self, slot: int, tokens: Sequence[int], position: int) -> np.ndarray:
        self._wait()
        return self.passes.verify(slot, tokens, position)

    def hold(self) -> None:
        self._leave = threading.Semaphore(0)
        self._held = True

    def let(self, count: int) -> None:
        self._leave.release(count)

    def let_all(self) -> None:
        self._held = False
        self._leave.release(1)

    def _wait(self) -> None:
        while self._held and not self._leave.acquire(timeout=0.05):
            pass  # `hold` may have put another semaphore there meanwhile


@dataclass(frozen=True)
class Served:
    """A page that is served from this process."""

    url: str
    service: Service
    engine: Engine
    passes: Any
    tokenizer: Any

    def running(self) -> int:
        return self.engine.statistics().running

    def request(self, prompt: str, num_tokens: int = 16, **sampling: Any) -> Request:
        """A request for the engine itself."""
        return request(self.passes, self.tokenizer, prompt, num_tokens, **sampling)


@contextmanager
def served(
    passes: Any, tokenizer: Any, *, auth: Any = None, hosts: Any = None, **options: Any
) -> Iterator[Served]:
    """Page and API on `passes`, at a port that was free.

    `options` are those of the engine, the service and `build_app`.
    """
    from utils.serving.web_server import serving  # late: Gradio takes seconds

    names = ("max_tokens", "log_prompts", "limits")
    ours = {name: options.pop(name) for name in names if name in options}
    web = {name: options.pop(name) for name in ("keys", "page", "root_path") if name in options}
    with Engine(passes, **options) as engine:
        service = Service(engine, tokenizer, **ours)
        allowed = {} if hosts is None else {"hosts": hosts}
        with serving(service, auth, **allowed, **web) as address:
            yield Served(address, service, engine, passes, tokenizer)


def request(
    passes: Any, tokenizer: Any, prompt: str, num_tokens: int = 16, **sampling: Any
) -> Request:
    """A request for an engine on these passes."""
    return Request(
        encode_prompt(tokenizer, prompt, passes),
        tokenizer,
        SamplingConfig(**sampling),
        num_tokens,
        sequence_length=passes.sequence_length,
    )


def generated_text(
    model: BloomForCausalLM, tokenizer: Any, prompt: str, num_tokens: int = 16
) -> str:
    """What transformers' own `generate` continues a prompt with, greedily."""
    inputs = tokenizer(prompt, return_tensors="pt")
    with torch.no_grad():
        output = model.generate(
            **inputs,
            max_new_tokens=num_tokens,
            do_sample=False,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=3,
        )
    return tokenizer.decode(output[0, inputs.input_ids.shape[1] :], skip_special_tokens=True)


def advance_until(site: Served, holds: Callable[[], bool]) -> None:
    """Let passes that are held up go, ten a second, until it does: a text that is to be stopped
    must not have come to its end before a busy machine has noticed that."""
    polls = itertools.count()

    def holds_now() -> bool:
        if next(polls) % 10 == 0:
            site.passes.let(1)
        return holds()

    wait_until(holds_now)


def wait_until(holds: Callable[[], bool]) -> None:
    """Returns once it does; an error if it never does."""
    pause = threading.Event()
    for _ in range(TIMEOUT * 100):
        if holds():
            return
        pause.wait(0.01)
    raise AssertionError("what was waited for never came")

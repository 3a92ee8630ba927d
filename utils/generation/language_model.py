"""A loaded model: `generate` continues a prompt, `stream_generate` does so token by token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from utils.generation.engine import Engine, Progress
from utils.generation.request import GenerationStep, Request, encode_prompt
from utils.generation.sampling import SamplingConfig

if TYPE_CHECKING:
    from utils.generation.passes import Passes

NUM_TOKENS = 64


@dataclass(frozen=True)
class LanguageModel:
    """What continues text: a session's passes and the tokenizer of its checkpoint."""

    passes: Passes
    tokenizer: Any

    @cached_property
    def engine(self) -> Engine:
        """What runs its requests: several at once share the slots that `batch_size` gives it."""
        return Engine(self.passes)


@dataclass(frozen=True)
class Generation:
    """A generated text.

    Attributes:
        tokens: the ids that it is made of.
        last: the step that ended it, with counts, speeds and the reason.
    """

    text: str
    tokens: list[int]
    last: GenerationStep

    @classmethod
    def of(cls, steps: Sequence[GenerationStep]) -> Generation:
        """What a request's steps add up to."""
        return cls("".join(s.text for s in steps), [s.token for s in steps], steps[-1])


def stream_generate(
    model: LanguageModel,
    prompt: str,
    sampling: SamplingConfig | None = None,
    *,
    num_tokens: int = NUM_TOKENS,
    stop: Sequence[str] = (),
    progress: Progress = lambda *_: None,
) -> Iterator[GenerationStep]:
    """Continue a prompt, a step a token.

    The iterator may be closed or interrupted at any time: nothing is left to undo. Several may be
    iterated in turn, or in threads; each step runs what all of them wait for.

    Args:
        sampling: how tokens are chosen; by default the likeliest one.
        num_tokens: to be generated at most, 1 or more.
        stop: texts before which it ends.
        progress: called after each chunk with the tokens of the prompt done, and all it has.

    Raises:
        UserError: when called, before anything runs: the prompt is empty or longer than the
            context, or a setting of the request is out of bounds.
    """
    ids = encode_prompt(model.tokenizer, prompt, model.passes)
    request = Request(
        ids,
        model.tokenizer,
        sampling or SamplingConfig(),
        num_tokens,
        stop,
        sequence_length=model.passes.sequence_length,
    )
    return model.engine.run(request, progress)


def generate(
    model: LanguageModel,
    prompt: str,
    sampling: SamplingConfig | None = None,
    *,
    num_tokens: int = NUM_TOKENS,
    stop: Sequence[str] = (),
) -> Generation:
    """Continue a prompt; the whole text. Arguments and errors are those of `stream_generate`."""
    steps = stream_generate(model, prompt, sampling, num_tokens=num_tokens, stop=stop)
    return Generation.of(list(steps))

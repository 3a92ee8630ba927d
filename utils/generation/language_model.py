"""A loaded model: `generate` continues a prompt, `stream_generate` does so token by token."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from utils.generation.chat import Message, encode_chat
from utils.generation.engine import Engine, Progress
from utils.generation.request import GenerationStep, Request, encode_prompt
from utils.generation.sampling import SamplingConfig
from utils.generation.settings import settings_of

if TYPE_CHECKING:
    from utils.generation.passes import Passes

NUM_TOKENS = settings_of()["num_tokens"].default


@dataclass(frozen=True)
class LanguageModel:
    """What continues text: a session's passes and the tokenizer of its checkpoint.

    Attributes:
        defaults: what the checkpoint says of sampling and of the number of tokens, by name; see
            `utils.generation.defaults`.
    """

    passes: Passes
    tokenizer: Any
    defaults: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def engine(self) -> Engine:
        """What runs its requests: several at once share the slots that `batch_size` gives it."""
        return Engine(self.passes)

    @property
    def sampling(self) -> SamplingConfig:
        """How tokens are chosen where nobody says: as the checkpoint asks, else the likeliest."""
        return SamplingConfig(**{n: v for n, v in self.defaults.items() if n != "num_tokens"})


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
    prompt: str | Sequence[Message],
    sampling: SamplingConfig | None = None,
    *,
    num_tokens: int | None = None,
    stop: Sequence[str] = (),
    progress: Progress = lambda *_: None,
) -> Iterator[GenerationStep]:
    """Continue a prompt, a step a token.

    The iterator may be closed or interrupted at any time: nothing is left to undo. Several may be
    iterated in turn, or in threads; each step runs what all of them wait for.

    Args:
        prompt: a text, or the turns of a conversation, `{"role": …, "content": …}` each, for the
            tokenizer's chat template.
        sampling: how tokens are chosen; as the checkpoint's generation_config.json says where None,
            and the likeliest one where that says nothing.
        num_tokens: to be generated at most, 1 or more; the checkpoint's, else 64, where None.
        stop: texts before which it ends.
        progress: called after each chunk with the tokens of the prompt done, and all it has.

    Raises:
        UserError: when called, before anything runs: the prompt is empty or longer than the
            context, there is no chat template, or a setting of the request is out of bounds.
    """
    encode: Any = encode_prompt if isinstance(prompt, str) else encode_chat
    ids = encode(model.tokenizer, prompt, model.passes)
    if num_tokens is None:
        num_tokens = model.defaults.get("num_tokens", NUM_TOKENS)
    request = Request(
        ids,
        model.tokenizer,
        sampling or model.sampling,
        num_tokens,
        stop,
        sequence_length=model.passes.sequence_length,
    )
    return model.engine.run(request, progress)


def generate(
    model: LanguageModel,
    prompt: str | Sequence[Message],
    sampling: SamplingConfig | None = None,
    *,
    num_tokens: int | None = None,
    stop: Sequence[str] = (),
) -> Generation:
    """Continue a prompt; the whole text. Arguments and errors are those of `stream_generate`."""
    steps = stream_generate(model, prompt, sampling, num_tokens=num_tokens, stop=stop)
    return Generation.of(list(steps))

"""Continue a prompt with BLOOM: one shot, or asking for prompts in a terminal.

    python run_inference.py --prompt "And the king said" --num_tokens 40
    echo "And the king said" | python run_inference.py --temperature 0.8 --top_k 40 --json
    python run_inference.py

On stdout is the text alone; what is said about it goes to stderr.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from simple_parsing import field
from tqdm import tqdm

from config import BloomConfig, parse_arguments
from utils import distributed
from utils.generation.request import (
    GenerationStep,
    check_num_tokens,
    encode_prompt,
    stream_generate,
)
from utils.generation.sampling import SamplingConfig
from utils.generation.text import StopStrings
from utils.setup import UserError, run_script, setup_logging
from utils.writing import say, summary, write

if TYPE_CHECKING:
    from utils.terminal import Answers

DESCRIPTION = (
    "Continue a prompt with BLOOM. Without --prompt, it is read from standard input if that is a "
    "pipe or file, and asked for if it is a terminal."
)


@dataclass
class GenerationArguments:
    """What to continue, and how."""

    prompt: str | None = field(
        default=None, nargs=None, metavar="TEXT", help="the text to continue, once"
    )
    temperature: float = field(
        default=0.0, help="0 takes the likeliest token, more gives the others a chance"
    )
    top_k: int = field(default=0, help="choose among this many likeliest tokens; 0 is off")
    top_p: float = field(
        default=1.0, help="choose among the likeliest tokens of this probability in all; 1 is off"
    )
    repetition_penalty: float = field(
        default=1.0, help="over 1 makes tokens that were there before less likely; 1 is off"
    )
    num_tokens: int = field(default=64, help="generate at most this many tokens, 1 or more")
    seed: int | None = field(
        default=None, nargs=None, metavar="int", help="repeats what was drawn with this seed"
    )
    stop: list[str] = field(
        default_factory=list,
        action="append",
        nargs=None,
        type=str,
        metavar="TEXT",
        help="end before this text; may be given several times",
    )
    no_stream: bool = field(
        default=False, action="store_true", help="print the text once it is complete"
    )
    json: bool = field(
        default=False, action="store_true", help="print one JSON object with text, ids and times"
    )

    def __post_init__(self) -> None:
        # argparse takes the value of `--stop=--` for the end of options, and gives [] for it.
        self.stop = ["--" if isinstance(text, list) else text for text in self.stop]
        self.prompt = "--" if isinstance(self.prompt, list) else self.prompt

    def sampling(self) -> SamplingConfig:
        """The sampling settings. Raises a `UserError` for one that is out of bounds."""
        names = [setting.name for setting in dataclasses.fields(SamplingConfig)]
        return SamplingConfig(**{name: getattr(self, name) for name in names})


@dataclass(frozen=True)
class Generator:
    """A loaded model with the settings of the command line."""

    loaded: Any  # with `passes` and `tokenizer`
    arguments: GenerationArguments

    def steps(
        self,
        prompt: str,
        sampling: SamplingConfig,
        num_tokens: int,
        between_chunks: Callable[[], None] = lambda: None,
    ) -> Iterator[GenerationStep]:
        """Steps of `stream_generate`, with a progress bar while the prompt is run."""
        passes, tokenizer = self.loaded.passes, self.loaded.tokenizer
        total = len(encode_prompt(tokenizer, prompt, passes))
        # On a terminal only (`disable=None`), and only if it takes longer than two seconds.
        with tqdm(
            desc="prompt", total=total, unit="token", delay=2, leave=False, disable=None
        ) as bar:

            def progress(tokens: int) -> None:
                bar.update(tokens)
                between_chunks()

            for step in stream_generate(
                passes,
                tokenizer,
                prompt,
                sampling,
                num_tokens=num_tokens,
                stop=self.arguments.stop,
                progress=progress,
            ):
                bar.close()
                yield step

    def answer(self, answers: Answers, between_chunks: Callable[[], None]) -> Iterator:
        """Steps for what was answered in the terminal."""
        sampling = dataclasses.replace(
            self.arguments.sampling(), temperature=answers.temperature, top_k=answers.top_k
        )
        return self.steps(answers.prompt, sampling, answers.num_tokens, between_chunks)


def main(
    argv: Sequence[str] | None = None, load: Callable[[BloomConfig], Any] | None = None
) -> int:
    """Run the command line; the exit status.

    Args:
        load: gives an object with `passes` and `tokenizer`; that of `utils.generation` if None.

    Raises:
        UserError, ConfigError: for arguments, or a prompt, that are not possible.
    """
    config, arguments = parse_arguments(
        argv, extra=GenerationArguments, prog="run_inference.py", description=DESCRIPTION
    )
    setup_logging(config.execution.log_level)
    check(arguments)
    distributed.join(config)  # before what only the leader does, and may fail at
    prompt = given_prompt(arguments) if distributed.leads() else None
    generator = Generator((load or load_model)(config), arguments)
    if prompt is not None:
        return one_shot(generator, prompt)
    from utils.terminal import Answers, Terminal  # late: one shot needs no line editor

    defaults = Answers("", arguments.temperature, arguments.top_k, arguments.num_tokens)
    return Terminal(generator.answer, defaults).run()


def load_model(config: BloomConfig) -> Any:
    """The model's session and tokenizer."""
    from utils.generation import (
        loading,  # late: it takes seconds, which wrong arguments should not wait for
    )

    return loading.load(config)


def check(arguments: GenerationArguments) -> None:
    """Raises a `UserError` for a setting that is out of bounds, before the model is loaded."""
    arguments.sampling()
    check_num_tokens(arguments.num_tokens)
    StopStrings(arguments.stop)


def given_prompt(arguments: GenerationArguments) -> str | None:
    """The prompt of the command line or of a pipe, without the end of its last line, or None.

    Raises:
        UserError: it is empty, or not UTF-8.
    """
    prompt = arguments.prompt
    if prompt is None and sys.stdin is not None:  # it is None where standard input is closed
        if sys.stdin.isatty():
            return None
        try:
            prompt = sys.stdin.buffer.read().decode()
        except UnicodeDecodeError as error:
            raise UserError(f"standard input is not UTF-8 at byte {error.start}") from None
        prompt = prompt.removesuffix("\n").removesuffix("\r")
    if not prompt:
        raise UserError("the prompt is empty: give --prompt TEXT, or text on standard input")
    return prompt


def one_shot(generator: Generator, prompt: str) -> int:
    """Print the continuation of one prompt on stdout; the exit status."""
    arguments = generator.arguments
    sampling = arguments.sampling().seeded()
    stream = not (arguments.no_stream or arguments.json)
    steps: list[GenerationStep] = []
    try:
        for step in generator.steps(prompt, sampling, arguments.num_tokens):
            steps.append(step)
            write(step.text if stream else "")
    except KeyboardInterrupt:
        if stream and steps:
            write("\n")  # the shell's prompt goes on a line of its own
        raise
    text, last = "".join(step.text for step in steps), steps[-1]
    if arguments.json:
        print(as_json(arguments, sampling, prompt, text, steps))
    else:
        write("\n" if stream else text + "\n")
    say(summary(last, str(last.finish_reason), None if sampling.greedy else sampling.seed))
    return 0


def as_json(
    arguments: GenerationArguments,
    sampling: SamplingConfig,
    prompt: str,
    text: str,
    steps: list[GenerationStep],
) -> str:
    """One generation as a JSON object; `settings` repeats it, as its seed is the one in use."""
    last = steps[-1]
    settings = dataclasses.asdict(sampling)
    settings.update(num_tokens=arguments.num_tokens, stop=arguments.stop)
    result = {
        "prompt": prompt,
        "text": text,
        "tokens": last.generated_tokens,
        "ids": [step.token for step in steps],
        "finish_reason": last.finish_reason,
        "prompt_tokens": last.prompt_tokens,
        "time_to_first_token": last.time_to_first_token,
        "tokens_per_second": last.tokens_per_second,
        "prompt_tokens_per_second": last.prompt_tokens_per_second,
        "settings": settings,
    }
    if last.verify_passes:
        names = ("verify_passes", "proposed_tokens", "accepted_tokens")
        result["lookup"] = {name: getattr(last, name) for name in names}
    return json.dumps(result, ensure_ascii=sys.stdout.isatty()).replace("\x7f", "\\u007f")


if __name__ == "__main__":
    run_script(main)

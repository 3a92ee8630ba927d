"""Continue a prompt with BLOOM: one shot, or asking for prompts in a terminal.

    python run_inference.py --prompt "And the king said" --num_tokens 40
    echo "And the king said" | python run_inference.py --temperature 0.8 --top_k 40 --json
    python run_inference.py

On stdout is the text alone; what is said about it goes to stderr.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from config import BloomConfig
from config.options import field
from utils import distributed
from utils.checkpoints.arguments import parse_model_arguments, with_defaults
from utils.generation.chat import Message, chat_text
from utils.generation.language_model import Generation, LanguageModel, stream_generate
from utils.generation.request import GenerationStep
from utils.generation.settings import TEXT, GenerationSettings, settings_of, with_line_ends
from utils.setup import UserError, run_script, setup_logging
from utils.writing import as_json, as_object, say, summary, write

DESCRIPTION = (
    "Continue a prompt with BLOOM. Without --prompt, it is read from standard input if that is a "
    "pipe or file, and asked for if it is a terminal."
)


@dataclass(frozen=True)
class GenerationArguments(GenerationSettings):
    """What to continue, how, and how to show it."""

    prompt: str | None = field(default=None, help="continue this text, and leave")
    chat: bool = field(
        default=False,
        help="answer the prompt as a turn of a conversation, by the tokenizer's chat template; "
        "at the interactive prompt turns are kept until /new",
    )
    no_stream: bool = field(default=False, help="print the text once it is complete")
    json: bool = field(
        default=False, help="print one JSON object with text, token ids, times and settings"
    )
    input: str | None = field(
        default=None,
        metavar="FILE",
        help="continue all prompts of a file, one a line: plain text, or in .jsonl objects with a "
        "prompt and settings; --batch_size of them at once, 8 unless it is given",
    )
    output: str | None = field(
        default=None,
        metavar="FILE",
        help="write a JSON object a prompt here, in order; where it has some already, go on",
    )

    def settings(self) -> GenerationSettings:
        """Those of the request alone."""
        values = {name: getattr(self, name) for name in settings_of()}
        return GenerationSettings(**values | {"stop": tuple(map(with_line_ends, self.stop))})


@dataclass(frozen=True)
class Generator:
    """A loaded model with the settings of the command line.

    Attributes:
        turns: of the conversation so far, where there is one.
    """

    model: LanguageModel
    arguments: GenerationArguments
    turns: list[Message] = dataclasses.field(default_factory=list)

    def steps(
        self,
        prompt: str,
        settings: GenerationSettings,
        between_chunks: Callable[[], None] = lambda: None,
    ) -> Iterator[GenerationStep]:
        """What continues the prompt, or answers it where `--chat` is given."""
        if not self.arguments.chat:
            yield from self._steps(prompt, settings, between_chunks)
            return
        asked, answer = {"role": "user", "content": prompt}, ""
        steps = self._steps([*self.turns, asked], settings, between_chunks)
        try:
            for step in steps:
                answer += step.text
                yield step
        except UserError as error:
            hint = "; /new forgets the turns before" if self.turns else ""
            raise UserError(f"{error}{hint}") from None
        finally:  # an answer that is interrupted counts as far as it was shown
            if answer:
                self.turns.extend([asked, {"role": "assistant", "content": answer}])

    def _steps(
        self,
        prompt: str | Sequence[Message],
        settings: GenerationSettings,
        between_chunks: Callable[[], None],
    ) -> Iterator[GenerationStep]:
        """Steps of `stream_generate`, with a progress bar while the prompt is read."""
        # On a terminal only (`disable=None`), and only if it takes longer than two seconds.
        with tqdm(desc="prompt", unit="token", delay=2, leave=False, disable=None) as bar:

            def progress(done: int, total: int) -> None:
                bar.total = total
                bar.update(done - bar.n)
                between_chunks()

            for step in stream_generate(
                self.model,
                prompt,
                settings,
                num_tokens=settings.num_tokens,
                stop=settings.stop,
                progress=progress,
            ):
                bar.close()
                yield step


def main(
    argv: Sequence[str] | None = None,
    load: Callable[[BloomConfig], LanguageModel] | None = None,
) -> int:
    """Run the command line; the exit status.

    Args:
        load: gives the model; that of `utils.generation` if None.

    Raises:
        UserError, ConfigError: for arguments, or a prompt, that are not possible.
    """
    config, arguments = parse_model_arguments(
        argv,
        extra=GenerationArguments,
        title=TEXT,
        extra_of=checkpoint_defaults if load is None else None,
        prog="run_inference.py",
        description=DESCRIPTION,
    )
    config = for_a_file(config, arguments, sys.argv[1:] if argv is None else argv)
    setup_logging(config.execution.log_level)
    distributed.join(config)  # before what only the leader does, and may fail at
    if arguments.input is not None:
        return from_file(config, arguments, load or load_model)
    prompt = given_prompt(arguments) if distributed.leads() else None
    if arguments.chat and load is None and distributed.leads():
        check_template(config)
    generator = Generator((load or load_model)(config), arguments)
    if prompt is not None:
        return one_shot(generator, prompt)
    from utils.terminal import Terminal  # late: one shot needs no line editor

    forget = generator.turns.clear if arguments.chat else None
    return Terminal(generator.steps, arguments.settings(), forget).run()


def for_a_file(
    config: BloomConfig, arguments: GenerationArguments, argv: Sequence[str]
) -> BloomConfig:
    """The settings with several slots, where prompts come from a file and nobody says how many.

    Raises:
        UserError: options that do not go together.
    """
    if (arguments.input is None) != (arguments.output is None):
        raise UserError("--input and --output belong together: give both files")
    if arguments.input is None:
        return config
    for name in ("prompt", "chat", "no_stream", "json"):
        if getattr(arguments, name):
            raise UserError(f"--{name} is not for --input, whose answers are JSON lines")
    return with_defaults(config, {"batch_size": 8}, argv)


def from_file(
    config: BloomConfig,
    arguments: GenerationArguments,
    load: Callable[[BloomConfig], LanguageModel],
) -> int:
    """Continue the prompts of a file; the exit status."""
    if not distributed.leads():
        load(config)  # and follow
    from utils.offline import Answers, Prompts  # late: one shot needs none of it

    prompts = Prompts(str(arguments.input), arguments.settings())
    with Answers(str(arguments.output), prompts) as answers:
        say(answers.run(load(config)))
    return 0


def checkpoint_defaults(config: BloomConfig, given: set[str]) -> dict[str, Any]:
    """What the checkpoint says of sampling, told in a line where it is not given.

    Raises:
        UserError: it says what is not possible.
    """
    from utils.checkpoints.arguments import described
    from utils.generation import defaults  # late, as wrong arguments should not wait for torch

    found = defaults.sampling_of(described(config))
    if distributed.leads():
        defaults.tell(found, given)
    return found


def check_template(config: BloomConfig) -> None:
    """Return if the checkpoint's tokenizer has a chat template; else raises a `UserError`.

    It is opened for that before the weights, which may take long.
    """
    from utils.checkpoints.arguments import described  # late, as above
    from utils.generation.tokenizer import load_tokenizer

    chat_text(load_tokenizer(described(config)), [{"role": "user", "content": "Hello"}])


def load_model(config: BloomConfig) -> LanguageModel:
    """The configured model; its defaults are told already."""
    from utils.generation.loading import open_model  # late: wrong arguments should not wait for it

    return open_model(config)


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
    settings = arguments.settings().seeded()
    stream = not (arguments.no_stream or arguments.json)
    steps: list[GenerationStep] = []
    try:
        for step in generator.steps(prompt, settings):
            steps.append(step)
            write(step.text if stream else "")
    except KeyboardInterrupt:
        if stream and steps:
            write("\n")  # the shell's prompt goes on a line of its own
        raise
    found = Generation.of(steps)
    if arguments.json:
        print(as_json(as_object(settings, prompt, found)))
    else:
        write("\n" if stream else found.text + "\n")
    seed = None if settings.greedy else settings.seed
    say(summary(found.last, str(found.last.finish_reason), seed))
    return 0


if __name__ == "__main__":
    run_script(main)

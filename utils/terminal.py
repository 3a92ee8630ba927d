"""The interactive prompt: asks what to continue and how, and shows the text as it comes."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import Protocol, TypeVar

from prompt_toolkit import PromptSession
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.output import create_output

from utils import distributed
from utils.generation.request import GenerationStep, check_num_tokens
from utils.generation.sampling import SamplingConfig
from utils.setup import UserError
from utils.writing import for_terminal, say, summary, write

WELCOME = "Enter keeps the value in brackets. Ctrl-C stops a text, Ctrl-D leaves."
INTERRUPTED = 128 + signal.SIGINT
SHOWN_PROMPT = 40  # characters of the last prompt shown in brackets

Number = TypeVar("Number", int, float)


@dataclass(frozen=True)
class Answers:
    """What the interactive prompt asks for; each is the default of the next round."""

    prompt: str = ""
    temperature: float = 0.0
    top_k: int = 0
    num_tokens: int = 64


# Continues what the answers ask for, and calls its second argument between the prompt's chunks.
Generate = Callable[[Answers, Callable[[], None]], Iterator[GenerationStep]]


class Terminal:
    """Asks for prompts and shows their continuations, until Ctrl-D.

    What is asked and said goes to the terminal or stderr. On stdout is the continuation, after its
    prompt if that is a terminal.
    """

    def __init__(self, generate: Generate, defaults: Answers):
        self._generate = generate
        self._last = defaults
        kind: type[Lines] = PlainLines if is_dumb() else EditedLines
        self._prompts = kind(prompt_history)
        self._values = {
            name: kind(InMemoryHistory) for name in ("Temperature", "Top-k", "Number of tokens")
        }

    def run(self) -> int:
        """Rounds of question and text; the exit status, which is 0."""
        say(WELCOME)
        with Noted():
            while True:
                try:
                    self._last = self._ask()
                    self._show(self._last)
                except KeyboardInterrupt:  # Ctrl-C drops the answers of this round
                    continue
                except EOFError:
                    return 0

    def _ask(self) -> Answers:
        last = self._last
        return Answers(
            self._ask_prompt(),
            self._ask_number("Temperature", float, last.temperature, check_temperature),
            self._ask_number("Top-k", int, last.top_k, check_top_k),
            self._ask_number("Number of tokens", int, last.num_tokens, check_num_tokens),
        )

    def _ask_prompt(self) -> str:
        last = self._last.prompt
        hint = f" [{_shortened(last)}]" if last else ""
        while True:
            prompt = self._prompts.ask(f"Prompt{hint}: ") or last
            if prompt:
                return prompt
            say("error: the prompt must have some text")

    def _ask_number(
        self, name: str, kind: type[Number], last: Number, check: Callable[[Number], object]
    ) -> Number:
        while True:
            text = self._values[name].ask(f"{name} [{last}]: ").strip()
            if not text:
                return last
            try:
                value = _parse(name, kind, text)
                check(value)
            except UserError as error:
                say(f"error: {error}")
            else:
                return value

    def _show(self, answers: Answers) -> None:
        """Write the continuation as it comes, then how it went."""
        step, ended_by = None, "interrupted"
        with Interrupt() as interrupt:
            try:
                for step in self._generate(answers, interrupt.check):
                    if step.generated_tokens == 1 and sys.stdout.isatty():
                        sys.stdout.write(marked(answers.prompt))
                    write(step.text)
                    ended_by = step.finish_reason or ended_by
                    interrupt.check()
            except KeyboardInterrupt:
                pass
            except UserError as error:
                say(f"error: {error}")
                return
        write("\n")
        say(summary(step, ended_by))


class Lines(Protocol):
    """Asks for lines of one kind.

    Args:
        history: makes what keeps them.
    """

    def __init__(self, history: Callable[[], History]): ...

    def ask(self, question: str) -> str:
        """The answer. Raises KeyboardInterrupt for Ctrl-C, EOFError for Ctrl-D."""


class EditedLines(Lines):
    """Lines that can be edited, with those before them."""

    def __init__(self, history: Callable[[], History]):
        output = create_output(always_prefer_tty=True)  # also if stdout is redirected
        self._session: PromptSession[str] = PromptSession(history=history(), output=output)

    def ask(self, question: str) -> str:
        with Noted(self._interrupt):
            # Its own handler would leave Python's for a moment, which raises anywhere.
            return self._session.prompt(question, handle_sigint=False)

    def _interrupt(self) -> None:
        """As if Ctrl-C was typed; while a line is edited it is a key, and no signal."""
        application = self._session.app
        if application.is_running and application.loop is not None:
            application.loop.call_soon_threadsafe(application.key_processor.send_sigint)


class PlainLines(Lines):
    """Lines as the terminal itself edits them, for one that knows no escape sequences."""

    def __init__(self, history: Callable[[], History]):
        pass

    def ask(self, question: str) -> str:
        shown = sys.stdout if sys.stdout.isatty() else sys.stderr
        try:
            with Noted(_raise):
                shown.write(question)
                shown.flush()
                line = sys.stdin.readline()
        except KeyboardInterrupt:
            shown.write("\n")
            raise
        if not line:
            shown.write("\n")
            raise EOFError
        return line.rstrip("\r\n")


def _raise() -> None:
    raise KeyboardInterrupt


class Noted:
    """Handles Ctrl-C as told while something runs, and else drops it: it raises nowhere else."""

    def __init__(self, handle: Callable[[], None] = lambda: None):
        self._handle = handle

    def __enter__(self) -> None:
        self._previous = signal.signal(signal.SIGINT, lambda *_: self._handle())

    def __exit__(self, *exception: object) -> None:
        signal.signal(signal.SIGINT, self._previous)


class Interrupt:
    """Catches Ctrl-C while something runs, so that it ends between two steps and not within one.

    The first is only noted, for `check` to raise. A second one raises at once, for a step that
    takes too long to wait for. One that a launcher passes on ends the script.
    """

    def __init__(self) -> None:
        self._noted = False

    def __enter__(self) -> Interrupt:
        self._previous = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        signal.signal(signal.SIGINT, self._previous)

    def check(self) -> None:
        """Raises KeyboardInterrupt if there was a Ctrl-C."""
        if self._noted:
            raise KeyboardInterrupt

    def _note(self, number: int, frame: FrameType | None) -> None:
        if distributed.launched():
            sys.exit(INTERRUPTED)
        self.check()
        self._noted = True


class OwnerFileHistory(FileHistory):
    """A history file that its owner alone can read. One that cannot be written is no error."""

    def __init__(self, path: Path):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.touch(mode=0o600)
        path.chmod(0o600)
        super().__init__(str(path))

    def store_string(self, string: str) -> None:
        with suppress(OSError):
            super().store_string(string)


def prompt_history() -> History:
    """The prompts of earlier runs, kept in `$XDG_STATE_HOME/bloom/prompt_history`."""
    try:
        state = Path(os.environ.get("XDG_STATE_HOME", ""))
        if not state.is_absolute():  # unset, or to be ignored as the specification says
            state = Path.home() / ".local" / "state"
        return OwnerFileHistory(state / "bloom" / "prompt_history")
    except (OSError, RuntimeError):  # no home folder, or one that cannot be written
        return InMemoryHistory()


def check_temperature(value: float) -> None:
    SamplingConfig(temperature=value)


def check_top_k(value: int) -> None:
    SamplingConfig(top_k=value)


def _parse(name: str, kind: type[Number], text: str) -> Number:
    try:
        return kind(text)
    except ValueError:
        wanted = "whole number" if kind is int else "number"
        raise UserError(f"{name.lower()} must be a {wanted}, not {text!r}") from None


def _shortened(prompt: str) -> str:
    line = " ".join(prompt.split())
    return line if len(line) <= SHOWN_PROMPT else line[: SHOWN_PROMPT - 1] + "…"


def marked(prompt: str) -> str:
    """The prompt, told apart from what follows: faint, or in brackets where there is no colour."""
    prompt = for_terminal(prompt)
    plain = os.environ.get("NO_COLOR") or is_dumb()
    return f"[{prompt}]" if plain else f"\x1b[2m{prompt}\x1b[0m"


def is_dumb() -> bool:
    """Whether the terminal is said to know no escape sequences."""
    return os.environ.get("TERM", "").lower() in ("", "dumb", "unknown")

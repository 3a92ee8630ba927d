"""The interactive prompt: asks what to continue and how, and shows the text as it comes."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Protocol

import popdist
from prompt_toolkit import PromptSession
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.output import create_output

from utils.generation.request import GenerationStep
from utils.generation.settings import GenerationSettings, settings_of
from utils.setup import UserError
from utils.writing import for_terminal, say, summary, write

WELCOME = "Enter keeps the value in brackets. Ctrl-C stops a text, quit or Ctrl-D leaves."
AFTER_FIRST = "From now on only the prompt is asked for: /settings and /set change the rest."
COMMANDS = """\
/settings         show all settings
/set NAME VALUE   change one, such as: /set temperature 0.8
/help             show these lines
/new              forget the turns before, where --chat keeps them
quit              leave, as Ctrl-D does"""
INTERRUPTED = 128 + signal.SIGINT
SHOWN_PROMPT = 40  # characters of the last prompt shown in brackets
ASKED = ("temperature", "top_k", "num_tokens")
"""Settings that are asked for once, before the first text."""

# Continues a prompt as the settings say; calls its last argument between the prompt's chunks.
Generate = Callable[[str, GenerationSettings, Callable[[], None]], Iterator[GenerationStep]]


class Terminal:
    """Asks for prompts and shows their continuations, until Ctrl-D.

    What is asked and said goes to the terminal or stderr. On stdout is the continuation, after its
    prompt if that is a terminal.

    Args:
        forget: begins a conversation anew; None where each prompt is on its own.
    """

    def __init__(
        self,
        generate: Generate,
        settings: GenerationSettings,
        forget: Callable[[], None] | None = None,
    ):
        self._generate = generate
        self._forget = forget
        self._settings = settings
        self._prompt = ""
        self._asked = False
        kind: type[Lines] = PlainLines if is_dumb() else EditedLines
        self._prompts, self._values = kind(prompt_history), kind(InMemoryHistory)

    def run(self) -> int:
        """Rounds of question and text; the exit status, which is 0."""
        say(WELCOME)
        with Noted():
            while True:
                try:
                    self._round()
                except KeyboardInterrupt:  # Ctrl-C drops the answers of this round
                    continue
                except EOFError:
                    return 0

    def _round(self) -> None:
        """Ask, and show a text. Raises EOFError where the person leaves."""
        prompt, settings, first = self._ask_prompt(), self._settings, not self._asked
        for name in ASKED if first else ():
            settings = self._ask_setting(name, settings)
        self._prompt, self._settings, self._asked = prompt, settings, True
        self._show(prompt, settings)
        if first:
            say(AFTER_FIRST)

    def _ask_prompt(self) -> str:
        """A text to continue; commands before it are obeyed."""
        hint = f" [{_shortened(self._prompt)}]" if self._prompt else ""
        while True:
            line = self._prompts.ask(f"Prompt{hint}: ") or self._prompt
            command, _, rest = line.strip().partition(" ")
            if line.strip() in ("quit", "/quit"):
                raise EOFError
            if command == "/help":
                say(COMMANDS)
            elif command == "/settings":
                say(_listed(self._settings))
            elif command == "/set":
                self._set(rest)
            elif command == "/new" and self._forget is not None:
                self._forget()
                say("The conversation begins anew.")
            elif line:
                return line
            else:
                say("error: the prompt must have some text")

    def _set(self, words: str) -> None:
        """Obey `/set NAME VALUE`."""
        name, _, text = words.strip().partition(" ")
        try:
            self._settings = _changed(self._settings, name.replace("-", "_"), text.strip())
        except UserError as error:
            say(f"error: {error}")

    def _ask_setting(self, name: str, settings: GenerationSettings) -> GenerationSettings:
        question = f"{settings_of()[name].control.label} [{getattr(settings, name)}]: "
        while True:
            text = self._values.ask(question).strip()
            if not text:
                return settings
            try:
                return _changed(settings, name, text)
            except UserError as error:
                say(f"error: {error}")

    def _show(self, prompt: str, settings: GenerationSettings) -> None:
        """Write the continuation as it comes, then how it went."""
        step, ended_by = None, "interrupted"
        with Interrupt() as interrupt:
            try:
                for step in self._generate(prompt, settings, interrupt.check):
                    if step.generated_tokens == 1 and sys.stdout.isatty():
                        sys.stdout.write(marked(prompt) + ("\n" if self._forget else ""))
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
        before = signal.signal(signal.SIGTERM, self._terminate)
        try:
            with Noted(self._interrupt):
                # Its own handler would leave Python's for a moment, which raises anywhere.
                return self._session.prompt(question, handle_sigint=False, pre_run=_drop_surplus)
        finally:
            signal.signal(signal.SIGTERM, before)

    def _terminate(self, number: int, _: FrameType | None) -> None:
        """End as SIGTERM does, but with the terminal as it was before a line was edited."""
        application, leaving = self._session.app, SystemExit(128 + number)
        if not application.is_running or application.loop is None:
            raise leaving
        signal.signal(number, signal.SIG_IGN)  # it exits once
        application.loop.call_soon_threadsafe(partial(application.exit, exception=leaving))

    def _interrupt(self) -> None:
        """As if Ctrl-C was typed; while a line is edited it is a key, and no signal."""
        application = self._session.app
        if application.is_running and application.loop is not None:
            application.loop.call_soon_threadsafe(application.key_processor.send_sigint)


def _drop_surplus() -> None:
    """Have the event loop that starts drop the signals that it has no room for: Python would
    print a traceback for each."""

    def drop() -> None:
        descriptor = signal.set_wakeup_fd(-1)
        if descriptor != -1:
            signal.set_wakeup_fd(descriptor, warn_on_full_buffer=False)

    asyncio.get_running_loop().call_soon(drop)


class PlainLines(Lines):
    """Lines as the terminal itself edits them, for one that knows no escape sequences."""

    def __init__(self, history: Callable[[], History]):
        pass

    def ask(self, question: str) -> str:
        shown = sys.stdout if sys.stdout.isatty() else sys.stderr
        try:
            with Noted(_raise, once=True):
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
    """Handles Ctrl-C as told while something runs, and else drops it: it raises nowhere else.

    Args:
        handle: what to do.
        once: drop those after the first; one that raises is so not raised again on its way out.
    """

    def __init__(self, handle: Callable[[], None] = lambda: None, once: bool = False):
        self._handle, self._once = handle, once

    def __enter__(self) -> None:
        self._previous = signal.signal(signal.SIGINT, self._note)

    def __exit__(self, *exception: object) -> None:
        self._handle = lambda: None  # one that comes now raises nothing
        signal.signal(signal.SIGINT, self._previous)

    def _note(self, number: int, frame: FrameType | None) -> None:
        handle = self._handle
        if self._once:
            self._handle = lambda: None
        handle()


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

    def __exit__(self, *exception: object) -> None:
        signal.signal(signal.SIGINT, self._previous)

    def check(self) -> None:
        """Raises KeyboardInterrupt if there was a Ctrl-C."""
        if self._noted:
            raise KeyboardInterrupt

    def _note(self, number: int, frame: FrameType | None) -> None:
        if popdist.isPopdistEnvSet():  # the launcher has it, too
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


def _changed(settings: GenerationSettings, name: str, text: str) -> GenerationSettings:
    """With another value of a setting, as it was typed. Raises a `UserError`."""
    known = settings_of()
    if name not in known:
        raise UserError(f"there is no setting {name[:40]!r}; there are {', '.join(known)}")
    return replace(settings, **{name: known[name].parsed(name, text)})


def _listed(settings: GenerationSettings) -> str:
    """A line for each setting: name, value, and what it does."""
    lines = []
    for name, found in settings_of().items():
        value = getattr(settings, name)
        shown = "none" if value in (None, ()) else str(value)
        lines.append(f"{name:20}{shown:10}{found.help}")
    return "\n".join(lines)


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

"""The front end in a real pseudo-terminal, for tests, and the person who sits at it."""

from __future__ import annotations

import os
import pty
import shlex
import sys
import termios
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pexpect
import ptyprocess
import warm_python

TESTS = Path(__file__).resolve().parent
SCRIPTED = [sys.executable, str(TESTS / "run_scripted.py")]
REAL = [sys.executable, str(TESTS.parent / "run_inference.py")]
ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "COLUMNS")},
    "TERM": "xterm",
    "PROMPT_TOOLKIT_NO_CPR": "1",  # pexpect answers no question for the cursor's position
    "PYTHONPATH": str(TESTS.parent / "runtime"),
    "OMP_NUM_THREADS": "2",
}
EVIL = "\x1b]0;title\x07 \x1b[2J\x9b1m\r\tend"  # sets the title, clears the screen, goes back
QUESTIONS = ("Prompt", "Temperature", "Top-k", "Number of tokens")
DEFAULTS = ("", "0.0", "0", "64")


class Forked(pexpect.spawn):
    """As `pexpect.spawn` of a Python command, forked by `warm_python`."""

    def _spawnpty(self, args: list[bytes], **options: Any) -> ptyprocess.PtyProcess:
        return ForkedPty([word.decode() for word in args], **options)


class ForkedPty(ptyprocess.PtyProcess):
    """A process whose terminal is a new one; it is no child of this process."""

    def __init__(self, words: list[str], dimensions: tuple[int, int], env: Any, cwd: Any, **_: Any):
        own, its = pty.openpty()
        termios.tcsetwinsize(own, dimensions)
        streams = dict.fromkeys(("stdin", "stdout", "stderr"), its)
        self.process = warm_python.Popen(words, terminal=True, env=env, cwd=cwd, **streams)
        os.close(its)
        super().__init__(self.process.pid, own)

    def wait(self) -> int | None:
        self.process.wait()
        self.isalive()
        return self.exitstatus

    def isalive(self) -> bool:
        status = self.process.poll()
        if status is not None:
            self.exitstatus, self.signalstatus = (status, None) if status >= 0 else (None, -status)
        return status is None


@contextmanager
def terminal(
    tmp_path: Path,
    text: str = "some words",
    *,
    program: Sequence[str] = SCRIPTED,
    options: str = "",
    **environment: str,
) -> Iterator[pexpect.spawn]:
    """A program in a terminal, where the scripted one gives `text` to every prompt.

    `options` are as in a shell, redirections included.
    """
    environment = {"XDG_STATE_HOME": str(tmp_path), "SCRIPTED_TEXT": text, **environment}
    if ">" in options:
        start, words = pexpect.spawn, ["/bin/sh", "-c", f'exec "$@" {options}', "sh", *program]
    else:
        start, words = Forked, [*program, *shlex.split(options)]
    child = start(
        words[0],
        words[1:],
        cwd=TESTS.parent,
        env={**ENVIRONMENT, **environment},
        encoding="utf-8",
        timeout=60,
        dimensions=(40, 200),
    )
    child.delaybeforesend = None  # what is typed before it is asked for waits in the terminal
    child.ptyproc.delayafterclose = 0
    try:
        yield child
    finally:
        child.close(force=True)


def answer(
    child: pexpect.spawn, *answers: str, first: int = 0, defaults: Sequence[str] = DEFAULTS
) -> None:
    """Answers questions in turn from the `first` on, once they show their defaults in brackets."""
    for index, reply in enumerate(answers, first):
        hint = f" [{defaults[index]}]" if defaults[index] else ""
        child.expect_exact(f"{QUESTIONS[index]}{hint}:")
        child.send(reply + "\r")


def settled(child: pexpect.spawn) -> str:
    """What it shows until a prompt stands there and nothing has followed it for two seconds.

    A Ctrl-C that is still under way would drop what is typed next.
    """
    seen = ""
    while True:
        try:
            seen += child.read_nonblocking(1 << 16, timeout=2)
        except pexpect.TIMEOUT:
            if "Prompt:" in seen.rpartition("^C")[2]:
                return seen


def leave(child: pexpect.spawn) -> None:
    """Ctrl-D at the prompt; the process must end with status 0."""
    child.expect("Prompt.*:")
    child.sendeof()
    child.expect(pexpect.EOF)
    assert child.wait() == 0

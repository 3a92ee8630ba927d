"""The front end in a real pseudo-terminal, for tests, and the person who sits at it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pexpect

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
    child = pexpect.spawn(
        "/bin/sh",
        ["-c", f'exec "$@" {options}', "sh", *program],
        cwd=TESTS.parent,
        env={**ENVIRONMENT, **environment},
        encoding="utf-8",
        timeout=60,
        dimensions=(40, 200),
    )
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


def leave(child: pexpect.spawn) -> None:
    """Ctrl-D at the prompt; the process must end with status 0."""
    child.expect("Prompt.*:")
    child.sendeof()
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0

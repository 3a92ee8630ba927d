"""What a script says and writes: lines on stderr, generated text on stdout."""

from __future__ import annotations

import sys

from utils.escaping import escaped as for_terminal
from utils.generation.request import GenerationStep

__all__ = ["for_terminal", "say", "show", "summary", "write"]


def summary(step: GenerationStep | None, ended_by: str, seed: int | None = None) -> str:
    """One line on a generation: from its last step, None if there was none, and its seed if any."""
    if step is None:
        return f"0 tokens, ended by: {ended_by}"
    parts = [
        f"{step.generated_tokens} token{'s' if step.generated_tokens > 1 else ''}",
        f"first after {step.time_to_first_token:.2f} s",
    ]
    if step.tokens_per_second is not None:
        parts.append(f"{step.tokens_per_second:.1f} tokens/s")
    if step.proposed_tokens:
        parts.append(f"{step.accepted_tokens} of {step.proposed_tokens} proposed tokens right")
    if seed is not None:
        parts.append(f"seed {seed}")
    return ", ".join([*parts, f"ended by: {ended_by}"])


def say(line: str) -> None:
    """Writes a line that is not generated text: to stderr."""
    print(for_terminal(line), file=sys.stderr, flush=True)


def show(text: str) -> None:
    """Writes lines for a person to stdout: a table, a summary."""
    print(for_terminal(text))


def write(text: str) -> None:
    """Writes generated text to stdout, at once. Where that is a terminal, it cannot control it."""
    sys.stdout.write(for_terminal(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()

"""What a script says and writes: lines on stderr, generated text on stdout."""

from __future__ import annotations

import sys

from utils.generation import GenerationStep


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
    print(line, file=sys.stderr, flush=True)


def write(text: str) -> None:
    """Writes generated text to stdout, at once. Where that is a terminal, it cannot control it."""
    sys.stdout.write(for_terminal(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def for_terminal(text: str) -> str:
    r"""Text that cannot control a terminal: control characters but \n and \t shown as \x1b."""
    return text.translate(ESCAPED)


ESCAPED = {
    code: f"\\x{code:02x}" for code in [*range(0x20), *range(0x7F, 0xA0)] if chr(code) not in "\n\t"
}

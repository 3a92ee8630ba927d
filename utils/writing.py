"""What a script says and writes: lines on stderr, generated text on stdout."""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import Any

from utils.escaping import escaped as for_terminal
from utils.generation.language_model import Generation
from utils.generation.request import GenerationStep
from utils.generation.settings import GenerationSettings

__all__ = ["as_json", "as_object", "for_terminal", "say", "show", "summary", "write"]


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


def as_object(settings: GenerationSettings, prompt: str, found: Generation) -> dict[str, Any]:
    """One generation for JSON; `settings` repeats it, as its seed is the one in use."""
    last = found.last
    result = {
        "prompt": prompt,
        "text": found.text,
        "tokens": last.generated_tokens,
        "ids": found.tokens,
        "finish_reason": last.finish_reason,
        "prompt_tokens": last.prompt_tokens,
        "time_to_first_token": last.time_to_first_token,
        "tokens_per_second": last.tokens_per_second,
        "prompt_tokens_per_second": last.prompt_tokens_per_second,
        "settings": dataclasses.asdict(settings),
    }
    if last.verify_passes:
        names = ("verify_passes", "proposed_tokens", "accepted_tokens")
        result["lookup"] = {name: getattr(last, name) for name in names}
    return result


def as_json(found: dict[str, Any]) -> str:
    """One line of JSON, which cannot control a terminal."""
    return json.dumps(found, ensure_ascii=sys.stdout.isatty()).replace("\x7f", "\\u007f")

"""What the page says."""

from __future__ import annotations

from dataclasses import dataclass

from utils.serving.service import Progress

TITLE = "BLOOM"

INTRODUCTION = """\
# BLOOM

BLOOM **continues text**, in 46 languages and 13 programming languages. It is no chat partner and \
follows no orders: write the beginning of what you would like to read, and it goes on. To have a \
task done, show it a few times first (*few-shot*), as some of the examples do. What it writes can \
be **wrong or offensive**: it repeats what texts say, and knows nothing of what is true.
"""

EXPLANATION = """\
**Temperature** 0 takes the likeliest token each time, so that the same prompt gives the same \
text. Higher values give unlikely tokens a better chance: more variety, and more nonsense.

**Top-k** and **top-p** leave only the likeliest tokens to choose from: the first *k*, or as many \
as it takes to reach the probability *p*. They do nothing at temperature 0.

**Repetition penalty** over 1 makes tokens less likely that were there before.
"""

PROMPT_PLACEHOLDER = "The beginning of a text. Shift+Enter generates."
NUM_TOKENS_HINT = "The most to generate; {context} with the prompt."
NEXT_TOKEN_HINT = (
    "The ten likeliest next tokens for the prompt as it stands. Click one to append it."
)
NO_TEXT = (
    "{shown} has no text of its own to append: it is the end of the text, or a part of a character "
    "that takes several tokens."
)
STOP_HINT = "Ends before any of these, one a line; \\n is a line end."

REASONS = {
    "end_of_text": "end of text",
    "stop_string": "stop string",
    "budget": "token budget",
    "context_full": "context full",
    "done": "done",
    "stopped": "stopped",
    "time_limit": "time limit",
    "shutdown": "end of the server",
}
"""Why a generation ended."""


@dataclass(frozen=True)
class Example:
    """A prompt to click, with the settings that suit it."""

    name: str
    prompt: str
    num_tokens: int
    temperature: float = 0.0
    stop: str = ""


EXAMPLES = (
    Example("A story", "The old man climbed the stairs of the lighthouse, and", 64, 0.7),
    Example("What is a dog?", "A dog is", 32),
    Example(
        "Translation",
        "English: Good morning.\nFrench: Bonjour.\nSpanish: Buenos días.\nPortuguese: Bom dia.\n\n"
        "English: Thank you very much.\nFrench: Merci beaucoup.\nSpanish: Muchas gracias.\n"
        "Portuguese: Muito obrigado.\n\nEnglish: Where is the station?\nFrench:",
        48,
        stop="\\n\\n",
    ),
    Example("Arithmetic", "3 + 4 = 7\n8 + 1 = 9\n2 + 2 = 4\n5 + 3 =", 8, stop="\\n"),
    Example(
        "Code",
        'def mean(numbers):\n    """Return the mean of a list of numbers."""\n',
        64,
        stop="\\ndef",
    ),
    Example(
        "Questions and answers",
        "Question: What is the capital of France?\nAnswer: Paris\n\n"
        "Question: What is the capital of Italy?\nAnswer:",
        8,
        stop="\\n",
    ),
)


def status(progress: Progress) -> str:
    """One line on how far a generation is, or how it ended."""
    if progress.end_reason is None and progress.place:
        return f"waiting: number {progress.place} in the queue"
    if progress.end_reason is None and not progress.generated_tokens:
        return f"reading the prompt: {progress.prompt_done} of {progress.prompt_tokens} tokens"
    parts = [_counted(progress.generated_tokens, "token")]
    if progress.time_to_first_token is not None:
        wait = progress.queue_wait or 0
        queued = f" ({wait:.1f} s of it in the queue)" if wait >= 0.1 else ""
        parts.append(f"first after {progress.time_to_first_token:.2f} s{queued}")
    if progress.tokens_per_second is not None:
        parts.append(f"{progress.tokens_per_second:.1f} tokens/s")
    if progress.seed is not None:
        parts.append(f"seed {progress.seed}")
    if progress.end_reason is not None:
        parts.append(f"ended by: {REASONS[progress.end_reason]}")
    return ", ".join(parts)


def _counted(count: int, thing: str) -> str:
    return f"{count} {thing}" if count == 1 else f"{count} {thing}s"

"""What the page says."""

from __future__ import annotations

from dataclasses import dataclass

from utils.serving.about import About
from utils.serving.service import Progress

TITLE = "BLOOM"

COMPLETES = """\
It **continues text**: it is no chat partner and follows no orders. Write the beginning of what \
you would like to read, and it goes on. To have a task done, show it a few times first \
(*few-shot*)."""
FOLLOWS = """\
It **does what a text asks for**: a question, a translation, a summary. Say clearly where the task \
ends."""
WARNING = """\
What it writes can be **wrong or offensive**: it repeats what texts say, and knows nothing of what \
is true."""

PROMPT_PLACEHOLDER = "The beginning of a text."
PROMPT_HINT = "Shift+Enter generates."
MORE = "More settings"
CONTEXT_HINT = "Prompt and text together have at most {context} tokens."
NEXT_TOKEN_HINT = (
    "The ten likeliest next tokens for the prompt as it stands. Click one to append it."
)
NO_OUTPUT = "The text appears here."

NO_TEXT = (
    "{shown} has no text of its own to append: it is the end of the text, or a part of a character "
    "that takes several tokens."
)

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
    large: bool = False  # too much for a model of a few million parameters, in English alone


EXAMPLES = (
    Example("A tale", "Once upon a time there was a king who", 64, 0.7),
    Example("A story", "The old man climbed the stairs of the lighthouse, and", 64, 0.7),
    Example("A conversation", "She looked at him and said,", 48, 0.7),
    Example(
        "Translation",
        "English: Good morning.\nFrench: Bonjour.\nSpanish: Buenos días.\nPortuguese: Bom dia.\n\n"
        "English: Thank you very much.\nFrench: Merci beaucoup.\nSpanish: Muchas gracias.\n"
        "Portuguese: Muito obrigado.\n\nEnglish: Where is the station?\nFrench:",
        48,
        stop="\\n\\n",
        large=True,
    ),
    Example("Arithmetic", "3 + 4 = 7\n8 + 1 = 9\n2 + 2 = 4\n5 + 3 =", 8, stop="\\n", large=True),
    Example(
        "Code",
        'def mean(numbers):\n    """Return the mean of a list of numbers."""\n',
        64,
        stop="\\ndef",
        large=True,
    ),
    Example(
        "Questions and answers",
        "Question: What is the capital of France?\nAnswer: Paris\n\n"
        "Question: What is the capital of Italy?\nAnswer:",
        8,
        stop="\\n",
        large=True,
    ),
)


def introduction(about: About) -> str:
    """What is served, as Markdown: the model that it is, and no other."""
    trained = f"trained on {about.languages}" if about.languages else ""
    facts = ", ".join(filter(None, [about.size, trained]))
    served = f"**{about.name}**{f' ({facts})' if facts else ''} is served here."
    what = FOLLOWS if about.follows_instructions else COMPLETES
    return f"# {TITLE}\n\n{served} {what} {WARNING}\n"


def examples_for(about: About) -> list[Example]:
    """Those that the model can continue."""
    return [example for example in EXAMPLES if about.languages != "English" or not example.large]


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

"""`run_inference.py` with a text in place of the model, for tests of the front end.

The environment's SCRIPTED_TEXT is what continues any prompt. Where it has PAUSE, a pass waits for
Ctrl-C; where it has LISTEN, it says LISTENING on stderr. With CHAT its tokenizer has a chat
template; CONTEXT is the number of tokens that its context holds.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from config import REPOSITORY
from run_inference import main
from utils.generation import LanguageModel
from utils.generation.tokenizer import load_tokenizer
from utils.setup import run_script

PAUSE, LISTEN = "⏸", "⏺"
LISTENING = "listening"

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


class ScriptedPasses:
    """`Passes` that give the tokens of a text and then the end of text, whatever the prompt is."""

    batch_size, sequence_length, verify_sizes = 1, 512, ()

    def __init__(self, tokenizer: Any, text: str):
        self.vocab_size = len(tokenizer)
        self._script: list[int | str] = []
        for character in text:
            waits = character in (PAUSE, LISTEN)
            self._script += [character] if waits else tokenizer(character).input_ids
        self._script.append(tokenizer.eos_token_id)

    def prefill_chunk(
        self, slot: int, tokens: Sequence[int], start: int
    ) -> tuple[int, np.ndarray | None]:
        signals, write = os.pipe()
        os.set_blocking(write, False)
        signal.set_wakeup_fd(write)  # has a byte for each signal, however early it comes
        self._signals = signals
        self._left = iter(self._script)
        return len(tokens), self._next()

    def prefill_chunks(self, prompts: Sequence[Any]) -> list[tuple[int, np.ndarray | None]]:
        return [self.prefill_chunk(*prompts[0])]

    def decode(self, tokens: np.ndarray, positions: np.ndarray, slots: np.ndarray) -> np.ndarray:
        return self._next()[None]

    def _next(self) -> np.ndarray:
        item = next(self._left)
        while item in (PAUSE, LISTEN):
            if item == PAUSE:
                os.read(self._signals, 1)
            else:
                print(LISTENING, file=sys.stderr, flush=True)
            item = next(self._left)
        logits = np.full(self.vocab_size, -np.inf, np.float32)
        logits[item] = 0
        return logits


def load(config: object) -> LanguageModel:
    """In place of `utils.generation.load`."""
    tokenizer: Any = load_tokenizer(REPOSITORY / "models" / "bloom_tiny")
    if "CHAT" in os.environ:
        from byte_level import byte_level_tokenizer  # late: transformers takes a second

        tokenizer = byte_level_tokenizer()
        tokenizer.chat_template = CHAT_TEMPLATE
    passes = ScriptedPasses(tokenizer, os.environ["SCRIPTED_TEXT"])
    passes.sequence_length = int(os.environ.get("CONTEXT", passes.sequence_length))
    return LanguageModel(passes, tokenizer)  # type: ignore[arg-type]


if __name__ == "__main__":
    run_script(lambda: main(load=load))

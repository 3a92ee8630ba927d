"""`run_inference_gradio.py` with a text in place of the model, for tests of the script.

Any prompt is continued without an end; with STUCK in the environment the token passes hang. Each
host that the process reaches, or whose name it looks up, is named on stderr.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
from collections import deque
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


def watch(event: str, arguments: tuple[Any, ...]) -> None:
    """An audit hook."""
    if event == "socket.connect" and arguments[0].family in (socket.AF_INET, socket.AF_INET6):
        print(f"reaches {arguments[1][0]}", file=sys.stderr)
    elif event == "socket.getaddrinfo":
        print(f"reaches {arguments[0]}", file=sys.stderr)


sys.addaudithook(watch)

from byte_level import byte_level_tokenizer  # noqa: E402 - what these reach is watched too
from serving import ScriptedPasses  # noqa: E402

from run_inference_gradio import main  # noqa: E402
from utils.generation import LanguageModel  # noqa: E402
from utils.setup import run_script  # noqa: E402


class StuckPasses(ScriptedPasses):
    """A decode pass that never ends, as one of a large model nearly does."""

    def decode(self, *arguments: Any) -> Any:
        threading.Event().wait()


def load(config: Any) -> LanguageModel:
    """In place of `utils.generation.load`."""
    tokenizer = byte_level_tokenizer()
    rows = config.execution.batch_size
    kind = StuckPasses if "STUCK" in os.environ else ScriptedPasses
    passes = kind(tokenizer, "a cat ", rows, sequence_length=1 << 21, endless=True)
    passes.log = deque(maxlen=16)  # a server's would grow as long as it runs
    return LanguageModel(passes, tokenizer)


if __name__ == "__main__":
    run_script(lambda: main(load=load))

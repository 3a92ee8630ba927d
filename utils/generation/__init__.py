"""From a prompt to text.

    from utils.generation import generate, load

    print(generate(load("bloom_tiny"), "The king said").text)

`load` makes a model that answers: session, passes and tokenizer. A `Request` holds the state of one
prompt: its token ids, sampler, text and limits. The `Engine` runs the requests of many in the slots
of one session; `generate` and `stream_generate` step it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from utils.generation.engine import Engine
    from utils.generation.language_model import (
        Generation,
        LanguageModel,
        generate,
        stream_generate,
    )
    from utils.generation.loading import load
    from utils.generation.request import GenerationStep, Request
    from utils.generation.sampling import SamplingConfig

__all__ = [
    "Engine",
    "Generation",
    "GenerationStep",
    "LanguageModel",
    "Request",
    "SamplingConfig",
    "generate",
    "load",
    "stream_generate",
]

_MODULES = {
    "Engine": "engine",
    "GenerationStep": "request",
    "Request": "request",
    "SamplingConfig": "sampling",
    "load": "loading",
}


def __getattr__(name: str) -> Any:
    """What is asked for, imported then: loading takes seconds, which wrong arguments must not."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES.get(name, 'language_model')}"), name)

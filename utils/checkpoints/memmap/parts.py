"""The parts of the program that have a file each: their variables, and the values of these."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from popxl import Variable
from popxl_shared import QuantisationError

from config import BloomConfig
from modelling.program import InferenceSession, hf_mapping
from utils.checkpoints.checkpoint import CheckpointError


def part_files(session: InferenceSession) -> dict[str, str]:
    """The names of the files of the program's parts, and the parts, in order.

    `{"embeddings.safetensors": "embeddings", "layer_0000.safetensors": "layer_0", ...}`
    """
    return {_filename(part): part for part in session.state}


def variables_of(session: InferenceSession, part: str) -> dict[str, Variable]:
    """The variables of a part by their names inside it."""
    return session.state.get(part).to_dict()  # type: ignore[return-value]


def part_values(
    config: BloomConfig, session: InferenceSession, module: Any
) -> dict[str, Callable[[], dict[Variable, np.ndarray]]]:
    """Functions that give the values of each part's variables, in order.

    Args:
        module: the checkpoint's, or what is read like it.

    Raises:
        CheckpointError: from these functions, where a part cannot be quantised.
    """

    def told(part: str, values: Callable) -> Callable:
        def make() -> dict[Variable, np.ndarray]:
            try:
                return values()
            except QuantisationError as error:
                raise CheckpointError(f"cannot quantise the checkpoint's {part}: {error}") from None

        return make

    return {part: told(part, make) for part, make in hf_mapping(config, session.state, module)}


def _filename(part: str) -> str:
    name, _, number = part.partition("_")
    return f"{name}_{int(number):04d}.safetensors" if number else f"{name}.safetensors"

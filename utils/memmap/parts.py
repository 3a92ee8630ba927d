"""The parts of the program that have a file each, and their variables."""

from __future__ import annotations

from popxl import Variable

from inference import InferenceSession


def part_files(session: InferenceSession) -> dict[str, str]:
    """The names of the files of the program's parts, and the parts, in order.

    `{"embeddings.safetensors": "embeddings", "layer_0000.safetensors": "layer_0", ...}`
    """
    return {_filename(part): part for part in session.state}


def variables_of(session: InferenceSession, part: str) -> dict[str, Variable]:
    """The variables of a part by their names inside it."""
    return session.state.get(part).to_dict()  # type: ignore[return-value]


def _filename(part: str) -> str:
    name, _, number = part.partition("_")
    return f"{name}_{int(number):04d}.safetensors" if number else f"{name}.safetensors"

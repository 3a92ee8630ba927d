"""The numbers that random programs start with and are fed."""

from __future__ import annotations

import zlib

import ml_dtypes
import numpy as np

from fuzzing.program import Program, Source, number

DTYPES = {
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
    "int8": np.int8,
    "int32": np.int32,
    "uint16": np.uint16,
    "bool": np.bool_,
}


def draw(kind: str, shape: tuple[int, ...], dtype: str, *key: object) -> np.ndarray:
    """Numbers that depend on the key alone.

    Args:
        kind: "normal", "weight" (normal, smaller the more are added up), "positive", "bytes",
            "words", "scale" or "offset" (of words), "channel" (scale of bytes), "condition", or
            "below N".
    """
    rng = np.random.default_rng(zlib.crc32(repr(key).encode()))
    terms = shape[-2] if len(shape) > 1 else 1
    if kind.startswith("below "):
        return rng.integers(0, max(int(kind.split()[1]), 1), shape).astype(DTYPES[dtype])
    numbers = {
        "normal": lambda: rng.standard_normal(shape),
        "weight": lambda: rng.standard_normal(shape) / np.sqrt(terms),
        "positive": lambda: rng.uniform(0.5, 1.5, shape),
        "bytes": lambda: rng.integers(-127, 128, shape),
        "channel": lambda: rng.uniform(0.5, 1.5, shape) / 256,
        "words": lambda: rng.integers(0, 2**16, shape),
        "scale": lambda: rng.uniform(0.5, 1.5, shape) / 16,
        "offset": lambda: -rng.uniform(0.4, 0.6, shape),
        "condition": lambda: rng.integers(0, 2, shape),
    }[kind]()
    return np.asarray(numbers).astype(DTYPES[dtype])


def assignment(replicas: int, stride: int, size: int) -> list[int]:
    """The number of each replica's group, of `size` replicas that are `stride` apart."""
    return [r // (stride * size) * stride + r % stride for r in range(replicas)]


def host_array(program: Program, source: Source) -> np.ndarray:
    """The data of a variable, `(groups, *shape)` without the first where it is 1."""
    count = program.replicas // source.group[1]
    lead = (count,) if count > 1 else ()
    shape = (*lead, *program.shape(source.name))
    array = draw(source.draw, shape, program.types[source.name].dtype, source.name)
    return swapped(array) if source.swapped else array


def swapped(array: np.ndarray) -> np.ndarray:
    """The same with its bytes as if the last two axes were swapped."""
    return np.ascontiguousarray(array.swapaxes(-1, -2)).swapaxes(-1, -2)


def by_replica(program: Program, array: np.ndarray, group: tuple[int, int]) -> np.ndarray:
    """`(replicas, *shape)` of what is given for each group."""
    count = program.replicas // group[1]
    whole = array if count > 1 else array[None]
    return whole[assignment(program.replicas, *group)]


def how(program: Program, source: Source) -> str:
    """How its numbers are drawn, with the program's sizes put in."""
    kind, _, limit = source.draw.partition(" ")
    return f"below {number(limit, program.sizes())}" if limit else kind


def stream_array(program: Program, source: Source, run: int, index: int) -> np.ndarray:
    """What a stream, the program's `index`-th, carries in a run, `(replicas, *shape)`."""
    shape = (program.replicas // source.group[1], *program.shape(source.name))
    array = draw(how(program, source), shape, program.types[source.name].dtype, run, index)
    return array[assignment(program.replicas, *source.group)]

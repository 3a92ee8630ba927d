"""Makes a random program of a number."""

from __future__ import annotations

import numpy as np

from fuzzing.choices import divisor
from fuzzing.idioms import IDIOMS
from fuzzing.program import Body, Program
from fuzzing.writer import Writer


def write(seed: int) -> Program:
    """A random program."""
    rng = np.random.default_rng(seed)
    program = Program(seed, int(rng.choice([1, 1, 2, 4, 8])), _dims(rng), Body("main"))
    writer = Writer(rng, program, program.body, None, depth=2)
    writer.idioms = IDIOMS
    for _ in range(int(rng.integers(1, 3))):
        shared = divisor(rng, program.replicas)
        writer.stream(writer.rows_of("H"), writer.float, "normal", group=shared)
    for _ in range(int(rng.choice([1, 1, 2, 2, 3, 4]))):
        writer.idiom()
    known = [n for n in writer.known if n in writer.made]
    more = [str(n) for n in rng.permutation(known)[: rng.integers(0, 4)]]
    program.body.outputs = list(dict.fromkeys([*known[-1:], *more, *writer.told]))
    return program


def _dims(rng: np.random.Generator) -> dict[str, int]:
    """Tokens T, heads h and their size d, feed-forward size F, group size G, rows B, slots S."""
    tokens = [1, 1, 2, 3, 8, 13, 16, 17, 21, 33]
    d = int(rng.choice([4, 8, 16]))
    return {
        "T": int(rng.choice(tokens)),
        "h": int(rng.choice([1, 2, 4])),
        "d": d,
        "F": int(rng.choice([5, 16, 24, 48])),
        "G": int(rng.choice([4, 8, 16][: 1 + [4, 8, 16].index(d)])),
        "S": int(rng.integers(1, 12)),
        "B": int(rng.choice([1, 2, 3])),
    }

"""What a random program means, by numpy in float64, and how far rounding may carry from it.

Every step is computed on several samples: the first as it is, the others each rounded at random
after every step, as far as the dtype may round (Monte Carlo arithmetic; Parker, UCLA CSD-970002).
The spread of the samples is the error that a back end may make. It is small where a program is
insensitive, and follows correlations, so that an error has little to hide behind.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from fuzzing.data import DTYPES, assignment
from fuzzing.kinds import IN_PLACE, KINDS
from fuzzing.program import Body, Program, Step, text

UNITS = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
"""The most that rounding changes a number, relative to it."""
TINY = {"float32": 0.0, "float16": 2.0**-25, "bfloat16": 0.0}
LARGEST = {"float32": 1e30, "float16": 3e4, "bfloat16": 1e30}
"""Beyond them a program is not one to compare: what overflows depends on what is done at once."""
FUNCTIONS = 2.0**-24
"""The unit of what is computed in float32 inside an op, whatever its dtype."""


class OutOfRangeError(Exception):
    """A program whose numbers are too large for their dtype."""


@dataclass
class Tensor:
    """What a tensor holds, `(samples, replicas, *shape)`; steps that write replace the array."""

    value: np.ndarray


class Interpreter:
    """Runs a program over and over; variables and remote buffers last.

    Args:
        state: the arrays of variables, `(replicas, *shape)`, and of buffers,
            `(replicas, entries, *shape)`, by name.
        samples: how many are rounded at random.
    """

    def __init__(self, program: Program, state: dict[str, np.ndarray], samples: int):
        self.program, self.samples = program, samples
        self.rng = np.random.default_rng(program.seed)
        self.sizes: dict[str, Any] = {**program.sizes(), **{name: name for name in DTYPES}}
        self.state = {name: Tensor(self._sampled(value)) for name, value in state.items()}

    def run(self, streams: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The outputs, by name, for what the streams carry, `(replicas, *shape)`."""
        tensors = dict(self.state)
        tensors.update((name, Tensor(self._sampled(v))) for name, v in streams.items())
        self._steps(self.program.body, tensors)
        return {name: tensors[name].value for name in self.program.body.outputs}

    def _sampled(self, value: np.ndarray) -> np.ndarray:
        exact = value if value.dtype == bool else value.astype(np.float64)
        return np.repeat(exact[None], self.samples + 1, axis=0)

    def _steps(self, body: Body, tensors: dict[str, Tensor]) -> None:
        for step in body.steps:
            operands = [tensors[name] for name in step.operands]
            if step.kind in SPECIAL:
                made = getattr(self, f"_{step.kind}")(step, operands)
            else:
                made = self._simple(step, operands)
            tensors.update(zip(step.results, made, strict=True))

    def _simple(self, step: Step, operands: list[Tensor]) -> list[Tensor]:
        kind = KINDS[step.kind]
        settings = {name: self._setting(name, value) for name, value in step.settings.items()}
        if "number" in settings:  # it takes the dtype of the tensor that it meets
            of = DTYPES[self.program.types[step.operands[-1]].dtype]
            settings["number"] = float(np.asarray(settings["number"]).astype(of))
        arrays = [t.value for t in operands]
        if not arrays:
            settings_only = kind.meaning(**settings)
            shape = (self.samples + 1, self.program.replicas, *settings_only.shape[2:])
            return [Tensor(np.broadcast_to(settings_only, shape))]
        made = kind.meaning(*arrays, **settings)
        in_place = step.kind in IN_PLACE
        name = step.operands[0] if in_place else step.results[0]
        dtype = self.program.types[name].dtype
        if kind.ulps and dtype in UNITS:
            terms = None if kind.terms is None else kind.terms(*arrays, **settings)
            made = self._rounded(made, dtype, kind.ulps, terms)
        elif (
            not in_place and dtype in UNITS and self.program.types[step.operands[0]].dtype != dtype
        ):
            made = self._rounded(made, dtype, 0, None)
        if not in_place:
            return [Tensor(made)]
        operands[0].value = np.broadcast_to(made, operands[0].value.shape)
        return []

    def _setting(self, name: str, value: Any) -> Any:
        if name == "group":
            return assignment(self.program.replicas, *value)
        return value if name in ("op", "output_shape") else eval(text(value), {}, self.sizes)

    def _rounded(
        self, value: np.ndarray, dtype: str, ulps: float, terms: np.ndarray | None
    ) -> np.ndarray:
        """The samples but for the first, rounded at random where `dtype` does not hold them."""
        size = np.abs(value)
        if not size.max(initial=0) <= LARGEST[dtype]:
            raise OutOfRangeError(f"{dtype} holds no {size.max()}")
        with np.errstate(over="ignore"):
            held = value.astype(DTYPES[dtype]) == value
        most = np.where(held, 0, size * (UNITS[dtype] + ulps * FUNCTIONS) + TINY[dtype])
        if terms is not None:
            most = most + np.where(held, 0, 2 * FUNCTIONS * terms)
        noise = self.rng.uniform(-1, 1, value.shape)
        noise[1::2] = noise[1::2, :1]  # the same on all replicas, whose errors may add up
        noise[0] = 0
        return value + noise * most

    # --- remote buffers ---

    def _slot(self, step: Step, offset: list[Tensor]) -> tuple:
        buffer = self.state[step.settings["buffer"]]
        samples, replicas = buffer.value.shape[:2]
        fixed = step.settings["offset"]
        at = offset[0].value.reshape(samples, replicas).astype(int) if offset else fixed
        return np.arange(samples)[:, None], np.arange(replicas)[None], at

    def _remote_load(self, step: Step, operands: list[Tensor]) -> list[Tensor]:
        return [Tensor(self.state[step.settings["buffer"]].value[self._slot(step, operands)])]

    def _remote_store(self, step: Step, operands: list[Tensor]) -> list[Tensor]:
        buffer = self.state[step.settings["buffer"]]
        buffer.value = buffer.value.copy()
        buffer.value[self._slot(step, operands[1:])] = operands[0].value
        return []

    # --- graphs ---

    def _enter(self, body: Body, operands: list[Tensor]) -> dict[str, Tensor]:
        return {
            name: t if name in body.by_ref else Tensor(t.value)
            for name, t in zip(body.inputs, operands, strict=True)
        }

    def _inside(self, body: Body, operands: list[Tensor]) -> list[Tensor]:
        tensors = self._enter(body, operands)
        self._steps(body, tensors)
        return [Tensor(tensors[name].value) for name in body.outputs]

    def _call(self, step: Step, operands: list[Tensor]) -> list[Tensor]:
        return self._inside(step.settings["graph"], operands)

    def _repeat(self, step: Step, operands: list[Tensor]) -> list[Tensor]:
        body = step.settings["graph"]
        fed = list(self._enter(body, operands).values())
        outputs = [Tensor(t.value) for t in fed[: len(body.outputs)]]
        for _ in range(step.settings["count"]):
            outputs = self._inside(body, fed)
            for t, output in zip(fed, outputs, strict=False):
                t.value = output.value
        return outputs

    def _cond(self, step: Step, operands: list[Tensor]) -> list[Tensor]:
        """Branches write to nothing but what is their own."""
        condition, given = operands[0].value.astype(bool), operands[1:]
        then, other = step.settings["then"], step.settings["other"]
        count = len(then.inputs)
        if condition.all():
            return self._inside(then, given[:count])
        if not condition.any():
            return self._inside(other, given[count:])
        results = self._inside(then, given[:count]), self._inside(other, given[count:])
        return [
            Tensor(
                np.where(
                    condition.reshape(condition.shape + (1,) * (a.value.ndim - 2)), a.value, b.value
                )
            )
            for a, b in zip(*results, strict=True)
        ]


SPECIAL = ("remote_load", "remote_store", "call", "repeat", "cond")
"""Kinds of steps that are more than a function of arrays."""

SIGMAS = 10.0
"""Of the spread. At 7 a correct chain of products, off by half a unit, was called wrong."""


def deviation(got: np.ndarray, samples: np.ndarray, dtype: str) -> tuple[float, float]:
    """How far `got` is from the first sample, and how far rounding may carry.

    Returns:
        The largest distance as a part of what is allowed (above 1: wrong), and the largest that is
        allowed as a part of the tensor's magnitude.
    """
    if dtype not in UNITS:
        return float(not np.array_equal(got.astype(float), samples[0].astype(float))) * 2, 0.0
    exact = samples[0]
    spread = np.sqrt(((samples[1:] - exact) ** 2).mean(0))
    magnitude = np.sqrt((exact**2).mean()) + 1e-30
    typical = np.sqrt((spread**2).mean())
    allowed = SIGMAS * np.maximum(spread, typical) + 2.0**-20 * magnitude
    far = np.abs(got.astype(np.float64) - exact)
    far[~np.isfinite(far)] = np.inf
    return float((far / allowed).max(initial=0)), float(allowed.max(initial=0) / magnitude)

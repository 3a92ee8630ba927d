"""Runs random programs by every back end at hand and compares them with numpy."""

from __future__ import annotations

import re
import traceback
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import popdist
import popxl

from fuzzing.code import HEAD, code, slot_name
from fuzzing.data import assignment, by_replica, draw, host_array, stream_array, swapped
from fuzzing.interpreter import Interpreter, OutOfRangeError, deviation
from fuzzing.program import Program

RUNS = 4
"""Of each program: recordings begin at the second."""
FEW, MANY = 4, 48
"""Samples of rounding, first and where the first look says that a result is wrong."""
LOOSE = 0.25
"""Of a result's magnitude: where more than that is allowed nothing is compared."""


@dataclass
class Failure:
    """What went wrong. Two failures of one `kind` are held for the same fault."""

    kind: str
    detail: str


@dataclass
class Statistics:
    """Of many programs: those out of range, outputs compared and too loose, what was allowed."""

    out_of_range: int = 0
    compared: int = 0
    loose: int = 0
    allowed: list[float] = field(default_factory=list)


def backends() -> dict[str, dict[str, Any]]:
    """The arguments of `Session` for each back end at hand."""
    import torch

    found = {"kernels": {}, "no kernels": {"composite_kernels": False}}
    if torch.cuda.is_available():
        found["cuda"] = {"device_desc": "cuda"}
    return found


def check(
    program: Program,
    statistics: Statistics | None = None,
    processes: int = 1,
    only: str | None = None,
) -> Failure | None:
    """The first way in which a back end and numpy differ; None where they agree.

    Args:
        only: the one back end that is run.
    """
    try:
        fed = [streams(program, number) for number in range(RUNS)]
        expected = expectation(program, fed, FEW, processes)
    except OutOfRangeError:
        if statistics is not None:
            statistics.out_of_range += 1
        return None
    chosen = {n: a for n, a in backends().items() if only in (None, n)}
    # All are run before any is looked at: processes do the same though one of them differs.
    try:
        space = built(program, processes)
    except Exception as error:
        return _raised("building", error)
    results = {name: _tried(program, space, name, fed, a) for name, a in chosen.items()}
    for name, got in results.items():
        failure = got
        if not isinstance(got, Failure):
            failure = compare(program, name, got, expected, statistics)
            if failure:
                failure = compare(program, name, got, expectation(program, fed, MANY, processes))
        if failure:
            return failure
    return None


def _tried(
    program: Program, space: dict[str, Any], name: str, fed: Results, arguments: dict[str, Any]
) -> Results | Failure:
    try:
        return run(program, space, fed, arguments)
    except Exception as error:
        return _raised(name, error)


def _raised(name: str, error: Exception) -> Failure:
    first = (str(error).splitlines() or [""])[0]
    words = re.sub(r"\S*\d\S*|'[^']*'|^\w+(?= is )", "_", first)
    return Failure(f"{name}: {type(error).__name__}: {words}", traceback.format_exc(limit=-3))


def compare(
    program: Program,
    backend: str,
    got: Results,
    expected: Results,
    statistics: Statistics | None = None,
) -> Failure | None:
    """The first result of any run that rounding does not explain."""
    for number, (results, wanted) in enumerate(zip(got, expected, strict=True)):
        for name in results.keys() & wanted.keys():
            value = results[name]
            dtype = program.types[name.split("@")[0]].dtype
            mine = wanted[name] if name.endswith("@") else _own(wanted[name], value)
            far, allowed = deviation(value, mine, dtype)
            if statistics is not None:
                statistics.compared += 1
                statistics.loose += allowed > LOOSE
                statistics.allowed.append(allowed)
            if far > 1 and (allowed <= LOOSE or not np.isfinite(far)):
                return Failure(
                    f"{backend}: wrong numbers",
                    f"run {number}: {name} is {far:.3g} times as far off as rounding allows "
                    f"(which is {allowed:.2g} of its magnitude)",
                )
    return None


def _own(wanted: np.ndarray, got: np.ndarray) -> np.ndarray:
    """The replicas that this process holds, of `(samples, replicas, *shape)`."""
    count = got.shape[0]
    if count == wanted.shape[1]:
        return wanted
    first = popdist.getInstanceIndex() * count
    return wanted[:, first : first + count]


# --- numpy ---


def expectation(program: Program, fed: Results, samples: int, processes: int = 1) -> Results:
    """For each run the outputs by name, at the end the variables as `name@`: with all samples."""
    interpreter = Interpreter(program, _state(program), samples)
    results = [interpreter.run(given) for given in fed]
    for name, group in _variables(program).items():
        # What the first member of each group holds is read; of several processes each has its own.
        numbers, held = assignment(program.replicas, *group), interpreter.state[name].value
        first = [numbers.index(g) for g in range(max(numbers) + 1)]
        if processes == 1 or np.array_equal(held[0][first][numbers], held[0]):
            results[-1][f"{name}@"] = held[:, first]
    return results


def _variables(program: Program) -> dict[str, tuple[int, int]]:
    """The variables, and which replicas share a value."""
    return {s.name: s.group for s in program.sources if s.place == "variable"}


def _state(program: Program) -> dict[str, np.ndarray]:
    state = {}
    for source in program.sources:
        if source.place == "variable":
            state[source.name] = by_replica(program, host_array(program, source), source.group)
    for buffer in program.buffers:
        entries = []
        for i in range(buffer.entries):
            given = program.types[buffer.name]
            count = program.replicas // buffer.group[1]
            shape = (count, *program.shape_of(given))[count == 1 :]
            array = draw(buffer.draw, shape, given.dtype, slot_name(buffer, i))
            entries.append(by_replica(program, array, buffer.group))
        state[buffer.name] = np.stack(entries, axis=1)
    return state


def streams(program: Program, run: int) -> dict[str, np.ndarray]:
    """What every stream carries in a run, `(replicas, *shape)`, by the name of its tensor."""
    sources = [s for s in program.sources if s.place == "stream"]
    return {s.name: stream_array(program, s, run, i) for i, s in enumerate(sources)}


# --- PopXL ---

Results = list[dict[str, np.ndarray]]
"""For each run the outputs by name, of this process; at the end variables as `name@`."""

_names: dict[str, Any] = {"draw": draw, "swapped": swapped, "assignment": assignment}


def built(program: Program, processes: int = 1) -> dict[str, Any]:
    """What the program's code defines: the Ir, streams and tensors by name."""
    if "popxl" not in _names:
        exec(HEAD, _names)
    space = dict(_names)
    exec(compile(code(program, processes), "<random program>", "exec"), space)
    return space


def run(program: Program, space: dict[str, Any], fed: Results, arguments: dict) -> Results:
    """What a back end gives when the streams carry `fed`."""
    ir = space["ir"]
    count = ir.instance_replication_factor
    own = slice(popdist.getInstanceIndex() * count, (popdist.getInstanceIndex() + 1) * count)
    outputs = list(zip(program.body.outputs, space["outputs"], strict=True))
    results = []
    with popxl.Session(ir, **arguments) as session:
        for given in fed:
            inputs = {space[f"h2d_{n}"]: _for_session(v[own]) for n, v in given.items()}
            made = session.run(inputs)
            results.append(
                {name: np.array(made[s]).reshape(count, *s.shape) for name, s in outputs}
            )
        for name in _variables(program):
            held = session.get_tensor_data(space[name])
            results[-1][f"{name}@"] = held.reshape(-1, *program.shape(name))
    return results


def _for_session(value: np.ndarray) -> np.ndarray:
    return value if len(value) > 1 else value[0]


def same_failure(failure: Failure) -> Any:
    """Tells whether a program fails in this way; a program that is none does not."""
    backend = failure.kind.split(":")[0]

    def fails(program: Program) -> bool:
        try:
            found = check(program, only=backend)
        except Exception:  # numpy cannot run it
            return False
        return found is not None and found.kind == failure.kind

    return fails

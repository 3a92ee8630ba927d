"""The kinds of steps: each as PopXL code, and what it means in numpy.

Arrays are `(samples, replicas, *shape)`, floats in float64 whatever their dtype is.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from collectives_on_numpy import gathered, reduced, scattered

from fuzzing import meanings


@dataclass(frozen=True)
class Kind:
    """One kind of step.

    Attributes:
        code: with `{0}` for the first operand, and settings by name.
        meaning: of arrays and settings.
        terms: what is added up in float32, as the sum of magnitudes; None where nothing is.
        ulps: of the device's function; 0 where it moves numbers only.
    """

    code: str
    meaning: Callable[..., np.ndarray]
    terms: Callable[..., np.ndarray] | None = None
    ulps: float = 1


def _binary(sign: str, function: Callable[..., np.ndarray]) -> Kind:
    return Kind(f"{{0}} {sign} {{1}}", meanings.aligned(function))


def _function(name: str, function: Callable[..., np.ndarray], ulps: float = 8) -> Kind:
    return Kind(f"ops.{name}({{0}})", function, ulps=ulps)


def _gelu(name: str, function: Callable[..., np.ndarray]) -> Kind:
    """Its tail is a difference, in float32, of terms as large as the argument."""
    return Kind(f"ops.{name}({{0}})", function, np.abs, ulps=8)


def _moved(code: str, function: Callable[..., np.ndarray]) -> Kind:
    return Kind(code, function, ulps=0)


def _last(name: str, function: Callable[..., np.ndarray]) -> Kind:
    """A reduction over the last axis."""

    def run(a: np.ndarray) -> np.ndarray:
        return function(a, axis=-1, keepdims=True)

    terms = meanings.magnitudes(run) if name in ("mean", "sum", "sumsquare") else None
    return Kind(f"ops.{name}({{0}}, axis=-1, keepdims=True)", run, terms, ulps=2)


KINDS: dict[str, Kind] = {
    "add": _binary("+", np.add),
    "sub": _binary("-", np.subtract),
    "mul": _binary("*", np.multiply),
    "div": _binary("/", np.divide),
    "greater": Kind("ops.greater({0}, {1})", meanings.aligned(np.greater), ulps=0),
    "times": Kind("{0} * {number}", lambda a, number: a * number),
    "plus": Kind("{0} + {number}", lambda a, number: a + number),
    "from": Kind("{number} - {0}", lambda a, number: number - a),
    "matmul": Kind("{0} @ {1}", meanings.matmul, meanings.magnitudes(meanings.matmul)),
    "matmul_to": Kind(
        "ops.matmul({0}, {1}, output_type=popxl.{dtype})",
        lambda a, b, dtype: meanings.matmul(a, b),
        lambda a, b, dtype: meanings.matmul(np.abs(a), np.abs(b)),
    ),
    "gelu": _gelu("gelu", meanings.gelu),
    "geluerf": _gelu("geluerf", lambda a: 0.5 * a * (1 + meanings.erf(a / math.sqrt(2)))),
    "swish": _function("swish", lambda a: a / (1 + np.exp(-a))),
    "tanh": _function("tanh", np.tanh),
    "relu": _function("relu", lambda a: np.maximum(a, 0), 0),
    "negate": _function("negate", np.negative, 0),
    "abs": _function("abs", np.abs, 0),
    "sin": _function("sin", np.sin),
    "cos": _function("cos", np.cos),
    "exp": _function("exp", np.exp),
    "sqrt": _function("sqrt", np.sqrt, 2),
    "floor": _function("floor", np.floor, 0),
    "softmax": Kind("ops.softmax({0}, axis=-1)", meanings.softmax, ulps=8),
    "mean": _last("mean", np.mean),
    "sum": _last("sum", np.sum),
    "max": _last("max", np.max),
    "sumsquare": _last("sumsquare", lambda a, **axes: (a * a).sum(**axes)),
    "layer_norm": Kind("ops.layer_norm({0}, {1}, {2}, {eps})", meanings.layer_norm, ulps=8),
    "distributed_norm": Kind(
        "distributed_norm({0}, {1}, {2}, {eps}, group{group})", meanings.distributed_norm, ulps=8
    ),
    "decompress": Kind("decompress({0}, {1}, {2}, {dim})", meanings.decompressed, ulps=4),
    "cast": Kind("ops.cast({0}, popxl.{dtype})", lambda a, dtype: a),
    "where": _moved(
        "ops.where({0}, {number}, {1})",
        lambda condition, a, number: np.where(meanings.of_rank(condition, a.ndim), number, a),
    ),
    "same": _moved("ops.identity({0})", lambda a: a),
    "reshape": _moved(
        "{0}.reshape({shape})", lambda a, shape: a.reshape(a.shape[: meanings.LEAD] + tuple(shape))
    ),
    "transpose": _moved("ops.transpose({0}, {permutation})", meanings.transposed),
    "slice": _moved("ops.slice({0}, {start}, {stop}, axis={axis})", meanings.sliced_from),
    "concat": _moved(
        "ops.concat([{0}, {1}], {axis})",
        lambda a, b, axis: np.concatenate([a, b], meanings.place_of(a, axis)),
    ),
    "gather": _moved("ops.gather({0}, {1})", meanings.gathered),
    "arange": _moved(
        "popxl.constant(np.arange({stop}, dtype=np.{dtype}))",
        lambda stop, dtype: np.arange(float(stop))[None, None],
    ),
    "numbers": _moved(
        "popxl.constant(np.array({values}, dtype=np.{dtype}))",
        lambda values, dtype: np.array(values, float)[None, None],
    ),
    "dynamic_slice": _moved("ops.dynamic_slice({0}, {1}, {axes}, {sizes}, True)", meanings.sliced),
    "dynamic_update_": _moved(
        "ops.dynamic_update_({0}, {1}, {2}, {axes}, {sizes}, True)", meanings.updated
    ),
    "add_": Kind("ops.add_({0}, {1})", meanings.aligned(np.add)),
    "copy_": _moved("ops.var_updates.copy_var_update_({0}, {1})", lambda a, b: b),
    "all_reduce": Kind(
        "replicated_all_reduce({0}, '{op}', group{group})",
        meanings.by_replica(reduced),
        lambda a, group, op: meanings.by_replica(reduced)(np.abs(a), group, op="add"),
        ulps=2,
    ),
    "all_gather": _moved(
        "replicated_all_gather({0}, {axis}, group{group}, '{output_shape}')",
        meanings.by_replica(
            lambda a, group, axis, output_shape: gathered(
                a, group, axis, output_shape == "new_axis"
            )
        ),
    ),
    "reduce_scatter": Kind(
        "replicated_reduce_scatter({0}, '{op}', group{group})",
        meanings.by_replica(scattered),
        lambda a, group, op: meanings.by_replica(scattered)(np.abs(a), group, op="add"),
        ulps=2,
    ),
}
IN_PLACE = ("dynamic_update_", "add_", "copy_")
"""Kinds that write to their first operand and have no result."""

"""The kinds of steps: each as PopXL code, and what it means in numpy.

Arrays are `(samples, replicas, *shape)`, floats in float64 whatever their dtype is.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from collectives_on_numpy import gathered, reduced, scattered

LEAD = 2
"""Axes in front of every array: samples and replicas."""


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


def _aligned(function: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    """numpy's broadcasting of the shapes behind the leading axes."""

    def run(*arrays: np.ndarray, **settings: Any) -> np.ndarray:
        rank = max(a.ndim for a in arrays)
        return function(*(_of_rank(a, rank) for a in arrays), **settings)

    return run


def _of_rank(a: np.ndarray, rank: int) -> np.ndarray:
    return a.reshape(a.shape[:LEAD] + (1,) * (rank - a.ndim) + a.shape[LEAD:])


def _axis(a: np.ndarray, axis: int) -> int:
    return axis if axis < 0 else axis + LEAD


def _transposed(a: np.ndarray, permutation: tuple[int, ...]) -> np.ndarray:
    return a.transpose(0, 1, *(p + LEAD for p in permutation))


def _slice(a: np.ndarray, start: int, stop: int, axis: int) -> np.ndarray:
    return a.take(range(start, stop), axis=_axis(a, axis))


def _softmax(a: np.ndarray) -> np.ndarray:
    powers = np.exp(a - a.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def _gelu(a: np.ndarray) -> np.ndarray:
    return 0.5 * a * (1 + np.tanh(math.sqrt(2 / math.pi) * (a + 0.044715 * a**3)))


def _layer_norm(a: np.ndarray, w: np.ndarray, b: np.ndarray, eps: float) -> np.ndarray:
    centred = a - a.mean(-1, keepdims=True)
    normed = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps)
    return normed * _of_rank(w, a.ndim) + _of_rank(b, a.ndim)


def _by_replica(function: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    """What a collective does, on replicas in front; `group` is the number of each one's group."""

    def run(a: np.ndarray, group: list[int], **settings: Any) -> np.ndarray:
        return np.stack([function(sample, group, **settings) for sample in a])

    return run


def _start(a: np.ndarray, index: np.ndarray, axes: tuple[int, ...], sizes: tuple[int, ...]) -> list:
    """Where the part of each sample and replica lies."""
    places = []
    for sample, replica in np.ndindex(a.shape[:LEAD]):
        place: list[Any] = [slice(None)] * (a.ndim - LEAD)
        at = np.broadcast_to(index, (*a.shape[:LEAD], index.shape[-1]))[sample, replica]
        for axis, size, begin in zip(axes, sizes, at.astype(int), strict=True):
            begin = min(max(begin, 0), a.shape[LEAD + axis] - size)
            place[axis] = slice(begin, begin + size)
        places.append((sample, replica, *place))
    return places


def _updated(a, index, part, axes, sizes) -> np.ndarray:
    changed = a.copy()
    for place in _start(a, index, axes, sizes):
        changed[place] = np.broadcast_to(part, (*a.shape[:LEAD], *part.shape[LEAD:]))[place[:LEAD]]
    return changed


def _sliced(a, index, axes, sizes) -> np.ndarray:
    parts = [a[place] for place in _start(a, index, axes, sizes)]
    return np.stack(parts).reshape(a.shape[:LEAD] + parts[0].shape)


def _matmul(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    rank = max(a.ndim, b.ndim)
    return _of_rank(a, rank) @ _of_rank(b, rank)


def _magnitudes(function: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    return lambda *arrays, **settings: function(*map(np.abs, arrays), **settings)


def _binary(sign: str, function: Callable[..., np.ndarray]) -> Kind:
    return Kind(f"{{0}} {sign} {{1}}", _aligned(function))


def _function(name: str, function: Callable[..., np.ndarray], ulps: float = 8) -> Kind:
    return Kind(f"ops.{name}({{0}})", function, ulps=ulps)


def _moved(code: str, function: Callable[..., np.ndarray]) -> Kind:
    return Kind(code, function, ulps=0)


def _last(name: str, function: Callable[..., np.ndarray]) -> Kind:
    """A reduction over the last axis."""

    def run(a: np.ndarray) -> np.ndarray:
        return function(a, axis=-1, keepdims=True)

    terms = _magnitudes(run) if name in ("mean", "sum", "sumsquare") else None
    return Kind(f"ops.{name}({{0}}, axis=-1, keepdims=True)", run, terms, ulps=2)


def _gathered(a: np.ndarray, indices: np.ndarray) -> np.ndarray:
    samples, replicas = np.indices((*a.shape[:LEAD], *indices.shape[LEAD:]))[:LEAD]
    return a[samples, replicas, indices.astype(int)]


_erf = np.vectorize(math.erf, otypes=[float])


def _distributed_norm(a: np.ndarray, w, b, eps: float, group: list[int]) -> np.ndarray:
    """Layer norm of rows whose parts the members of a group hold."""
    numbers = np.array(group)
    normed = np.empty_like(a)
    for g in set(group):
        whole = np.concatenate(list(a[:, numbers == g].swapaxes(0, 1)), axis=-1)
        mean, variance = whole.mean(-1, keepdims=True), whole.var(-1, keepdims=True)
        normed[:, numbers == g] = (a[:, numbers == g] - mean[:, None]) / np.sqrt(
            variance[:, None] + eps
        )
    return normed * _of_rank(w, a.ndim) + _of_rank(b, a.ndim)


def _decompressed(words: np.ndarray, scale: np.ndarray, offset: np.ndarray, dim: int) -> np.ndarray:
    numbers = (words.astype(int)[..., None] >> np.arange(12, -4, -4)) & 15
    values = numbers.reshape(*words.shape[:-1], -1) * scale + offset
    values = values.reshape(*words.shape[:-2], -1)
    return values.swapaxes(-1, -2) if dim == 0 else values


KINDS: dict[str, Kind] = {
    "add": _binary("+", np.add),
    "sub": _binary("-", np.subtract),
    "mul": _binary("*", np.multiply),
    "div": _binary("/", np.divide),
    "greater": Kind("ops.greater({0}, {1})", _aligned(np.greater), ulps=0),
    "times": Kind("{0} * {number}", lambda a, number: a * number),
    "plus": Kind("{0} + {number}", lambda a, number: a + number),
    "from": Kind("{number} - {0}", lambda a, number: number - a),
    "matmul": Kind("{0} @ {1}", _matmul, _magnitudes(_matmul)),
    "matmul_to": Kind(
        "ops.matmul({0}, {1}, output_type=popxl.{dtype})",
        lambda a, b, dtype: _matmul(a, b),
        lambda a, b, dtype: _matmul(np.abs(a), np.abs(b)),
    ),
    "gelu": _function("gelu", _gelu),
    "geluerf": _function("geluerf", lambda a: 0.5 * a * (1 + _erf(a / math.sqrt(2)))),
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
    "softmax": Kind("ops.softmax({0}, axis=-1)", _softmax, ulps=8),
    "mean": _last("mean", np.mean),
    "sum": _last("sum", np.sum),
    "max": _last("max", np.max),
    "sumsquare": _last("sumsquare", lambda a, **axes: (a * a).sum(**axes)),
    "layer_norm": Kind("ops.layer_norm({0}, {1}, {2}, {eps})", _layer_norm, ulps=8),
    "distributed_norm": Kind(
        "distributed_norm({0}, {1}, {2}, {eps}, group{group})", _distributed_norm, ulps=8
    ),
    "decompress": Kind("decompress({0}, {1}, {2}, {dim})", _decompressed, ulps=4),
    "cast": Kind("ops.cast({0}, popxl.{dtype})", lambda a, dtype: a),
    "where": _moved(
        "ops.where({0}, {number}, {1})",
        lambda condition, a, number: np.where(_of_rank(condition, a.ndim), number, a),
    ),
    "same": _moved("ops.identity({0})", lambda a: a),
    "reshape": _moved(
        "{0}.reshape({shape})", lambda a, shape: a.reshape(a.shape[:LEAD] + tuple(shape))
    ),
    "transpose": _moved("ops.transpose({0}, {permutation})", _transposed),
    "slice": _moved("ops.slice({0}, {start}, {stop}, axis={axis})", _slice),
    "concat": _moved(
        "ops.concat([{0}, {1}], {axis})",
        lambda a, b, axis: np.concatenate([a, b], _axis(a, axis)),
    ),
    "gather": _moved("ops.gather({0}, {1})", _gathered),
    "arange": _moved(
        "popxl.constant(np.arange({stop}, dtype=np.{dtype}))",
        lambda stop, dtype: np.arange(float(stop))[None, None],
    ),
    "numbers": _moved(
        "popxl.constant(np.array({values}, dtype=np.{dtype}))",
        lambda values, dtype: np.array(values, float)[None, None],
    ),
    "dynamic_slice": _moved("ops.dynamic_slice({0}, {1}, {axes}, {sizes}, True)", _sliced),
    "dynamic_update_": _moved(
        "ops.dynamic_update_({0}, {1}, {2}, {axes}, {sizes}, True)", _updated
    ),
    "add_": Kind("ops.add_({0}, {1})", _aligned(np.add)),
    "copy_": _moved("ops.var_updates.copy_var_update_({0}, {1})", lambda a, b: b),
    "all_reduce": Kind(
        "replicated_all_reduce({0}, '{op}', group{group})",
        _by_replica(reduced),
        lambda a, group, op: _by_replica(reduced)(np.abs(a), group, op="add"),
        ulps=2,
    ),
    "all_gather": _moved(
        "replicated_all_gather({0}, {axis}, group{group}, '{output_shape}')",
        _by_replica(
            lambda a, group, axis, output_shape: gathered(
                a, group, axis, output_shape == "new_axis"
            )
        ),
    ),
    "reduce_scatter": Kind(
        "replicated_reduce_scatter({0}, '{op}', group{group})",
        _by_replica(scattered),
        lambda a, group, op: _by_replica(scattered)(np.abs(a), group, op="add"),
        ulps=2,
    ),
}
IN_PLACE = ("dynamic_update_", "add_", "copy_")
"""Kinds that write to their first operand and have no result."""

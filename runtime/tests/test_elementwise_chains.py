"""Chains of elementwise ops and reductions of rows: as numpy has them, and as torch op by op."""

from __future__ import annotations

import numpy as np
import popxl
import pytest
from popxl import ops
from popxl_torch.fusion import chains as elementwise
from popxl_torch.fusion.groups import Fusion
from programs import (
    FLOATS,
    LAYOUTS,
    assert_rounded,
    by_replica,
    in_turn,
    numbers,
    run_on_layout,
    run_program,
)

pytestmark = pytest.mark.usefixtures("two_threads")
ROWS, SIZE = 3, 50


def rms_norm(x, w, _):
    wide = ops.cast(x, popxl.float32)
    normed = wide / ops.sqrt(ops.mean(wide * wide, -1, keepdims=True) + 1e-5)
    return ops.cast(normed, x.dtype) * w


def rms_norm_numpy(x, w, _):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5) * w


def layer_norm(x, w, b):
    wide = ops.cast(x, popxl.float32)
    centred = wide - ops.mean(wide, -1, keepdims=True)
    deviation = ops.sqrt(ops.mean(centred * centred, -1, keepdims=True) + 1e-5)
    return ops.cast(centred / deviation * ops.cast(w, popxl.float32), x.dtype) + b


def layer_norm_numpy(x, w, b):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred * centred).mean(-1, keepdims=True) + 1e-5) * w + b


def softmax_written_out(x, w, _):
    wide = ops.cast(x, popxl.float32) * ops.cast(w, popxl.float32)
    weights = ops.exp(wide - ops.max(wide, -1, keepdims=True))
    return ops.cast(weights / ops.sum(weights, -1, keepdims=True), x.dtype)


def softmax_numpy(x, w, _):
    weights = np.exp(x * w - (x * w).max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def masked_softmax(x, w, _):
    low, zero = (popxl.constant(v, x.dtype) for v in (-1e4, 0))
    scores = x * 2 + ops.where(ops.greater(w, 1), low, zero)
    return ops.cast(ops.softmax(ops.cast(scores, popxl.float32), -1), x.dtype)


def masked_softmax_numpy(x, w, _):
    return softmax_numpy(x * 2 + np.where(w > 1, -1e4, 0), 1, None)


CHAINS = {
    "rms norm": (rms_norm, rms_norm_numpy),
    "layer norm": (layer_norm, layer_norm_numpy),
    "softmax": (softmax_written_out, softmax_numpy),
    "masked softmax": (masked_softmax, masked_softmax_numpy),
    "gate": (lambda x, w, b: ops.swish(x) * w + b, lambda x, w, b: x / (1 + np.exp(-x)) * w + b),
    "functions": (
        lambda x, w, b: ops.tanh(x) + ops.exp(w) * ops.cos(b) - ops.abs(x) + ops.relu(-w),
        lambda x, w, b: np.tanh(x) + np.exp(w) * np.cos(b) - abs(x) + np.maximum(-w, 0),
    ),
    "parts": (
        lambda x, w, b: x[..., 20:] * w[20:] - x[..., :-20] * b[:-20],
        lambda x, w, b: x[..., 20:] * w[20:] - x[..., :-20] * b[:-20],
    ),
    "turned": (
        lambda x, w, b: x.transpose((1, 0)) * 3 + b.reshape((SIZE, 1)),
        lambda x, w, b: x.T * 3 + b[:, None],
    ),
}


@in_turn("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("name", CHAINS)
def test_chains(name, dtype, layout, rng):
    build, reference = CHAINS[name]
    values = [numbers(rng, shape, dtype) for shape in ((ROWS, SIZE), (SIZE,), (SIZE,))]
    (got,) = run_on_layout(layout, build, *values)
    wide = by_replica(layout, lambda *xs: reference(*(x.astype(np.float64) for x in xs)), values)
    assert_rounded(got, wide, dtype, 8, scale=np.abs(wide).max())


@pytest.mark.parametrize("shape", [(1,), (1, 1), (4, 1), (16,), (2, 3, 1, 17), (5, 33)])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_rows_of_any_length(dtype, shape, rng):
    x, w = numbers(rng, shape, dtype, count=2)
    (got,) = run_program(lambda x, w: rms_norm(x, w, None), x, w)
    wide = rms_norm_numpy(x.astype(np.float64), w.astype(np.float64), None)
    assert_rounded(got, wide, dtype, 8, scale=3)


def test_extreme_numbers():
    x = np.array([np.nan, np.inf, -np.inf, 0, -0.0, 88.5, 89, -87.5, -104, 1e-40], np.float32)

    def build(x):
        return ops.exp(x) + 0, ops.swish(x) * 1, ops.relu(x) * 1, ops.maximum(x, x * 0 + 1) * 1

    with np.errstate(all="ignore"):
        expected = np.exp(x), x / (1 + np.exp(-x)), np.maximum(x, 0), np.maximum(x, x * 0 + 1)
    for got, want in zip(run_program(build, x), expected, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-37)


def test_intermediate_results_are_rounded_as_the_program_says():
    """float16 steps at 2048 are 2: a sum that was kept in float32 would differ."""
    x = np.array([2048, 2049, 4096, 1], np.float16)
    (got,) = run_program(lambda x: (x + 1) - 2048, x)
    np.testing.assert_array_equal(got, (x + np.float16(1)) - np.float16(2048))


@pytest.mark.parametrize(
    "name, longest", [("rms norm", 8), ("layer norm", 11), ("masked softmax", 5), ("gate", 3)]
)
def test_a_chain_is_done_at_once(name, longest):
    ir = popxl.Ir()
    with ir.main_graph:
        x, w, b = (
            popxl.constant(np.ones(shape, np.float16)) for shape in ((ROWS, SIZE), SIZE, SIZE)
        )
        CHAINS[name][0](x, w, b)
    found = elementwise.chains(ir.main_graph, Fusion(ir.main_graph), 0)
    assert max(len(chain.ops) for chain in found) == longest


def test_more_than_a_kernel_has_room_for():
    x = np.linspace(0, 1, 40, dtype=np.float32)

    def build(*xs):
        total = xs[0]
        for number in range(40):
            total = total * 0.5 + xs[number % len(xs)]
        return total

    total = x
    for _ in range(40):
        total = total * np.float32(0.5) + x
    (got,) = run_program(build, *[x] * 11)
    np.testing.assert_allclose(got, total, rtol=1e-5)

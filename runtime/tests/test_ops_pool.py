"""Pools, against windows cut out one by one in numpy, and against torch."""

from __future__ import annotations

import itertools

import numpy as np
import popxl
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - torch's custom
from popxl import ops
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

KINDS = {"max_pool": np.max, "average_pool": np.mean}
CASES = [
    # shape, kernel, arguments
    ((2, 3, 7, 6), (3, 2), {}),
    ((2, 3, 8, 7), (2, 3), {"stride": (2, 3)}),
    ((1, 3, 8, 7), (3, 3), {"stride": (2, 2), "padding": (1, 0, 1, 2)}),
    ((1, 2, 9, 9), (3, 2), {"dilation": (2, 3), "padding": (1, 1, 1, 1)}),
    ((1, 2, 8, 9), (3, 3), {"stride": (2, 4), "ceil_mode": True}),
    ((1, 2, 8, 9), (3, 3), {"stride": (2, 3), "padding": (1, 1, 1, 1), "ceil_mode": True}),
    ((2, 3, 9), (3,), {"padding": (1, 1), "ceil_mode": True}),
    ((2, 3, 4), (3,), {"stride": (3,), "dilation": (2,), "ceil_mode": True}),  # one, too long
    ((1, 2, 4, 5, 6), (2, 3, 2), {"stride": (2, 1, 2), "padding": (1, 1, 0, 1, 1, 0)}),
    ((1, 1, 3, 2, 3, 2), (2, 1, 2, 2), {"stride": (1, 2, 1, 1)}),
]


def reference(kind: str, kernel: tuple[int, ...], arguments: dict):
    """What the windows hold, those of elements that exist: padding counts for neither kind."""
    axes = len(kernel)
    stride = arguments.get("stride", (1,) * axes)
    dilation = arguments.get("dilation", (1,) * axes)
    padding = arguments.get("padding", (0,) * 2 * axes)
    up = arguments.get("ceil_mode", False)

    def places(axis: int, size: int) -> list[np.ndarray]:
        room = size + padding[axis] + padding[axes + axis] - dilation[axis] * (kernel[axis] - 1) - 1
        count = (np.ceil if up else np.floor)(room / stride[axis]) + 1
        offsets = np.arange(kernel[axis]) * dilation[axis] - padding[axis]
        starts = np.arange(count).astype(int) * stride[axis]
        return [p[(p >= 0) & (p < size)] for p in (s + offsets for s in starts)]

    def pool(x: np.ndarray) -> np.ndarray:
        x = x.astype(np.float64)
        each = [places(axis, size) for axis, size in enumerate(x.shape[2:])]
        out = np.empty((*x.shape[:2], *map(len, each)))
        for where in itertools.product(*(range(len(p)) for p in each)):
            window = np.ix_(*(p[i] for p, i in zip(each, where, strict=True)))
            held = x[(slice(None), slice(None), *window)]
            out[(..., *where)] = KINDS[kind](held, axis=tuple(range(2, x.ndim)))
        return out

    return pool


@in_turn("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_pool(kind, case, dtype, layout, rng):
    shape, kernel, arguments = case
    x = numbers(rng, shape, dtype)
    (got,) = run_on_layout(layout, lambda x: getattr(ops, kind)(x, kernel, **arguments), x)
    expected = by_replica(layout, reference(kind, kernel, arguments), [x])
    ulps = 0 if kind == "max_pool" else 4 if dtype == popxl.float32 else 1
    assert_rounded(got, expected, dtype, ulps, scale=1)


@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize("up", [False, True])
@pytest.mark.parametrize("kernel, stride, size", [(5, 3, 50), (3, 1, 10), (4, 2, 11)])
def test_pools_are_torchs(kernel, stride, size, up, padding, rng):
    x = numbers(rng, (2, 3, size, size), popxl.float32)[0]
    arguments = ((kernel,) * 2, (stride,) * 2, (padding,) * 4)
    highest, average = run_program(
        lambda x: (
            ops.max_pool(x, *arguments, ceil_mode=up),
            ops.average_pool(x, *arguments, ceil_mode=up),
        ),
        x,
    )
    t, ends = torch.from_numpy(x), (kernel, stride, padding)
    np.testing.assert_array_equal(highest, F.max_pool2d(t, *ends, ceil_mode=up))
    expected = F.avg_pool2d(t, *ends, ceil_mode=up, count_include_pad=False)
    np.testing.assert_allclose(average, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "auto_pad, padding",
    [("same_upper", (1, 2)), ("same_lower", (2, 1)), ("valid", (0, 0)), (None, (0, 0))],
)
def test_padding_by_name(kind, auto_pad, padding, rng):
    x = numbers(rng, (1, 2, 7), popxl.float32)[0]
    by_name, by_number = run_program(
        lambda x: (
            getattr(ops, kind)(x, (4,), (2,), auto_pad=auto_pad),
            getattr(ops, kind)(x, (4,), (2,), padding),
        ),
        x,
    )
    np.testing.assert_array_equal(by_name, by_number)


def test_what_is_missing_at_the_end_of_a_setting_is_the_default(rng):
    x = numbers(rng, (1, 2, 7, 7), popxl.float32)[0]
    short, full = run_program(
        lambda x: (
            ops.max_pool(x, (2, 2), (2,), (1, 1)),
            ops.max_pool(x, (2, 2), (2, 1), (1, 1, 0, 0), (0, 0, 0, 0), (1, 1), (1, 1)),
        ),
        x,
    )
    np.testing.assert_array_equal(short, full)


def test_padding_is_less_than_every_number():
    x = np.full((1, 1, 2), -np.inf, np.float32)
    (got,) = run_program(lambda x: ops.max_pool(x, (2,), padding=(1, 1)), x)
    np.testing.assert_array_equal(got, np.full((1, 1, 3), -np.inf))


def tensor(*shape: int) -> popxl.Tensor:
    return ops.init(shape, popxl.float32, "t")


REFUSED = {
    "rank": (lambda: ops.max_pool(tensor(2, 3), (2,)), r"max_pool: .*3 axes or more, got \(2, 3\)"),
    "kernel": (
        lambda: ops.average_pool(tensor(1, 1, 4, 4), (2,)),
        r"average_pool: kernel_size must be 2 integers, got \(2,\)",
    ),
    "too long": (
        lambda: ops.max_pool(tensor(1, 1, 4), (5,)),
        r"max_pool: the kernel takes 5 elements of axis 2 of .*\(1, 1, 4\), which has 4, 0 \+ 0",
    ),
    "stride": (
        lambda: ops.max_pool(tensor(1, 1, 4), (2,), (1, 2)),
        r"max_pool: stride must be 1 integers, got \(1, 2\)",
    ),
    "padding only": (
        lambda: ops.average_pool(tensor(1, 1, 4), (2,), padding=(2, 0)),
        "average_pool: a window along axis 2 of .* holds padding only",
    ),
    "beyond the padding": (
        lambda: ops.max_pool(tensor(1, 1, 5), (1,), (3,), ceil_mode=True),
        "max_pool: a window along axis 2 of .* holds padding only",
    ),
    "out_pads": (
        lambda: ops.max_pool(tensor(1, 1, 5), (2,), out_pads=(1, 0)),
        r"max_pool: out_pads must be 0 everywhere, got \(1, 0\)",
    ),
    "in_dilations": (
        lambda: ops.max_pool(tensor(1, 1, 5), (2,), in_dilations=(2,)),
        r"max_pool: in_dilations must be 1 everywhere, got \(2,\)",
    ),
    "auto_pad": (
        lambda: ops.max_pool(tensor(1, 1, 5), (2,), auto_pad="SAME_UPPER"),
        "max_pool: auto_pad must be one of not_set, .*got 'SAME_UPPER'",
    ),
    "storage order": (
        lambda: ops.max_pool(tensor(1, 1, 5), (2,), storage_order="column"),
        "max_pool: storage_order must be 'row', got 'column'",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_settings_that_do_not_fit_are_refused(case, main_graph):
    build, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        build()


def test_integers_are_refused(main_graph):
    with pytest.raises(TypeError, match="max_pool: .* must hold floats, got int32"):
        ops.max_pool(ops.init((1, 1, 4), popxl.int32), (2,))

"""Convolutions and their transposes, against torch in float64."""

from __future__ import annotations

from dataclasses import dataclass

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

CONVS = (F.conv1d, F.conv2d, F.conv3d)
TRANSPOSED = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)


@dataclass(frozen=True)
class Case:
    """Shapes, and the arguments of the op."""

    x: tuple[int, ...]
    weight: tuple[int, ...]
    arguments: dict

    def __str__(self) -> str:
        return f"{self.x} {self.weight} {self.arguments}"


CASES = [
    Case((2, 4, 7, 6), (3, 4, 3, 2), {}),
    Case((2, 4, 9, 8), (6, 2, 3, 3), {"stride": (3, 2), "padding": (1, 1, 1, 1), "groups": 2}),
    Case((1, 2, 9, 8), (2, 2, 3, 2), {"dilation": (2, 3), "padding": (0, 2, 1, 0)}),
    Case((2, 4, 6, 5), (4, 1, 3, 3), {"groups": 4, "padding": (1, 0, 2, 1)}),
    Case((2, 3, 9), (2, 3, 3), {"stride": (1,), "padding": (0, 0), "dilation": (1,)}),
    Case((2, 4, 9), (6, 2, 3), {"stride": (2,), "padding": (1, 1), "dilation": (2,), "groups": 2}),
    Case(
        (1, 2, 4, 5, 6),
        (3, 2, 2, 3, 2),
        {"stride": (1, 2, 1), "padding": (1, 0, 0, 0, 1, 1), "dilation": (1, 1, 2)},
    ),
]


def exact(*arrays: np.ndarray) -> list[torch.Tensor]:
    return [torch.from_numpy(a.astype(np.float64)) for a in arrays]


def padded(x: torch.Tensor, padding: tuple[int, ...]) -> torch.Tensor:
    """Padding in the order of torch: of the last axis first, its two ends together."""
    axes = len(padding) // 2
    ends = zip(padding[:axes], padding[axes:], strict=True)
    return F.pad(x, [n for pair in reversed(list(ends)) for n in pair])


def reference(case: Case):
    def conv(x, weight):
        x, weight = exact(x, weight)
        given = dict(case.arguments)
        x = padded(x, given.pop("padding", ()))
        return CONVS[x.ndim - 3](x, weight, **given).numpy()

    return conv


@in_turn("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_conv(case, dtype, layout, rng):
    x, weight = numbers(rng, case.x, dtype, -1, 1), numbers(rng, case.weight, dtype, -1, 1)
    (got,) = run_on_layout(layout, lambda x, w: ops.conv(x, w, **case.arguments), x, weight)
    expected = by_replica(layout, reference(case), [x, weight])
    assert_rounded(got, expected, dtype, 4 if dtype == popxl.float32 else 1, scale=2)


def test_replicas_with_one_weight_and_replicas_with_one_input(rng):
    """The mesh holds equal values once, so that shapes differ between the two."""
    x, weight = (numbers(rng, s, popxl.float32) for s in ((2, 4, 6, 6), (4, 2, 3, 3)))
    case = Case((), (), {"groups": 2})
    for first, second in ((0, 1), (1, 0)):
        values = [[v[i % 2 * on] for i in range(4)] for v, on in ((x, first), (weight, second))]
        (got,) = run_on_layout(
            "all replicas differ", lambda x, w: ops.conv(x, w, groups=2), *values
        )
        expected = by_replica("all replicas differ", reference(case), values)
        assert_rounded(got, expected, popxl.float32, 8, scale=4)


def test_half_types_add_up_in_float32():
    """In float16 a sum of ones stops growing at 2048."""
    x, weight = np.ones((1, 4096, 1), np.float16), np.ones((1, 4096, 1), np.float16)
    (got,) = run_program(lambda x, w: ops.conv(x, w, (1,), (0, 0), (1,)), x, weight)
    assert got.ravel() == [4096]


PADDED = [
    # size, kernel, stride, dilation -> padding of same_upper, of same_lower
    (6, 3, 1, 1, (1, 1), (1, 1)),
    (6, 4, 1, 1, (1, 2), (2, 1)),
    (7, 4, 2, 1, (1, 2), (2, 1)),
    (6, 3, 2, 1, (0, 1), (1, 0)),
    (5, 3, 1, 2, (2, 2), (2, 2)),
    (6, 1, 2, 1, (0, -1), (-1, 0)),
]


@pytest.mark.parametrize("case", PADDED, ids=str)
@pytest.mark.parametrize("pad_type", ["same_upper", "same_lower", "valid"])
def test_padding_by_name(pad_type, case, rng):
    size, kernel, stride, dilation, upper, lower = case
    x, weight = (numbers(rng, s, popxl.float32)[0] for s in ((1, 2, size), (2, 2, kernel)))
    ends = {"same_upper": upper, "same_lower": lower, "valid": (0, 0)}[pad_type]
    expected = F.conv1d(
        F.pad(torch.from_numpy(x), ends),
        torch.from_numpy(weight),
        stride=stride,
        dilation=dilation,
    )

    (got,) = run_program(
        lambda x, w: ops.conv(x, w, (stride,), (0, 0), (dilation,), 1, pad_type), x, weight
    )

    np.testing.assert_allclose(got, expected.numpy(), rtol=1e-5, atol=1e-5)
    if pad_type != "valid":
        assert got.shape[-1] == -(-size // stride)


def test_settings_of_an_ipu_have_no_effect(rng):
    x, weight = (numbers(rng, s, popxl.float32)[0] for s in ((1, 2, 4, 4), (2, 2, 3, 3)))
    settings = {
        "available_memory_proportions": [0.2],
        "partials_types": ["half"],
        "enable_conv_dithering": [1],
    }
    plain, tuned = run_program(lambda x, w: (ops.conv(x, w), ops.conv(x, w, **settings)), x, weight)
    np.testing.assert_array_equal(plain, tuned)
    options = ops.multi_conv_options({}, None, **settings)
    assert options.availableMemoryProportions == [0.2]
    assert ops.multi_conv_options({}, None, None, None, None).partialsTypes == []


TRANSPOSED_CASES = [
    Case((2, 4, 5, 4), (4, 3, 3, 2), {}),
    Case((2, 4, 5, 4), (4, 3, 3, 2), {"stride": (2, 3), "padding": (1, 0, 1, 0), "groups": 2}),
    Case((1, 2, 3, 3), (2, 2, 3, 3), {"stride": (2, 2), "output_padding": (1, 1)}),
    Case((1, 4, 5), (4, 1, 3), {"stride": (2,), "padding": (1, 1), "groups": 4}),
    Case((2, 4, 5), (4, 2, 3), {}),
    Case((1, 2, 3, 2, 4), (2, 3, 2, 3, 2), {"stride": (1, 2, 1), "padding": (1, 0, 1, 1, 0, 1)}),
]


def transposed(case: Case):
    def conv_transpose(x, weight):
        x, weight = exact(x, weight)
        given, axes = dict(case.arguments), x.ndim - 2
        given["padding"] = given.get("padding", (0,) * 2 * axes)[:axes]  # the same at both ends
        return TRANSPOSED[axes - 1](x, weight, **given).numpy()

    return conv_transpose


@in_turn("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("case", TRANSPOSED_CASES, ids=str)
def test_conv_transpose(case, dtype, layout, rng):
    x, weight = numbers(rng, case.x, dtype, -1, 1), numbers(rng, case.weight, dtype, -1, 1)
    (got,) = run_on_layout(
        layout, lambda x, w: ops.conv_transpose(x, w, **case.arguments), x, weight
    )
    expected = by_replica(layout, transposed(case), [x, weight])
    assert_rounded(got, expected, dtype, 4 if dtype == popxl.float32 else 1, scale=2)


@pytest.mark.parametrize("size", [7, 8, 6, 10])
@pytest.mark.parametrize("pad_type", ["not_set", "same_upper", "same_lower"])
@pytest.mark.parametrize("whole", [False, True])
def test_a_transpose_of_the_size_asked_for(whole, pad_type, size, rng):
    """What is cut off, or added, follows from the size; 9 elements are there before that."""
    x, weight = (numbers(rng, s, popxl.float32)[0] for s in ((1, 2, 4), (2, 3, 3)))
    full = F.conv_transpose1d(torch.from_numpy(x), torch.from_numpy(weight), stride=2).numpy()
    total = 9 - size
    start = total - total // 2 if pad_type == "same_upper" else total // 2
    if total < 0:
        start = total
    expected = np.pad(full, ((0, 0), (0, 0), (10, 10)))[:, :, 10 + start :][:, :, :size]
    shape = (1, 3, size) if whole else (size,)

    (got,) = run_program(
        lambda x, w: ops.conv_transpose(x, w, (2,), pad_type=pad_type, output_shape=shape),
        *(x, weight),
    )

    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def test_a_transpose_undoes_the_shape_of_the_convolution(main_graph):
    t = popxl.variable(np.zeros((1, 4, 1, 1), np.float32))
    weight = popxl.variable(np.zeros((4, 4, 1, 1), np.float32))
    assert ops.conv_transpose(t, weight, output_shape=(1, 4, 2, 2)).shape == (1, 4, 2, 2)
    for pad_type in ("not_set", "same_upper", "same_lower", "valid"):
        assert ops.conv_transpose(t, weight, pad_type=pad_type).shape == (1, 4, 1, 1)


def tensor(*shape: int, dtype: popxl.dtype = popxl.float32) -> popxl.Tensor:
    return ops.init(shape, dtype, "t")


REFUSED = {
    "rank": (lambda: ops.conv(tensor(2, 3), tensor(2, 3)), r"conv: .*3 axes or more, got \(2, 3\)"),
    "ranks": (
        lambda: ops.conv(tensor(1, 3, 4, 4), tensor(2, 3, 3)),
        r"conv: .* the same number.*\(1, 3, 4, 4\).*\(2, 3, 3\)",
    ),
    "channels": (
        lambda: ops.conv(tensor(1, 3, 4, 4), tensor(2, 2, 3, 3)),
        r"conv: 1 groups of .*\(1, 3, 4, 4\) need a weight of .* 3, .*\(2, 2, 3, 3\)",
    ),
    "groups": (
        lambda: ops.conv(tensor(1, 4, 4, 4), tensor(3, 2, 3, 3), groups=2),
        r"conv: 2 groups.*multiple of 2, 2, ",
    ),
    "no groups": (
        lambda: ops.conv(tensor(1, 4, 4, 4), tensor(3, 2, 3, 3), groups=0),
        "conv: groups must be at least 1, got 0",
    ),
    "kernel": (
        lambda: ops.conv(tensor(1, 1, 4, 4), tensor(1, 1, 3, 3), dilation=(1, 2)),
        r"conv: the kernel takes 5 elements of axis 3 of .*\(1, 1, 4, 4\), which has 4, 0 \+ 0",
    ),
    "stride": (
        lambda: ops.conv(tensor(1, 1, 4, 4), tensor(1, 1, 3, 3), (2,)),
        r"conv: stride must be 2 integers, got \(2,\)",
    ),
    "no stride": (
        lambda: ops.conv(tensor(1, 1, 4, 4), tensor(1, 1, 3, 3), (0, 1)),
        r"conv: stride must be at least 1 everywhere, got \(0, 1\)",
    ),
    "padding": (
        lambda: ops.conv(tensor(1, 1, 4, 4), tensor(1, 1, 3, 3), padding=(0, 0, -1, 0)),
        "conv: padding must be at least 0",
    ),
    "pad type": (
        lambda: ops.conv(tensor(1, 1, 4, 4), tensor(1, 1, 3, 3), pad_type="same"),
        "conv: pad_type must be one of not_set, same_upper, same_lower, valid, got 'same'",
    ),
    "transposed channels": (
        lambda: ops.conv_transpose(tensor(1, 3, 4, 4), tensor(2, 2, 3, 3)),
        r"conv_transpose: .*\(1, 3, 4, 4\) in 1 groups needs a weight of \(3, ",
    ),
    "transposed dilation": (
        lambda: ops.conv_transpose(tensor(1, 2, 4, 4), tensor(2, 2, 3, 3), dilation=(2, 1)),
        r"conv_transpose: dilation must be 1 everywhere, got \(2, 1\)",
    ),
    "transposed padding": (
        lambda: ops.conv_transpose(tensor(1, 2, 1, 1), tensor(2, 2, 2, 2), padding=(1, 0, 1, 0)),
        r"conv_transpose: padding \(1, 0, 1, 0\) leaves nothing of the sizes \(2, 2\)",
    ),
    "transposed size": (
        lambda: ops.conv_transpose(tensor(1, 2, 4, 4), tensor(2, 2, 3, 3), output_shape=(5,)),
        r"conv_transpose: output_shape must be 2 sizes, or \(1, 2\) and 2 sizes, got \(5,\)",
    ),
    "transposed valid": (
        lambda: ops.conv_transpose(
            tensor(1, 2, 4, 4), tensor(2, 2, 3, 3), pad_type="valid", output_shape=(5, 5)
        ),
        "conv_transpose: pad_type 'valid'",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_shapes_that_do_not_fit_are_refused(case, main_graph):
    build, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        build()


def test_dtypes_that_do_not_fit_are_refused(main_graph):
    with pytest.raises(TypeError, match="conv: operands must have one dtype"):
        ops.conv(tensor(1, 1, 4), tensor(1, 1, 2, dtype=popxl.float16))
    with pytest.raises(TypeError, match="conv: .* must hold floats, got int32"):
        ops.conv(*(tensor(1, 1, n, dtype=popxl.int32) for n in (4, 2)))
    with pytest.raises(TypeError, match="conv: stride must be a tuple of integers, got 1"):
        ops.conv(tensor(1, 1, 4), tensor(1, 1, 2), 1)

"""`interpolate`, `roi_align` and `subsample`: against torch, and formulas in numpy."""

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
    INTEGERS,
    LAYOUTS,
    assert_rounded,
    by_replica,
    in_turn,
    numbers,
    run_on_layout,
    run_program,
)

# --- interpolate ---

MODES = ["nearest", "linear", "cubic"]
PLACES = {
    "half_pixel": lambda i, scale, size: (i + 0.5) / scale - 0.5,
    "pytorch_half_pixel": lambda i, scale, size: (
        (i + 0.5) / scale - 0.5 if size * scale > 1 else 0.0
    ),
    "align_corners": lambda i, scale, size: (
        i * (size - 1) / (size * scale - 1) if size * scale != 1 else 0.0
    ),
    "asymmetric": lambda i, scale, size: i / scale,
}
NEAREST = {
    "round_prefer_floor": lambda x: np.ceil(x - 0.5),
    "round_prefer_ceil": lambda x: np.floor(x + 0.5),
    "floor": np.floor,
    "ceil": np.ceil,
}
SCALES = [(1, 1, 2, 3), (1, 1, 0.5, 1.5), (1, 2, 2.5, 0.25), (3, 1, 0.75, 1)]


def cubic(d: float) -> float:
    """Keys' kernel with a = -0.75 at a distance of `d`."""
    a, d = -0.75, abs(d)
    if d <= 1:
        return (a + 2) * d**3 - (a + 3) * d**2 + 1
    return a * (d**3 - 5 * d**2 + 8 * d - 4) if d < 2 else 0.0


def weights(mode: str, nearest: str, x: float, size: int) -> np.ndarray:
    """How much of each element is in what lies at `x`."""
    result = np.zeros(size)
    if mode == "nearest":
        taps = [(NEAREST[nearest](x), 1.0)]
    elif mode == "linear":
        x = max(x, 0)
        taps = [(np.floor(x), 1 - x % 1), (np.floor(x) + 1, x % 1)]
    else:
        taps = [(at, cubic(x - at)) for at in np.floor(x) + np.arange(-1, 3)]
    for at, weight in taps:
        result[int(np.clip(at, 0, size - 1))] += weight
    return result


def resized(mode: str, scales: tuple, nearest: str, places: str):
    def resize(x: np.ndarray) -> np.ndarray:
        x = x.astype(np.float64)
        for axis, scale in enumerate(scales):
            if scale != 1:
                size = x.shape[axis]
                at = [PLACES[places](i, scale, size) for i in range(int(size * scale))]
                matrix = np.stack([weights(mode, nearest, p, size) for p in at])
                x = np.moveaxis(np.moveaxis(x, axis, -1) @ matrix.T, -1, axis)
        return x

    return resize


@pytest.mark.parametrize("places", PLACES)
@pytest.mark.parametrize(
    "mode", [(m, n) for m in MODES for n in NEAREST if m == "nearest" or n == "ceil"]
)
@pytest.mark.parametrize("scales", SCALES, ids=str)
def test_interpolate(scales, mode, places, rng):
    x = numbers(rng, (1, 2, 4, 4), popxl.float32)
    (got,) = run_on_layout(
        "all replicas differ", lambda x: ops.interpolate(x, scales, *mode, places), x
    )
    expected = by_replica("all replicas differ", resized(mode[0], scales, mode[1], places), [x])
    # Places in float32 are off by their last digit, and cubics are steep.
    assert_rounded(got, expected, popxl.float32, 32, scale=3)


@in_turn("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("mode", MODES)
def test_interpolate_in_every_type(mode, dtype, layout, rng):
    x = numbers(rng, (3, 4, 2), dtype)
    scales = (1, 1.5, 2)
    (got,) = run_on_layout(layout, lambda x: ops.interpolate(x, scales, mode), x)
    reference = resized(mode, scales, "round_prefer_floor", "half_pixel")
    ulps = 8 if dtype == popxl.float32 else 1
    assert_rounded(got, by_replica(layout, reference, [x]), dtype, ulps, scale=3)


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
def test_nearest_elements_of_integers(dtype, rng):
    x = numbers(rng, (2, 3), dtype, -9, 9)[0]
    (got,) = run_program(lambda x: ops.interpolate(x, (1, 2)), x)
    np.testing.assert_array_equal(got, x.repeat(2, axis=1))
    assert got.dtype == x.dtype


TORCHS = [
    # the mode and places of the op, the mode and alignment of torch
    ("nearest", "half_pixel", "nearest-exact", None),
    ("linear", "half_pixel", "bilinear", False),
    ("linear", "align_corners", "bilinear", True),
    ("cubic", "half_pixel", "bicubic", False),
    ("cubic", "align_corners", "bicubic", True),
]


@pytest.mark.parametrize("case", TORCHS, ids=str)
@pytest.mark.parametrize("scales", [(2, 3), (2, 2), (3, 1)], ids=str)
def test_interpolate_is_torchs(scales, case, rng):
    mode, places, name, aligned = case
    x = numbers(rng, (2, 3, 5, 5), popxl.float32)[0]
    (got,) = run_program(
        lambda x: ops.interpolate(x, (1, 1, *scales), mode, coordinate_transformation_mode=places),
        x,
    )
    expected = F.interpolate(
        torch.from_numpy(x), scale_factor=scales, mode=name, align_corners=aligned
    )
    np.testing.assert_allclose(got, expected.numpy(), rtol=1e-5, atol=1e-5)


def test_a_line_between_two_elements_of_a_smaller_result(rng):
    """In float32, 10 * 0.3 is 3."""
    x = numbers(rng, (10, 10, 10), popxl.float32)[0]
    (got,) = run_program(lambda x: ops.interpolate(x, (1.0, 1.0, 0.3), "linear"), x)
    expected = F.interpolate(
        torch.from_numpy(x), scale_factor=0.3, mode="linear", recompute_scale_factor=False
    )
    np.testing.assert_allclose(got, expected.numpy(), rtol=1e-5, atol=1e-6)


# --- roi_align ---


def bilinear(image: np.ndarray, y: float, x: float) -> np.ndarray:
    """A point of `(channels, height, width)`; 0 beyond one element outside."""
    height, width = image.shape[1:]
    if not (-1 <= y <= height and -1 <= x <= width):
        return np.zeros(image.shape[0])
    y, x = np.clip(y, 0, height - 1), np.clip(x, 0, width - 1)
    y0, x0 = min(int(y), max(height - 2, 0)), min(int(x), max(width - 2, 0))
    y1, x1 = min(y0 + 1, height - 1), min(x0 + 1, width - 1)
    above = image[:, y0, x0] * (1 - (x - x0)) + image[:, y0, x1] * (x - x0)
    below = image[:, y1, x0] * (1 - (x - x0)) + image[:, y1, x1] * (x - x0)
    return above * (1 - (y - y0)) + below * (y - y0)


def aligned(size: tuple[int, int], scale: float, samples: int):
    def roi_align(t, rois, batch_index):
        t, rois = t.astype(np.float64), rois.astype(np.float64) * scale
        result = np.zeros((len(rois), t.shape[1], *size))
        for r, (x1, y1, x2, y2) in enumerate(rois):
            step_y = max(y2 - y1, 1) / (size[0] * samples)
            step_x = max(x2 - x1, 1) / (size[1] * samples)
            grid = itertools.product(range(size[0] * samples), range(size[1] * samples))
            for i, j in grid:
                point = y1 + (i + 0.5) * step_y, x1 + (j + 0.5) * step_x
                result[r, :, i // samples, j // samples] += bilinear(t[batch_index[r]], *point)
        return result / samples**2

    return roi_align


ROI_CASES = [((2, 3), 0.5, 2), ((3, 3), 0.1, 1), ((1, 2), 1.0, 3)]


@in_turn("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [popxl.float32, popxl.float16], ids=str)
@pytest.mark.parametrize("case", ROI_CASES, ids=str)
def test_roi_align(case, dtype, layout, rng):
    t, rois = numbers(rng, (3, 2, 6, 5), dtype), numbers(rng, (70, 4), dtype, -3, 18)
    batch_index = numbers(rng, (70,), popxl.int32, 0, 3)
    (got,) = run_on_layout(layout, lambda *args: ops.roi_align(*args, *case), t, rois, batch_index)
    expected = by_replica(layout, aligned(*case), [t, rois, batch_index])
    # A point within rounding of one element outside may be 0 or not: none is, of these numbers.
    assert_rounded(got, expected, dtype, 32 if dtype == popxl.float32 else 1, scale=3)


def test_a_region_of_no_sample_is_refused():
    t, rois = np.ones((2, 1, 4, 4), np.float32), np.zeros((1, 4), np.float32)
    with pytest.raises(IndexError, match="roi_align: batch index 2 is outside the batch of 2"):
        run_program(
            lambda *args: ops.roi_align(*args, (1, 1), 1.0, 1), t, rois, np.array([2], np.int32)
        )


# --- subsample ---


@in_turn("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [*FLOATS, *INTEGERS], ids=str)
def test_subsample(dtype, layout, rng):
    x = numbers(rng, (5, 6), dtype)
    both, first, one = run_on_layout(
        layout,
        lambda x: (ops.subsample(x, [2, 4]), ops.subsample(x, (3,)), ops.subsample(x, 2)),
        x,
    )
    for got, pick in ((both, np.s_[::2, ::4]), (first, np.s_[::3]), (one, np.s_[::2])):
        np.testing.assert_array_equal(got, by_replica(layout, lambda x, p=pick: x[p], [x]))
        assert got.dtype == dtype.as_numpy()


# --- what is refused ---


def tensor(*shape: int, dtype: popxl.dtype = popxl.float32) -> popxl.Tensor:
    return ops.init(shape, dtype, "t")


def regions(count: int) -> list[popxl.Tensor]:
    return [tensor(count, 4), tensor(count, dtype=popxl.int32)]


REFUSED = {
    "scales": (
        lambda: ops.interpolate(tensor(2, 3)),
        r"interpolate: scale_factor must be 2 numbers for .*\(2, 3\), got \(1.0, 1.0, 1.0, 1.0\)",
    ),
    "nothing": (
        lambda: ops.interpolate(tensor(2, 3), (1, 0.3)),
        r"interpolate: .*\(2, 3\) by \(1.0, 0.3\) would be of shape \(2, 0\)",
    ),
    "mode": (
        lambda: ops.interpolate(tensor(2, 3), (1, 2), "area"),
        "interpolate: mode must be one of nearest, linear, cubic, got 'area'",
    ),
    "nearest mode": (
        lambda: ops.interpolate(tensor(2, 3), (1, 2), nearest_mode="round"),
        "interpolate: nearest_mode must be one of round_prefer_floor, .*, got 'round'",
    ),
    "places": (
        lambda: ops.interpolate(tensor(2, 3), (1, 2), coordinate_transformation_mode="corners"),
        "interpolate: coordinate_transformation_mode must be one of .*, got 'corners'",
    ),
    "region": (
        lambda: ops.interpolate(
            tensor(2, 3), (1, 2), coordinate_transformation_mode="tf_crop_and_resize"
        ),
        "interpolate: .*'tf_crop_and_resize' needs a region",
    ),
    "image": (
        lambda: ops.roi_align(tensor(1, 2, 3), *regions(2), (1, 1), 1.0, 1),
        r"roi_align: .* must be \(batch, channels, height, width\), is \(1, 2, 3\)",
    ),
    "regions": (
        lambda: ops.roi_align(tensor(1, 2, 3, 3), regions(2)[0], regions(3)[1], (1, 1), 1.0, 1),
        r"roi_align: rois must be \(regions, 4\).*\(2, 4\).*\(3,\)",
    ),
    "size": (
        lambda: ops.roi_align(tensor(1, 2, 3, 3), *regions(2), (1,), 1.0, 1),
        r"roi_align: output_size must be 2 integers, got \(1,\)",
    ),
    "samples": (
        lambda: ops.roi_align(tensor(1, 2, 3, 3), *regions(2), (1, 1), 1.0, 0),
        "roi_align: sampling_ratio must be at least 1, got 0",
    ),
    "strides": (
        lambda: ops.subsample(tensor(10), -2),
        r"subsample: strides must be at most 1 integers from 1 on for .*\(10,\), got \(-2,\)",
    ),
    "too many strides": (lambda: ops.subsample(tensor(10), [1, 2]), r"got \(1, 2\)"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_settings_that_do_not_fit_are_refused(case, main_graph):
    build, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        build()


def test_dtypes_that_do_not_fit_are_refused(main_graph):
    with pytest.raises(TypeError, match="interpolate: .* must hold floats, got int32"):
        ops.interpolate(tensor(2, dtype=popxl.int32), (2,), "linear")
    with pytest.raises(TypeError, match="roi_align: batch_index .* must hold integers"):
        ops.roi_align(tensor(1, 2, 3, 3), tensor(2, 4), tensor(2), (1, 1), 1.0, 1)

"""Quantised weights: what words stand for, how they are made, and that kernels read the same."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from popxl_shared import QuantisationError, channels, groups
from popxl_shared.limits import FEW_ROWS
from popxl_torch.backends.cpu import library
from popxl_torch.backends.cpu.back_end import Cpu
from popxl_torch.backends.reference.back_end import Reference
from popxl_torch.backends.specs import LinearSpec, StoredWeight

SIZE, OUTPUTS, GROUP = 128, 40, 32


@pytest.fixture(scope="module")
def rng():
    return np.random.default_rng(0)


@pytest.fixture(scope="module")
def rows(rng) -> np.ndarray:
    return rng.standard_normal((64, 256)).astype(np.float32)


def float32(*arrays: np.ndarray) -> list[np.ndarray]:
    return [array.astype(np.float32) for array in arrays]


# --- what numbers stand for ---


def test_a_word_holds_four_numbers_the_first_in_its_highest_bits():
    numbers = np.array([[0, 1, 2, 15], [15, 14, 0, 7]])
    words = groups.packed(numbers)
    assert words.dtype == np.uint16
    assert words[:, 0].tolist() == [0x012F, 0xFE07]
    np.testing.assert_array_equal(groups.unpacked(words), numbers)


def test_an_element_is_its_number_times_the_scale_and_the_offset():
    words = np.array([[[0x012F], [0xFE07]]], np.uint16)
    scale, offset = np.array([[[[0.5], [2.0]]], [[[10.0], [-1.0]]]], np.float32)
    expected = [[10, 10.5, 11, 17.5, 29, 27, -1, 13]]
    np.testing.assert_array_equal(groups.dequantised(words, scale, offset), expected)
    numbers = np.array([[-127, 5], [1, 0]], np.int8)
    found = channels.dequantised(numbers, np.array([0.5, 2], np.float32))
    np.testing.assert_array_equal(found, [[-63.5, 2.5], [2, 0]])


# --- how they are made ---


def test_fitted_groups_have_less_error_than_their_extremes_give(rows):
    def error(size: int, rounds: int) -> float:
        words, scale, offset = groups.quantised(rows, size, rounds)
        return float(((groups.dequantised(words, *float32(scale, offset)) - rows) ** 2).mean())

    for size in (32, 64, 128):
        assert error(size, groups.ROUNDS) < 0.97 * error(size, 0)


def test_a_channels_element_is_within_half_a_step_of_itself(rows):
    numbers, scale = channels.quantised(rows)
    assert (numbers.dtype, scale.dtype, scale.shape) == (np.int8, np.float32, (64,))
    error = np.abs(channels.dequantised(numbers, scale) - rows)
    assert (error <= scale[:, None] * 0.5001).all()
    assert np.abs(numbers).max(-1).tolist() == [channels.LARGEST] * 64


@pytest.mark.parametrize("value", [0.0, 1.0, -3.5])
def test_groups_and_channels_of_equal_elements_are_exact(value):
    weight = np.full((2, 16), value, np.float32)
    words, scale, offset = groups.quantised(weight, 8)
    np.testing.assert_array_equal(groups.dequantised(words, *float32(scale, offset)), weight)
    np.testing.assert_allclose(channels.dequantised(*channels.quantised(weight)), weight, rtol=1e-6)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(wrong):
    weight = np.zeros((2, 16), np.float32)
    weight[1, 3] = wrong
    for quantise in (channels.quantised, lambda values: groups.quantised(values, 8)):
        with pytest.raises(QuantisationError, match="not finite"):
            quantise(weight)


# --- what kernels read: products with rows of the identity are the elements ---


@pytest.fixture(scope="module")
def in_groups(rng) -> tuple[StoredWeight, np.ndarray]:
    """A weight `(in, outputs)`, and its elements."""
    words = rng.integers(0, 2**16, (OUTPUTS, SIZE // GROUP, GROUP // 4)).astype(np.uint16)
    scale, offset = (
        rng.standard_normal((OUTPUTS, SIZE // GROUP, 1)).astype(np.float16) for _ in "so"
    )
    held = StoredWeight(*map(torch.from_numpy, (words, scale, offset)))
    return held, groups.dequantised(words, *float32(scale, offset)).T


@pytest.fixture(scope="module")
def in_channels(rng) -> tuple[StoredWeight, np.ndarray]:
    numbers = rng.integers(-127, 128, (OUTPUTS, SIZE)).astype(np.int8)
    scale = rng.random(OUTPUTS).astype(np.float32)
    held = StoredWeight(torch.from_numpy(numbers).mT, torch.from_numpy(scale))
    return held, channels.dequantised(numbers, scale).T


BACK_ENDS = {"reference": lambda: Reference(), "cpu": lambda: Cpu(library())}


@pytest.mark.parametrize("name", BACK_ENDS)
def test_back_ends_dequantise_alike(name, in_groups, two_threads):
    weight, elements = in_groups
    found = BACK_ENDS[name]().dequantise(weight, torch.float32)
    np.testing.assert_array_equal(found.numpy(), elements)


@pytest.mark.parametrize("name", BACK_ENDS)
@pytest.mark.parametrize("at_once", [1, 3, 32], ids="{} rows".format)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", ["in_groups", "in_channels"])
def test_back_ends_multiply_with_the_same_elements(
    name, kind, dtype, at_once, request, two_threads
):
    weight, elements = request.getfixturevalue(kind)
    back_end, found = BACK_ENDS[name](), []
    left_to_torch = at_once > FEW_ROWS and not library().many_rows  # without AVX-512
    for some in torch.eye(SIZE, dtype=dtype).split(at_once):
        done = back_end.linear(LinearSpec(0, torch.float32), some, weight)
        if name == "cpu" and left_to_torch:
            assert done is None
            return
        found.append(done.float().numpy())
    close_to(elements, np.concatenate(found), dtype)


@pytest.mark.parametrize("at_once", [1, 16, 65], ids="{} rows".format)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", ["in_groups", "in_channels"])
def test_triton_multiplies_with_the_same_elements(kind, dtype, at_once, request):
    from triton_here import DEVICE, kernels  # the test is skipped where there is no Triton

    weight, elements = request.getfixturevalue(kind)
    held = StoredWeight(
        *(
            None if t is None else t.to(DEVICE)[None]
            for t in (weight.tensor, weight.scale, weight.offset)
        )
    )
    x = torch.eye(SIZE, dtype=dtype, device=DEVICE)[:at_once]
    found = kernels.linear(x[None], held, torch.float32)[0]
    close_to(elements[:at_once], found.float().cpu().numpy(), dtype)


def close_to(elements: np.ndarray, found: np.ndarray, dtype: torch.dtype) -> None:
    """Within what an element may be rounded by; another number would be off by a whole step."""
    tolerance = 1e-5 if dtype == torch.float32 else 2.0**-8
    np.testing.assert_allclose(found, elements, tolerance, tolerance * np.abs(elements).max())

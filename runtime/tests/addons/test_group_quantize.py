"""4-bit tensors: numpy against a plain loop, the graph against numpy."""

import numpy as np
import popxl
import pytest
from popxl_addons.ops.group_quantize_decompress import (
    group_quantize_compress_numpy,
    group_quantize_decompress,
    group_quantize_decompress_numpy,
)


def _numbers(word):
    return [int(word) // 16**power % 16 for power in (3, 2, 1, 0)]


@pytest.fixture
def weight(rng):
    return rng.standard_normal((6, 32)).astype(np.float32)


def test_a_word_holds_four_numbers_the_first_in_its_highest_bits():
    t = np.array([[0, 1, 2, 15, 15, 14, 0, 7]], np.float16)

    words, scale, bias = group_quantize_compress_numpy(t, 8)

    assert [_numbers(w) for w in words[0, 0]] == [[0, 1, 2, 15], [15, 14, 0, 7]]
    assert (scale.item(), bias.item()) == (1, 0)


def test_decompression_follows_its_definition(rng):
    words = rng.integers(0, 2**16, (2, 3, 2)).astype(np.uint16)
    scale, bias = (rng.standard_normal((2, 3, 1)).astype(np.float32) for _ in range(2))

    values = group_quantize_decompress_numpy(words, scale, bias)

    expected = [
        [
            number * scale[row, group, 0] + bias[row, group, 0]
            for group in range(3)
            for word in words[row, group]
            for number in _numbers(word)
        ]
        for row in range(2)
    ]
    np.testing.assert_allclose(values, expected, rtol=1e-6)


@pytest.mark.parametrize("group_size", [4, 8, 32])
@pytest.mark.parametrize("dim", [-1, 1])
def test_a_compressed_element_is_within_half_a_step_of_itself(weight, group_size, dim):
    words, scale, bias = group_quantize_compress_numpy(weight, group_size, dim)

    assert (words.shape, words.dtype) == ((6, 32 // group_size, group_size // 4), np.uint16)
    assert scale.shape == bias.shape == (6, 32 // group_size, 1)
    assert scale.dtype == bias.dtype == np.float16
    back = group_quantize_decompress_numpy(
        words, scale.astype(np.float32), bias.astype(np.float32), dim
    )
    step = np.repeat(scale[..., 0].astype(np.float32), group_size, axis=1)
    rounding = 2.0**-10 * np.abs(weight).max() * 2  # of scale and bias to float16
    assert (np.abs(back - weight) <= step / 2 + rounding).all()


def test_groups_along_the_first_dimension_are_those_of_the_transpose(weight):
    along_rows = group_quantize_compress_numpy(weight, 2 * 2, 1)
    along_columns = group_quantize_compress_numpy(weight.T, 2 * 2, 0)

    for a, b in zip(along_rows, along_columns, strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(
        group_quantize_decompress_numpy(*along_columns, 0),
        group_quantize_decompress_numpy(*along_rows, 1).T,
    )


def test_compressing_what_was_decompressed_changes_nothing(weight):
    first = group_quantize_compress_numpy(weight, 8, -1)
    values = group_quantize_decompress_numpy(
        first[0], *(v.astype(np.float32) for v in first[1:]), -1
    )

    words, _, _ = group_quantize_compress_numpy(values, 8, -1)

    np.testing.assert_array_equal(words, first[0])


def test_equal_elements_come_back_as_they_were():
    t = np.full((1, 8), 0.5, np.float32)

    assert (group_quantize_decompress_numpy(*group_quantize_compress_numpy(t, 8), -1) == t).all()


def test_a_narrow_group_far_from_zero_keeps_to_its_words():
    t = np.linspace(1000, 1000.3, 8, dtype=np.float32)[None]  # float16 has steps of 0.5 here

    words, scale, bias = group_quantize_compress_numpy(t, 8)

    back = group_quantize_decompress_numpy(words, scale, bias, -1)
    np.testing.assert_allclose(back.astype(np.float32), t, atol=0.5)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e6])
def test_values_that_float16_cannot_hold_are_refused(weight, bad):
    weight[2, 3] = bad

    with pytest.raises(ValueError, match="not finite or too large"):
        group_quantize_compress_numpy(weight, 8, -1)


@pytest.mark.parametrize("group_size", [0, 6, 12])
def test_groups_are_multiples_of_four_that_divide(weight, group_size):
    with pytest.raises(ValueError, match=f"multiple of 4 .*got {group_size}"):
        group_quantize_compress_numpy(weight, group_size, -1)


@pytest.mark.parametrize("dim", [-1, 0, 1])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("flat", [False, True])
def test_the_graph_decompresses_as_numpy_does(run, rng, dim, dtype, flat):
    words = rng.integers(0, 2**16, (3, 2, 4)).astype(np.uint16)
    scale, bias = (rng.standard_normal((3, 2, 1)).astype(dtype) for _ in range(2))
    given = [v[..., 0] if flat else v for v in (scale, bias)]

    (values,) = run(lambda t, s, b: group_quantize_decompress(t, s, b, dim), words, *given)

    expected = group_quantize_decompress_numpy(words, scale, bias, dim)
    assert values.dtype == dtype
    np.testing.assert_array_equal(values, expected)


def test_tensors_that_do_not_fit_each_other_are_refused(main_graph):
    spec = popxl.TensorSpec
    good = [spec((3, 2, 4), popxl.uint16)] + [spec((3, 2, 1), popxl.float16)] * 2

    def refused(position, bad, message):
        arguments = [bad if i == position else t for i, t in enumerate(good)]
        with pytest.raises(ValueError, match=message):
            popxl.gir().create_graph(lambda t, s, b: group_quantize_decompress(t, s, b), *arguments)

    refused(0, spec((3, 2, 4), popxl.int32), "t must be uint16 of 3 dimensions")
    refused(0, spec((6, 4), popxl.uint16), "t must be uint16 of 3 dimensions")
    refused(1, spec((2, 3, 1), popxl.float16), r"group_scale must be float16 \(3, 2, 1\)")
    refused(2, spec((3, 2, 1), popxl.float32), "group_bias must be float16")

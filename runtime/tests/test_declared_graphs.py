"""A kernel stands in for a graph that was declared, with the signature it knows, and no other."""

from __future__ import annotations

import numpy as np
import popxl
import pytest
from popxl import ops
from popxl_torch import composite
from programs import run_program

ROWS, HEADS, SIZE, LENGTH = 2, 2, 4, 8


# A program's own functions, which happen to be called as kernels are.


def token_attention(q, k, v, key_cache, value_cache, temperature, positions):
    """Attention with a temperature a head in place of ALiBi's slopes, and no positional bias."""
    for cache, new in ((key_cache, k), (value_cache, v)):
        for row in range(ROWS):
            at = ops.concat([popxl.constant([row], popxl.int32), positions[row : row + 1]])
            token = new[row].reshape((1, HEADS, 1, SIZE))
            ops.dynamic_update_(cache, at, token, axes=[0, 2], sizes=[1, 1], no_overlap=True)
    scores = q.reshape((ROWS, HEADS, 1, SIZE)) @ key_cache.transpose((0, 1, 3, 2))
    weights = ops.softmax(scores * temperature.reshape((HEADS, 1, 1)), -1)
    return (weights @ value_cache).reshape((ROWS, HEADS, SIZE))


def attention_arrays(rng) -> list[np.ndarray]:
    qkv = rng.standard_normal((3, ROWS, HEADS, SIZE)).astype(np.float32)
    caches = rng.standard_normal((2, ROWS, HEADS, LENGTH, SIZE)).astype(np.float32)
    return [*qkv, *caches, np.array([0.5, 2], np.float32), np.array([3, 6], np.int32)]


def called(fn, by_ref=()):
    """A program that calls the graph of `fn`, these inputs by reference."""

    def build(*tensors):
        ir = popxl.gir()
        graph = ir.create_graph(_by_ref(fn, by_ref), *tensors)
        return ops.call(graph, *tensors)[0]

    return build


def _by_ref(fn, which):
    names = fn.__code__.co_varnames[: fn.__code__.co_argcount]
    fn.__annotations__ = {names[i]: popxl.TensorByRef for i in which}
    return fn


def test_a_function_that_is_called_like_a_kernel_is_what_it_computes(rng):
    q, k, v, keys, values, temperature, positions = arrays = attention_arrays(rng)
    (got,) = run_program(called(token_attention, by_ref=(3, 4)), *arrays)
    keys, values = keys.copy(), values.copy()
    for row, at in enumerate(positions):
        keys[row, :, at], values[row, :, at] = k[row], v[row]
    scores = np.einsum("rhd,rhtd->rht", q, keys) * temperature[:, None]
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    np.testing.assert_allclose(
        got, np.einsum("rht,rhtd->rhd", weights, values), rtol=1e-5, atol=1e-5
    )


def channel_quantized_matmul(x, weight, scale):
    return x @ (ops.cast(weight, popxl.float32) + scale)


def group_quantize_decompress(t, group_scale, group_bias):
    return ops.concat([ops.cast(t, popxl.float32)] * 4, -1).reshape((t.shape[0], -1)) * 0.5


def layer_norm_distributed(t, w, b):
    return t / ops.sqrt(ops.sumsquare(t, -1, True) + 0.5) * w + b


def test_other_functions_with_names_of_kernels(rng):
    x, scale = rng.standard_normal((3, 8)).astype(np.float32), np.full(5, 0.5, np.float32)
    weight = rng.integers(-9, 9, (8, 5)).astype(np.int8)
    (got,) = run_program(called(channel_quantized_matmul), x, weight, scale)
    np.testing.assert_allclose(got, x @ (weight + scale), rtol=1e-5, atol=1e-4)
    w, b = rng.standard_normal((2, 8)).astype(np.float32)
    words = rng.integers(0, 1 << 16, (2, 3, 2)).astype(np.uint16)
    halves = np.ones((2, 3, 1), np.float32)
    (got,) = run_program(called(group_quantize_decompress), words, halves, halves)
    np.testing.assert_array_equal(got, np.tile(words, 4).reshape(2, -1) * np.float32(0.5))
    (got,) = run_program(called(layer_norm_distributed), x, w, b)
    expected = x / np.sqrt((x**2).sum(-1, keepdims=True) + 0.5) * w + b
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


# Declared graphs: what is declared decides, and everything must fit.

KNOWN = {"queries": "token of each row", "bias": "alibi"}


def declared_seven(name="cached_attention", version=1, **attributes):
    def fn(q, k, v, key_cache, value_cache, slopes, positions):
        return q + 1

    return composite(name, version, **attributes)(fn)


def computes_what_its_graph_does(fn, arrays, by_ref=(3, 4)) -> bool:
    (got,) = run_program(called(fn, by_ref), *arrays)
    return bool(np.array_equal(got, arrays[0] + 1))


def test_a_declaration_that_fits_gets_the_kernel(rng):
    assert not computes_what_its_graph_does(declared_seven(**KNOWN), attention_arrays(rng))


UNKNOWN = {
    "name": {"name": "cached_attention_of_ours", **KNOWN},
    "version": {"version": 2, **KNOWN},
    "attribute": {**KNOWN, "sinks": 4},
    "window": {**KNOWN, "window": 0},
    "value of an attribute": {**KNOWN, "bias": "rotary"},
    "kind of queries": {**KNOWN, "queries": "beams"},
    "attribute missing": {"queries": "token of each row"},
}


@pytest.mark.parametrize("what", UNKNOWN)
def test_a_declaration_with_something_unknown_is_the_graph_it_is(what, rng):
    assert computes_what_its_graph_does(declared_seven(**UNKNOWN[what]), attention_arrays(rng))


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("queries", ["token of each row", "tokens of a row", "chunk of a row"])
def test_heads_that_share_keys_and_have_no_bias_are_known(rng, queries, window):
    """With a window the chunk is the reference's: the kernel lacks it."""
    group, row, first = 3, 1, 4
    each = queries == "token of each row"
    q = rng.standard_normal((ROWS, group * HEADS, SIZE)).astype(np.float32)
    k, v = rng.standard_normal((2, ROWS, HEADS, SIZE)).astype(np.float32)
    keys, values = rng.standard_normal((2, ROWS, HEADS, LENGTH, SIZE)).astype(np.float32)
    at = np.array([3, 6] if each else [first, first + 1], np.int32)

    if each:

        def fn(q, k, v, key_cache, value_cache, positions):
            return q + 1
    else:

        def fn(q, k, v, key_cache, value_cache, positions, row):
            return q + 1

    given = {"bias": "none", "queries": queries, "scale": 0.25}
    attend = composite("cached_attention", 1, **given, **({"window": window} if window else {}))(fn)
    places = [at] if each else [at[0] if queries == "chunk of a row" else at, row]
    (got,) = run_program(
        called(attend, (3, 4)), q, k, v, keys, values, *(np.asarray(p, np.int32) for p in places)
    )
    rows = range(ROWS) if each else [row] * ROWS
    for token, (held, place) in enumerate(zip(rows, at, strict=True)):
        keys[held, :, place], values[held, :, place] = k[token], v[token]
    for token, (held, place) in enumerate(zip(rows, at, strict=True)):
        seen = slice(max(0, place + 1 - (window or LENGTH)), place + 1)
        for head in range(group * HEADS):
            weights = np.exp(keys[held, head // group, seen] @ q[token, head] * 0.25)
            expected = weights / weights.sum() @ values[held, head // group, seen]
            np.testing.assert_allclose(got[token, head], expected, rtol=1e-5, atol=1e-5)


def _halves_cache(arrays):
    arrays[3] = arrays[3].astype(np.float16)


def _one_key_head(arrays):
    arrays[3], arrays[4] = arrays[3][:, :1], arrays[4][:, :1]


def _wide_positions(arrays):
    arrays[6] = arrays[6].astype(np.float32)


def _other_slopes(arrays):
    arrays[5] = np.ones(3, np.float32)


def _longer_values(arrays):
    arrays[4] = np.concatenate([arrays[4], arrays[4]], 2)


@pytest.mark.parametrize(
    "change", [_halves_cache, _one_key_head, _wide_positions, _other_slopes, _longer_values]
)
def test_a_signature_that_differs_is_the_graph_it_is(change, rng):
    arrays = attention_arrays(rng)
    change(arrays)
    assert computes_what_its_graph_does(declared_seven(**KNOWN), arrays)


@pytest.mark.parametrize("by_ref", [(), (3,), (3, 4, 5)])
def test_other_inputs_by_reference_are_the_graph_it_is(by_ref, rng):
    assert computes_what_its_graph_does(declared_seven(**KNOWN), attention_arrays(rng), by_ref)


@composite("channel_quantized_matmul", version=1)
def scaled_product(x, weight, scale):
    sums = ops.matmul(x, ops.cast(weight, x.dtype), output_type=popxl.float32)
    return ops.cast(sums * scale, x.dtype)


def test_a_declared_graph_that_has_grown_since_is_the_graph_it_is(rng):
    def build(x, weight, scale):
        graph = popxl.gir().create_graph(scaled_product, x, weight, scale)
        with graph:
            ops.add_(graph.outputs[0], 1.0)
        return ops.call(graph, x, weight, scale)[0]

    x, scale = rng.standard_normal((3, 8)).astype(np.float32), np.full(5, 0.5, np.float32)
    weight = rng.integers(-9, 9, (8, 5)).astype(np.int8)
    (got,) = run_program(build, x, weight, scale)
    np.testing.assert_allclose(got, x @ weight * 0.5 + 1, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("version", [0, -1])
def test_a_version_starts_at_one(version):
    with pytest.raises(ValueError, match="a version from 1 on"):
        composite("attention", version)


def test_an_attribute_that_cannot_be_compared_is_refused():
    with pytest.raises(TypeError, match="attribute sizes is not hashable"):
        composite("attention", sizes=[1, 2])

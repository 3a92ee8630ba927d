"""Native kernels against numpy in float64: sizes, types, shards, rows that depend on no other."""

import logging
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
import warm_python
from popxl_addons.ops.group_quantize_decompress import (
    group_quantize_compress_numpy,
    group_quantize_decompress_numpy,
)
from popxl_shared.limits import FEW_ROWS, SOME_ROWS
from popxl_torch import cache
from popxl_torch.backends.cpu import build
from popxl_torch.backends.cpu.back_end import Cpu
from popxl_torch.backends.cpu.library import Library
from popxl_torch.backends.specs import Added, AttentionSpec, LinearSpec, NormSpec, StoredWeight
from popxl_torch.memory.cells import Cell
from programs import in_turn

pytestmark = [
    pytest.mark.usefixtures("two_threads"),
    pytest.mark.timeout(500),  # the first of each worker may compile for the other maker
]
TOLERANCE = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
TYPES = list(TOLERANCE)
LAYOUTS = ["columns", "rows"]
KINDS = ["floats", "channels", "groups", "floats in rows", "channels in rows"]
SIZES = [(1024, 100), (100, 37), (33, 5), (7, 3), (1, 1)]


@pytest.fixture(scope="module", params=build.MAKERS)
def native(request) -> Library:
    """The library as it is compiled for a processor of each maker, run on this one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "maker", lambda: request.param)
        return Library(build.built_library())


def normal(rng, *shape, dtype=torch.float32) -> torch.Tensor:
    return torch.from_numpy(rng.standard_normal(shape, dtype=np.float32)).to(dtype)


def as_stored(rng, size, outputs, dtype, layout="columns") -> torch.Tensor:
    """A weight `(in, outputs)`; its bytes lie as `(outputs, in)` in "columns", else in "rows"."""
    w = normal(rng, outputs, size, dtype=dtype).T
    return w if layout == "columns" else w.contiguous()


def exact(x: torch.Tensor) -> np.ndarray:
    return x.to(torch.float64).numpy()


def check(result: torch.Tensor, expected: np.ndarray, tolerance: float) -> None:
    assert result.shape == expected.shape
    np.testing.assert_allclose(
        exact(result), expected, rtol=tolerance, atol=tolerance * np.abs(expected).max()
    )


def linear(native, lead, x, weight, dtype, summed=None, activation=None, **added):
    spec = LinearSpec(lead, dtype, summed, activation)
    return Cpu(native).linear(spec, x, weight, Added(**added))


def attention(native, spec, tokens, caches, slopes, positions, row=None):
    cells = [Cell(cache, shared=False) for cache in caches]
    return Cpu(native).attention(spec, tokens, cells, slopes, positions, row)


def tanh_gelu(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


# --- products ---


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@in_turn("layout", LAYOUTS)
@pytest.mark.parametrize("size, outputs", SIZES)
def test_a_product_and_what_follows_it(native, rng, dtype, layout, size, outputs):
    w = as_stored(rng, size, outputs, dtype, layout)
    x, bias = normal(rng, 16, size, dtype=dtype), normal(rng, outputs, dtype=dtype)
    residual = normal(rng, 16, outputs, dtype=dtype)
    expected = tanh_gelu(exact(x) @ exact(w) + exact(bias)) + exact(residual)
    for rows in range(1, FEW_ROWS + 1):
        y = linear(
            native,
            0,
            x[:rows],
            StoredWeight(w),
            dtype,
            bias=bias,
            activation="gelu",
            residual=residual[:rows],
        )
        check(y, expected[:rows], TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_a_row_does_not_depend_on_other_rows(native, rng, dtype, kind):
    weight = _weight(rng, kind, 256, 45, dtype)[0]
    some = dtype in native.many_rows or (native.many_rows and kind in ("channels", "groups"))
    most = SOME_ROWS if some and not kind.endswith("in rows") else FEW_ROWS
    x = normal(rng, most, 256, dtype=dtype)
    alone = torch.cat([linear(native, 0, row[None], weight, dtype) for row in x])
    for rows in [*range(1, FEW_ROWS + 1), *range(FEW_ROWS + 1, most + 1, 9), most]:
        assert torch.equal(linear(native, 0, x[most - rows :], weight, dtype), alone[most - rows :])


@pytest.mark.parametrize("size, outputs", [(1024, 1120), (96, 16), (64, 48)])
@in_turn("shards", [1, 3])
def test_rows_of_bfloat16(native, rng, size, outputs, shards):
    """Of sizes that fill tile registers, where the processor has them; sums over shards, too."""
    w = normal(rng, shards, outputs, size, dtype=torch.bfloat16).mT
    some = SOME_ROWS if torch.bfloat16 in native.many_rows else FEW_ROWS
    most = 200 if native.tiles else some
    x = normal(rng, shards, most, size, dtype=torch.bfloat16)
    bias = normal(rng, 1, outputs, dtype=torch.bfloat16)
    expected = tanh_gelu((exact(x) @ exact(w)).sum(0, keepdims=True) + exact(bias)[:, None])

    def product(rows: int) -> torch.Tensor | None:
        given = x[:, :rows], StoredWeight(w), torch.float32
        return linear(native, 1, *given, summed=0, activation="gelu", bias=bias)

    whole = product(most)
    for rows in (5, 6, 16, 17, 31, 48, 64, 65, 80, 129, most):
        if rows <= most:
            y = product(rows)
            check(y, expected[:, :rows], 1e-5)
            assert torch.equal(y, whole[:, :rows])


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("size, outputs", [(256, 45), (96, 17), (40, 3), (8, 1)])
@in_turn("rows", [1, 3, 8, 13])
@pytest.mark.parametrize("kind", ["channels", "channels in rows"])
def test_weights_of_8_bits(native, rng, kind, dtype, size, outputs, rows):
    weight, values = _weight(rng, kind, size, outputs, dtype)
    x = normal(rng, rows, size, dtype=dtype)
    check(linear(native, 0, x, weight, dtype), exact(x) @ values, TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("group", [8, 16, 32, 64, 128, 512])
@in_turn("rows", [1, 2, 4, 8, 16])
def test_weights_of_4_bits(native, rng, dtype, group, rows):
    weight, values = _weight(rng, "groups", 512, 37, dtype, group)
    x = normal(rng, rows, 512, dtype=dtype)
    check(linear(native, 0, x, weight, dtype), exact(x) @ values, TOLERANCE[dtype])


def test_weights_of_4_bits_whose_groups_fill_no_vector(native, rng):
    weight, values = _weight(rng, "groups", 72, 19, torch.float32, 8)
    x = normal(rng, 3, 72)
    check(linear(native, 0, x, weight, torch.float32), exact(x) @ values, 2e-6)


@pytest.mark.parametrize("kind", KINDS)
@in_turn("rows", [17, 64, 65, 515])
@pytest.mark.parametrize("size, outputs, group", [(1024, 100, 128), (96, 37, 32), (40, 3, 8)])
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_many_rows(native, rng, kind, rows, size, outputs, group, dtype):
    weight, values = _weight(rng, kind, size, outputs, dtype, group)
    x, bias = normal(rng, rows, size, dtype=dtype), normal(rng, outputs, dtype=dtype)
    residual = normal(rng, rows, outputs, dtype=dtype)
    y = linear(native, 0, x, weight, dtype, bias=bias, activation="gelu", residual=residual)
    in_place = rows <= SOME_ROWS and kind in ("channels", "groups") and native.many_rows
    if dtype not in native.many_rows and not in_place:
        assert y is None
        return
    expected = tanh_gelu(exact(x) @ values + exact(bias)) + exact(residual)
    check(y, expected, TOLERANCE[dtype])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_one_of_many_rows_does_not_depend_on_how_many_there_are(native, rng, kind, dtype):
    x = normal(rng, 530, 256, dtype=dtype)
    weight = _weight(rng, kind, 256, 45, dtype)[0]
    whole = linear(native, 0, x, weight, torch.float32)
    if dtype not in native.many_rows:
        assert whole is None
        return
    for first, last in ((0, SOME_ROWS + 1), (5, 85), (402, 530)):
        some = linear(native, 0, x[first:last], weight, torch.float32)
        assert torch.equal(some, whole[first:last])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("kind", ["channels", "groups"])
def test_what_is_not_finite_is_not_hidden_by_whole_numbers(native, rng, kind, value):
    x = normal(rng, 2, 512)
    x[0, 77] = value
    y = linear(native, 0, x, _weight(rng, kind, 512, 8, torch.float32)[0], torch.float32)
    assert not y[0].isfinite().any()
    assert y[1].isfinite().all()


def _weight(rng, kind, size, outputs, dtype, group=32) -> tuple[StoredWeight, np.ndarray]:
    """A weight, and its values `(in, outputs)`."""
    if kind.endswith(" in rows"):
        weight, values = _weight(rng, kind.removesuffix(" in rows"), size, outputs, dtype)
        return replace(weight, tensor=weight.tensor.contiguous()), values
    if kind == "floats":
        w = as_stored(rng, size, outputs, dtype)
        return StoredWeight(w), exact(w)
    if kind == "channels":
        w = torch.from_numpy(rng.integers(-128, 128, (outputs, size), dtype=np.int8)).T
        scale = normal(rng, outputs)
        return StoredWeight(w, scale), exact(w) * exact(scale)
    full = rng.standard_normal((outputs, size), dtype=np.float32)
    words, scale, offset = group_quantize_compress_numpy(full, group, 1)
    wide = (part.astype(np.float64) for part in (scale, offset))
    values = group_quantize_decompress_numpy(words, *wide, 0)
    return StoredWeight(*map(torch.from_numpy, (words, scale, offset))), values


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("summed", [None, 0, 1])
@pytest.mark.parametrize("rows, dtype", [(3, torch.float32), (20, torch.bfloat16)])
def test_shards_and_sums_over_them(native, rng, kind, summed, rows, dtype):
    shards = [[_weight(rng, kind, 64, 20, dtype) for _ in range(2)] for _ in range(4)]

    def stacked(part: str) -> torch.Tensor | None:
        parts = [[getattr(weight, part) for weight, _ in row] for row in shards]
        if parts[0][0] is None:
            return None
        if kind == "groups" or part != "tensor":
            return torch.stack([torch.stack(row) for row in parts])
        if kind.endswith("in rows"):
            return torch.stack([torch.stack(row) for row in parts])
        stored = torch.stack([torch.stack([w.T for w in row]) for row in parts])
        return stored.transpose(-1, -2)

    weight = StoredWeight(stacked("tensor"), stacked("scale"), stacked("offset"))
    values = np.array([[v for _, v in row] for row in shards])  # [4, 2, in, outputs]
    x = normal(rng, 1 if summed == 1 else 4, 1 if summed == 0 else 2, rows, 64, dtype=dtype)
    expected = exact(x) @ values
    if summed is not None:
        expected = expected.sum(summed, keepdims=True)
    y = linear(native, 2, x, weight, torch.float32, summed=summed)
    if y is None:  # one scale a shard and channel, or no such kernel on this machine
        assert rows > FEW_ROWS and (
            dtype not in native.many_rows or (kind.startswith("channels") and summed is not None)
        )
    else:  # pairs of bfloat16 round the weights of groups
        rounded = rows > FEW_ROWS and (kind == "groups" or rows <= SOME_ROWS)
        check(y, expected, TOLERANCE[dtype] if rounded else 1e-5)


def test_a_part_of_a_row_major_weight(native, rng):
    """As a split of a fused weight gives it: its rows are further apart than its outputs go."""
    w, x = normal(rng, 64, 96)[:, 7:52], normal(rng, 3, 64)
    check(linear(native, 0, x, StoredWeight(w), torch.float32), exact(x) @ exact(w), 2e-6)


def test_a_weight_that_lies_otherwise_is_left_to_torch(native, rng):
    w = normal(rng, 64, 64)[::2, ::2]
    assert linear(native, 0, normal(rng, 1, 32), StoredWeight(w), torch.float32) is None


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_what_follows_a_product_of_many_rows(native, rng, dtype):
    x, bias = normal(rng, 2, 1, 30, 37, dtype=dtype), normal(rng, 2, 1, 37, dtype=dtype)
    residual = normal(rng, 1, 3, 30, 37, dtype=dtype)
    y = Cpu(native).epilogue(LinearSpec(2, dtype, None, "gelu"), x, Added(bias, residual))
    expected = tanh_gelu(exact(x) + exact(bias)[:, :, None]) + exact(residual)
    check(y, expected, TOLERANCE[dtype])


@pytest.mark.parametrize("group", [4, 12, 16, 64])
def test_words_become_floats(native, rng, group):
    full = rng.standard_normal((7, 192), dtype=np.float32)
    parts = group_quantize_compress_numpy(full, group, 1)
    expected = group_quantize_decompress_numpy(
        *(p.astype(np.float64) if i else p for i, p in enumerate(parts)), 0
    )
    values = Cpu(native).dequantise(StoredWeight(*map(torch.from_numpy, parts)), torch.float32)
    check(values, expected, 1e-6)


# --- layer norm ---


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("size", [1, 5, 16, 100, 1024])
def test_layer_norm(native, rng, dtype, size):
    x, w, b = (normal(rng, *s, size, dtype=dtype) for s in ((2, 3), (), ()))
    wide = exact(x)
    variance = wide.var(-1, keepdims=True)
    expected = (wide - wide.mean(-1, keepdims=True)) / np.sqrt(variance + 1e-5)
    y = Cpu(native).norm(NormSpec(0, 1e-5), x, w, b)
    check(y, expected * exact(w) + exact(b), 4 * TOLERANCE[dtype])


def test_layer_norm_of_rows_that_lie_in_parts(native, rng):
    x, w, b = (normal(rng, 1, 4, *s, 25) for s in ((3,), (), ()))
    y = Cpu(native).norm(NormSpec(2, 1e-5, (1, 4)), x, w, b)
    whole = exact(x).transpose(0, 2, 1, 3).reshape(3, 100)
    normed = (whole - whole.mean(-1, keepdims=True)) / np.sqrt(whole.var(-1, keepdims=True) + 1e-5)
    expected = normed * exact(w).reshape(100) + exact(b).reshape(100)
    check(y, expected.reshape(3, 1, 4, 25).transpose(1, 2, 0, 3), 1e-5)


# --- attention ---


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("size", [16, 20, 64, 128])
@pytest.mark.parametrize("mesh", [(), (2, 1)])
def test_attention_of_one_token_a_row(native, rng, dtype, size, mesh):
    rows, heads, length = 3, 2, 40
    tokens = [normal(rng, *mesh, rows, heads, size, dtype=dtype) for _ in range(3)]
    shape = (*mesh, rows, heads, length, size)
    caches = [normal(rng, *shape, dtype=dtype) for _ in range(2)]
    before = [c.clone() for c in caches]
    slopes = torch.from_numpy(rng.random((*mesh, heads), dtype=np.float32))
    positions = torch.tensor([0, 17, 39], dtype=torch.int32).reshape((1,) * len(mesh) + (3,))
    spec = AttentionSpec(len(mesh), "token of each row")
    y = attention(native, spec, tokens, caches, slopes, positions)

    for row, at in enumerate(positions.flatten().tolist()):
        for held, old, new in zip(caches, before, tokens[1:], strict=True):
            old[..., row, :, at, :] = new[..., row, :, :]
            assert torch.equal(held[..., row, :, :, :], old[..., row, :, :, :])
        keys, values = (exact(c[..., row, :, : at + 1, :]) for c in caches)
        query = exact(tokens[0][..., row, :, :])
        scores = np.einsum("...d,...td->...t", query, keys) / np.sqrt(size)
        scores += exact(slopes)[..., None] * (np.arange(at + 1) - at)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        expected = np.einsum("...t,...td->...d", weights, values)
        check(y[..., row, :, :], expected, 3 * TOLERANCE[dtype])


def number(value: int, *mesh: int) -> torch.Tensor:
    return torch.full(mesh, value, dtype=torch.int32)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_attention_of_the_next_tokens_of_a_row_is_that_of_each(native, rng, dtype):
    """To the bit: what verifying a proposal gives is what generating it would have given."""
    tokens = [normal(rng, 1, 5, 3, 20, dtype=dtype) for _ in range(3)]
    caches = [normal(rng, 1, 4, 3, 30, 20, dtype=dtype) for _ in range(2)]
    alone = [cache[:, 2:3].clone() for cache in caches]
    slopes = torch.from_numpy(rng.random((1, 3), dtype=np.float32))
    positions = torch.arange(7, 12, dtype=torch.int32)[None]
    next_ones, of_each = AttentionSpec(1, "tokens of a row"), AttentionSpec(1, "token of each row")
    y = attention(native, next_ones, tokens, caches, slopes, positions, number(2, 1))
    for i in range(5):
        one = [t[:, i : i + 1].contiguous() for t in tokens]
        at = positions[:, i : i + 1].clone()
        expected = attention(native, of_each, one, alone, slopes, at)
        assert torch.equal(y[:, i : i + 1], expected)
    for held, row in zip(caches, alone, strict=True):
        assert torch.equal(held[:, 2:3], row)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("size", [16, 20, 64, 128])
@in_turn("chunk", [(1, 0, 40), (7, 3, 40), (40, 0, 40), (16, 24, 40), (150, 75, 240)])
def test_attention_of_a_chunk_of_tokens(native, rng, dtype, size, chunk):
    tokens, position, length = chunk
    heads, row = 3, 1
    q, k, v = (normal(rng, 2, 1, tokens, heads, size, dtype=dtype) for _ in range(3))
    caches = [normal(rng, 2, 1, 2, heads, length, size, dtype=dtype) for _ in range(2)]
    slopes = torch.from_numpy(rng.random((2, 1, heads), dtype=np.float32))
    expected = [held.clone() for held in caches]
    for held, new in zip(expected, (k, v), strict=True):
        held[:, :, row, :, position : position + tokens] = new.transpose(2, 3)
    spec = AttentionSpec(2, "chunk of a row")
    at = number(position, 1, 1)
    y = attention(native, spec, (q, k, v), caches, slopes, at, number(row, 1, 1))
    for held, whole in zip(caches, expected, strict=True):
        assert torch.equal(held, whole)

    keys, values = (exact(held[:, :, row]) for held in caches)
    distance = np.arange(length) - (position + np.arange(tokens))[:, None]
    scores = np.einsum("...qhd,...htd->...hqt", exact(q), keys) / np.sqrt(size)
    scores += exact(slopes)[..., None, None] * distance
    scores = np.where(distance > 0, -np.inf, scores)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    check(y, np.einsum("...hqt,...htd->...qhd", weights, values), 3 * TOLERANCE[dtype])


# --- the library ---


PROGRAM = """
import logging
logging.basicConfig()
import numpy as np, popxl
from popxl import ops
ir = popxl.Ir()
with ir.main_graph:
    w = popxl.variable(np.eye(3, dtype=np.float32))
    out = popxl.d2h_stream((2, 3), popxl.float32)
    ops.host_store(out, popxl.constant(np.ones((2, 3), np.float32)) @ w)
with popxl.Session(ir, "cpu") as session:
    print(session.run()[out].sum())
"""


@pytest.mark.parametrize("compiler", ["no-such-compiler", "false"])
def test_without_a_compiler_torch_computes_and_one_line_says_so(tmp_path, compiler):
    environment = {"CXX": compiler, cache.CACHE_DIR: str(tmp_path), "PATH": "/usr/bin:/bin"}
    path = {"PYTHONPATH": ":".join(sys.path)}
    done = warm_python.run(
        [sys.executable, "-c", PROGRAM], env=environment | path, capture_output=True, text=True
    )
    assert done.stdout == "6.0\n"
    (line,) = done.stderr.splitlines()
    assert "no native kernels" in line


def test_it_is_compiled_where_nothing_can_be_kept(monkeypatch, caplog):
    monkeypatch.setattr(build, "_compile", lambda *args: args[-1].touch())
    monkeypatch.setenv(cache.CACHE_DIR, "/proc/nowhere")
    with caplog.at_level(logging.WARNING):
        path = build.built_library()
    assert path.is_file()
    assert len(caplog.records) == 1


def test_the_portable_code_computes_the_same(rng, tmp_path):
    """Compiled without the instructions that this machine may have."""
    target = tmp_path / "portable.so"
    flags = [flag for flag in build.FLAGS if flag not in ("-march=native", "-O3")]
    build._compile(build.compiler(), flags, target)
    portable = Library(target)
    for dtype in TYPES:
        for kind in KINDS:
            weight, values = _weight(rng, kind, 96, 21, dtype)
            x = normal(rng, 3, 96, dtype=dtype)
            check(linear(portable, 0, x, weight, dtype), exact(x) @ values, TOLERANCE[dtype])

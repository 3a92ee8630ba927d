"""The CPU's back end against the reference: random specs, and tensors that lie in many ways.

What a back end does not do it says by None; the reference does everything.
"""

from __future__ import annotations

import random
from dataclasses import replace
from types import ModuleType

import pytest
import torch
from popxl_torch.backends.cpu import library
from popxl_torch.backends.cpu.back_end import Cpu
from popxl_torch.backends.cuda.back_end import Cuda
from popxl_torch.backends.reference.back_end import Reference
from popxl_torch.backends.specs import (
    ACTIVATIONS,
    CHAIN_STEPS,
    Added,
    AttentionSpec,
    ChainSpec,
    ChainStep,
    LinearSpec,
    NormSpec,
    PlaceSpec,
    StoredWeight,
)
from popxl_torch.memory.cells import Cell

TOLERANCE = {torch.float32: 2e-4, torch.float16: 4e-3, torch.bfloat16: 3e-2}
REDUCTIONS = ("sum", "mean", "max", "softmax")
OF_TWO = ("add", "sub", "mul", "div", "maximum", "greater", "equal")
SEEDS = range(24)


@pytest.fixture(scope="module")
def cpu(two_threads) -> Cpu:
    native = library()
    assert native is not None
    return Cpu(native)


class Draw:
    """Random choices, and tensors that follow from them."""

    def __init__(self, seed: int):
        self.choose = random.Random(seed)
        self.generator = torch.Generator().manual_seed(seed)
        self.dtype = self.choose.choice(list(TOLERANCE))
        self.mesh = self.choose.choice([(), (2,), (1,), (2, 3), (1, 2)])
        self.lead = len(self.mesh)

    def maybe(self, made: torch.Tensor) -> torch.Tensor | None:
        return made if self.choose.random() < 0.5 else None

    def tensor(self, *shape: int, mesh: tuple[int, ...] | None = None, dtype=None) -> torch.Tensor:
        """Random numbers; a mesh axis may be held once, axes may lie in another order."""
        held = mesh or tuple(self.choose.choice([n, 1]) for n in self.mesh)
        made = torch.randn(*held, *shape, generator=self.generator).to(dtype or self.dtype)
        if len(shape) > 1 and self.choose.random() < 0.3:
            return made.transpose(-1, -2).contiguous().transpose(-1, -2)
        return made

    def weight(self, size: int, outputs: int) -> StoredWeight:
        kind = self.choose.choice(["floats", "int8", "groups"])
        if kind == "floats":
            return StoredWeight(self.tensor(size, outputs))
        mesh = self.mesh
        if kind == "int8":
            shape = (*mesh, outputs, size)
            whole = torch.randint(-127, 128, shape, generator=self.generator, dtype=torch.int8)
            scale = torch.rand(*mesh, outputs, generator=self.generator) / 64
            return StoredWeight(whole.transpose(-1, -2), scale)
        groups, shape = size // 32, (*mesh, outputs, size // 32, 8)
        words = torch.randint(0, 1 << 16, shape, generator=self.generator).to(torch.uint16)
        steps, offsets = torch.rand(2, *mesh, outputs, groups, 1, generator=self.generator)
        return StoredWeight(words, (steps / 8).half(), (offsets - 1).half())


def agree(spec_dtype: torch.dtype, done: torch.Tensor | None, expected: torch.Tensor) -> None:
    if done is None:  # the kernel says that it does not do it
        return
    assert (done.dtype, done.shape) == (expected.dtype, expected.shape)
    within = TOLERANCE[spec_dtype] * max(1.0, float(expected.abs().max()))
    torch.testing.assert_close(done.float(), expected.float(), rtol=0, atol=within)


@pytest.mark.parametrize("seed", SEEDS)
def test_products_with_what_follows(cpu, seed):
    draw = Draw(seed)
    rows, size, outputs = draw.choose.choice([1, 3, 17]), 64, draw.choose.choice([5, 48])
    summed = draw.choose.choice([None, *range(draw.lead)])
    activation = draw.choose.choice([None, *ACTIVATIONS])
    spec = LinearSpec(draw.lead, draw.dtype, summed, activation)
    weight, mesh = draw.weight(size, outputs), draw.mesh
    x = draw.tensor(rows, size, mesh=mesh)
    after = tuple(1 if axis == summed else n for axis, n in enumerate(mesh))
    bias = draw.maybe(draw.tensor(outputs, mesh=after))
    added = Added(bias, *(draw.maybe(draw.tensor(rows, outputs, mesh=after)) for _ in range(2)))
    expected = Reference().linear(spec, x, weight, added)
    agree(draw.dtype, cpu.linear(spec, x, weight, added), expected)
    y = (x @ x.mT)[..., :1] / size + torch.linspace(-3, 3, outputs)
    agree(draw.dtype, cpu.epilogue(spec, y, added), Reference().epilogue(spec, y, added))
    if weight.grouped:
        values = Reference().dequantise(weight, draw.dtype)
        agree(draw.dtype, cpu.dequantise(weight, draw.dtype), values)


@pytest.mark.parametrize("seed", SEEDS)
def test_norms_whole_and_in_parts(cpu, seed):
    draw = Draw(seed)
    axis = draw.choose.choice([None, *range(draw.lead)])
    parts = None if axis is None else (axis, draw.mesh[axis])
    spec = NormSpec(draw.lead, 1e-5, parts)
    x = draw.tensor(3, 40, mesh=draw.mesh)
    weight, bias = (draw.tensor(40, mesh=draw.mesh) for _ in range(2))
    agree(draw.dtype, cpu.norm(spec, x, weight, bias), Reference().norm(spec, x, weight, bias))


def random_attention(draw: Draw, queries) -> AttentionSpec:
    return AttentionSpec(
        draw.lead,
        queries,
        group=draw.choose.choice([1, 2, 3]),
        alibi=draw.choose.random() < 0.5,
        scale=draw.choose.choice([None, 0.1]),
        window=draw.choose.choice([None, None, 1, 3, 50]),
    )


@pytest.mark.parametrize(
    "queries", ["chunk of a row", "token of each row", "token of some rows", "tokens of a row"]
)
@pytest.mark.parametrize("seed", SEEDS)
def test_attention_over_a_cache(cpu, seed, queries):
    draw = Draw(seed)
    head_dim, length, batch = 16, 12, 3
    spec = random_attention(draw, queries)
    kv_heads = draw.choose.choice([1, 2])
    heads = kv_heads * spec.group
    count = batch if queries == "token of each row" else draw.choose.choice([1, 2, 4])
    one = queries == "chunk of a row"
    at = torch.tensor([draw.choose.randrange(length - count) for _ in range(1 if one else count)])
    if queries == "tokens of a row":
        at = at[:1] + torch.arange(count)
    positions = at.to(torch.int32).reshape((1,) * draw.lead + ((count,) if not one else ()))
    row = None
    if queries == "token of some rows":
        row = torch.tensor(draw.choose.sample(range(batch), min(count, batch)), dtype=torch.int32)
        count = len(row)
        row, positions = row.reshape((1,) * draw.lead + (count,)), positions[..., :count]
    elif queries != "token of each row":
        row = torch.tensor(draw.choose.randrange(batch), dtype=torch.int32)
        row = row.reshape((1,) * draw.lead)
    of = heads, kv_heads, kv_heads
    made = [draw.tensor(count, n, head_dim, mesh=draw.mesh) for n in of]
    tokens = tuple(t.contiguous() for t in made)
    held = [draw.tensor(batch, kv_heads, length, head_dim, mesh=draw.mesh) for _ in range(2)]
    caches = [t.contiguous() for t in held]
    slopes = None
    if spec.alibi:
        slopes = draw.tensor(heads, mesh=draw.mesh, dtype=torch.float32).abs()
    cells = [tuple(Cell(cache.clone(), shared=False) for cache in caches) for _ in range(2)]
    done = cpu.attention(spec, tokens, cells[0], slopes, positions, row)
    expected = Reference().attention(spec, tokens, cells[1], slopes, positions, row)
    assert expected is not None
    if cpu.lacks(spec):
        assert done is None and queries == "chunk of a row" and spec.window
        return
    assert done is not None
    agree(draw.dtype, done, expected)
    for mine, its in zip(*cells, strict=True):
        assert torch.equal(mine.tensor, its.tensor)


def test_what_kernels_lack_they_say_whatever_the_tensors(cpu):
    chunk = AttentionSpec(0, "chunk of a row")
    silu = LinearSpec(0, torch.float32, activation="swish")
    gpu, without = Cuda(ModuleType("kernels"), None), Cuda(None, None)
    assert [b.lacks(chunk) for b in (cpu, gpu, Reference())] == [None] * 3
    assert [b.lacks(silu) for b in (cpu, Reference())] == [None] * 2
    assert "not a window" in cpu.lacks(replace(chunk, window=4))
    assert "not swish" in gpu.lacks(silu)
    for other in ({"group": 2}, {"scale": 0.1}, {"window": 4}):
        assert gpu.lacks(replace(chunk, **other)) and not Reference().lacks(replace(chunk, **other))
    assert "no kernels" in without.lacks(silu)


def test_a_chunk_and_its_tokens_one_by_one_have_the_same_context(cpu):
    draw = Draw(1)
    tokens = tuple(draw.tensor(4, 2, 16, mesh=draw.mesh, dtype=torch.float32) for _ in range(3))
    slopes = draw.tensor(2, mesh=draw.mesh, dtype=torch.float32).abs()
    ones = (1,) * draw.lead
    row, first = torch.zeros(ones, dtype=torch.int32), torch.full(ones, 3, dtype=torch.int32)
    each = (3 + torch.arange(4, dtype=torch.int32)).reshape(*ones, 4)

    def run(queries, positions):
        cells = tuple(Cell(torch.ones(*draw.mesh, 2, 2, 8, 16), shared=False) for _ in range(2))
        spec = AttentionSpec(draw.lead, queries)
        return Reference().attention(spec, tokens, cells, slopes, positions, row)

    agree(torch.float32, run("chunk of a row", first), run("tokens of a row", each))


def random_chain(draw: Draw) -> tuple[ChainSpec, list[torch.Tensor]]:
    """Loads, some elementwise steps, at most one reduction that a step brings back to rows."""
    row = draw.choose.choice([1, 7, 33])
    operands = [draw.tensor(4, row) for _ in range(2)] + [draw.tensor(row)]
    steps = [ChainStep("load", i, (i,)) for i in range(3)]
    steps.append(ChainStep("constant", 3, value=0.75, one=True))
    for to in range(4, 10):
        of = draw.choose.sample(range(to), 3)
        kind = draw.choose.choice(CHAIN_STEPS[2:])
        kind = "abs" if kind in ("log", "sqrt", "div", "exp", "where", *REDUCTIONS) else kind
        taken = of[: 2 if kind in OF_TWO else 1]
        one = row > 1 and all(i == 3 for i in taken)
        steps.append(ChainStep(kind, to, tuple(taken), draw.dtype, one))
    steps.append(ChainStep(draw.choose.choice(REDUCTIONS[:3]), 10, (0,), draw.dtype, row > 1))
    steps.append(ChainStep("where", 11, (10, 9, 0), draw.dtype))
    steps.append(ChainStep("softmax", 12, (11,), draw.dtype))
    return ChainSpec(tuple(steps), (4, row), draw.dtype, draw.lead), operands


@pytest.mark.parametrize("seed", SEEDS)
def test_chains(cpu, seed):
    spec, operands = random_chain(Draw(seed))
    run = cpu.chain(spec)
    assert run is not None
    agree(spec.dtype, run(*operands), Reference().chain(spec)(*operands))


@pytest.mark.parametrize("seed", SEEDS)
def test_parts_are_put_where_the_index_says(cpu, seed):
    draw = Draw(seed)
    spec = PlaceSpec(draw.lead, (-2,), (2,))
    target, update = draw.tensor(3, 5, 4, mesh=draw.mesh), draw.tensor(3, 2, 4, mesh=draw.mesh)
    index = torch.randint(0, 4, (*draw.mesh, 1), generator=draw.generator, dtype=torch.int32)
    others = target.clone()
    assert cpu.place(spec, target, index, update)
    assert Reference().place(spec, others, index, update)
    assert torch.equal(target, others)
    expected = torch.cat([target, update], -2)
    join = cpu.concat(draw.lead, -2, draw.dtype, 3)
    assert join is not None and torch.equal(join(target, update), expected)
    reference = Reference().concat(draw.lead, -2, draw.dtype, 3)
    assert torch.equal(reference(target, update), expected)

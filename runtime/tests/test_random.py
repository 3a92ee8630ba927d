"""Random numbers: which ones, the same wherever they are made, and how they are distributed."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import popxl
import pytest
import torch
from popxl import ops
from popxl.random_seed import create_seeds, two_uint32_to_uint64, uint64_to_two_uint32
from popxl_torch.backends.reference import philox
from processes import run_in_processes
from programs import FLOATS, LAYOUTS, in_turn, run_on_layout, run_program, store

SEEDS = [np.array(pair, np.uint32) for pair in ((1, 2), (1, 3), (2**32 - 1, 0), (0, 2**31))]
DRAWS: dict[str, Callable[[popxl.Tensor], popxl.Tensor]] = {
    "uniform": lambda seed: ops.random_uniform(seed, (3, 5), -2, 5),
    "normal": lambda seed: ops.random_normal(seed, (3, 5), 1, 2),
    "dropout": lambda seed: ops.dropout(popxl.constant(np.ones((3, 5), np.float32)), seed, 0.4),
    "new seeds": lambda seed: ops.concat(ops.split_random_seed(seed, 3)),
}


def draw(build: Callable[[popxl.Tensor], popxl.Tensor], seed: np.ndarray) -> np.ndarray:
    return run_program(build, np.asarray(seed, np.uint32))[0]


# --- the generator ---

KNOWN = {
    "zeros": ([0] * 4, [0] * 2, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    "ones": ([2**32 - 1] * 4, [2**32 - 1] * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    "pi": (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        [0xA4093822, 0x299F31D0],
        "d16cfe09 94fdcceb 5001e420 24126ea1",
    ),
}
"""What the authors of Philox publish of it: counter, key, words (Random123, kat_vectors)."""


@pytest.mark.parametrize("name", KNOWN)
def test_the_generator_is_philox(name):
    counter, key, words = KNOWN[name]
    made = philox.philox(*(tuple(torch.tensor([w]) for w in given) for given in (counter, key)))
    assert " ".join(f"{int(word):08x}" for word in made) == words


def philox_in_python(index: int, domain: int, seed: np.ndarray) -> list[int]:
    """Four words, written out for single numbers."""
    a, b, c, d = index % 2**32, index >> 32, 0, domain
    k, m = (int(part) for part in seed)
    for _ in range(10):
        p, q = a * 0xD2511F53, c * 0xCD9E8D57
        a, b, c, d = (q >> 32) ^ b ^ k, q % 2**32, (p >> 32) ^ d ^ m, p % 2**32
        k, m = (k + 0x9E3779B9) % 2**32, (m + 0xBB67AE85) % 2**32
    return [a, b, c, d]


@pytest.mark.parametrize("count", [0, 1, 4, 7, 5 * philox.MOST_BLOCKS])
def test_a_number_depends_on_its_place_alone(count):
    """However many are made at once."""
    made = philox.words(torch.from_numpy(SEEDS[0].astype(np.int64)), count).reshape(-1)
    assert count <= made.numel() < count + 4
    for block in {0, count // 8, max(count // 4 - 1, 0)} if count >= 4 else ():
        want = philox_in_python(block, philox.NUMBERS, SEEDS[0])
        assert made[4 * block : 4 * block + 4].tolist() == want


def test_uniform_numbers_are_the_high_24_bits():
    got = draw(lambda seed: ops.random_uniform(seed, (6,)), SEEDS[1])
    words = philox_in_python(0, 0, SEEDS[1]) + philox_in_python(1, 0, SEEDS[1])
    np.testing.assert_array_equal(got, [(w >> 8) / 2**24 for w in words[:6]])


def test_normal_numbers_are_of_box_and_muller():
    got = draw(lambda seed: ops.random_normal(seed, (3,)), SEEDS[1])
    u = [(w + 0.5) / 2**32 for w in philox_in_python(0, 0, SEEDS[1])]
    radius, angle = (
        [math.sqrt(-2 * math.log(v)) for v in u[::2]],
        [2 * math.pi * v for v in u[1::2]],
    )
    expected = [
        radius[0] * math.cos(angle[0]),
        radius[0] * math.sin(angle[0]),
        radius[1] * math.cos(angle[1]),
    ]
    np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_new_seeds_are_of_a_domain_of_their_own():
    seeds = draw(lambda seed: ops.concat(ops.split_random_seed(seed, 3)), SEEDS[0])
    expected = [philox_in_python(i, 1, SEEDS[0])[:2] for i in range(3)]
    np.testing.assert_array_equal(seeds.reshape(3, 2), expected)
    assert seeds.dtype == np.uint32


# --- the same wherever ---


@in_turn("layout", LAYOUTS)
@pytest.mark.parametrize("name", DRAWS)
def test_a_replicas_numbers_depend_on_its_own_seed_alone(name, layout):
    (got,) = run_on_layout(layout, DRAWS[name], SEEDS)
    alone = [draw(DRAWS[name], seed) for seed in SEEDS]
    for replica, seed in enumerate(LAYOUTS[layout][0]):
        np.testing.assert_array_equal(got[replica], alone[seed])
    assert all(not np.array_equal(alone[0], other) for other in alone[1:])


def draws_of_two_replicas() -> list[np.ndarray]:
    ir = popxl.Ir(replication="popdist")
    ir.replication_factor = 2
    with ir.main_graph:
        seeds = np.stack(SEEDS[:2])
        seed = popxl.variable(seeds, replica_grouping=ir.replica_grouping(group_size=1))
        outputs = store([build(seed) for build in DRAWS.values()])
    with popxl.Session(ir) as session:
        results = session.run()
    return [results[out] for out in outputs]


def test_numbers_are_the_same_in_any_number_of_processes():
    for rank, got in enumerate(run_in_processes(2, draws_of_two_replicas)):
        for one, build in zip(got, DRAWS.values(), strict=True):
            np.testing.assert_array_equal(one, draw(build, SEEDS[rank]))


def test_a_larger_shape_begins_with_the_numbers_of_a_smaller_one():
    for op in (ops.random_uniform, ops.random_normal):
        small, large = (draw(lambda seed, op=op, n=n: op(seed, (n,)), SEEDS[2]) for n in (7, 1000))
        np.testing.assert_array_equal(large[:7], small)


@pytest.mark.parametrize("name", DRAWS)
def test_every_run_of_a_recorded_graph_draws_anew(name):
    """The seed is the numbers' only source: what is recorded must not hold on to them."""
    ir = popxl.Ir()
    with ir.main_graph:
        stream = popxl.h2d_stream((2,), popxl.uint32)
        graph = ir.create_graph(DRAWS[name], popxl.TensorSpec((2,), popxl.uint32))
        (out,) = store(ops.call(graph, ops.host_load(stream)))
    with popxl.Session(ir) as session:
        seeds = [SEEDS[0]] * 3 + SEEDS + [SEEDS[0]]
        got = [session.run({stream: seed})[out] for seed in seeds]
    for numbers, seed in zip(got, seeds, strict=True):
        np.testing.assert_array_equal(numbers, draw(DRAWS[name], seed))


def test_a_seed_that_a_program_keeps_goes_on_from_run_to_run():
    """In a recorded graph that writes the next seed to a variable, by reference."""

    def step(seed: popxl.TensorByRef):
        following, own = ops.split_random_seed(seed)
        ops.var_updates.copy_var_update_(seed, following)
        return ops.random_uniform(own, (4,))

    ir = popxl.Ir()
    with ir.main_graph:
        seed = popxl.variable(SEEDS[0])
        (out,) = store(ops.call(ir.create_graph(step, seed), seed))
    with popxl.Session(ir) as session:
        got = [session.run()[out] for _ in range(6)]
        last = session.get_tensor_data(seed)
    at = SEEDS[0]
    for numbers in got:
        at, own = draw(lambda s: ops.concat(ops.split_random_seed(s)), at).reshape(2, 2)
        np.testing.assert_array_equal(numbers, draw(lambda s: ops.random_uniform(s, (4,)), own))
    np.testing.assert_array_equal(last, at)


# --- distributions ---

COUNT = 40_000
BOUND = 1.95 / math.sqrt(COUNT)
"""Of the Kolmogorov-Smirnov distance: exceeded by chance once in 1,000 seeds."""


def distance(drawn: np.ndarray, distribution: Callable[[np.ndarray], np.ndarray]) -> float:
    """The largest difference between the shares drawn up to a number and what they should be."""
    expected = distribution(np.sort(drawn.astype(np.float64).ravel()))
    steps = np.arange(drawn.size + 1) / drawn.size
    return max(np.max(steps[1:] - expected), np.max(expected - steps[:-1]))


def normal_distribution(mean: float, std: float) -> Callable[[np.ndarray], np.ndarray]:
    erf = np.vectorize(math.erf, otypes=[float])
    return lambda x: (1 + erf((x - mean) / (std * math.sqrt(2)))) / 2


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("seed", range(2))
def test_uniform_distribution(seed, dtype):
    x = draw(lambda s: ops.random_uniform(s, (COUNT,), -1, 3, dtype), SEEDS[seed])
    assert x.dtype == dtype.as_numpy()
    wide = x.astype(np.float64)
    assert wide.min() >= -1 and wide.max() <= 3
    assert abs(wide.mean() - 1) < 4 * math.sqrt(16 / 12 / COUNT)
    assert abs(wide.var() - 16 / 12) < 0.05
    rounding = {"float32": 0, "float16": 2**-11, "bfloat16": 2**-8}[dtype.name]
    assert distance(x, lambda v: (v + 1) / 4) < BOUND + rounding


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("seed", range(2))
def test_normal_distribution(seed, dtype):
    x = draw(lambda s: ops.random_normal(s, (100, COUNT // 100), 5, 2, dtype), SEEDS[seed])
    wide = x.astype(np.float64)
    z = (wide - 5) / 2
    assert x.dtype == dtype.as_numpy()
    for power, moment in ((1, 0), (2, 1), (3, 0), (4, 3)):
        spread = math.sqrt(math.prod(range(1, 2 * power, 2)) / COUNT)
        assert abs((z**power).mean() - moment) < 5 * spread
    rounding = {"float32": 0, "float16": 2**-9, "bfloat16": 2**-6}[dtype.name]
    assert distance(x, normal_distribution(5, 2)) < BOUND + rounding


def test_numbers_beside_each_other_are_not_related():
    for op, mean, variance in ((ops.random_uniform, 0.5, 1 / 12), (ops.random_normal, 0, 1)):
        x = draw(lambda s, op=op: op(s, (COUNT,)), SEEDS[3]).astype(np.float64) - mean
        other = draw(lambda s, op=op: op(s + 1, (COUNT,)), SEEDS[3]).astype(np.float64) - mean
        for a, b in ((x[:-1], x[1:]), (x[:-2], x[2:]), (x, other)):
            assert abs((a * b).mean()) / variance < 5 / math.sqrt(COUNT)


def test_bounds_and_moments_of_no_width():
    ones, twos = run_program(
        lambda s: (ops.random_uniform(s, (3,), 1, 1), ops.random_normal(s, (), 2, 0)), SEEDS[0]
    )
    np.testing.assert_array_equal(ones, [1, 1, 1])
    assert twos == 2


# --- dropout ---


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@in_turn("layout", LAYOUTS)
def test_dropout_keeps_a_share_and_scales_it(layout, dtype, rng):
    x = [rng.uniform(1, 2, (100, 40)).astype(dtype.as_numpy()) for _ in range(4)]
    for p in (0.0, 0.25, 0.9):
        (got,) = run_on_layout(layout, lambda x, s, p=p: ops.dropout(x, s, p), x, SEEDS)
        given = np.stack([x[i] for i in LAYOUTS[layout][0]])
        kept = got != 0
        want = given[kept].astype(np.float32) * np.float32(1 / (1 - p))
        np.testing.assert_array_equal(got[kept], want.astype(dtype.as_numpy()))
        shares = kept.reshape(len(got), -1).mean(1)
        assert np.all(np.abs(shares - (1 - p)) <= 5 * math.sqrt(p * (1 - p) / 4000))


def test_a_dropped_infinity_is_zero():
    x = np.full(100, np.inf, np.float32)
    (got,) = run_program(lambda x, s: ops.dropout(x, s, 0.5), x, SEEDS[0])
    assert set(got) == {0, np.inf}


@pytest.mark.parametrize("shape", [(8, 1), (1, 5), (5,), (), (8, 5)], ids=str)
@in_turn("layout", LAYOUTS)
def test_shaped_dropout_drops_elements_together(layout, shape, rng):
    x = [rng.uniform(1, 2, (8, 5)).astype(np.float32) for _ in range(4)]
    (got,) = run_on_layout(layout, lambda x, s: ops.shaped_dropout(x, s, shape, 0.5), x, SEEDS)
    masks = [
        draw(lambda s: ops.dropout(popxl.constant(np.ones(shape, np.float32)), s, 0.5), seed)
        for seed in SEEDS
    ]
    seeds = LAYOUTS[layout][1]
    expected = [x[i] * masks[seeds[r]] for r, i in enumerate(LAYOUTS[layout][0])]
    np.testing.assert_array_equal(got, expected)


def test_integers_are_dropped_and_cut():
    x = np.full(50, 3, np.int32)
    (got,) = run_program(lambda x, s: ops.dropout(x, s, 0.3), x, SEEDS[0])
    assert set(got) == {0, 4}  # 3 / 0.7


# --- seeds ---


def test_seeds_are_those_of_popxl():
    """The first two of numpy's generator for 1984, as PopXL makes them."""
    drawn = np.random.default_rng(1984 + 3).integers(0, 2**64, dtype=np.uint64, size=24)
    seeds = create_seeds(1984, 3, 2, 3, 4)
    assert seeds.shape == (2, 3, 4, 2) and seeds.dtype == np.uint32
    for pair, number in zip(seeds.reshape(-1, 2), drawn, strict=True):
        assert two_uint32_to_uint64(int(pair[0]), int(pair[1])) == int(number)


def test_axes_of_size_one_are_left_out():
    assert popxl.create_seeds(1).shape == (2,)
    assert popxl.create_seeds(1, replicas=4).shape == (4, 2)
    assert popxl.create_seeds(1, batches_per_step=3, replicas=4).shape == (3, 4, 2)
    np.testing.assert_array_equal(popxl.create_seeds(1, 1), popxl.create_seeds(2))


@pytest.mark.parametrize("number", [0, 1, 2**32 - 1, 2**32, 0x123456789ABCDEF0, 2**64 - 1])
def test_a_number_is_two_halves(number):
    high, low = uint64_to_two_uint32(number)
    assert (high, low) == divmod(number, 2**32)
    assert two_uint32_to_uint64(high, low) == number


@pytest.mark.parametrize(
    "call",
    [
        lambda: uint64_to_two_uint32(-1),
        lambda: uint64_to_two_uint32(2**64),
        lambda: two_uint32_to_uint64(2**32, 0),
        lambda: two_uint32_to_uint64(0, -1),
    ],
)
def test_numbers_that_are_no_such_halves_are_refused(call):
    with pytest.raises(ValueError, match="is outside 0 to 2"):
        call()

"""The prefix cache: the same logits with and without it, and what is dropped when it is full."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from bloom_checkpoints import config_of, passes_of, random_bloom

from config import ConfigError
from config.costs import prefix_blocks
from modelling.program import inference
from utils.generation.engine import Engine
from utils.generation.passes import Passes
from utils.generation.prefixes import PrefixCache
from utils.generation.ticket import Work

LENGTH = 96
HEAD = np.random.default_rng(0).integers(130, size=64).tolist()


class Logits(Work):
    """Work that goes on with the likeliest token, and keeps the logits of each."""

    finish_reason = "done"

    def __init__(self, ids: list[int], count: int):
        self.ids, self._length = list(ids), len(ids) + count
        self.seen: list[np.ndarray] = []

    @property
    def finished(self) -> bool:
        return len(self.ids) >= self._length

    def accept(self, logits: np.ndarray) -> np.ndarray:
        self.seen.append(logits.copy())
        self.ids.append(int(logits.argmax()))
        return logits


@pytest.fixture(scope="module", params=[(1, 1), (2, 2)], ids=["alone", "2x2"])
def passes(request: pytest.FixtureRequest) -> Iterator[Passes]:
    model = random_bloom(vocab_size=130)
    tp1, tp2 = request.param
    config = config_of(model, tp1, tp2, sequence_length=LENGTH, batch_size=3)
    with passes_of(model, config) as found:
        yield found


def prompts() -> list[list[int]]:
    """Of many lengths, whose beginnings are alike for a while."""
    random = np.random.default_rng(1)
    lengths = [(64, 6), (64, 20), (40, 9), (64, 6), (21, 30), (0, 50), (64, 31), (17, 1), (60, 2)]
    return [HEAD[:head] + random.integers(130, size=tail).tolist() for head, tail in lengths]


def answers(passes: Passes) -> list[Logits]:
    """Of all prompts, three at once."""
    engine = Engine(passes, max_queue=20)
    works = [Logits(prompt, 4) for prompt in prompts()]
    for ticket in [engine.submit(work) for work in works]:
        while not ticket.end:
            engine.step()
        assert ticket.end.error is None
    return works


def test_tokens_and_logits_are_the_same_to_the_bit_with_the_cache_and_without(
    passes: Passes,
) -> None:
    with_cache = answers(passes)
    assert passes.prefixes is not None
    assert passes.prefixes.hit_tokens > 4 * 48
    plain = Passes(passes.config, passes.session)
    plain.prefixes = None
    for found, expected in zip(with_cache, answers(plain), strict=True):
        assert found.ids == expected.ids
        np.testing.assert_array_equal(found.seen, expected.seen)


def test_a_prompt_that_begins_like_one_that_ended_runs_only_what_is_new(passes: Passes) -> None:
    engine = Engine(passes)
    before = engine.statistics()
    random = np.random.default_rng(2)
    for tail in range(2):
        list(engine.run(Logits(HEAD[::-1] + random.integers(130, size=6).tolist(), 1)))
        now = engine.statistics()
        assert now.cache_hit_tokens - before.cache_hit_tokens == tail * len(HEAD)
    assert 0 < now.cache_tokens <= now.cache_capacity_tokens


def test_what_was_not_used_for_longest_is_dropped_first_and_last_what_others_follow() -> None:
    cache, copied = PrefixCache(blocks=4, block=2), []
    first = cache.add(cache.root, [1, 2], copied.append)
    assert first is not None
    second = cache.add(first, [3, 4, 5, 6], copied.append)
    other = cache.add(cache.root, [7, 8], copied.append)
    assert cache.tokens == cache.capacity == 8
    assert sorted(number for numbers in copied for number in numbers) == [0, 1, 2, 3]
    assert cache.find(first, [3, 4, 5, 6]) is second
    assert cache.add(cache.root, [9, 9], copied.append) is not None  # in the place of `other`
    assert other is not None
    assert cache.find(cache.root, [7, 8]) is None
    assert cache.add(other, [1, 1], copied.append) is None
    assert cache.add(cache.root, [0] * 4, copied.append) is not None  # of `second`, not of `first`
    assert cache.find(first, [3, 4, 5, 6]) is None
    assert cache.find(cache.root, [1, 2]) is first
    assert cache.add(first, [0] * 8, copied.append) is None


def test_a_copy_that_is_interrupted_leaves_its_blocks_free() -> None:
    cache = PrefixCache(blocks=1, block=2)

    def interrupted(blocks: list[int]) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.add(cache.root, [1, 2], interrupted)
    assert cache.tokens == 0
    assert cache.add(cache.root, [1, 2], lambda blocks: None) is not None


def test_its_size_follows_the_setting_and_0_is_none() -> None:
    config = config_of(random_bloom(), sequence_length=LENGTH)

    def given(size: int) -> object:
        return replace(config, execution=replace(config.execution, prefix_cache=size)).validate()

    token = 2 * 2 * 64 * 4  # keys and values of two layers in float32
    assert prefix_blocks(given(1)) == (1_000_000 // (4 * token), 4)
    off = given(0)
    assert prefix_blocks(off)[0] == 0
    assert Passes(off, inference(off)).prefixes is None
    with pytest.raises(ConfigError, match="prefix_cache must be 0 or more, not -1"):
        given(-1)

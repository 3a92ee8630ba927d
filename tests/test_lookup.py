"""Look-up decoding: what it proposes, and that the text is that of plain decoding."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from bloom_checkpoints import config_of, logits_of, passes_of, random_bloom
from byte_level import byte_level_tokenizer
from reference import random_model
from serving import HeldPasses, ReferencePasses, request, wait_until
from transformers import AutoModelForCausalLM, AutoTokenizer, BloomForCausalLM

from config import BloomConfig, load_config
from inference import inference, verify_sizes
from utils.engine import Engine
from utils.generation import GenerationStep, stream_generate
from utils.lookup import PromptLookup
from utils.passes import Passes
from utils.sampling import SamplingConfig

GREEDY = SamplingConfig()
SIZES = (4, 8, 16)
LENGTH = 40


# --- what is proposed ---


def followed(ids: list[int], count: int) -> list[int]:
    """By scanning: what came after the latest earlier end of the longest n-gram that ends `ids`."""
    for length in (4, 3, 2):
        for end in range(len(ids) - 1, length - 1, -1):
            if ids[end - length : end] == ids[-length:] and len(ids) >= length:
                return list(itertools.islice(itertools.cycle(ids[end:]), count))
    return []


def test_proposals_are_what_a_scan_of_the_text_finds():
    random = np.random.default_rng(0)
    found = 0
    for vocabulary in (2, 5, 30):
        ids = random.integers(vocabulary, size=7).tolist()
        lookup = PromptLookup([6])
        for _ in range(150):
            proposal = lookup.propose(ids, room=100)
            if proposal:
                assert proposal == followed(ids, 5)
                found += 1
            # Some of what was proposed comes true, so that it goes on proposing.
            ids += [token for token in proposal[: random.integers(3)] if lookup.confirm(token)]
            ids.append(int(random.integers(vocabulary)))
    assert found > 100
    assert lookup.proposed == 5 * lookup.passes > lookup.accepted > 0


def test_a_text_that_repeats_itself_is_proposed_beyond_its_end():
    assert PromptLookup([16]).propose([9, 1, 2, 3, 1, 2], room=99) == [3, 1, 2] * 5


def test_passes_widen_with_success_and_narrow_without():
    ids = [1, 2, 3, 4] * 3
    lookup = PromptLookup(SIZES)
    lengths = []
    for accepted in (3, 7, 15, 15, 5, 2, 1):
        proposal = lookup.propose(ids, room=99)
        lengths.append(len(proposal))
        assert all(lookup.confirm(token) for token in proposal[:accepted])
        ids += proposal[:accepted]
        while ids[-3:] != [2, 3, 4]:  # back to the beginning of a round
            ids.append(ids[-1] % 4 + 1)
    assert lengths == [3, 7, 15, 15, 15, 7, 3]


def test_proposals_that_fail_become_rare_and_come_back_with_success():
    ids, tried = [1, 2] * 3, []
    lookup = PromptLookup(SIZES)
    for number in range(200):
        if lookup.propose(ids, room=99):
            tried.append(number)
            assert not lookup.confirm(7)
        ids += [1, 2]
    gaps = np.diff(tried).tolist()
    assert gaps == [2, 4, 8, 16, 32, 32, 32, 32, 32]
    while not (proposal := lookup.propose(ids, room=99)):
        pass
    assert lookup.confirm(proposal[0])
    assert lookup.propose(ids, room=99)


@pytest.mark.parametrize("room, count", [(16, 15), (15, 7), (8, 7), (4, 3), (3, 0), (1, 0)])
def test_proposals_fill_the_widest_pass_that_the_context_has_room_for(room, count):
    ids = [5] * 30
    lookup = PromptLookup(SIZES)
    for _ in range(3):
        assert all(lookup.confirm(token) for token in lookup.propose(ids, room=99))
    assert len(lookup.propose(ids, room)) == count


@pytest.mark.parametrize(
    "tokens, sizes",
    [(0, ()), (1, (2,)), (4, (5,)), (7, (4, 8)), (10, (6, 11)), (15, (4, 8, 16))],
)
def test_verify_passes_are_the_tokens_and_halves_of_them(tokens, sizes):
    assert verify_sizes(load_config("bloom_tiny", {"lookup_tokens": tokens})) == sizes


# --- the program ---


def lookup_config(model: BloomForCausalLM, tp1: int = 1, tp2: int = 1, **settings) -> BloomConfig:
    config = config_of(model, tp1, tp2, sequence_length=LENGTH, **settings)
    return with_lookup(config, 7)


def with_lookup(config: BloomConfig, tokens: int) -> BloomConfig:
    from dataclasses import replace

    return replace(config, execution=replace(config.execution, lookup_tokens=tokens)).validate()


@pytest.mark.parametrize("tp1, tp2", [(1, 1), (4, 4)])
@pytest.mark.parametrize("kernels", [True, False])
def test_a_verify_pass_gives_transformers_logits_at_each_place(tp1, tp2, kernels):
    model = random_bloom()
    text = np.random.default_rng(0).integers(130, size=LENGTH).tolist()
    expected = logits_of(model, text)
    config = lookup_config(model, tp1, tp2)
    with passes_of(model, config, composite_kernels=kernels) as passes:
        passes.prompt(2, text[:9])
        for at, count in [(9, 8), (17, 3), (20, 5), (25, 1), (32, 8)]:
            if at == 32:
                passes.prompt(2, text[:32], start=26)
            logits = passes.verify(2, text[at : at + count], at)
            assert logits.shape == (count, 130)
            np.testing.assert_allclose(logits, expected[at : at + count], atol=1e-4)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_what_was_rejected_is_never_looked_at_again(precision):
    """After wrong proposals all passes give the same bits as if they had not been made."""
    model = random_bloom()
    text = np.random.default_rng(1).integers(130, size=LENGTH).tolist()

    def run(wrong: bool) -> list[np.ndarray]:
        with passes_of(model, lookup_config(model, precision=precision)) as passes:
            found = [passes.prompt(1, text[:9])]
            for at in range(9, 20):
                if wrong:
                    passes.verify(1, [text[at], 3, 1, 4, 1, 5, 9, 2], at)
                found.append(passes.token(*token_of_row(passes, 1, text[at], at))[1])
            found.append(passes.verify(1, text[20:24], 20))
            if wrong:
                passes.verify(1, [text[24]] * 8, 24)
            found.append(passes.prompt(1, text[:28], start=24))
            return found

    for one, other in zip(run(True), run(False), strict=True):
        np.testing.assert_array_equal(one, other)


def token_of_row(passes: Passes, row: int, token: int, at: int) -> tuple[np.ndarray, np.ndarray]:
    tokens, positions = np.zeros((2, passes.batch_size), np.int32)
    tokens[row], positions[row] = token, at
    return tokens, positions


def test_a_verify_pass_leaves_other_rows_alone():
    model = random_bloom()
    text = np.random.default_rng(2).integers(130, size=20).tolist()

    def last(verify: bool) -> np.ndarray:
        with passes_of(model, lookup_config(model)) as passes:
            passes.prompt(0, text)
            if verify:
                passes.prompt(1, text[:5])
                passes.verify(1, text[5:13], 5)
            return passes.token(*token_of_row(passes, 0, 7, 20))[0]

    np.testing.assert_array_equal(last(True), last(False))


def test_a_verify_pass_that_does_not_fit_is_refused():
    model = random_bloom()
    with passes_of(model, lookup_config(model)) as passes:
        for tokens, position in [(9, 0), (8, LENGTH - 7), (2, LENGTH - 3)]:
            with pytest.raises(ValueError, match=f"holds {tokens} at {position} of {LENGTH}"):
                passes.verify(0, [1] * tokens, position)


def test_without_look_up_the_program_has_no_pass_and_no_stream_for_it():
    model = random_bloom()
    plain = inference(config_of(model))
    assert [*plain.outputs.keys()] == ["logits"]
    assert [*plain.pass_graphs] == ["token", "prompt_4", "prompt_16"]
    session = inference(lookup_config(model))
    assert {*session.pass_graphs} - {*plain.pass_graphs} == {"verify_4", "verify_8"}


# --- the text ---


@pytest.fixture(scope="module")
def tokenizer():
    return byte_level_tokenizer()


@pytest.fixture(scope="module")
def model(tokenizer) -> BloomForCausalLM:
    return random_model(len(tokenizer))


@contextmanager
def tiny(tp: int, lookup_tokens: int) -> Iterator[Passes]:
    config = load_config(
        "bloom_tiny",
        {"tensor_parallel_1": tp, "tensor_parallel_2": tp, "lookup_tokens": lookup_tokens},
    )
    from utils.loading import load

    loaded = load(config)
    try:
        yield loaded.passes
    finally:
        loaded.session.__exit__(None, None, None)


def ids_of(steps: list[GenerationStep]) -> list[int]:
    return [step.token for step in steps]

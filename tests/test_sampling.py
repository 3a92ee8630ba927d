"""Sampling: the distributions are those of transformers' logits processors."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from utils.generation.sampling import Sampler, SamplingConfig, processed_logits

SETTINGS = [
    SamplingConfig(temperature=1.0),
    SamplingConfig(temperature=0.3),
    SamplingConfig(temperature=2.5, repetition_penalty=1.3),
    SamplingConfig(temperature=1.0, repetition_penalty=0.7),
    SamplingConfig(temperature=1.0, top_k=1),
    SamplingConfig(temperature=0.8, top_k=40),
    SamplingConfig(temperature=1.0, top_k=10**9),
    SamplingConfig(temperature=1.0, top_p=0.9),
    SamplingConfig(temperature=1.7, top_p=0.999),
    SamplingConfig(temperature=1.0, top_p=1e-6),
    SamplingConfig(temperature=0.7, top_k=50, top_p=0.8, repetition_penalty=1.2),
    SamplingConfig(temperature=1.0, min_p=0.02),
    SamplingConfig(temperature=1.3, min_p=1.0),
    SamplingConfig(temperature=1.0, typical_p=0.9),
    SamplingConfig(temperature=0.6, typical_p=0.2),
    SamplingConfig(temperature=1.0, typical_p=1e-6),
    SamplingConfig(temperature=0.9, top_k=60, top_p=0.95, min_p=0.01, typical_p=0.7),
]


def transformers_logits(config: SamplingConfig, logits: np.ndarray, ids: list[int]) -> np.ndarray:
    """What `generate` makes of one row of logits."""
    processors = LogitsProcessorList()
    if config.repetition_penalty != 1:
        processors.append(RepetitionPenaltyLogitsProcessor(float(config.repetition_penalty)))
    processors.append(TemperatureLogitsWarper(float(config.temperature)))
    if config.top_k:
        processors.append(TopKLogitsWarper(config.top_k))
    if config.top_p < 1:
        processors.append(TopPLogitsWarper(config.top_p))
    if config.min_p:
        processors.append(MinPLogitsWarper(config.min_p))
    found = processors(torch.tensor([ids]), torch.from_numpy(logits.copy())[None])
    if config.typical_p < 1:  # in float64, as ours: on either side of the entropy are near ties
        found = TypicalLogitsWarper(config.typical_p)(torch.tensor([ids]), found.double())
    return found[0].numpy()


def probabilities(logits: np.ndarray) -> np.ndarray:
    return torch.from_numpy(logits).double().softmax(-1).numpy()


@pytest.mark.parametrize("vocab_size", [7, 1000, 20000])
@pytest.mark.parametrize("config", SETTINGS, ids=repr)
def test_probabilities_are_those_of_transformers(config: SamplingConfig, vocab_size: int) -> None:
    random = np.random.default_rng(vocab_size)
    for spread in (0.1, 2.0, 9.0):
        logits = (random.normal(size=vocab_size) * spread).astype(np.float32)
        ids = random.integers(0, vocab_size, 30).tolist()
        expected = probabilities(transformers_logits(config, logits, ids))
        ours = probabilities(processed_logits(config, logits, ids))
        np.testing.assert_array_equal(ours > 0, expected > 0)
        np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-12)


def test_ties_at_the_last_of_top_k_are_kept_as_transformers_keeps_them() -> None:
    logits = np.array([1, 3, 2, 2, 0, 2, -1], np.float32)
    config = SamplingConfig(temperature=1.0, top_k=2)
    np.testing.assert_array_equal(
        processed_logits(config, logits), transformers_logits(config, logits, [0])
    )
    assert np.isfinite(processed_logits(config, logits)).sum() == 4


def test_a_repeated_token_is_penalised_once() -> None:
    logits = np.array([2.0, -2.0, 1.0], np.float32)
    config = SamplingConfig(repetition_penalty=2.0)
    np.testing.assert_array_equal(processed_logits(config, logits, [0, 0, 1, 1, 1]), [1, -4, 1])


def test_ids_beyond_the_logits_are_not_penalised() -> None:
    logits = np.array([2.0, 1.0], np.float32)
    config = SamplingConfig(repetition_penalty=2.0)
    np.testing.assert_array_equal(processed_logits(config, logits, [0, 2, 99]), [1, 1])


def test_presence_and_frequency_are_subtracted_for_generated_tokens_and_not_the_prompts() -> None:
    """OpenAI's definition: logit - count * frequency - (count > 0) * presence."""
    logits = np.arange(6, dtype=np.float32)
    prompt, generated = [0, 0, 1], [1, 4, 4, 4, 99]
    config = SamplingConfig(presence_penalty=0.5, frequency_penalty=-0.25)
    expected = [
        logit - generated.count(token) * -0.25 - (token in generated) * 0.5
        for token, logit in enumerate(logits)
    ]
    ours = processed_logits(config, logits, [*prompt, *generated], len(prompt))
    np.testing.assert_allclose(ours, expected)


def test_greedy_respects_presence_and_frequency_penalty() -> None:
    logits = np.array([3.0, 2.0, 0.0], np.float32)
    assert Sampler(SamplingConfig(presence_penalty=1.5))(logits, [0, 0], 1) == 1
    assert Sampler(SamplingConfig(presence_penalty=1.5))(logits, [0, 0], 2) == 0
    assert Sampler(SamplingConfig(frequency_penalty=0.4))(logits, [0, 0], 0) == 0
    assert Sampler(SamplingConfig(frequency_penalty=0.4))(logits, [0, 0, 0], 0) == 1


def test_rules_leave_the_given_logits_as_they_were() -> None:
    logits = np.linspace(-1, 1, 50, dtype=np.float32)
    before = logits.copy()
    config = SamplingConfig(
        1.5, 9, 0.5, 3.0, seed=0, min_p=0.1, typical_p=0.9, presence_penalty=1, frequency_penalty=1
    )
    Sampler(config)(logits, [1, 2, 49])
    np.testing.assert_array_equal(logits, before)


def test_greedy_takes_the_first_of_equal_maxima_as_torch_does() -> None:
    random = np.random.default_rng(0)
    for _ in range(50):
        logits = random.integers(0, 4, 300).astype(np.float32)
        assert Sampler(SamplingConfig())(logits) == torch.from_numpy(logits).argmax().item()


def test_greedy_respects_the_repetition_penalty() -> None:
    sampler = Sampler(SamplingConfig(repetition_penalty=2.0))
    logits = np.array([3.0, 2.0, 0.0], np.float32)
    assert sampler(logits, []) == 0
    assert sampler(logits, [0]) == 1


@pytest.mark.parametrize(
    "config",
    [
        SamplingConfig(temperature=1.0, seed=1),
        SamplingConfig(temperature=0.7, top_k=5, seed=2),
        SamplingConfig(temperature=1.3, top_p=0.8, seed=3),
    ],
    ids=repr,
)
def test_frequencies_follow_the_probabilities(config: SamplingConfig) -> None:
    """Pearson's chi-square of 20000 draws stays under its 99.99 % quantile."""
    logits = np.random.default_rng(5).normal(size=12).astype(np.float32)
    expected = probabilities(transformers_logits(config, logits, [0])) * 20000
    sampler = Sampler(config)
    counts = np.bincount([sampler(logits) for _ in range(20000)], minlength=12)
    possible = expected > 0
    assert not counts[~possible].any()
    statistic = ((counts - expected)[possible] ** 2 / expected[possible]).sum()
    assert statistic < chi_square_quantile(int(possible.sum()) - 1, deviations=3.719)


def chi_square_quantile(degrees: int, deviations: float) -> float:
    """Wilson and Hilferty's approximation, at that many normal standard deviations."""
    ninth = 2 / (9 * degrees)
    return degrees * (1 - ninth + deviations * math.sqrt(ninth)) ** 3


def draws(config: SamplingConfig, count: int = 40) -> list[int]:
    sampler = Sampler(config)
    return [sampler(np.zeros(1000, np.float32)) for _ in range(count)]


def test_a_seed_repeats_its_draws_and_another_does_not() -> None:
    assert draws(SamplingConfig(1.0, seed=7)) == draws(SamplingConfig(1.0, seed=7))
    assert draws(SamplingConfig(1.0, seed=7)) != draws(SamplingConfig(1.0, seed=8))


def test_samplers_of_two_requests_do_not_disturb_each_other() -> None:
    logits = np.zeros(1000, np.float32)
    first, second = Sampler(SamplingConfig(1.0, seed=7)), Sampler(SamplingConfig(1.0, seed=8))
    interleaved = [(first(logits), second(logits)) for _ in range(40)]
    assert [a for a, _ in interleaved] == draws(SamplingConfig(1.0, seed=7))


def test_without_a_seed_one_is_drawn_and_repeats_the_draws() -> None:
    sampler = Sampler(SamplingConfig(1.0))
    logits = np.zeros(1000, np.float32)
    drawn = [sampler(logits) for _ in range(40)]
    assert drawn == draws(SamplingConfig(1.0, seed=sampler.config.seed))
    assert drawn != draws(SamplingConfig(1.0))


@pytest.mark.parametrize(
    ("setting", "value", "bound"),
    [
        ("temperature", -0.1, "0 (greedy)"),
        ("temperature", 1e-9, "1e-06"),
        ("temperature", math.inf, "to 1e+06"),
        ("temperature", math.nan, "to 1e+06"),
        ("top_k", -1, "from 0 up (0 is off)"),
        ("top_k", 2.5, "whole number"),
        ("top_p", 0.0, "over 0"),
        ("top_p", 1.1, "to 1 (1 is off)"),
        ("min_p", 1.1, "from 0 to 1 (0 is off)"),
        ("typical_p", 0.0, "over 0 to 1 (1 is off)"),
        ("presence_penalty", 2.5, "from -2 to 2"),
        ("frequency_penalty", math.nan, "from -2 to 2"),
        ("repetition_penalty", 0.0, "from 1e-06"),
        ("seed", -3, "from 0 up, or left out"),
    ],
)
def test_a_setting_out_of_bounds_is_named_with_value_and_bound(
    setting: str, value: float, bound: str
) -> None:
    with pytest.raises(ValueError) as error:
        SamplingConfig(**{setting: value})
    message = str(error.value)
    assert message.startswith(setting) and repr(value) in message and bound in message
    assert "\n" not in message


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("bad", [[0.0, math.nan], [math.inf, 0.0], [-math.inf, -math.inf]])
def test_logits_that_are_no_numbers_are_an_error(bad: list[float], temperature: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        Sampler(SamplingConfig(temperature))(np.array(bad, np.float32))

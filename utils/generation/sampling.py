"""From logits to the next token: sampling rules as small pure functions, and the sampler.

Each rule takes and returns float32 logits `[vocab_size]`; a token that a rule removes has -inf.
The rules and their order are those of transformers' `generate`: repetition penalty, temperature,
top-k, top-p. The rules do not change their arguments.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from utils.setup import UserError

SMALLEST = 1e-6  # divisor of logits: a smaller one could make float32 overflow
LARGEST = 1e6  # factor and divisor of logits, for the same reason


@dataclass(frozen=True)
class SamplingConfig:
    """How the next token is chosen.

    Raises:
        UserError: naming the first setting that is out of bounds, its value and the bound.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        temperature = self.temperature
        _check(
            temperature == 0 or SMALLEST <= temperature <= LARGEST,
            "temperature",
            temperature,
            f"0 (greedy) or a finite number from {SMALLEST:g} to {LARGEST:g}",
        )
        _check(
            _is_whole(self.top_k) and self.top_k >= 0,
            "top_k",
            self.top_k,
            "a whole number, 0 (off) or more",
        )
        _check(0 < self.top_p <= 1, "top_p", self.top_p, "over 0 and at most 1 (off)")
        _check(
            SMALLEST <= self.repetition_penalty <= LARGEST,
            "repetition_penalty",
            self.repetition_penalty,
            f"a finite number from {SMALLEST:g} to {LARGEST:g} (1 is off)",
        )
        _check(
            self.seed is None or (_is_whole(self.seed) and self.seed >= 0),
            "seed",
            self.seed,
            "a whole number, 0 or more, or left out",
        )

    @property
    def greedy(self) -> bool:
        return self.temperature == 0

    def seeded(self) -> SamplingConfig:
        """This with a seed: its own, or one drawn from the system, which repeats what follows."""
        if self.seed is not None:
            return self
        return replace(self, seed=int(np.random.SeedSequence().generate_state(1)[0]))


class Sampler:
    """Chooses the tokens of one request, with a random generator of its own.

    `config` is the one given, and has the seed in use.
    """

    def __init__(self, config: SamplingConfig):
        self.config = config.seeded()
        self._random = np.random.default_rng(self.config.seed)

    def __call__(self, logits: np.ndarray, ids: Sequence[int] = ()) -> int:
        """The next token's id.

        Args:
            logits: of the next token, `[vocab_size]`.
            ids: the tokens so far, of prompt and continuation, which the repetition penalty is for.

        Raises:
            UserError: there is a logit that is not a number, or the largest is infinite.
        """
        check_finite(logits)
        logits = processed_logits(self.config, logits, ids)
        best = int(np.argmax(logits))  # the first of equals
        if self.config.greedy:
            return best
        kept = np.flatnonzero(logits > -np.inf)
        cumulative = np.cumsum(np.exp(logits[kept] - logits[best], dtype=np.float64))
        drawn = self._random.random() * cumulative[-1]
        return int(kept[np.searchsorted(cumulative, drawn, side="right")])


def check_finite(logits: np.ndarray) -> None:
    """Raises a `UserError` where a logit is not a number, or the largest is infinite."""
    largest = np.max(logits)  # NaN if there is one
    if not np.isfinite(largest):
        raise UserError(
            f"the largest logit must be a finite number, not {largest}: the weights are "
            "damaged, or need a precision of wider range (bfloat16, float32)"
        )


def processed_logits(
    config: SamplingConfig, logits: np.ndarray, ids: Sequence[int] = ()
) -> np.ndarray:
    """Float32 logits `[vocab_size]` after the rules that `config` turns on."""
    logits = np.asarray(logits, np.float32)
    if config.repetition_penalty != 1:
        logits = penalise_repetition(logits, ids, config.repetition_penalty)
    if config.greedy:
        return logits  # the rules below never change which token is best
    if config.temperature != 1:
        logits = apply_temperature(logits, config.temperature)
    if 0 < config.top_k < logits.size:
        logits = keep_top_k(logits, config.top_k)
    if config.top_p < 1:
        logits = keep_top_p(logits, config.top_p)
    return logits


def penalise_repetition(logits: np.ndarray, ids: Sequence[int], penalty: float) -> np.ndarray:
    """Logits of tokens in `ids` made less likely by `penalty` > 1 (CTRL, arXiv 1909.05858).

    A positive logit is divided by the penalty, a negative one multiplied. Ids of `vocab_size` and
    over have no logit and are left out.
    """
    seen = np.asarray(ids, np.int64)
    seen = seen[seen < logits.size]
    penalised = logits.copy()
    values = logits[seen]
    penalised[seen] = np.where(values < 0, values * penalty, values / penalty)
    return penalised


def apply_temperature(logits: np.ndarray, temperature: float) -> np.ndarray:
    """Logits divided by `temperature`: below 1 sharper, above 1 flatter."""
    return logits / np.float32(temperature)


def keep_top_k(logits: np.ndarray, top_k: int) -> np.ndarray:
    """Only the `top_k` largest logits, and all that equal the smallest of them."""
    smallest = np.partition(logits, -top_k)[-top_k]
    return np.where(logits < smallest, np.float32(-np.inf), logits)


def keep_top_p(logits: np.ndarray, top_p: float) -> np.ndarray:
    """Only the most likely tokens: the fewest whose probabilities add up to `top_p` or more."""
    possible = np.flatnonzero(logits > -np.inf)  # few if top-k came first
    weights = np.exp(logits[possible] - logits.max(), dtype=np.float64)
    needed = top_p * weights.sum()
    order = _most_likely(weights, needed)
    before = np.cumsum(weights[order]) - weights[order]
    kept = possible[order[before < needed]]
    filtered = np.full_like(logits, -np.inf)
    filtered[kept] = logits[kept]
    return filtered


def _most_likely(weights: np.ndarray, needed: float) -> np.ndarray:
    """Indices of the largest weights, descending, enough of them to add up to `needed`.

    A few hundred are tried before more, because sorting a whole vocabulary of 250880 takes longer
    than all other rules together.
    """
    count = 256
    while count < weights.size:
        largest = np.argpartition(weights, -count)[-count:]
        if weights[largest].sum() >= needed:
            return largest[np.argsort(-weights[largest])]
        count *= 8
    return np.argsort(-weights)


def _is_whole(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _check(possible: bool, name: str, value: object, allowed: str) -> None:
    if not possible:
        raise UserError(f"{name} must be {allowed}, not {value!r}")

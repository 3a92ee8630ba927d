"""From logits to the next token: sampling rules as small pure functions, and the sampler.

Each rule takes and returns float32 logits `[vocab_size]`; a token that a rule removes has -inf.
The rules and their order are those of transformers' `generate`: repetition penalty, temperature,
top-k, top-p, min-p, typical sampling; presence and frequency penalty, which it lacks, come after
the repetition penalty. The rules do not change their arguments.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from utils.generation.settings import SamplingConfig
from utils.setup import UserError


class Sampler:
    """Chooses the tokens of one request, with a random generator of its own.

    `config` is the one given, and has the seed in use.
    """

    def __init__(self, config: SamplingConfig):
        self.config = config.seeded()
        self._random = np.random.default_rng(self.config.seed)

    def __call__(self, logits: np.ndarray, ids: Sequence[int] = (), prompt_tokens: int = 0) -> int:
        """The next token's id.

        Args:
            logits: of the next token, `[vocab_size]`.
            ids: the tokens so far, of prompt and continuation, which the repetition penalty is for.
            prompt_tokens: how many of these are the prompt's, which presence and frequency penalty
                leave out.

        Raises:
            UserError: there is a logit that is not a number, or the largest is infinite.
        """
        check_finite(logits)
        logits = processed_logits(self.config, logits, ids, prompt_tokens)
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
    config: SamplingConfig,
    logits: np.ndarray,
    ids: Sequence[int] = (),
    prompt_tokens: int = 0,
) -> np.ndarray:
    """Float32 logits `[vocab_size]` after the rules that `config` turns on."""
    logits = np.asarray(logits, np.float32)
    if config.repetition_penalty != 1:
        logits = penalise_repetition(logits, ids, config.repetition_penalty)
    if config.presence_penalty or config.frequency_penalty:
        generated = ids[prompt_tokens:]
        logits = penalise_generated(
            logits, generated, config.presence_penalty, config.frequency_penalty
        )
    if config.greedy:
        return logits  # the rules below never change which token is best
    if config.temperature != 1:
        logits = apply_temperature(logits, config.temperature)
    if 0 < config.top_k < logits.size:
        logits = keep_top_k(logits, config.top_k)
    if config.top_p < 1:
        logits = keep_top_p(logits, config.top_p)
    if config.min_p > 0:
        logits = keep_min_p(logits, config.min_p)
    if config.typical_p < 1:
        logits = keep_typical(logits, config.typical_p)
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


def penalise_generated(
    logits: np.ndarray, generated: Sequence[int], presence: float, frequency: float
) -> np.ndarray:
    """Logits less `presence` for tokens in `generated`, and less `frequency` for each time there.

    Both may be negative. OpenAI's API defines them so.
    """
    seen, counts = np.unique(np.asarray(generated, np.int64), return_counts=True)
    known = seen < logits.size
    penalised = logits.copy()
    penalised[seen[known]] -= (presence + frequency * counts[known]).astype(np.float32)
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


def keep_min_p(logits: np.ndarray, min_p: float) -> np.ndarray:
    """Only tokens at least `min_p` times as likely as the likeliest (arXiv 2407.01082)."""
    return np.where(np.exp(logits - logits.max()) < min_p, np.float32(-np.inf), logits)


def keep_typical(logits: np.ndarray, typical_p: float) -> np.ndarray:
    """Only tokens whose surprise is near the entropy (typical sampling, arXiv 2202.00666).

    These are the nearest whose probabilities add up to `typical_p` or more, and all as near as the
    last of them.
    """
    possible = np.flatnonzero(logits > -np.inf)
    weights = np.exp(logits[possible] - logits.max(), dtype=np.float64)
    chances = weights / weights.sum()
    with np.errstate(divide="ignore"):  # a chance too small for a float is infinitely surprising
        surprise = -np.log(chances)
    entropy = np.sum(chances * surprise, where=chances > 0)
    distance = np.abs(surprise - entropy)
    order = np.argsort(distance)
    last = min(int(np.searchsorted(np.cumsum(chances[order]), typical_p)), order.size - 1)
    limit = distance[order[last]]
    kept = possible[distance <= limit]
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

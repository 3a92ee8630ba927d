"""The machine's limits, sampled between the passes that they are limits of.

A machine's rates move by half within seconds, so each pass is compared with what was sampled just
before and just after it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from config import BloomConfig
from utils.our_runtime import machine

ROWS_AT_MOST = 512
"""Of a sample's products: more do not multiply faster."""

SIDE_AT_MOST = 8192
"""Inputs and outputs of a product that is timed for the rate."""


class Limit:
    """A rate of the machine round what it limits."""

    def __init__(self, sample: Callable[[], float]):
        self._sample = sample
        self._before = 0.0

    def begin(self) -> None:
        self._before = self._sample()

    def end(self) -> float:
        """The mean of before and after; what is after is before what follows."""
        before, self._before = self._before, self._sample()
        return (before + self._before) / 2


@dataclass(frozen=True)
class MachineLimits:
    """How the limits are sampled.

    Attributes:
        reading: what memory is read with.
        matmul_precision: the type that matmuls are sampled in, the fastest that is as precise as
            the model's.
    """

    device: str
    reading: str
    matmul_precision: str
    products: tuple[machine.Product, ...]

    @classmethod
    def of(cls, config: BloomConfig, prompt_tokens: int) -> MachineLimits:
        """For so many tokens of prompts at once: products are those of a layer."""
        device = config.execution.device
        products = _layer_products(config, min(prompt_tokens, ROWS_AT_MOST))
        fastest = machine.fastest_matmul_type(products, config.model.dtype, device)
        return cls(device, machine.reading_method(device), fastest.as_numpy().name, products)

    def bandwidth(self) -> Limit:
        """Bytes a second."""
        return Limit(lambda: machine.read_bandwidth(self.device))

    def matmuls(self) -> Limit:
        """Multiplications and additions a second."""
        dtype = machine.dtypes.dtype.from_name(self.matmul_precision)
        return Limit(lambda: machine.matmul_rate(self.products, dtype, self.device))


def sample_bytes(config: BloomConfig) -> int:
    """Memory that samples take on a CPU at most: the buffer that is read, and a layer's products in
    float32."""
    products = _layer_products(config, ROWS_AT_MOST)
    operands = sum(4 * (n * k + k * m + n * m) for n, k, m in products)
    return machine.READ_BYTES["cpu"] + operands


def _layer_products(config: BloomConfig, rows: int) -> tuple[machine.Product, ...]:
    """The matmuls of a layer's weights: attention's two, the feed-forward's two.

    Their sides are bounded: a layer of the largest model has 10 GB in float32, and its rate is that
    of a part of it.
    """
    h = config.model.hidden_size
    sides = (h, 3 * h), (h, h), (h, 4 * h), (4 * h, h)
    return tuple((rows, min(k, SIDE_AT_MOST), min(m, SIDE_AT_MOST)) for k, m in sides)

"""Whether the kernels give on a device what PyTorch gives: asked once, before they are used on it.

They have been compiled for GPUs and run in an interpreter, which is not the same as a GPU. A kernel
that is wrong there costs speed, not right answers: PyTorch then does what the kernels would.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import ModuleType

import torch
from popxl_shared import groups
from popxl_shared.alibi import alibi_bias

from popxl_torch.backends.specs import StoredWeight

TOLERANCE = 0.02
"""Of the largest value, in 16 bits."""

SIZE, OUTPUTS, HEADS, LENGTH, HEAD_DIM = 256, 72, 2, 300, 128
REPLICAS, ROWS = 2, 2


def fault(kernels: ModuleType, device: torch.device) -> str | None:
    """What is wrong with the kernels on a device; None where nothing is."""
    with torch.inference_mode():
        for name, run in _cases(kernels, device):
            try:
                found, expected = run()
                error = (found.float() - expected).abs().max() / expected.abs().max()
                if not float(error) < TOLERANCE:
                    return f"{name} is off by {float(error):.2g} of the largest value"
            except Exception as error:  # of a compiler, a driver: whatever it is, do without
                return f"{name}: {(str(error).splitlines() or [type(error).__name__])[0]}"
    return None


Case = tuple[str, Callable[[], tuple[torch.Tensor, torch.Tensor]]]


def _cases(kernels: ModuleType, device: torch.device) -> Iterator[Case]:
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(device, torch.bfloat16)

    for kind, (weight, values) in _weights(random, generator, device).items():
        for rows in (1, 3, kernels.MOST_QUANTISED_ROWS + 1):
            x, bias = random(REPLICAS, rows, SIZE), random(REPLICAS, OUTPUTS)

            def product(x=x, bias=bias, weight=weight, values=values):
                found = kernels.linear(x, weight, torch.float32, bias)
                return found, x.float() @ values + bias.float()[:, None]

            yield f"a product of {rows} rows with {kind}", product
    caches = random(2, REPLICAS, ROWS, HEADS, LENGTH, HEAD_DIM)
    slopes = torch.tensor([[0.5, 0.01], [0.1, 0.02]], device=device)
    for at, tokens in ((0, 1), (LENGTH - 2, 1), (0, 17), (LENGTH - 17, 17)):
        q = random(REPLICAS, tokens, HEADS, HEAD_DIM)

        def attention(q=q, at=at, tokens=tokens):
            return _attention(kernels, q, caches, slopes, at)

        yield f"attention of {tokens} tokens at {at}", attention


def _weights(
    random: Callable[..., torch.Tensor], generator: torch.Generator, device: torch.device
) -> dict[str, tuple[StoredWeight, torch.Tensor]]:
    """Weights `(replicas, in, outputs)`, and the float32 values that they stand for."""
    lead = REPLICAS, OUTPUTS
    floats = random(*lead, SIZE).mT
    numbers = torch.randint(-128, 128, (*lead, SIZE), generator=generator)
    scale = torch.rand(lead, generator=generator) / 100
    words = torch.randint(0, 1 << 16, (*lead, SIZE // 64, 16), generator=generator)
    steps = torch.rand((*lead, SIZE // 64, 1), generator=generator).half()
    offset = -8 * steps
    as_numpy = words.numpy().astype("uint16"), steps.float().numpy(), offset.float().numpy()
    values = torch.from_numpy(groups.dequantised(*as_numpy))
    return {
        "floats": (StoredWeight(floats), floats.float()),
        "8 bits": (
            StoredWeight(numbers.to(torch.int8).to(device).mT, scale.to(device)),
            (numbers * scale[..., None]).mT.to(device),
        ),
        "4 bits": (
            StoredWeight(words.to(torch.uint16).to(device), steps.to(device), offset.to(device)),
            values.mT.to(device),
        ),
    }


def _attention(
    kernels: ModuleType, q: torch.Tensor, caches: torch.Tensor, slopes: torch.Tensor, at: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Of the last row of caches, by all kernels that do it one after the other."""
    keys, values = (cache.clone() for cache in caches)
    tokens, row = q.shape[1], ROWS - 1
    places = [torch.full((1,), number, dtype=torch.int32, device=q.device) for number in (at, row)]
    given = (q, q, q), (keys, values), slopes
    found = [
        kernel(*given, *places) for kernel in (kernels.chunk_attention, kernels.verify_attention)
    ]
    if tokens == 1:
        row_alone = keys[:, row:].contiguous(), values[:, row:].contiguous()
        found.append(kernels.token_attention(given[0], row_alone, slopes, places[0]))
    kept = caches.clone()
    kept[:, :, row, :, at : at + tokens] = q.transpose(1, 2)
    distance = torch.arange(at + tokens) - torch.arange(at, at + tokens).unsqueeze(-1)
    distance = distance.to(q.device)
    own_keys, own_values = kept[:, :, row, :, : at + tokens].float()
    scores = q.float().transpose(1, 2) @ own_keys.mT
    scores = scores * HEAD_DIM**-0.5 + alibi_bias(slopes[..., None, None], distance)
    weights = scores.masked_fill(distance > 0, -torch.inf).softmax(-1)
    expected = (weights @ own_values).transpose(1, 2)
    return torch.stack(found), expected

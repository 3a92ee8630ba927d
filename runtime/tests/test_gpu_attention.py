"""The attention of the Triton kernels against float32 in PyTorch; see `test_gpu_kernels.py`."""

from __future__ import annotations

import pytest
import torch
from popxl_torch.backends.cuda.back_end import Cuda
from popxl_torch.backends.reference.back_end import Reference
from popxl_torch.backends.specs import AttentionSpec
from popxl_torch.memory.cells import Cell
from triton_here import DEVICE, TOLERANCE, dtypes, held_once, kernels, random


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def expected_attention(q, keys, values, slopes, at: int) -> torch.Tensor:
    """Of tokens from `at` on, `(tokens, heads, head_dim)`; keys `(heads, length, head_dim)`."""
    tokens, _, head_dim = q.shape
    distance = torch.arange(keys.shape[1], device=DEVICE) - torch.arange(
        at, at + tokens, device=DEVICE
    ).unsqueeze(-1)
    scores = q.float().transpose(0, 1) @ keys.float().transpose(1, 2) / head_dim**0.5
    scores = scores + slopes[:, None, None] * distance
    weights = scores.masked_fill(distance > 0, -torch.inf).softmax(-1)
    return (weights @ values.float()).transpose(0, 1)


@dtypes
@pytest.mark.parametrize("heads, length, head_dim", [(3, 40, 24), (1, 600, 16)])
def test_tokens_attend_over_what_is_filled(dtype, heads, length, head_dim):
    positions = torch.tensor([0, length // 2, length - 1, length + 3], dtype=torch.int32)
    fused = random(4, heads, 3, head_dim, dtype=dtype)
    q, k, v = fused.unbind(2)
    caches = random(2, 4, heads, length, head_dim, dtype=dtype)
    expected = caches.clone()
    caches[:, :, :, length // 2 + 1 :] = torch.nan  # behind the second row's token
    caches[:, 2:] = expected[:, 2:]
    slopes = torch.rand(heads, device=DEVICE)
    qkv, held = (q[None], k[None], v[None]), (caches[0][None], caches[1][None])
    (done,) = kernels.token_attention(qkv, held, slopes[None], positions.to(DEVICE))
    for row, at in enumerate(positions.clamp(max=length - 1).tolist()):
        expected[0, row, :, at], expected[1, row, :, at] = k[row], v[row]
        wanted = expected_attention(q[row][None], *expected[:, row], slopes, at)[0]
        torch.testing.assert_close(done[row].float(), wanted, atol=2 * TOLERANCE[dtype], rtol=0)
        torch.testing.assert_close(caches[:, row, :, at], expected[:, row, :, at])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("tokens, at, head_dim", [(5, 0, 24), (70, 30, 16), (130, 3, 32)])
def test_a_chunk_attends_over_what_is_filled(dtype, tokens, at, head_dim):
    heads, length, row = 2, 150, 1
    fused = random(1, tokens, heads, 3, head_dim, dtype=dtype)
    caches = random(2, 1, 3, heads, length, head_dim, dtype=dtype)
    before, slopes = caches.clone(), torch.rand(heads, device=DEVICE)
    before[:, 0, row, :, at : at + tokens] = fused[0, :, :, 1:].permute(2, 1, 0, 3)
    expected = expected_attention(fused[0, :, :, 0], *before[:, 0, row], slopes, at)
    caches[:, 0, row, :, at:] = torch.nan
    given = fused.unbind(3), (caches[0], caches[1]), slopes[None]
    (done,) = kernels.chunk_attention(*given, *map(number, (at, row)))
    torch.testing.assert_close(done.float(), expected, atol=2 * TOLERANCE[dtype], rtol=0)
    caches[:, 0, row, :, at + tokens :] = before[:, 0, row, :, at + tokens :]
    assert torch.equal(caches, before)  # nothing else was written


def number(value: int) -> torch.Tensor:
    return torch.full((1,), value, dtype=torch.int32, device=DEVICE)


@dtypes
@pytest.mark.parametrize("replicas", [1, 2])
def test_the_next_tokens_of_a_row_are_those_of_one_after_the_other(dtype, replicas):
    tokens, rows, heads, length, head_dim, at, row = 4, 3, 2, 70, 16, 31, 2
    fused = random(replicas, tokens, heads, 3, head_dim, dtype=dtype)
    caches = random(2, replicas, rows, heads, length, head_dim, dtype=dtype)
    slopes = torch.rand(replicas, heads, device=DEVICE)
    alone = caches[:, :, row : row + 1].clone()
    expected = [
        kernels.token_attention(
            fused[:, i : i + 1].unbind(3), (alone[0], alone[1]), slopes, number(at + i)
        )
        for i in range(tokens)
    ]
    kept = caches.clone()
    kept[:, :, row : row + 1] = alone
    done = kernels.verify_attention(
        fused.unbind(3), (caches[0], caches[1]), slopes, number(at), number(row)
    )
    assert torch.equal(done, torch.cat(expected, 1))
    assert torch.equal(caches, kept)


@pytest.mark.parametrize("once", [False, True], ids=["of each", "of all"])
def test_tokens_of_replicas(once):
    replicas, batch, heads, length, head_dim = 4, 2, 2, 70, 16
    positions = torch.tensor([9, 66], dtype=torch.int32, device=DEVICE)
    q = random(replicas, batch, heads, head_dim)
    k, v = (held_once(random(replicas, batch, heads, head_dim), once, replicas) for _ in range(2))
    keys, values = random(2, replicas, batch, heads, length, head_dim)
    slopes = held_once(torch.rand(replicas, heads, device=DEVICE), once, replicas)
    done = kernels.token_attention((q, k, v), (keys, values), slopes, positions)
    for replica in range(replicas):
        for row, at in enumerate(positions.tolist()):
            torch.testing.assert_close(keys[replica, row, :, at], k[replica, row])
            of = q[replica, row][None], keys[replica, row], values[replica, row], slopes[replica]
            wanted = expected_attention(*of, at)[0]
            torch.testing.assert_close(done[replica, row], wanted, atol=2e-5, rtol=0)


@pytest.mark.parametrize("once", [False, True], ids=["of each", "of all"])
def test_chunks_of_replicas(once):
    replicas, tokens, heads, length, head_dim, at = 4, 19, 2, 40, 16, 8
    q, k, v = random(3, replicas, tokens, heads, head_dim, dtype=torch.float16)
    q = held_once(q, once, replicas)
    caches = random(2, replicas, 3, heads, length, head_dim, dtype=torch.float16)
    slopes = held_once(torch.rand(replicas, heads, device=DEVICE), once, replicas)
    done = kernels.chunk_attention((q, k, v), (caches[0], caches[1]), slopes, number(at), number(1))
    keys, values = caches[:, :, 1]  # a row of three
    for replica in range(replicas):
        assert torch.equal(keys[replica, :, at : at + tokens], k[replica].transpose(0, 1))
        wanted = expected_attention(q[replica], keys[replica], values[replica], slopes[replica], at)
        torch.testing.assert_close(done[replica].float(), wanted, atol=4e-3, rtol=0)


@pytest.mark.parametrize("queries", ["chunk of a row", "token of some rows"])
def test_without_a_bias_distance_does_not_count(queries):
    tokens = tuple(random(1, 3, 2, 16, dtype=torch.float16) for _ in range(3))
    caches, spec = (
        random(2, 1, 3, 2, 40, 16, dtype=torch.float16),
        AttentionSpec(1, queries, alibi=False),
    )
    positions, row = torch.tensor([[5, 9, 30]]), torch.tensor([[0, 1, 2]])
    if queries == "chunk of a row":
        positions, row = torch.tensor([5]), torch.tensor([1])
    places = positions.int().to(DEVICE), row.int().to(DEVICE)
    found = []
    for back_end in (Cuda(kernels, None), Reference()):
        cells = tuple(Cell(cache.clone(), shared=False) for cache in caches)
        found.append(back_end.attention(spec, tokens, cells, None, *places))
    torch.testing.assert_close(*found, atol=TOLERANCE[torch.float16], rtol=0)

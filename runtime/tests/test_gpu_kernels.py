"""The Triton kernels against float32 in PyTorch, interpreted on a CPU where there is no GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - torch's custom
from popxl.backend import gpu
from popxl.backend.native.linear import Weight
from triton_here import DEVICE, kernels, matrix_kernels

TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}
dtypes = pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda d: str(d).removeprefix("torch."))


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def random(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape).to(dtype).to(DEVICE)


def quantised(
    outputs: int, size: int, group: int, replicas: int = 1
) -> tuple[Weight, torch.Tensor]:
    """A weight in groups, int8 for 0, and the floats that it stands for.

    Both are `(replicas, size, outputs)`.
    """
    lead = (replicas, outputs)
    if not group:
        numbers = torch.randint(-128, 128, (*lead, size), dtype=torch.int8, device=DEVICE)
        scale = torch.rand(lead, device=DEVICE) / 500
        return Weight(numbers.mT, scale), (numbers * scale[..., None]).mT
    words = torch.randint(0, 1 << 16, (*lead, size // group, group // 4), device=DEVICE)
    numbers = torch.stack([words >> shift & 15 for shift in (12, 8, 4, 0)], -1).flatten(-2)
    scale = torch.rand(*lead, size // group, 1, device=DEVICE).half() / 50
    offset = -torch.rand(*lead, size // group, 1, device=DEVICE).half() / 5
    values = (numbers * scale.float() + offset.float()).flatten(-2)
    # words are made as int64: CUDA makes no random uint16
    return Weight(words.to(torch.int32).to(torch.uint16), scale, offset), values.mT


def check_linear(
    weight: Weight,
    values: torch.Tensor,
    rows: int,
    dtype: torch.dtype,
    x: torch.Tensor | None = None,
    **after: Any,
):
    replicas, size, _ = values.shape
    x = random(replicas, rows, size, dtype=dtype) if x is None else x
    done = kernels.linear(x, weight, dtype, **after)
    expected = x.float() @ values.float()
    if after.get("bias") is not None:
        expected += after["bias"].float()[:, None]
    if after.get("activation") is not None:
        form = {"gelu": "tanh", "geluerf": "none"}[after["activation"]]
        expected = F.gelu(expected, approximate=form)
    if after.get("residual") is not None:
        expected += after["residual"].float()
    assert done.dtype == dtype
    largest = expected.abs().max().item()
    torch.testing.assert_close(done.float(), expected, atol=TOLERANCE[dtype] * largest, rtol=0)


@dtypes
@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("outputs, size", [(7, 1000), (70, 96)])
def test_products_with_floats(dtype, rows, outputs, size):
    values = random(1, outputs, size, dtype=dtype).mT
    check_linear(Weight(values), values, rows, dtype, bias=random(1, outputs, dtype=dtype))


@dtypes
@pytest.mark.parametrize("rows", [1, 3, 20, 65])
@pytest.mark.parametrize("group", [0, 32, 64, 128], ids=["int8", "int4:32", "int4:64", "int4:128"])
def test_products_with_quantised_weights(dtype, rows, group):
    outputs, size = 70, 3 * 128
    bias = random(1, outputs, dtype=dtype)
    check_linear(*quantised(outputs, size, group), rows, dtype, bias=bias)


@pytest.mark.parametrize("group", [0, 64])
@pytest.mark.parametrize("rows", [1, 3])
def test_inputs_of_several_blocks_and_outputs_of_whole_ones(group, rows):
    check_linear(*quantised(64, 4096, group), rows, torch.float16)


def test_groups_wider_than_a_tile_are_taken_apart_before_the_product(monkeypatch):
    monkeypatch.setattr(matrix_kernels, "rows_times_quantized", None)
    check_linear(*quantised(9, 1024, 512), 3, torch.float16)


@pytest.mark.parametrize("activation", [None, "gelu", "geluerf"])
@pytest.mark.parametrize("rows", [1, 3])
def test_what_follows_a_product(activation, rows):
    values, residual = random(1, 40, 64).mT, random(1, rows, 40)
    check_linear(
        *(Weight(values), values, rows, torch.float32),
        bias=random(1, 40),
        activation=activation,
        residual=residual,
    )
    check_linear(Weight(values), values, rows, torch.float32, activation=activation)


def test_a_result_of_another_type_is_not_rounded_first():
    values = random(1, 40, 64, dtype=torch.bfloat16).mT
    x = random(1, 1, 64, dtype=torch.bfloat16)
    done = kernels.linear(x, Weight(values), torch.float32)
    torch.testing.assert_close(done, x.float() @ values.float(), atol=1e-4, rtol=0)


def test_weights_that_lie_otherwise_are_left_to_torch():
    x = random(1, 1, 64)
    assert kernels.linear(x, Weight(random(1, 64, 40)), torch.float32) is None
    assert kernels.linear(x, quantised(8, 64, 16)[0], torch.float32) is None


# --- several replicas ---


def held_once(tensor: torch.Tensor, once: bool, replicas: int) -> torch.Tensor:
    return tensor[:1].expand(replicas, *tensor.shape[1:]) if once else tensor


@pytest.mark.parametrize("once", [False, True], ids=["of each", "of all"])
@pytest.mark.parametrize("rows", [1, 3, 65])
@pytest.mark.parametrize("group", [None, 0, 64], ids=["floats", "int8", "int4"])
def test_products_of_replicas(group, rows, once):
    replicas, outputs, size, dtype = 4, 22, 128, torch.float16
    x = held_once(random(replicas, rows, size, dtype=dtype), once, replicas)
    bias = held_once(random(replicas, outputs, dtype=dtype), once, replicas)
    residual = held_once(random(replicas, rows, outputs, dtype=dtype), once, replicas)
    if group is None:
        values = random(replicas, outputs, size, dtype=dtype).mT
        weight = Weight(values)
    else:
        weight, values = quantised(outputs, size, group, replicas)
    check_linear(weight, values, rows, dtype, x, bias=bias, residual=residual)


# --- attention ---


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
@pytest.mark.parametrize("heads, length, head_dim", [(2, 40, 24), (3, 600, 16)])
def test_tokens_attend_over_what_is_filled(dtype, heads, length, head_dim):
    positions = torch.tensor([0, length // 2, length - 1, length + 3], dtype=torch.int32)
    fused = random(4, heads, 3, head_dim, dtype=dtype)
    q, k, v = fused.unbind(2)
    caches = random(2, 4, heads, length, head_dim, dtype=dtype)
    expected = caches.clone()
    caches[:, :, :, length // 2 + 1 :] = torch.nan  # behind the second row's token
    caches[:, 2:] = expected[:, 2:]
    slopes = torch.rand(heads, device=DEVICE)
    done = kernels.token_attention(
        (q, k, v), (caches[0], caches[1]), slopes[None], positions.to(DEVICE)
    )
    for row, at in enumerate(positions.clamp(max=length - 1).tolist()):
        expected[0, row, :, at], expected[1, row, :, at] = k[row], v[row]
        wanted = expected_attention(q[row][None], *expected[:, row], slopes, at)[0]
        torch.testing.assert_close(done[row].float(), wanted, atol=2 * TOLERANCE[dtype], rtol=0)
        torch.testing.assert_close(caches[:, row, :, at], expected[:, row, :, at])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("tokens, at, head_dim", [(5, 0, 24), (70, 30, 16), (130, 3, 32)])
def test_a_chunk_attends_over_what_is_filled(dtype, tokens, at, head_dim):
    heads, length = 2, 150
    fused = random(tokens, heads, 3, head_dim, dtype=dtype)
    keys, values = random(2, heads, length, head_dim, dtype=dtype)
    slopes = torch.rand(heads, device=DEVICE)
    expected = expected_attention(fused[:, :, 0], keys, values, slopes, at)
    keys[:, at + tokens :] = values[:, at + tokens :] = torch.nan
    q = fused[None, :, :, 0]
    (done,) = kernels.chunk_attention(q, (keys[None], values[None]), slopes[None], at)
    torch.testing.assert_close(done.float(), expected, atol=2 * TOLERANCE[dtype], rtol=0)


@pytest.mark.parametrize("once", [False, True], ids=["of each", "of all"])
def test_tokens_of_replicas(once):
    replicas, batch, heads, length, head_dim = 4, 2, 2, 70, 16
    positions = torch.tensor([9, 66], dtype=torch.int32, device=DEVICE)
    q = random(replicas, batch, heads, head_dim)
    k, v = (held_once(random(replicas, batch, heads, head_dim), once, replicas) for _ in range(2))
    keys, values = random(2, replicas, batch, heads, length, head_dim)
    slopes = held_once(torch.rand(replicas, heads, device=DEVICE), once, replicas)
    qkv = tuple(t.flatten(0, 1) for t in (q, k, v))
    done = kernels.token_attention(
        qkv, (keys.flatten(0, 1), values.flatten(0, 1)), slopes, positions
    ).reshape(q.shape)
    for replica in range(replicas):
        for row, at in enumerate(positions.tolist()):
            torch.testing.assert_close(keys[replica, row, :, at], k[replica, row])
            of = q[replica, row][None], keys[replica, row], values[replica, row], slopes[replica]
            wanted = expected_attention(*of, at)[0]
            torch.testing.assert_close(done[replica, row], wanted, atol=2e-5, rtol=0)


@pytest.mark.parametrize("once", [False, True], ids=["of each", "of all"])
def test_chunks_of_replicas(once):
    replicas, tokens, heads, length, head_dim, at = 4, 19, 2, 40, 16, 8
    q = held_once(random(replicas, tokens, heads, head_dim, dtype=torch.float16), once, replicas)
    cache = random(2, replicas, 3, heads, length, head_dim, dtype=torch.float16)
    keys, values = cache[:, :, 1]  # a row of three
    slopes = held_once(torch.rand(replicas, heads, device=DEVICE), once, replicas)
    done = kernels.chunk_attention(q, (keys, values), slopes, at)
    for replica in range(replicas):
        wanted = expected_attention(q[replica], keys[replica], values[replica], slopes[replica], at)
        torch.testing.assert_close(done[replica].float(), wanted, atol=4e-3, rtol=0)


# --- whether they are used ---


def test_kernels_that_are_right_are_used():
    gpu.checked.cache_clear()
    assert gpu.checked(DEVICE) is kernels


@pytest.mark.parametrize("name", ["linear", "token_attention"])
def test_kernels_that_are_wrong_are_not_used(monkeypatch, caplog, name):
    right = getattr(kernels, name)
    monkeypatch.setattr(kernels, name, lambda *args: right(*args) * 1.1)
    gpu.checked.cache_clear()
    assert gpu.checked(DEVICE) is None
    gpu.checked.cache_clear()
    assert "PyTorch computes what they would (slower)" in caplog.text
    assert "is off by" in caplog.text


def test_kernels_that_do_not_compile_are_not_used(monkeypatch, caplog):
    def fail(*args):
        raise RuntimeError("no such instruction\ntrace")

    monkeypatch.setattr(kernels, "linear", fail)
    gpu.checked.cache_clear()
    assert gpu.checked(DEVICE) is None
    gpu.checked.cache_clear()
    assert caplog.messages[0].endswith(
        "(slower): a product of 1 rows with floats: no such instruction"
    )


# --- without a GPU ---


def test_what_is_launched_compiles_for_an_h100(tmp_path):
    script = Path(__file__).with_name("compile_gpu_kernels.py")
    environment = os.environ | {
        "TRITON_INTERPRET": "0",
        "TRITON_CACHE_DIR": str(tmp_path),
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, env=environment, timeout=300
    )
    assert done.returncode == 0, done.stderr
    compiled = [json.loads(line) for line in done.stdout.splitlines()]
    assert {row["kernel"] for row in compiled} == {
        *("arranged", "row_times_floats", "row_times_bytes", "row_times_groups"),
        *("rows_times_quantized", "decompressed", "finish"),
        *("token_attention", "joined", "chunk_attention"),
    }
    assert {row["target"] for row in compiled} == {"sm_90a"}
    assert not any(row["stack"] for row in compiled)  # registers suffice

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
from triton_here import DEVICE, kernels

TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}
dtypes = pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda d: str(d).removeprefix("torch."))


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def random(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape).to(dtype).to(DEVICE)


def quantised(outputs: int, size: int, group: int) -> tuple[Weight, torch.Tensor]:
    """A weight in groups, int8 for 0, and the floats that it stands for, `(size, outputs)`."""
    if not group:
        numbers = torch.randint(-128, 128, (outputs, size), dtype=torch.int8, device=DEVICE)
        scale = torch.rand(outputs, device=DEVICE) / 500
        return Weight(numbers.t(), scale), (numbers * scale[:, None]).t()
    words = torch.randint(0, 1 << 16, (outputs, size // group, group // 4), device=DEVICE)
    numbers = torch.stack([words >> shift & 15 for shift in (12, 8, 4, 0)], -1).flatten(-2)
    scale = torch.rand(outputs, size // group, 1, device=DEVICE).half() / 50
    offset = -torch.rand(outputs, size // group, 1, device=DEVICE).half() / 5
    values = (numbers * scale.float() + offset.float()).flatten(-2)
    # words are made as int64: CUDA makes no random uint16
    return Weight(words.to(torch.int32).to(torch.uint16), scale, offset), values.t()


def check_linear(weight: Weight, values: torch.Tensor, rows: int, dtype: torch.dtype, **after: Any):
    x = random(rows, values.shape[0], dtype=dtype)
    done = kernels.linear(x, weight, dtype, **after)
    expected = x.float() @ values.float()
    if after.get("bias") is not None:
        expected += after["bias"].float()
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
    values = random(outputs, size, dtype=dtype).t()
    check_linear(Weight(values), values, rows, dtype, bias=random(outputs, dtype=dtype))


@dtypes
@pytest.mark.parametrize("rows", [1, 3, 20, 65])
@pytest.mark.parametrize("group", [0, 32, 64, 128], ids=["int8", "int4:32", "int4:64", "int4:128"])
def test_products_with_quantised_weights(dtype, rows, group):
    outputs, size = 70, 3 * 128
    check_linear(*quantised(outputs, size, group), rows, dtype, bias=random(outputs, dtype=dtype))


@pytest.mark.parametrize("group", [0, 64])
@pytest.mark.parametrize("rows", [1, 3])
def test_inputs_of_several_blocks_and_outputs_of_whole_ones(group, rows):
    check_linear(*quantised(64, 4096, group), rows, torch.float16)


@pytest.mark.parametrize("activation", [None, "gelu", "geluerf"])
@pytest.mark.parametrize("rows", [1, 3])
def test_what_follows_a_product(activation, rows):
    values, residual = random(40, 64).t(), random(rows, 40)
    check_linear(
        *(Weight(values), values, rows, torch.float32),
        bias=random(40),
        activation=activation,
        residual=residual,
    )
    check_linear(Weight(values), values, rows, torch.float32, activation=activation)


def test_a_result_of_another_type_is_not_rounded_first():
    values = random(40, 64, dtype=torch.bfloat16).t()
    x = random(1, 64, dtype=torch.bfloat16)
    done = kernels.linear(x, Weight(values), torch.float32)
    torch.testing.assert_close(done, x.float() @ values.float(), atol=1e-4, rtol=0)


def test_weights_that_lie_otherwise_are_left_to_torch():
    x = random(1, 64)
    assert kernels.linear(x, Weight(random(64, 40)), torch.float32) is None
    assert kernels.linear(x, quantised(8, 64, 16)[0], torch.float32) is None


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
    done = kernels.token_attention((q, k, v), (caches[0], caches[1]), slopes, positions.to(DEVICE))
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
    done = kernels.chunk_attention(fused[:, :, 0], (keys, values), slopes, at)
    torch.testing.assert_close(done.float(), expected, atol=2 * TOLERANCE[dtype], rtol=0)


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

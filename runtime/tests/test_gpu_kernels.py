"""The Triton kernels against float32 in PyTorch, interpreted on a CPU where there is no GPU."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - torch's custom
import warm_python
from popxl_torch.backends import cuda as gpu
from popxl_torch.backends.cuda import check
from popxl_torch.backends.specs import StoredWeight
from triton_here import DEVICE, TOLERANCE, dtypes, held_once, kernels, matrix_kernels, random


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def quantised(
    outputs: int, size: int, group: int, replicas: int = 1
) -> tuple[StoredWeight, torch.Tensor]:
    """A weight in groups, int8 for 0, and the floats that it stands for.

    Both are `(replicas, size, outputs)`.
    """
    lead = (replicas, outputs)
    if not group:
        numbers = torch.randint(-128, 128, (*lead, size), dtype=torch.int8, device=DEVICE)
        scale = torch.rand(lead, device=DEVICE) / 500
        return StoredWeight(numbers.mT, scale), (numbers * scale[..., None]).mT
    words = torch.randint(0, 1 << 16, (*lead, size // group, group // 4), device=DEVICE)
    numbers = torch.stack([words >> shift & 15 for shift in (12, 8, 4, 0)], -1).flatten(-2)
    scale = torch.rand(*lead, size // group, 1, device=DEVICE).half() / 50
    offset = -torch.rand(*lead, size // group, 1, device=DEVICE).half() / 5
    values = (numbers * scale.float() + offset.float()).flatten(-2)
    # words are made as int64: CUDA makes no random uint16
    return StoredWeight(words.to(torch.int32).to(torch.uint16), scale, offset), values.mT


def check_linear(
    weight: StoredWeight,
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
    check_linear(StoredWeight(values), values, rows, dtype, bias=random(1, outputs, dtype=dtype))


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


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_four_bits_are_summed_up_finer_than_results_are_rounded(dtype):
    weight, values = quantised(8, 4096, 64)
    x = 1000 * random(1, 1, 4096, dtype=dtype)  # 256 times as much is beyond float16
    done, expected = kernels.linear(x, weight, torch.float32), x.double() @ values.double()
    assert (done - expected).abs().max() < 1e-4 * expected.abs().max()


def test_groups_wider_than_a_tile_are_taken_apart_before_the_product(monkeypatch):
    monkeypatch.setattr(matrix_kernels, "rows_times_quantized", None)
    check_linear(*quantised(9, 1024, 512), 3, torch.float16)


@pytest.mark.parametrize("activation", [None, "gelu", "geluerf"])
@pytest.mark.parametrize("rows", [1, 3])
def test_what_follows_a_product(activation, rows):
    values, residual = random(1, 40, 64).mT, random(1, rows, 40)
    check_linear(
        *(StoredWeight(values), values, rows, torch.float32),
        bias=random(1, 40),
        activation=activation,
        residual=residual,
    )
    check_linear(StoredWeight(values), values, rows, torch.float32, activation=activation)


def test_a_result_of_another_type_is_not_rounded_first():
    values = random(1, 40, 64, dtype=torch.bfloat16).mT
    x = random(1, 1, 64, dtype=torch.bfloat16)
    done = kernels.linear(x, StoredWeight(values), torch.float32)
    torch.testing.assert_close(done, x.float() @ values.float(), atol=1e-4, rtol=0)


def test_weights_that_lie_otherwise_are_left_to_torch():
    x = random(1, 1, 64)
    assert kernels.linear(x, StoredWeight(random(1, 64, 40)), torch.float32) is None
    assert kernels.linear(x, quantised(8, 64, 16)[0], torch.float32) is None


# --- several replicas ---


@pytest.mark.parametrize("once", [False, True], ids=["of each", "of all"])
@pytest.mark.parametrize("rows", [1, 3, 65])
@pytest.mark.parametrize("group", [None, 0, 64], ids=["floats", "int8", "int4"])
def test_products_of_replicas(group, rows, once):
    replicas, outputs, size, dtype = 2, 22, 128, torch.float16
    x = held_once(random(replicas, rows, size, dtype=dtype), once, replicas)
    bias = held_once(random(replicas, outputs, dtype=dtype), once, replicas)
    residual = held_once(random(replicas, rows, outputs, dtype=dtype), once, replicas)
    if group is None:
        values = random(replicas, outputs, size, dtype=dtype).mT
        weight = StoredWeight(values)
    else:
        weight, values = quantised(outputs, size, group, replicas)
    check_linear(weight, values, rows, dtype, x, bias=bias, residual=residual)


# --- whether they are used ---


@pytest.fixture
def interpreted(monkeypatch) -> None:
    """Where an interpreter runs the kernels, those of heads and lengths that it has time for."""
    if DEVICE.type == "cpu":
        for name, value in (("LENGTH", 70), ("HEAD_DIM", 32), ("SIZE", 128), ("OUTPUTS", 24)):
            monkeypatch.setattr(check, name, value)  # LENGTH: more than a block of keys


def test_kernels_that_are_right_are_used(interpreted):
    gpu.checked.cache_clear()
    assert gpu.checked(DEVICE) is kernels


@pytest.mark.parametrize("name", ["linear", "token_attention"])
def test_kernels_that_are_wrong_are_not_used(interpreted, monkeypatch, caplog, name):
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


def test_a_gpu_that_triton_does_not_know_is_left_to_torch(monkeypatch, caplog):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    gpu.checked.cache_clear()
    assert gpu.checked(torch.device("cuda", 0)) is None
    gpu.checked.cache_clear()
    assert caplog.messages[0].endswith("(slower): compute capability 7.5 is less than 8.0")


def test_a_device_that_a_kernel_has_broken_is_said_to_be(monkeypatch):
    def fail(*args):
        raise RuntimeError("CUDA error: an illegal memory access was encountered\ntrace")

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.cuda, "synchronize", fail)
    monkeypatch.setattr(check, "fault", lambda kernels, device: "attention: an illegal access")
    gpu.checked.cache_clear()
    with pytest.raises(RuntimeError, match="cuda:0 cannot be used after attention: an illegal"):
        gpu.checked(torch.device("cuda", 0))
    gpu.checked.cache_clear()


# --- without a GPU ---


@pytest.mark.timeout(300)
def test_what_is_launched_compiles_for_an_h100(tmp_path):
    script = Path(__file__).with_name("compile_gpu_kernels.py")
    environment = os.environ | {
        "TRITON_INTERPRET": "0",
        "TRITON_CACHE_DIR": str(tmp_path),
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    done = warm_python.run(
        [sys.executable, script], capture_output=True, text=True, env=environment, timeout=300
    )
    assert done.returncode == 0, done.stderr
    compiled = [json.loads(line) for line in done.stdout.splitlines()]
    assert {row["kernel"] for row in compiled} == {
        *("arranged", "row_times_floats", "row_times_bytes", "row_times_groups"),
        *("rows_times_quantized", "decompressed", "finish"),
        *("token_attention", "joined", "keep_chunk", "chunk_attention"),
    }
    assert {row["target"] for row in compiled} == {"sm_90a"}
    assert not any(row["stack"] for row in compiled)  # registers suffice

"""Ours alone: how fast this machine reads memory and multiplies matrices, the limits of a program.

Both change from second to second with what else the machine does, so they are cheap to call: take
them between the runs they are to be compared with, and compare pair by pair.
"""

from __future__ import annotations

import importlib
import math
import time
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from popxl import dtypes

READ_BYTES = {"cpu": 1 << 28, "cuda": 1 << 32}
"""Read for one sample of the bandwidth: many times what a device's last cache holds."""

RATE_TRIES = 3
"""Runs of which the fastest decides which type multiplies fastest."""

_kept: dict[tuple, list] = {}

Product = tuple[int, int, int]
"""Sizes n, k, m of a product `(n, k) @ (k, m)`."""


def read_bandwidth(device_desc: str = "cpu", bytes_count: int | None = None) -> float:
    """The rate at which a device reads its memory now, all its threads together: bytes a second.

    One reading of a buffer that is kept from call to call; `reading_method` says by what.

    Args:
        device_desc: a device as `Session` takes it.
        bytes_count: to read, 8 or more; `READ_BYTES` where None.

    Raises:
        ValueError, RuntimeError: as `Session` does for the device.
    """
    kind = _device(device_desc).type
    bytes_count = bytes_count or READ_BYTES[kind]
    return _reader(bytes_count, kind)[1](bytes_count)


def reading_method(device_desc: str = "cpu") -> str:
    """What `read_bandwidth` reads with, in words."""
    import torch

    kind = _device(device_desc).type
    name, _ = _reader(READ_BYTES[kind], kind)
    return name if kind == "cuda" else f"{name}, {torch.get_num_threads()} threads"


def matmul_rate(
    products: Sequence[Product], dtype: dtypes.dtype, device_desc: str = "cpu"
) -> float:
    """The rate of `torch.mm` now, in multiplications and additions a second.

    Args:
        products: sizes of the matrices, multiplied one after another; weights `(k, m)` lie as a
            checkpoint has them, in rows of outputs. The last matrices are kept from call to call.
        dtype: of operands and result.
        device_desc: a device as `Session` takes it.

    Raises:
        ValueError, RuntimeError: as `Session` does for the device.
    """
    kind = _device(device_desc).type
    operands = _operands(tuple(products), dtype, kind)
    seconds = _timed(lambda: _multiply(operands), kind)
    return sum(2 * math.prod(sizes) for sizes in products) / seconds


def fastest_matmul_type(
    products: Sequence[Product], dtype: dtypes.dtype, device_desc: str = "cpu"
) -> dtypes.dtype:
    """`dtype`, or float32 where that multiplies faster.

    Most CPUs are slow at float16. A GPU is not: it is not asked, as its memory may hold no matrices
    of both.
    """
    if _device(device_desc).type != "cpu":
        return dtype
    candidates = (dtype, dtypes.float32)
    rates = [
        max(matmul_rate(products, kind, device_desc) for _ in range(RATE_TRIES))
        for kind in candidates
    ]
    return candidates[rates.index(max(rates))]


def device_kind(device_desc: str) -> str:
    """The device that a description stands for here: "cpu" or "cuda".

    Args:
        device_desc: a device as `Session` takes it.

    Raises:
        ValueError, RuntimeError: as `Session` does for the device.
    """
    return _device(device_desc).type


def free_memory(device_desc: str = "cpu") -> int:
    """Bytes of a device's memory that this process may still use.

    Args:
        device_desc: a device as `Session` takes it.

    Raises:
        ValueError, RuntimeError: as `Session` does for the device.
    """
    import torch

    from popxl_torch.memory.system import available_memory

    device = _device(device_desc)
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available_memory()


def held_bytes() -> int:
    """The host's memory that is kept here for samples."""
    held = (tensor for tensors in _kept.values() for tensor in tensors)
    return sum(tensor.nbytes for tensor in held if tensor.device.type == "cpu")


def release() -> None:
    """Let that memory go."""
    _kept.clear()
    _reader.cache_clear()


@cache
def _reader(bytes_count: int, kind: str) -> tuple[str, Callable[[int], float]]:
    """What reads fastest, its name and a function from bytes to bytes a second."""
    summing = ("torch.sum of int64", lambda count: _summing_rate(count, kind))
    native = _native() if kind == "cpu" else None
    if native is None:
        return summing
    candidates = (("a native loop", lambda count: _native_rate(native, count)), summing)
    rates = [max(read(bytes_count) for _ in range(RATE_TRIES)) for _, read in candidates]
    return candidates[rates.index(max(rates))]


def _native() -> Callable[[int, int, int], float] | None:
    """The back end's compiled loop, if any: from address, bytes and threads to seconds."""
    try:
        library = importlib.import_module("popxl_torch.backends.cpu").library()
    except ImportError:
        return None
    return library and library.read


def _native_rate(read: Callable[[int, int, int], float], bytes_count: int) -> float:
    import torch

    buffer = _buffer(bytes_count, "cpu")
    seconds = read(buffer.data_ptr(), buffer.nbytes, torch.get_num_threads())
    return buffer.nbytes / seconds


def _device(device_desc: str) -> Any:
    from popxl_torch.device import torch_device

    return torch_device(device_desc)


def _timed(run: Callable[[], object], kind: str) -> float:
    """Seconds that `run` takes, until the device has done what it was given."""
    import torch

    wait = torch.cuda.synchronize if kind == "cuda" else lambda: None
    wait()
    begin = time.perf_counter()
    run()
    wait()
    return time.perf_counter() - begin


def _summing_rate(bytes_count: int, kind: str) -> float:
    buffer = _buffer(bytes_count, kind)
    return buffer.nbytes / _timed(buffer.sum, kind)


def _buffer(bytes_count: int, kind: str) -> Any:
    import torch

    def make() -> list:
        return [torch.ones(bytes_count // 8, dtype=torch.int64, device=kind)]

    return _keep((bytes_count, kind), make)[0]


def _operands(products: tuple[Product, ...], dtype: dtypes.dtype, kind: str) -> list:
    """The two matrices of every product, one after another."""
    import torch

    def ones(*shape: int) -> Any:
        return torch.ones(*shape, dtype=dtype.as_torch(), device=kind)

    def make() -> list:
        for other in [key for key in _kept if len(key) == 3]:  # they may be as large as a layer
            del _kept[other]
        return [t for n, k, m in products for t in (ones(n, k), ones(m, k).t())]

    return _keep((products, dtype, kind), make)


def _keep(key: tuple, make: Callable[[], list]) -> list:
    if key not in _kept:
        _kept[key] = make()
    return _kept[key]


def _multiply(operands: list) -> None:
    import torch

    with torch.inference_mode():
        for x, w in zip(operands[::2], operands[1::2], strict=True):
            torch.mm(x, w)

"""Compiles for an H100 or H200 what BLOOM's passes and the check of the kernels launch.

    python compile_gpu_kernels.py

No GPU is needed: the launches are those of the functions in `gpu/kernels.py` on tensors without
memory. Prints one JSON object a kernel: its name, target, registers, bytes of stack, and shared
memory.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import triton
from popxl_torch.backends.cuda import attention_kernels, check, kernels, matrix_kernels, row_kernels
from popxl_torch.backends.specs import StoredWeight
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

META = torch.device("meta")
H100 = GPUTarget("cuda", 90, 32)
LAUNCHED = {
    row_kernels: ("arranged", "row_times_floats", "row_times_bytes", "row_times_groups"),
    matrix_kernels: ("rows_times_quantized", "decompressed", "finish"),
    attention_kernels: ("token_attention", "joined", "keep_chunk", "chunk_attention"),
}
TYPES = {
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.float32: "fp32",
    torch.int32: "i32",
    torch.int16: "i16",
    torch.int8: "i8",
}
OPTIONS = ("num_warps", "num_stages", "enable_fp_fusion")


class Compiled:
    """Stands in for a kernel: compiles each launch of it once."""

    def __init__(self, kernel: Any):
        self.kernel, self.seen = kernel, set()

    def __getitem__(self, grid: Any) -> Any:
        return self.launch

    def launch(self, *args: Any, **named: Any) -> None:
        options = {key: named.pop(key) for key in OPTIONS if key in named}
        names = self.kernel.arg_names
        given = dict(zip(names, args, strict=False)) | named
        assert sorted(given) == sorted(names), f"{self.kernel.__name__} is given {list(given)}"
        given = {name: given[name] for name in names}
        parameters = self.kernel.params
        signature, constants, attributes = {}, {}, {}
        for index, (name, value) in enumerate(given.items()):
            kind = _kind(value)
            constant = parameters[index].is_constexpr or value is None or _is_one(value)
            signature[name] = "constexpr" if constant else kind
            if constant:
                constants[(index,)] = value
            elif kind.startswith("*") or (kind == "i32" and value % 16 == 0):
                attributes[(index,)] = [["tt.divisibility", 16]]
        key = str((signature, constants, attributes, options))
        if key not in self.seen:
            self.seen.add(key)
            source = ASTSource(self.kernel, signature, constants, attributes)
            report(self.kernel.__name__, triton.compile(source, target=H100, options=options))


def _kind(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return "*" + TYPES[value.dtype]
    if isinstance(value, float):
        return "fp32"
    return "i32" if isinstance(value, int) and abs(value) < 1 << 31 else "i64"


def _is_one(value: Any) -> bool:
    """Triton takes such a number for a constant."""
    return isinstance(value, int) and value == 1


def report(name: str, compiled: Any) -> None:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        Path(cubin.name).write_bytes(compiled.asm["cubin"])
        tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
        command = [tool, "-res-usage", cubin.name]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    registers, stack = (int(re.search(rf"{k}:(\d+)", usage)[1]) for k in ("REG", "STACK"))
    target = re.search(r"\.target (\S+)", compiled.asm["ptx"])[1]
    row = {"kernel": name, "target": target, "registers": registers, "stack": stack}
    print(json.dumps(row | {"shared": compiled.metadata.shared}), flush=True)


def floats(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device=META)


def weight(outputs: int, size: int, bits: int) -> StoredWeight:
    if bits == 16:
        return StoredWeight(floats(1, outputs, size).mT)
    if bits == 8:
        numbers = torch.empty((1, outputs, size), dtype=torch.int8, device=META)
        return StoredWeight(numbers.mT, floats(1, outputs, dtype=torch.float32))
    words = torch.empty((1, outputs, size // 64, 16), dtype=torch.uint16, device=META)
    scale, offset = (floats(1, outputs, size // 64, 1, dtype=torch.float16) for _ in range(2))
    return StoredWeight(words, scale, offset)


def launch(hidden: int, heads: int, bits: int) -> None:
    """What a token pass, one of eight rows and a prompt launch, of products and attention."""
    wide = 4 * hidden
    for rows in (1, 8, 512):
        x = floats(1, rows, hidden)
        kernels.linear(x, weight(wide, hidden, bits), x.dtype, floats(1, wide), "gelu")
    head_dim, length = hidden // heads, 2048
    cache = floats(1, 1, heads, length, head_dim)
    slopes = floats(1, heads, dtype=torch.float32)
    position, row = (torch.empty(1, dtype=torch.int32, device=META) for _ in range(2))
    for tokens, attention in (
        (1, lambda *a: kernels.token_attention(*a[:-1])),
        (8, kernels.verify_attention),
        (512, kernels.chunk_attention),
    ):
        qkv = floats(1, tokens, heads, 3, head_dim).unbind(3)
        attention(qkv, (cache, cache), slopes, position, row)


def main() -> int:
    for module, names in LAUNCHED.items():
        for name in names:
            setattr(module, name, Compiled(getattr(module, name)))
    for hidden, heads, bits in ((4096, 32, 16), (4096, 32, 8), (14336, 112, 4)):
        launch(hidden, heads, bits)
    for _, run in check._cases(kernels, META):
        run()
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Changes that keep a file's form: a header, a member of an archive, a tensor, aliases of YAML."""

from __future__ import annotations

import os
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from damage.nasty import ESCAPE, Nasty


class Payload:
    """What would leave a mark if it were unpickled."""

    def __init__(self, canary: Path):
        self.canary = canary

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.canary),)


def change_header(path: Path, nasty: Nasty) -> None:
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = nasty.json(data[8 : 8 + length].decode()).encode("utf-8", "surrogatepass")
    path.write_bytes(len(header).to_bytes(8, "little") + header + data[8 + length :])


def change_member(path: Path, nasty: Nasty) -> str:
    """Change the bytes of one member of a zip file, whose checksums then fit."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    pickled = next(name for name in members if name.endswith("data.pkl"))
    name = pickled if nasty.draw.random() < 0.8 else nasty.draw.choice(list(members))
    members[name] = nasty.bytes(members[name])
    compression = nasty.draw.choice([zipfile.ZIP_STORED] * 4 + [zipfile.ZIP_DEFLATED])
    with zipfile.ZipFile(path, "w", compression) as archive:
        for member, data in members.items():
            archive.writestr(member, data)
    return name


def odd_values(tensor: torch.Tensor, canary: Path) -> dict[str, Callable[[], Any]]:
    """What may stand in a tensor's place in a `.bin`."""
    flat = tensor.reshape(-1)
    return {
        "sparse": lambda: flat.to_sparse(),
        "csr": lambda: flat.reshape(1, -1).to_sparse_csr(),
        "meta": lambda: tensor.to("meta"),
        "quantised": lambda: torch.quantize_per_tensor(tensor.float(), 0.1, 0, torch.qint8),
        "complex": lambda: tensor.to(torch.complex64),
        "expanded": lambda: torch.zeros(1).expand(1 << 40),
        "bool": lambda: tensor > 0,
        "float64": lambda: tensor.double(),
        "int64": lambda: tensor.long(),
        "float8": lambda: tensor.to(torch.float8_e4m3fn),
        "empty": lambda: tensor[:0],
        "scalar": lambda: flat[0],
        "transposed": lambda: tensor.reshape(tensor.shape[0], -1).T,
        "half": lambda: flat[: len(flat) // 2],
        "not finite": lambda: tensor * float("nan"),
        "list": lambda: tensor.reshape(-1)[:5].tolist(),
        "text": lambda: ESCAPE,
        "code": lambda: Payload(canary),
        "parameter": lambda: torch.nn.Parameter(tensor.clone()),
    }


def yaml_bomb(draw: random.Random) -> str:
    what = draw.randrange(5)
    if what == 0:
        lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
        lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
        return "\n".join([*lines, "bomb: {model: *a11}"])
    if what == 1:
        lines = ["a0: &a0 {x: 1, y: 2}"]
        merges = [f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}" for i in range(1, 12)]
        return "\n".join([*lines, *merges, "bomb: {model: *a11}"])
    if what == 2:
        return "bomb: &a {model: *a}"
    if what == 3:
        return "bomb: " + draw.choice(["[", "{a: ", "- "]) * 50_000
    return f"bomb: {{model: {draw.choice(['!!python/object/apply:os.mkdir [x]', '!!int x'])}}}"

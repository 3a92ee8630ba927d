"""Arrays that live in `.npy` files and are mapped, not read."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

try:
    import fcntl
except ImportError:  # not a POSIX system: processes there must not make one map at the same time
    fcntl = None  # type: ignore[assignment]


def open_or_create(
    path: str | os.PathLike[str],
    shape: tuple[int, ...],
    dtype: np.dtype,
    fill: Callable[[np.ndarray], None] | None = None,
    read_only_if_exists: bool = False,
) -> np.ndarray:
    """The array in the file at `path`; the file is made first where there is none.

    A file is made under a temporary name and renamed when it is complete, so one that has its
    name is whole. Of several processes of a host that want the same file, one makes it and the
    others wait for it.

    Args:
        fill: writes the contents of a new file; where None they are zeros that take no disk
            space until written.
        read_only_if_exists: map a file that was there for reading only.

    Raises:
        ValueError: where the file holds another shape or dtype, or is no whole `.npy` file.
    """
    path, dtype = Path(path), np.dtype(dtype)
    existed = path.exists()
    if not existed:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _lock(path.parent / ".lock"):
            existed = path.exists()
            if not existed:
                _create(path, shape, dtype, fill)
    return _open(path, shape, dtype, "r" if existed and read_only_if_exists else "r+")


def _create(
    path: Path, shape: tuple[int, ...], dtype: np.dtype, fill: Callable[[np.ndarray], None] | None
) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        array = np.lib.format.open_memmap(partial, "w+", _stored_as(dtype), shape)
        if fill is not None:
            fill(array.view(dtype))
        array.flush()
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _open(path: Path, shape: tuple[int, ...], dtype: np.dtype, mode: str) -> np.ndarray:
    try:
        # for reading first: opened for writing, a file that is cut off would be filled with zeros
        array = np.lib.format.open_memmap(path, "r")
    except ValueError as error:
        raise ValueError(f"{path} is not a whole .npy file: {error}") from None
    if array.shape != tuple(shape) or array.dtype != _stored_as(dtype):
        raise ValueError(
            f"{path} holds {array.dtype} {array.shape}, {dtype} {tuple(shape)} is wanted: "
            "remove the file, or use another folder for this configuration"
        )
    if mode != "r":
        array = np.lib.format.open_memmap(path, mode)
    return array.view(dtype)


def _stored_as(dtype: np.dtype) -> np.dtype:
    """What the header of a `.npy` file can say of `dtype`: only the size of types like bfloat16."""
    return dtype if dtype.isbuiltin == 1 else np.dtype((np.void, dtype.itemsize))


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    with open(path, "w") as file:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX)
        yield

"""The values of a program's variables in a folder: `model/NAME.npz` each, or `.npy` for maps.

The names are those of the tree that they lie in, so a checkpoint does not depend on the program.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

logger = logging.getLogger(__name__)

MODEL = "model"
SESSION = "session_info.json"
REPORTS = ("none", "warn", "error")


def save(folder: Path, values: Mapping[str, np.ndarray], session_state: Mapping[str, Any]) -> None:
    """Write the values, by name, and the state of the session, which must be JSON."""
    (folder / MODEL).mkdir(parents=True, exist_ok=True)
    for name, value in values.items():
        if isinstance(value, np.memmap):
            np.save(folder / MODEL / f"{name}.npy", value)
        else:
            arrays: dict[str, Any] = {name: value}
            np.savez(folder / MODEL / f"{name}.npz", **arrays)
    (folder / SESSION).write_text(json.dumps(session_state))


def load(folder: Path, dtypes: Mapping[str, np.dtype], maps: bool) -> dict[str, np.ndarray]:
    """The values of a checkpoint whose names are among those of `dtypes`.

    Args:
        dtypes: for each name, how its bytes are read where the file cannot say (bfloat16).
        maps: also of variables that were memory maps.

    Raises:
        FileNotFoundError: where the folder is no checkpoint.
    """
    if not (folder / MODEL).is_dir():
        raise FileNotFoundError(f"{folder} is no checkpoint: it has no folder {MODEL!r}")
    values = {}
    for name, dtype in dtypes.items():
        packed, mapped = (folder / MODEL / f"{name}.{ending}" for ending in ("npz", "npy"))
        if packed.exists():
            with np.load(packed) as file:
                values[name] = file[name]
        elif maps and mapped.exists():
            values[name] = np.load(mapped)
        if name in values and values[name].dtype.kind == "V":
            values[name] = values[name].view(dtype)
    return values


def names(folder: Path) -> set[str]:
    """The names that a checkpoint has values of."""
    return {file.stem for file in (folder / MODEL).glob("*.np[yz]")}


def load_session_state(folder: Path) -> dict[str, Any]:
    """The state that was saved; that of a new session where none was."""
    path = folder / SESSION
    return json.loads(path.read_text()) if path.exists() else {"steps": 0}


def report(there: Iterable[str], wanted: Iterable[str], how: str) -> None:
    """Say which names only one of two sides has.

    Args:
        how: "none" keeps silent, "warn" logs, "error" raises.

    Raises:
        ValueError: for another `how`; for names that differ where it is "error".
    """
    if how not in REPORTS:
        raise ValueError(f"report_missing is one of {', '.join(REPORTS)}, got {how!r}")
    there, wanted = set(there), set(wanted)
    lines = [("not in the program", there - wanted), ("not in the checkpoint", wanted - there)]
    text = "; ".join(f"{what}: {', '.join(sorted(who))}" for what, who in lines if who)
    if not text or how == "none":
        return
    if how == "error":
        raise ValueError(text)
    logger.warning(text)

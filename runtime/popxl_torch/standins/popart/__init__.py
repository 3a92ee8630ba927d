"""Stands in for popart as far as programs name it beside popxl; nothing of Poplar is behind it."""

from __future__ import annotations

import logging
from typing import Any

__version__ = "3.4.0"

popart_exception = ValueError  # what this runtime raises where the SDK raises popart's


class poplar_runtime_error(RuntimeError):  # noqa: N801 - the SDK's name
    """An error of a run; nothing here raises it."""


class poplar_application_runtime_error(poplar_runtime_error):  # noqa: N801 - the SDK's name
    """An error of a run that the program caused; nothing here raises it."""


class DeviceInfo:
    """A device that a session holds; sessions here hold none of this class."""


def versionString() -> str:  # noqa: N802 - the SDK's name
    return f"popxl on PyTorch, for {__version__}"


def getLogger(name: str = "all") -> logging.Logger:  # noqa: N802 - the SDK's name
    return logging.getLogger(f"popart.{name}")


def __getattr__(name: str) -> Any:
    from popxl_torch.absent import Absent

    if name.startswith("__"):
        raise AttributeError(name)
    return Absent(f"popart.{name}")

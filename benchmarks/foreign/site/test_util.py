"""Stands in for the helper by which popart's tests get a device: here a session makes its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

Test = TypeVar("Test", bound=Callable[..., Any])


@dataclass
class Device:
    """A number of IPUs, as the tests ask for it."""

    device: str = "ipu_model"


def create_test_device(numIpus: int = 1, **_: Any) -> Device:  # noqa: N803 - the tests' name
    return Device()


def requires_ipu(test: Test) -> Test:
    return test


def requires_ipu_model(test: Test) -> Test:
    return test

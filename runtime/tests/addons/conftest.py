"""Programs small enough for one test."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import pytest
from programs import run_program


@pytest.fixture
def run() -> Callable[..., list[np.ndarray]]:
    return functools.partial(run_program, device="cpu")

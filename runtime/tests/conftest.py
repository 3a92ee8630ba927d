from __future__ import annotations

import numpy as np
import popxl
import pytest


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def main_graph():
    """The main graph of a new program of one replica, made current."""
    with popxl.Ir().main_graph as graph:
        yield graph

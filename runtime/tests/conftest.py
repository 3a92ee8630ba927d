from __future__ import annotations

import numpy as np
import popxl
import pytest
from misuse import Things


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def main_graph():
    """The main graph of a new program of one replica, made current."""
    with popxl.Ir().main_graph as graph:
        yield graph


@pytest.fixture
def things(main_graph) -> Things:
    """What a test can misuse, in a new program of one replica."""
    return Things(main_graph.ir)

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import popxl
import pytest
import torch
from misuse import Things
from popxl_torch.backends.cpu import build


def pytest_configure(config: pytest.Config) -> None:
    """The kernels are compiled once, before there are workers; none of their tests is skipped.

    Raises:
        UsageError: they cannot be compiled.
    """
    if hasattr(config, "workerinput"):
        return
    try:
        build.built_library()
    except build.CannotBuildError as error:
        raise pytest.UsageError(
            f"the kernels cannot be tested, {error}: apt-get install -y g++"
        ) from None


@pytest.fixture(scope="module")
def two_threads() -> Iterator[None]:
    """Kernels share their work between two threads, as where they are used."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


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

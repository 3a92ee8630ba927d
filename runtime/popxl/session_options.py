"""The options that PopXL programs set, mostly to tune an IPU: accepted, without effect."""

from __future__ import annotations

import os
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from popxl.ir import Ir


CACHE_DIR = "POPXL_CACHE_DIR"
"""Environment variable: the folder for what is kept from launch to launch; empty for nothing."""


def cache_dir() -> str | None:
    """What `CACHE_DIR` says; None where it is not set."""
    return os.environ.get(CACHE_DIR)


class SessionOptions:
    """Takes any option. One that was not set is None; those that are tables start empty.

    The number of replicas and what `Ir.dot_checkpoint` asks for do have an effect.
    """

    def __init__(self, ir: Ir) -> None:
        self._ir = ir
        self.dotChecks: set[str] = set()
        self.logDir = "."
        self.globalReplicaOffset = 0  # the first replica of this process
        cache = cache_dir()
        self.enableEngineCaching, self.cachePath = cache is not None, cache
        self.engineOptions: dict[str, str] = {}
        self.convolutionOptions: dict[str, str] = {}
        self.matmulOptions: dict[str, str] = {}
        self.reportOptions: dict[str, str] = {}
        self.gclOptions: dict[str, str] = {}
        self.lstmOptions: dict[str, str] = {}
        self.virtualGraphSettings: dict[str, Any] = defaultdict(dict)

    @property
    def replicatedGraphCount(self) -> int:  # noqa: N802 - PopART's name
        """`Ir.replication_factor`."""
        return self._ir.replication_factor

    @replicatedGraphCount.setter
    def replicatedGraphCount(self, count: int) -> None:  # noqa: N802 - PopART's name
        self._ir.replication_factor = count

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return None


class PartOfPopart:
    """What stands where PopXL keeps PopART's own Ir, which programs ask for the options."""

    def __init__(self, ir: Ir) -> None:
        self._ir = ir
        self._options = SessionOptions(ir)

    def getSessionOptions(self) -> SessionOptions:  # noqa: N802 - PopART's name
        """The options, kept; few are used."""
        return self._options

    def getAllGraphs(self) -> list[PartOfPopartGraph]:  # noqa: N802 - PopART's name
        """What stands for each graph of the program, the main graph first: its id, no more."""
        return [PartOfPopartGraph(g.id) for g in (self._ir.main_graph, *self._ir._graphs)]


@dataclass(frozen=True)
class PartOfPopartGraph:
    """What stands where PopART's own graph is."""

    id: str

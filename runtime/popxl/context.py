"""What is current while a program is being built: the graph, name scopes, order and tiles."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from popxl.graph import Graph
    from popxl.ir import Ir


class Context(threading.local):
    """The stacks of one thread; the innermost entry of each is current."""

    def __init__(self):
        self.graphs: list[Graph] = []
        self.scopes: list[str] = []
        self.in_sequence = False
        self.io_tiles = False
        self.ipu: int | None = 0

    @property
    def graph(self) -> Graph:
        if not self.graphs:
            raise RuntimeError(
                "no graph is current: build ops inside `with ir.main_graph:` "
                "or in a function given to ir.create_graph"
            )
        return self.graphs[-1]

    @property
    def place(self) -> tuple[int | None, str]:
        """Where ops are placed in a replica: the IPU (or None), "io" or "compute" tiles of it."""
        return self.ipu, "io" if self.io_tiles else "compute"

    @property
    def name_scopes(self) -> list[str]:
        return list(self.scopes)

    @property
    def name_scope(self) -> str:
        return "/".join(self.scopes)


_context = Context()


def get_current_context() -> Context:
    """This thread's context."""
    return _context


def get_current_graph() -> Graph:
    """The graph that ops are being added to.

    Raises:
        RuntimeError: outside every graph.
    """
    return _context.graph


def get_main_graph() -> Graph:
    """The main graph of the current graph's Ir."""
    return _context.graph.ir.main_graph


def get_ir() -> Ir:
    """The Ir of the current graph."""
    return _context.graph.ir


gcg, gmg, gir = get_current_graph, get_main_graph, get_ir


@contextmanager
def in_sequence(mode: bool = True) -> Iterator[None]:
    """Run the ops made inside in the order written (as this runtime always does)."""
    previous, _context.in_sequence = _context.in_sequence, mode
    try:
        yield
    finally:
        _context.in_sequence = previous


@contextmanager
def name_scope(name: str) -> Iterator[list[str]]:
    """Prefix the names of the tensors made inside with `name/`."""
    _context.scopes.append(name)
    try:
        yield _context.name_scopes
    finally:
        _context.scopes.pop()


@contextmanager
def ipu(ipu: int | None) -> Iterator[int | None]:
    """Place the ops made inside on one IPU of a replica, or for None on no one in particular.

    Here a replica is one device; but tensors of two IPUs are copied (`ops.ipu_copy`) before an op
    takes both.
    """
    previous, _context.ipu = _context.ipu, ipu
    try:
        yield ipu
    finally:
        _context.ipu = previous


@contextmanager
def io_tiles() -> Iterator[None]:
    """Place the ops made inside on an IPU's I/O tiles.

    Here there are none; but tensors of these and of other tiles are copied (`ops.io_tile_copy`)
    before an op takes both.
    """
    previous, _context.io_tiles = _context.io_tiles, True
    try:
        yield
    finally:
        _context.io_tiles = previous


def op_debug_context(name: Any) -> Any:
    """A decorator of functions that make ops, with or without a name; they stay as they are."""
    return name if callable(name) else lambda function: function


def debug_context_frame_offset(i: int) -> Callable[[Any], Any]:
    """A decorator of functions that make ops; they stay as they are."""
    return lambda function: function

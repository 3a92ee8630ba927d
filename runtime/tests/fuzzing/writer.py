"""Writes the steps of random graphs: tensors to choose from, weights, calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fuzzing.choices import FLOATS, LARGEST, NAMES, PURE, divisor
from fuzzing.program import Body, Buffer, Program, Shape, Source, Step, Type


class Writer:
    """Writes the steps of one graph.

    Attributes:
        known: the tensors to choose from, by name.
        made: those among them that some step made.
        magnitude: an estimate of the size of their elements.
        extra: in a called graph, what its caller passes for the inputs made so far.
        told: outputs that must be looked at.
        pure: whether no other replica takes part and nothing is written to.
        idioms: what may be written, and how often.
    """

    def __init__(
        self,
        rng: np.random.Generator,
        program: Program,
        body: Body,
        parent: Writer | None,
        depth: int,
    ):
        self.rng, self.program, self.body, self.parent = rng, program, body, parent
        self.depth = depth
        self.known: list[str] = []
        self.made: set[str] = set()
        self.magnitude: dict[str, float] = {}
        self.extra: list[str] = []
        self.told: list[str] = []
        self.weights: dict[Any, list[str]] = {}
        self.pure = False if parent is None else parent.pure
        if parent is None:
            self.float = str(rng.choice(FLOATS))
            batched = rng.random() < 0.25
            self.rows: Shape = ("B", "T") if batched else ("T",)
            self._names = list(NAMES)
            self.idioms: dict[Callable[[Writer], None], float] = {}
        else:
            self.float, self.rows, self.idioms = parent.float, parent.rows, parent.idioms

    # --- chance ---

    def chance(self, part: float) -> bool:
        return bool(self.rng.random() < part)

    def one_of(self, *things: Any) -> Any:
        return things[self.rng.integers(len(things))]

    def group(self) -> tuple[int, int]:
        return divisor(self.rng, self.program.replicas)

    def shuffled(self, *names: str) -> list[str]:
        return [str(n) for n in self.rng.permutation(names)]

    def idiom(self) -> None:
        """Write something, of the idioms that are allowed here."""
        chosen = [i for i in self.idioms if i.__name__ in PURE or not self.pure]
        weights = np.array([self.idioms[i] for i in chosen])
        chosen[self.rng.choice(len(chosen), p=weights / weights.sum())](self)

    # --- tensors ---

    def rows_of(self, *sizes: Any) -> Shape:
        return (*self.rows, *sizes)

    def type(self, name: str) -> Type:
        return self.program.types[name]

    def new(self, shape: Shape, dtype: str) -> str:
        name = f"t{len(self.program.types)}"
        self.program.types[name] = Type(tuple(shape), dtype)
        return name

    def step(
        self,
        kind: str,
        *operands: str,
        shape: Shape | None = None,
        dtype: str | None = None,
        magnitude: float | None = None,
        given: dict[str, Any] | None = None,
        **settings: Any,
    ) -> str:
        """Add a step with one result, of the first operand's shape and dtype where not given.

        Args:
            given: settings whose names are those of arguments.
        """
        first = operands[0] if operands else ""
        shape = self.type(first).shape if shape is None else shape
        result = self.new(shape, dtype or self.type(first).dtype)
        self.body.steps.append(Step(kind, [result], list(operands), {**settings, **(given or {})}))
        default = self.magnitude.get(first, 1.0)
        self.magnitude[result] = default if magnitude is None else magnitude
        return result

    def cast(self, a: str, dtype: str) -> str:
        return self.step("cast", a, dtype=dtype, given={"dtype": dtype})

    def reshape(self, a: str, shape: Shape) -> str:
        return self.step("reshape", a, shape=shape, given={"shape": shape})

    def transpose(self, a: str, permutation: tuple[int, ...]) -> str:
        shape = tuple(self.type(a).shape[p] for p in permutation)
        return self.step("transpose", a, shape=shape, permutation=permutation)

    def buffer(self, given: Type, entries: int, draw: str, group: tuple[int, int]) -> str:
        name = f"b{len(self.program.types)}"
        self.program.types[name] = given
        self.program.buffers.append(Buffer(name, given, entries, draw, group))
        return name

    def write_to(self, kind: str, *operands: str, **settings: Any) -> None:
        """Add a step that writes to its first operand."""
        self.body.steps.append(Step(kind, [], list(operands), settings))

    def keep(self, name: str) -> str:
        """Let a tensor be chosen from now on, scaled down where it may be large."""
        size = self.magnitude.get(name, 1.0)
        if size > LARGEST:
            factor = 2.0 ** -int(np.ceil(np.log2(size / 2)))
            name = self.step("times", name, number=factor, magnitude=size * factor)
        self.known.append(name)
        self.made.add(name)
        return name

    def tell(self, name: str) -> None:
        """Let a tensor be an output of its graph, and of those that call it."""
        self.told.append(name)

    def hidden(self) -> str:
        """Some tensor `(rows, H)` of the program's dtype, a new one rather."""
        shape = self.rows_of("H")
        found = [n for n in self.known if self.type(n) == Type(shape, self.float)]
        return str(self.rng.choice(found[-3:] if self.chance(0.7) else found))

    # --- what comes from outside ---

    def stream(self, shape: Shape, dtype: str, draw: str, group: tuple[int, int] = (1, 1)) -> str:
        return self._source("stream", shape, dtype, draw, group, False)

    def weight(self, shape: Shape, dtype: str, draw: str = "weight", again: float = 0.1) -> str:
        """A variable, or a slot's contents; sometimes one that is there already."""
        old = self.weights.setdefault((shape, dtype, draw), [])
        if old and self.chance(again):
            return str(self.rng.choice(old))
        old.append(self._weight(shape, dtype, draw))
        self.magnitude[old[-1]] = 1.0
        return old[-1]

    def _weight(self, shape: Shape, dtype: str, draw: str) -> str:
        if self.parent is not None:
            given = self.parent.weight(shape, dtype, draw)
            return self.input(given)
        group = self.group()
        if self.chance(0.15):
            return self._from_buffer(Type(shape, dtype), draw, group)
        return self._source("variable", shape, dtype, draw, group, self.chance(0.5))

    def _from_buffer(self, given: Type, draw: str, group: tuple[int, int]) -> str:
        name = self.buffer(given, 2, draw, group)
        offset = int(self.rng.integers(2))
        return self.step(
            "remote_load", shape=given.shape, dtype=given.dtype, buffer=name, offset=offset
        )

    def _source(self, place, shape, dtype, draw, group, swapped) -> str:
        name = self.new(shape, dtype)
        swapped = swapped and len(shape) > 1
        self.program.sources.append(Source(name, place, draw, group, swapped))
        if place == "stream" and shape == self.rows_of("H"):
            self.known.append(name)
        self.magnitude[name] = 1.0
        return name

    def outside(self, shape: Shape, dtype: str, draw: str, group: tuple[int, int]) -> str:
        """A stream of the main graph, passed on."""
        if self.parent is not None:
            return self.input(self.parent.outside(shape, dtype, draw, group))
        return self.stream(shape, dtype, draw, group)

    def variable(self, shape: Shape, dtype: str, draw: str) -> str:
        """A variable, passed on by reference: what is written to it lasts."""
        if self.parent is not None:
            return self.input(self.parent.variable(shape, dtype, draw), by_ref=True)
        return self._source("variable", shape, dtype, draw, self.group(), False)

    def input(self, given: str, by_ref: bool = False) -> str:
        """A new input of this graph, for which the caller passes `given`."""
        assert self.parent is not None
        of = self.type(given)
        name = self.new(of.shape, of.dtype)
        self.body.inputs.append(name)
        if by_ref:
            self.body.by_ref.add(name)
        self.extra.append(given)
        self.magnitude[name] = self.parent.magnitude.get(given, 1.0)
        return name

    # --- graphs ---

    def graph(self, name: str = "") -> Writer:
        """The writer of a graph that this one calls."""
        return Writer(self.rng, self.program, Body(name or self.name()), self, self.depth - 1)

    def name(self) -> str:
        """A name for a function, now and then one that back ends may know."""
        names = self._all_names()
        if names and self.chance(0.3):
            return names.pop(self.rng.integers(len(names)))
        return f"layer_{len(self.program.types)}"

    def take(self, name: str) -> str:
        """That name for a function where no other has it, else some other."""
        names = self._all_names()
        if name in names and self.chance(0.8):
            names.remove(name)
            return name
        return self.name()

    def _all_names(self) -> list[str]:
        return self._names if self.parent is None else self.parent._all_names()

    def call(self, inner: Writer, kind: str = "call", **settings: Any) -> list[str]:
        """Call a graph that is written; its results."""
        results = [self.new(self.type(n).shape, self.type(n).dtype) for n in inner.body.outputs]
        settings = {"graph": inner.body, **settings}
        self.body.steps.append(Step(kind, results, list(inner.extra), settings))
        for result, output in zip(results, inner.body.outputs, strict=True):
            self.magnitude[result] = inner.magnitude.get(output, 1.0)
        return results

"""The table of op facts has every kind of op that the interface makes, and no other."""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import pytest
from popxl import ops
from popxl_torch.analysis.op_facts import OP_FACTS
from popxl_torch.lowering.graphs import OPS
from popxl_torch.lowering.rules import RULES
from programs import run_program

RUNTIME = Path(__file__).resolve().parents[1]


class Interface:
    """The kinds that the sources of `popxl` append to graphs.

    A kind is the first argument of `emit` or its like, or reaches it as the parameter or the local
    variable `kind` of the function around it; what is neither is in `unknown`.
    """

    def __init__(self) -> None:
        trees = [ast.parse(p.read_text()) for p in (RUNTIME / "popxl").rglob("*.py")]
        self._functions = {
            node.name: node
            for tree in trees
            for node in ast.walk(tree)
            if isinstance(node, ast.FunctionDef)
        }
        self._emitters = {"emit"}
        self.kinds: set[str] = set()
        self.unknown: list[str] = []
        while self._passed_on() - self._emitters:
            self._emitters |= self._passed_on()
        for tree in trees:
            for call in self._calls(tree):
                self._read(call.args[0])
        for function in self._functions.values():
            self._read_local(function)

    def _calls(self, tree: ast.AST) -> list[ast.Call]:
        return [
            node
            for node in ast.walk(tree)
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in self._emitters
        ]

    def _passed_on(self) -> set[str]:
        """The functions whose first parameter is the kind that they give to an emitter."""
        return {
            name
            for name, function in self._functions.items()
            for call in self._calls(function)
            if function.args.args and ast.unparse(call.args[0]) == function.args.args[0].arg
        }

    def _read_local(self, function: ast.FunctionDef) -> None:
        emitted = {ast.unparse(call.args[0]) for call in self._calls(function)}
        for node in ast.walk(function):
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) in emitted & {"kind"}:
                self._read(node.value)

    def _read(self, kind: ast.expr) -> None:
        if isinstance(kind, ast.Constant):
            self.kinds.add(kind.value)
        elif isinstance(kind, ast.IfExp):
            self._read(kind.body)
            self._read(kind.orelse)
        elif not (isinstance(kind, ast.Name) and kind.id == "kind"):
            self.unknown.append(ast.unparse(kind))


def test_every_op_of_the_interface_has_its_entry_and_no_entry_is_left_over():
    interface = Interface()
    assert not interface.unknown
    assert interface.kinds == set(OP_FACTS)


def test_every_kind_in_the_table_is_lowered():
    assert set(RULES) | set(OPS) == set(OP_FACTS)


def test_an_op_without_an_entry_is_named_with_the_table_and_the_file(monkeypatch):
    monkeypatch.delitem(OP_FACTS, "gelu")
    with pytest.raises(NotImplementedError, match="'gelu' has no entry in OP_FACTS") as told:
        run_program(ops.gelu, np.ones(2, np.float32))
    assert (RUNTIME.parent / str(told.value).split()[-1]).exists()


@pytest.mark.parametrize("kind", ["host_load", "remote_load_", "all_reduce"])
def test_the_table_says_what_reaches_outside(kind):
    facts = OP_FACTS[kind]
    assert (facts.stream, facts.remote is not None, facts.exchanges) == (
        kind == "host_load",
        kind == "remote_load_",
        kind == "all_reduce",
    )


def test_nothing_but_a_view_and_a_load_is_free():
    free = {kind for kind, facts in OP_FACTS.items() if facts.cost in ("view", "loaded")}
    assert all(OP_FACTS[kind].shares or OP_FACTS[kind].remote for kind in free)

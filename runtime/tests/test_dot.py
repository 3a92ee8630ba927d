"""Drawings of programs: `Ir.dot_checkpoint`."""

from __future__ import annotations

import re

import numpy as np
import popxl
import pytest
from popxl import ops


@pytest.fixture
def ir() -> popxl.Ir:
    """A program with a call, an input and a variable whose name has quotes."""
    ir = popxl.Ir()
    with ir.main_graph:
        stream = popxl.h2d_stream((2,), popxl.float32, name="in")
        x = ops.host_load(stream, "x")
        w = popxl.variable(np.ones(2, np.float32), name='the "weight"')
        (y,) = ops.call(ir.create_graph(lambda a, b: a + b, x, w), x, w)
        ops.host_store(popxl.d2h_stream((2,), popxl.float32, name="out"), ops.gelu(y))
    return ir


def _written(folder) -> set[str]:
    return {path.name for path in folder.glob("*")}


@pytest.mark.parametrize(
    ("checks", "expected"),
    [
        ("", set()),
        ("ALL", {"here.dot", "there.dot", "FINAL.dot"}),
        ("final", {"FINAL.dot"}),
        ("HERE:other", {"here.dot"}),
        ("here:there", {"here.dot", "there.dot"}),
    ],
)
@pytest.mark.parametrize("by", ["environment", "options"])
def test_the_checkpoints_named_are_drawn(ir, tmp_path, monkeypatch, checks, expected, by):
    monkeypatch.setenv("POPART_DOT_CHECKS", checks if by == "environment" else "")
    options = ir._pb_ir.getSessionOptions()
    options.logDir = str(tmp_path)
    if by == "options":
        options.dotChecks = set(checks.split(":"))
    ir.dot_checkpoint("here")
    ir.dot_checkpoint("there")
    popxl.Session(ir, "cpu")
    assert _written(tmp_path) == expected


def test_all_are_drawn_where_none_is_named_and_none_replaces_another(ir, tmp_path, monkeypatch):
    monkeypatch.delenv("POPART_DOT_CHECKS", raising=False)
    for _ in range(2):
        ir.dot_checkpoint("here", tmp_path / "new")
    assert _written(tmp_path / "new") == {"here.dot", "here_1.dot"}


def test_nothing_is_written_without_a_checkpoint(ir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    popxl.Session(ir, "cpu")
    assert not _written(tmp_path)


def test_a_drawing_has_every_op_and_joins_what_belongs_together(ir, tmp_path):
    ir.dot_checkpoint("all", tmp_path)
    text = (tmp_path / "all.dot").read_text()
    labels = dict(re.findall(r'^ *(n\d+) \[.*?label="(.*)"\];', text, re.M))
    kinds = {label.split("\\n")[0] for label in labels.values()}
    assert {"host_load", "call", "gelu", "host_store", "add", 'the \\"weight\\"'} <= kinds
    edges = {(labels[a].split("\\n")[0], labels[b].split("\\n")[0]) for a, b in _edges(text)}
    assert {("host_load", "call"), ('the \\"weight\\"', "call"), ("gelu", "host_store")} <= edges
    assert text.count("subgraph cluster_") == 2
    assert text.count("{") == text.count("}")


def _edges(text: str) -> list[tuple[str, str]]:
    return re.findall(r"(n\d+) -> (n\d+)", text)

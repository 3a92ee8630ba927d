"""The pictures and tables of tensor-parallelism.md, drawn from the program itself.

    python docs/tensor_parallelism.py

The grid comes from the replica groupings of the program's variables, a layer's steps from the ops
of its graph, and what a pass sends from the graph's cost.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import popxl  # noqa: E402
from popxl_torch.analysis.cost import cost_of  # noqa: E402

from config import BloomConfig, load_config  # noqa: E402 - found just above
from modelling.architecture import architecture_of  # noqa: E402
from modelling.program import InferenceSession, inference  # noqa: E402

PRESET, LAYER = "bloom_560M", "layer_0"
SPLIT_OVER = {"tp1": "attention.qkv.bias", "tp2": "attention.dense.bias"}
"""A variable of a layer that is split over each axis alone."""

Groups = list[list[int]]
"""Numbers of the replicas that belong together."""


@dataclass(frozen=True)
class Step:
    """One step of a layer, on one replica.

    Attributes:
        kind: "norm", "matmul", "sum", "attention", "gelu" or "residual".
        name: of the builder that made it, such as "attention.qkv".
        shape: of its result.
        weight: of a matmul, the shard's shape.
        groups: of a sum or norm, the replicas that exchange something.
        sent: bytes that a replica puts into the exchange.
    """

    kind: str
    name: str
    shape: tuple[int, ...]
    weight: tuple[int, ...] = ()
    groups: Groups | None = None
    sent: int = 0


def program(parts: int = 2) -> tuple[BloomConfig, InferenceSession]:
    """The program sharded over a grid of `parts` x `parts`."""
    sharded = {"tensor_parallel_1": parts, "tensor_parallel_2": parts, "device": "cpu"}
    config = load_config(PRESET, sharded)
    return config, inference(config)


def grid(session: InferenceSession) -> Groups:
    """The number of the replica at `[i1][i2]`, from what variables are split over either axis."""
    index = {axis: _variable(session, name) for axis, name in SPLIT_OVER.items()}
    rows, columns = (index[axis].replica_grouping.assignment for axis in ("tp1", "tp2"))
    numbers = {place: r for r, place in enumerate(zip(rows, columns, strict=True))}
    return [[numbers[i1, i2] for i2 in range(max(columns) + 1)] for i1 in range(max(rows) + 1)]


def shards(session: InferenceSession) -> Iterator[tuple[str, tuple, tuple, str]]:
    """Each variable of a layer: name, the whole's shape, a shard's, how it is split."""
    for name, variable in session.state.get(LAYER).to_dict().items():
        parts = math.prod(variable.shape_on_host) // variable.nelms
        axis = axis_of(session, groups_of(variable))
        if axis is not None:
            yield name, (variable.nelms * parts,), variable.shape, f"over {axis}"
            continue
        bias = _variable(session, name.replace("weight", "bias"))  # of what the columns are, too
        columns = axis_of(session, groups_of(bias))
        rows = "tp2" if columns == "tp1" else "tp1"
        whole = tuple(size * math.isqrt(parts) for size in variable.shape)  # the grid is square
        yield name, whole, variable.shape, f"rows over {rows}, columns over {columns}"


def axis_of(session: InferenceSession, groups: Groups) -> str | None:
    """The axis that is split where these replicas hold the same; None for both."""
    of = {axis: groups_of(_variable(session, name)) for axis, name in SPLIT_OVER.items()}
    return next((axis for axis in of if of[axis] == groups), None)


def groups_of(grouped: Any) -> Groups:
    """The replicas of a variable that hold the same, or of a collective that exchange something."""
    grouping = getattr(grouped, "replica_grouping", None) or grouped.group
    groups: dict[int, list[int]] = {}
    for replica, group in enumerate(grouping.assignment):
        groups.setdefault(group, []).append(replica)
    return list(groups.values())


def result_axes(session: InferenceSession, path: Sequence[Step]) -> list[str]:
    """The axis that each step's result is split over: sums say it of themselves and of matmuls."""
    axes: list[str] = []
    for number, step in enumerate(path):
        if step.kind in ("matmul", "sum"):
            of = path[number + 1] if step.kind == "matmul" else step
            axes.append(str(axis_of(session, of.groups or [])))
        else:
            axes.append(axes[-1] if axes else "tp2")
    return axes


def steps(config: BloomConfig) -> list[Step]:
    """What happens to one token in a layer, from the ops that the block's builder makes."""
    made: list[Any] = []

    class Watched(architecture_of(config).block):  # type: ignore[misc]
        def build(self, *inputs: Any) -> Any:
            popxl.gcg().register_op_created_hook(made.append)
            return super().build(*inputs)

    model, execution = config.model, config.execution
    width = model.hidden_size // execution.tensor_parallel_2
    heads = model.heads // execution.tensor_parallel_1
    cache = popxl.TensorSpec((1, heads, model.sequence_length, model.head_dim), model.dtype)
    ir = popxl.Ir(replication=execution.replicas)
    with ir.main_graph:
        token = popxl.TensorSpec((1, width), model.dtype)
        place = popxl.TensorSpec((1,), popxl.int32)
        Watched(config).create_graph(token, cache, cache, place, place)
    return [step for op in made if (step := _step(op)) is not None]


def _step(op: Any) -> Step | None:
    """None for what only moves data, and for biases."""
    result = op.outputs[0]
    name = ".".join(result.name.split("/")[:-1])
    if op.kind == "matmul":
        return Step("matmul", name, result.shape, weight=op.inputs[1].shape)
    if op.kind == "all_reduce":
        sent = result.nelms * result.dtype.as_numpy().itemsize
        return Step("sum", name, result.shape, groups=groups_of(op), sent=sent)
    if op.kind == "call":
        exchanged = list(cost_of(op.graphs[0]).collectives)
        if not exchanged:
            return Step("attention", name, result.shape)
        (one,) = exchanged
        norm = ".".join(op.inputs[1].name.split("/")[:1])
        return Step("norm", norm, result.shape, groups=groups_of(one), sent=one.bytes)
    if op.kind == "gelu":
        return Step("gelu", name, result.shape)
    return Step("residual", "", result.shape) if op.kind == "add" and not name else None


def tables() -> dict[str, str]:
    """The page's tables in Markdown, by name."""
    config, session = program()
    cost = cost_of(next(iter(session.pass_graphs.values())))  # the first pass: one token a sequence
    numbers = {
        "collectives": cost.collective_calls,
        "bytes": cost.collective_bytes,
        "layers": config.model.layers,
    }
    return {
        "shards": _table(
            ("variable", "whole", "shard", "split"),
            [(f"`{n}`", _by(whole), _by(shard), axes) for n, whole, shard, axes in shards(session)],
        ),
        "sums": _table(
            ("step", "a replica has", "exchange", "bytes"),
            [
                (told(s), _by(s.shape), _together(s.groups), f"{s.sent:,}" if s.sent else "")
                for s in steps(config)
            ],
        ),
        "pass": "Decoding one token through {layers} layers takes {collectives} collectives, into "
        "which a replica puts {bytes:,} bytes.".format(**numbers),
    }


def told(step: Step) -> str:
    """A step in words."""
    words = {
        "norm": f"norm `{step.name}`",
        "matmul": f"matmul with `{step.name}`, {_by(step.weight)}",
        "sum": f"sum of `{step.name}`",
        "attention": "attention over the cache",
        "gelu": "GELU",
        "residual": "residual addition",
    }
    return words[step.kind]


def _variable(session: InferenceSession, name: str) -> Any:
    return session.state.get(f"{LAYER}.{name}")


def _by(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


def _together(groups: Groups | None) -> str:
    return ", ".join(" + ".join(map(str, group)) for group in groups or [])


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


if __name__ == "__main__":
    from tensor_parallelism_pictures import draw  # beside this file

    draw(ROOT / "img")
    for table in tables().values():
        print(table, end="\n\n")

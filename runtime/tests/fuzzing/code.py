"""Random programs as PopXL code: what is run, and what a failing program is printed as."""

from __future__ import annotations

import inspect

from fuzzing.data import assignment, draw, how, swapped
from fuzzing.kinds import KINDS
from fuzzing.program import DERIVED, Body, Buffer, Program, Source, Step, text

HEAD = """\
import zlib

import ml_dtypes
import numpy as np
import popxl
from popxl import ops
from popxl.ops.collectives import (
    replicated_all_gather,
    replicated_all_reduce,
    replicated_reduce_scatter,
)
from popxl_addons.ops.group_quantize_decompress import group_quantize_decompress as decompress
from popxl_addons.ops.layer_norm_distributed import layer_norm_distributed as distributed_norm

try:
    from popxl_torch import composite
except ImportError:  # other runtimes know no declared graphs

    def composite(*_, **__):
        return lambda function: function


DTYPES = {name: getattr(np, name) for name in ("float32", "float16", "int8", "int32", "uint16")}
DTYPES |= {"bfloat16": ml_dtypes.bfloat16, "bool": np.bool_}
"""

TAIL = """
replicas = {replicas}
for kernels in (True, False):
    with popxl.Session(ir, composite_kernels=kernels) as session:
        for run in range({runs}):
            inputs = {{}}
            for i, (stream, (how, size)) in enumerate(streams.items()):
                shape = (replicas // size[1], *stream.shape)
                drawn = draw(how, shape, stream.dtype.name, run, i)[assignment(replicas, *size)]
                inputs[stream] = drawn if replicas > 1 else drawn[0]
            results = session.run(inputs)
            print(kernels, run, *(results[s].astype(float).ravel()[:4] for s in outputs))
"""


def snippet(program: Program, runs: int) -> str:
    """The program as a script of its own, which prints what it gives with kernels and without."""
    helpers = "".join(f"\n\n{inspect.getsource(f)}" for f in (draw, swapped, assignment)) + "\n\n"
    tail = TAIL.format(replicas=program.replicas, runs=runs)
    return HEAD + helpers + code(program) + tail


def code(program: Program, processes: int = 1) -> str:
    """What makes `ir`, the dicts `streams` (with how they are drawn), and the list `outputs`."""
    sizes = [f"{name} = {value}" for name, value in program.dims.items()]
    sizes += [f"{name} = {value}" for name, value in DERIVED.items()]
    replication = repr("popdist") if processes > 1 else program.replicas
    made = {id(body): body for body in program.body.all()}
    graphs = [body for body in made.values() if body is not program.body]
    lines = ["; ".join(sizes), "", "", "def group(stride, size):"]
    lines += ["    return popxl.gir().replica_grouping(stride, size)", "", ""]
    lines += [line for body in graphs for line in (*_function(body), "", "")]
    lines += [f"ir = popxl.Ir(replication={replication})"]
    if processes > 1:
        lines += [f"ir.replication_factor = {program.replicas}"]
    lines += ["streams, outputs = {}, []", "with ir.main_graph:"]
    lines += [f"    {line}" for line in _main(program)]
    return "\n".join(lines) + "\n"


def _function(body: Body) -> list[str]:
    inputs = [f"{n}: popxl.TensorByRef" if n in body.by_ref else n for n in body.inputs]
    lines = [f"@{body.declared}"] if body.declared else []
    lines += [f"def {body.name}({', '.join(inputs)}):", *(f"    {x}" for x in _steps(body))]
    return [*lines, f"    return {', '.join(body.outputs) or 'None'}"]


def _main(program: Program) -> list[str]:
    lines = [line for b in program.buffers for line in _buffer(program, b)]
    lines += [line for s in program.sources for line in _source(program, s)]
    lines += _steps(program.body)
    for name in program.body.outputs:
        lines += [
            f"outputs.append(popxl.d2h_stream({name}.shape, {name}.dtype, 'out_{name}'))",
            f"ops.host_store(outputs[-1], {name})",
        ]
    return lines


def _source(program: Program, source: Source) -> list[str]:
    given = program.types[source.name]
    if source.place == "stream":
        stream = f"h2d_{source.name}"
        return [
            f"{stream} = popxl.h2d_stream({text(given.shape)}, popxl.{given.dtype}, "
            f"'{source.name}')",
            f"streams[{stream}] = {how(program, source)!r}, {source.group}",
            f"{source.name} = ops.host_load({stream})",
        ]
    data = _data(program, source.name, source)
    data = f"swapped({data})" if source.swapped else data
    return [
        f"{source.name} = popxl.variable({data}, popxl.{given.dtype}, '{source.name}', "
        f"replica_grouping=group{source.group})"
    ]


def _data(program: Program, key: str, source: Source | Buffer) -> str:
    name = source.name
    given = program.types[name]
    count = program.replicas // source.group[1]
    shape = (count, *given.shape) if count > 1 else given.shape
    return f"draw({source.draw!r}, {text(shape)}, {given.dtype!r}, {key!r})"


def _buffer(program: Program, buffer: Buffer) -> list[str]:
    name, given = buffer.name, program.types[buffer.name]
    lines = [
        f"{name} = popxl.remote_buffer({text(given.shape)}, popxl.{given.dtype}, {buffer.entries})"
    ]
    for i in range(buffer.entries):
        data = _data(program, slot_name(buffer, i), buffer)
        lines += [
            f"{slot_name(buffer, i)} = popxl.remote_variable({data}, {name}, {i}, "
            f"replica_grouping=group{buffer.group})"
        ]
    return lines


def slot_name(buffer: Buffer, entry: int) -> str:
    return f"{buffer.name}_{entry}"


# --- steps ---


def _steps(body: Body) -> list[str]:
    lines: list[str] = []
    graphs: dict[int, str] = {}
    for step in body.steps:
        for called in step.bodies():
            if id(called) not in graphs:
                graphs[id(called)] = f"graph_{called.name}"
                operands = _inputs(step, called)
                lines.append(
                    f"{graphs[id(called)]} = popxl.gir().create_graph"
                    f"({', '.join([called.name, *operands])})"
                )
        lines.append(_step(step, graphs))
    return lines or ["pass"]


def _inputs(step: Step, called: Body) -> list[str]:
    """The operands that a graph is called with."""
    if step.kind != "cond":
        return step.operands
    count = len(step.settings["then"].inputs)
    given = step.operands[1:]
    return given[:count] if called is step.settings["then"] else given[count:]


def _step(step: Step, graphs: dict[int, str]) -> str:
    results = "".join(f"{name}, " for name in step.results)
    left = f"({results.rstrip()}) = " if step.results else ""
    operands, settings = step.operands, step.settings
    if step.kind in ("call", "repeat"):
        count = [str(settings["count"])] if step.kind == "repeat" else []
        given = ", ".join([graphs[id(settings["graph"])], *count, *operands])
        return f"{left}ops.{step.kind}({given})"
    if step.kind == "cond":
        then, other = settings["then"], settings["other"]
        given = [f"[{', '.join(_inputs(step, b))}]" for b in (then, other)]
        pair = f"{graphs[id(then)]}, {graphs[id(other)]}"
        return f"{left}ops.conditional({operands[0]}, {pair}, {', '.join(given)})"
    left = f"{step.results[0]} = " if step.results else ""
    if step.kind == "remote_load":
        at = operands[0] if operands else settings["offset"]
        return f"{left}ops.remote_load({settings['buffer']}, {at})"
    if step.kind == "remote_store":
        at = operands[1] if len(operands) > 1 else settings["offset"]
        return f"ops.remote_store({settings['buffer']}, {at}, {operands[0]})"
    given = {name: text(value) for name, value in settings.items()}
    return left + KINDS[step.kind].code.format(*operands, **given)

"""Makes a failing program small: as few steps, outputs, replicas and elements as still fail."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator

from fuzzing.kinds import IN_PLACE
from fuzzing.program import Body, Program, Source, Step

SAME_SHAPE = ("all_reduce", "distributed_norm")
"""Collectives whose result is as large as what goes in."""

Fails = Callable[[Program], bool]
"""Whether a program fails like the one that is made small; False for one that is no program."""


def shrunk(program: Program, fails: Fails, seconds: float = 60) -> Program:
    """The smallest program found that still fails."""
    end = time.monotonic() + seconds
    program = _cleaned(program.copy())
    smaller = True
    while smaller and time.monotonic() < end:
        smaller = False
        for candidate in candidates(program):
            if time.monotonic() > end:
                break
            if fails(candidate):
                program, smaller = candidate, True
                break
    return program


def candidates(program: Program) -> Iterator[Program]:
    """Programs that are a little smaller, those that save most first."""
    for edit in (_one_output, _from_stream, _without_step, _inlined, _fewer, _plainer):
        for made in edit(program):
            yield _cleaned(made)


def _one_output(program: Program) -> Iterator[Program]:
    outputs = program.body.outputs
    for name in outputs if len(outputs) > 1 else []:
        made = program.copy()
        made.body.outputs = [name]
        yield made


def _from_stream(program: Program) -> Iterator[Program]:
    """With what a step of the main graph makes read from the host instead."""
    for i in reversed(range(len(program.body.steps))):
        results = program.body.steps[i].results
        if any("float" not in program.types[name].dtype for name in results):
            continue
        made = program.copy()
        del made.body.steps[i]
        made.sources += [Source(name, "stream", "normal") for name in results]
        if results:
            yield made


def _without_step(program: Program) -> Iterator[Program]:
    """With an earlier tensor of the same type in place of what a step makes."""
    for number, body in enumerate(program.body.all()):
        for i in reversed(range(len(body.steps))):
            for stands_in in _instead(program, body, i):
                made = program.copy()
                inner = list(made.body.all())[number]
                del inner.steps[i]
                inner.declared = ""  # it does not compute that any more
                _rename(inner, stands_in)
                yield made


def _instead(program: Program, body: Body, at: int) -> list[dict[str, str]]:
    """For what a step makes, tensors of the same types that are there before: some choices."""
    step = body.steps[at]
    before = [*step.operands]
    before += [s.name for s in program.sources] if body is program.body else body.inputs
    before += [r for earlier in body.steps[:at] for r in earlier.results]
    types = program.types
    found = [
        list(dict.fromkeys(n for n in before if types[n] == types[r]))[:3] for r in step.results
    ]
    return [dict(zip(step.results, names, strict=True)) for names in itertools.product(*found)][:4]


def _rename(body: Body, names: dict[str, str]) -> None:
    for step in body.steps:
        step.operands = [names.get(n, n) for n in step.operands]
    body.outputs = [names.get(n, n) for n in body.outputs]


def _inlined(program: Program) -> Iterator[Program]:
    """With the steps of a graph in place of its call, loop or branch."""
    for number, body in enumerate(program.body.all()):
        for i, step in enumerate(body.steps):
            if not step.bodies():
                continue
            made = program.copy()
            outer = list(made.body.all())[number]
            outer.steps[i : i + 1] = _steps_of(made, outer.steps[i])
            outer.declared = ""
            yield made


def _steps_of(program: Program, step: Step) -> list[Step]:
    """What a call does, as steps with names of their own; inputs by value are copied."""
    called = step.bodies()[0]
    given = step.operands[1:] if step.kind == "cond" else step.operands
    names, steps = {}, []
    for inside, outside in zip(called.inputs, given, strict=False):
        names[inside] = outside
        if inside not in called.by_ref and _is_written(called, inside):
            names[inside] = _new(program, inside)
            steps.append(Step("same", [names[inside]], [outside]))
    for old in called.steps:
        operands = [names[n] for n in old.operands]
        names.update({r: _new(program, r) for r in old.results})
        results = [names[r] for r in old.results]
        steps.append(Step(old.kind, results, operands, dict(old.settings)))
    for result, output in zip(step.results, called.outputs, strict=True):
        steps.append(Step("same", [result], [names[output]]))
    return steps


def _is_written(body: Body, name: str) -> bool:
    return any(name in step.operands and (_writes(step) or step.bodies()) for step in body.steps)


def _new(program: Program, like: str) -> str:
    name = f"{like}_{len(program.types)}"
    program.types[name] = program.types[like]
    return name


def _fewer(program: Program) -> Iterator[Program]:
    """Fewer replicas, smaller sizes, fewer rounds."""
    for replicas in (1, 2, 4):
        if replicas < program.replicas:
            yield _on_replicas(program, replicas)
    for name, size in program.dims.items():
        for less in sorted({1, 2, 4, 8, size // 2, size - 1}):
            if 0 < less < size and _fits({**program.dims, name: less}):
                made = program.copy()
                made.dims[name] = less
                yield made
    for number, body in enumerate(program.body.all()):
        for i, step in enumerate(body.steps):
            if step.settings.get("count", 0) > 1:
                made = program.copy()
                list(made.body.all())[number].steps[i].settings["count"] = 1
                yield made


def _fits(dims: dict[str, int]) -> bool:
    return dims["d"] % 2 == 0 and dims["G"] % 4 == 0 and dims["h"] * dims["d"] % dims["G"] == 0


def _on_replicas(program: Program, replicas: int) -> Program:
    """Groups become as large as there is room for."""
    made = program.copy()
    made.replicas = replicas
    for holder in (*made.sources, *made.buffers):
        holder.group = _fitting(holder.group, replicas)
    for body in made.body.all():
        for step in body.steps:
            if "group" in step.settings and step.kind in SAME_SHAPE:
                step.settings["group"] = _fitting(step.settings["group"], replicas)
    return made


def _fitting(group: tuple[int, int], replicas: int) -> tuple[int, int]:
    size = min(group[1], replicas)
    return min(group[0], replicas // size), size


def _plainer(program: Program) -> Iterator[Program]:
    """Without swapped bytes, declarations and special names; the same on all replicas."""
    for i, source in enumerate(program.sources):
        whole = (1, program.replicas)
        if source.swapped or source.group != whole:
            made = program.copy()
            made.sources[i].swapped, made.sources[i].group = False, whole
            yield made
    for number, body in enumerate(program.body.all()):
        if body.declared or not body.name.startswith(("layer_", "main")):
            made = program.copy()
            inner = list(made.body.all())[number]
            inner.declared, inner.name = "", f"layer_{number}"
            yield made


# --- what is not used any more ---


def _writes(step: Step) -> bool:
    inside = [s for body in step.bodies() for b in body.all() for s in b.steps]
    return any(s.kind in (*IN_PLACE, "remote_store") for s in (step, *inside))


def _cleaned(program: Program) -> Program:
    """The program without steps, inputs, sources and buffers that nothing uses."""
    before = -1
    while before != (before := program.count() + len(program.sources)):
        for body in program.body.all():
            _drop_steps(body)
        for body in program.body.all():
            if body is not program.body:
                _drop_inputs(program, body)
    used = {n for step in program.body.steps for n in step.operands} | set(program.body.outputs)
    program.sources = [s for s in program.sources if s.name in used]
    settings = [s.settings for body in program.body.all() for s in body.steps]
    kept = {given.get("buffer") for given in settings}
    program.buffers = [b for b in program.buffers if b.name in kept]
    return program


def _drop_steps(body: Body) -> None:
    used = set(body.outputs)
    kept = []
    for step in reversed(body.steps):
        if used & set(step.results) or _writes(step):
            kept.append(step)
            used |= set(step.operands)
    body.steps = kept[::-1]


def _drop_inputs(program: Program, body: Body) -> None:
    """Inputs that it does not use, where it is called and not repeated or one of two branches."""
    callers = [s for b in program.body.all() for s in b.steps if body in s.bodies()]
    used = {n for step in body.steps for n in step.operands} | set(body.outputs)
    for i in reversed(range(len(body.inputs))):
        if body.inputs[i] in used or any(s.kind == "cond" for s in callers):
            continue
        if any(s.kind == "repeat" and i < len(body.outputs) for s in callers):
            continue
        del body.inputs[i]
        for step in {id(s): s for s in callers}.values():
            del step.operands[i]

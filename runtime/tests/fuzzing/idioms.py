"""What random programs are made of, and how often."""

from __future__ import annotations

from fuzzing.attention import attention, cached_attention, rotary
from fuzzing.declared import declared_attention, token_attention
from fuzzing.graphs import call, cond, layers, repeat
from fuzzing.norms import norm
from fuzzing.products import ACTIVATIONS, gate, product, products, reduced
from fuzzing.program import Step
from fuzzing.quantised import quantised
from fuzzing.writer import Writer


def elementwise(w: Writer) -> None:
    """A chain of functions and sums."""
    x = w.hidden()
    for _ in range(w.rng.integers(1, 5)):
        kind = w.one_of(*ACTIVATIONS, "sin", "negate", "add", "sub", "times", "abs")
        if kind in ("add", "sub"):
            other = w.hidden()
            size = w.magnitude.get(x, 1) + w.magnitude.get(other, 1)
            x = w.step(kind, *w.shuffled(x, other), magnitude=size)
        elif kind == "times":
            x = w.step("times", x, number=w.one_of(0.5, -1.5, 0.3))
        else:
            x = w.step(kind, x)
    w.keep(x)


def collective(w: Writer) -> None:
    """Parts that are gathered, or sums that are scattered and gathered."""
    x, (stride, size) = w.hidden(), w.group()
    shape, group = w.type(x).shape, (stride, size)
    how = w.one_of("concat", "new_axis", "scatter", "reduce")
    if how == "reduce":
        w.keep(reduced(w, x))
    elif how == "new_axis":
        made = w.step(
            "all_gather", x, shape=(size, *shape), axis=0, group=group, output_shape="new_axis"
        )
        at = int(w.rng.integers(size))
        one = w.step("slice", made, shape=(1, *shape), start=at, stop=at + 1, axis=0)
        w.keep(w.reshape(one, shape))
    elif how == "concat":
        wide = w.step(
            "all_gather",
            x,
            shape=(*shape[:-1], f"{size} * H"),
            axis=len(shape) - 1,
            group=group,
            output_shape="concat",
        )
        w.keep(product(w, wide, f"{size} * H", "H"))
    else:
        elements = " * ".join(map(str, shape))
        part = f"-(-{elements} // {size})"
        flat = w.step("reduce_scatter", x, shape=(part,), op="add", group=group)
        w.magnitude[flat] = w.magnitude.get(x, 1) * size
        whole = w.step(
            "all_gather",
            flat,
            shape=(f"{size} * {part}",),
            axis=0,
            group=group,
            output_shape="concat",
        )
        used = w.step("slice", whole, shape=(elements,), start=0, stop=elements, axis=0)
        w.keep(w.reshape(used, shape))


def embedding(w: Writer) -> None:
    """Rows of a table, at indices from the host."""
    table = w.weight(("F", "H"), w.float, "normal")
    indices = w.outside(w.rows, "int32", "below F", w.group())
    w.keep(w.step("gather", table, indices, shape=w.rows_of("H")))


def state(w: Writer) -> None:
    """A variable that is used, takes a new value, and is used again."""
    x = w.hidden()
    held = w.variable(w.type(x).shape, w.type(x).dtype, "normal")
    before = product(w, held, "H", "H") if w.chance(0.5) else w.step("same", held)
    if w.chance(0.5):
        new = w.step("times", w.step("add", held, x), number=0.5)
        w.write_to("copy_", held, new)
    else:
        w.write_to("add_", held, x)
        w.write_to("copy_", held, w.step("tanh", held))
    after = w.one_of(before, w.step("add", x, held, magnitude=3.0))
    w.keep(after if w.chance(0.5) else w.step("add", *w.shuffled(before, held), magnitude=3.0))


def slots(w: Writer) -> None:
    """A slot of a remote buffer is loaded, changed and stored."""
    x = w.hidden()
    given = w.type(x)
    buffer = w.buffer(given, 3, "normal", w.group())
    at = [w.outside((), "int32", "below 3", (1, w.program.replicas))] if w.chance(0.5) else []
    where = {"buffer": buffer, "offset": int(w.rng.integers(3))}
    old = w.step("remote_load", *at, shape=given.shape, dtype=given.dtype, **where)
    new = w.step("tanh", w.step("add", old, x), magnitude=1.0)
    w.body.steps.append(Step("remote_store", [], [new, *at], where))
    w.keep(w.step("sub", x, old, magnitude=3.0) if w.chance(0.5) else new)


IDIOMS = {
    products: 6.0,
    norm: 2.0,
    gate: 1.5,
    elementwise: 1.0,
    collective: 1.0,
    quantised: 1.0,
    attention: 1.5,
    cached_attention: 1.0,
    declared_attention: 0.7,
    rotary: 0.5,
    call: 3.0,
    repeat: 1.0,
    cond: 0.7,
    state: 0.7,
    slots: 0.7,
    layers: 0.5,
    embedding: 0.4,
    token_attention: 0.5,
}

"""Products, random sums of them, and gates."""

from __future__ import annotations

from fuzzing.program import Size
from fuzzing.quantised import quantised_product
from fuzzing.writer import Writer

ACTIVATIONS = ("gelu", "geluerf", "swish", "tanh", "relu")


def products(w: Writer) -> None:
    """Sums of products that share inputs, with whatever may follow or lie between them."""
    out: Size = w.one_of("H", "H", "F")
    made = expression(w, w.hidden(), "H", out, depth=int(w.rng.integers(1, 4)))
    if out == "F":
        made = product(w, made, "F", "H")
    w.keep(made)


def product(w: Writer, x: str, size: Size, out: Size) -> str:
    """`x` times a weight, which lies in memory or is written in the program either way round."""
    if w.chance(0.12):
        return quantised_product(w, x, size, out)
    dtype = w.type(x).dtype
    if w.chance(0.25):
        weight = w.weight((out, size), dtype)
        weight, magnitude = w.transpose(weight, (1, 0)), 1.5
    else:
        weight, magnitude = w.weight((size, out), dtype), 1.0
    made = {"shape": (*w.type(x).shape[:-1], out), "magnitude": w.magnitude.get(x, 1) * magnitude}
    if dtype != "float32" and w.chance(0.2):
        settings = {"dtype": "float32"}
        return w.cast(
            w.step("matmul_to", x, weight, dtype="float32", given=settings, **made), dtype
        )
    return w.step("matmul", x, weight, **made)


def expression(w: Writer, x: str, size: Size, out: Size, depth: int) -> str:
    """A random formula over products of `x`, `(*rows, out)`."""
    if depth == 0:
        residuals = out == "H" and w.chance(0.25)
        other = x if w.chance(0.7) else w.hidden()
        return w.hidden() if residuals else product(w, other, size, out)
    form = w.one_of(
        "sum", "sum", "sum", "reduced", "function", "bias", "cast", "gate", "twice", "-"
    )
    if form == "reduced" and w.pure:
        form = "function"
    a = expression(w, x, size, out, depth - 1)
    size_of_a = w.magnitude.get(a, 1.0)
    if form in ("sum", "gate", "-"):
        b = expression(w, x, size, out, int(w.rng.integers(depth)))
        size_of_b = w.magnitude.get(b, 1.0)
        if form == "gate":
            gate = w.step(w.one_of(*ACTIVATIONS), a)
            return w.step("mul", *w.shuffled(gate, b), magnitude=size_of_a * size_of_b)
        kind = "add" if form == "sum" else "sub"
        return w.step(kind, *w.shuffled(a, b), magnitude=size_of_a + size_of_b)
    if form == "twice":
        b = w.step(w.one_of(*ACTIVATIONS), a)
        return w.step("add", *w.shuffled(a, b), magnitude=2 * size_of_a)
    if form == "bias":
        bias = w.weight((out,), w.type(a).dtype, "normal")
        return w.step("add", a, bias, magnitude=size_of_a + 1)
    if form == "cast":
        dtype = w.type(a).dtype
        return w.cast(w.cast(a, w.one_of("float32", dtype)), dtype)
    if form == "reduced":
        return reduced(w, a)
    return w.step(w.one_of(*ACTIVATIONS), a)


def gate(w: Writer) -> None:
    """A gated feed-forward layer."""
    x = w.hidden()
    up, gated = product(w, x, "H", "F"), product(w, x, "H", "F")
    gated = w.step(w.one_of(*ACTIVATIONS), gated)
    both = w.step("mul", *w.shuffled(gated, up), magnitude=1.0)
    down = product(w, both, "F", "H")
    if not w.pure and w.chance(0.5):
        down = reduced(w, down)
    magnitude = w.magnitude.get(down, 1) + w.magnitude.get(x, 1)
    w.keep(w.step("add", *w.shuffled(x, down), magnitude=magnitude))


def reduced(w: Writer, a: str, op: str = "") -> str:
    op = op or w.one_of("add", "add", "add", "mean", "max")
    group = w.group()
    size = group[1] if op == "add" else 1
    return w.step("all_reduce", a, op=op, group=group, magnitude=w.magnitude.get(a, 1) * size)

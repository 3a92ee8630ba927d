"""Layer norms and RMS norms: the op, written out, over replicas, and as graphs."""

from __future__ import annotations

from fuzzing.writer import Writer


def norm(w: Writer) -> None:
    """A norm, as the op, written out, or a graph."""
    if w.depth and w.chance(0.5):
        inner = w.graph()
        x = inner.input(w.hidden())
        inner.body.outputs = [normed(inner, x)]
        w.keep(w.call(inner)[0])
    else:
        w.keep(normed(w, w.hidden()))


def normed(w: Writer, x: str) -> str:
    given = w.type(x)
    kind = w.one_of("op", "layer", "rms", "rms", "distributed")
    weight = w.weight(("H",), given.dtype, "positive")
    if kind == "op" and len(given.shape) == 2:
        bias = w.weight(("H",), given.dtype, "normal")
        return w.step("layer_norm", x, weight, bias, eps=w.one_of(1e-5, 1e-3, 0.5), magnitude=1.5)
    if kind == "distributed" and not w.pure:
        bias, group = w.weight(("H",), given.dtype, "normal"), w.group()
        eps = w.one_of(1e-5, 1e-3, 0.5)
        return w.step("distributed_norm", x, weight, bias, eps=eps, group=group, magnitude=1.5)
    wide = x if given.dtype == "float32" or w.chance(0.2) else w.cast(x, "float32")
    eps, column = w.one_of(1e-6, 1e-3, 0.5), (*given.shape[:-1], 1)
    if kind == "layer":
        centre = w.step("mean", wide, shape=column)
        wide = w.step("sub", wide, centre)
    squares = w.step("mul", wide, wide, magnitude=1.0)
    mean = w.step("mean", squares, shape=column)
    if not w.pure and w.chance(0.3):
        mean = w.step("all_reduce", mean, op="mean", group=w.group())
    root = w.step("sqrt", w.step("plus", mean, number=eps))
    scaled = w.step("div", wide, root, magnitude=1.0)
    if w.type(scaled).dtype != given.dtype:
        scaled = w.cast(scaled, given.dtype)
    scaled = w.step("mul", *w.shuffled(scaled, weight), shape=given.shape, magnitude=1.0)
    if kind == "layer":
        bias = w.weight(("H",), given.dtype, "normal")
        scaled = w.step("add", scaled, bias, magnitude=1.5)
    return scaled

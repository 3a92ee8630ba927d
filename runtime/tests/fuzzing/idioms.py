"""What random programs are made of: sums of products, norms, gates, collectives, graphs."""

from __future__ import annotations

from fuzzing.attention import attention, cached_attention, rotary
from fuzzing.declared import declared_attention, token_attention
from fuzzing.program import Size, Step, Type
from fuzzing.quantised import quantised, quantised_product
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
            return w.step("mul", *_shuffled(w, gate, b), magnitude=size_of_a * size_of_b)
        kind = "add" if form == "sum" else "sub"
        return w.step(kind, *_shuffled(w, a, b), magnitude=size_of_a + size_of_b)
    if form == "twice":
        b = w.step(w.one_of(*ACTIVATIONS), a)
        return w.step("add", *_shuffled(w, a, b), magnitude=2 * size_of_a)
    if form == "bias":
        bias = w.weight((out,), w.type(a).dtype, "normal")
        return w.step("add", a, bias, magnitude=size_of_a + 1)
    if form == "cast":
        dtype = w.type(a).dtype
        return w.cast(w.cast(a, w.one_of("float32", dtype)), dtype)
    if form == "reduced":
        return reduced(w, a)
    return w.step(w.one_of(*ACTIVATIONS), a)


def _shuffled(w: Writer, *names: str) -> tuple[str, ...]:
    return tuple(str(n) for n in w.rng.permutation(names))


# --- norms ---


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
    scaled = w.step("mul", *_shuffled(w, scaled, weight), shape=given.shape, magnitude=1.0)
    if kind == "layer":
        bias = w.weight(("H",), given.dtype, "normal")
        scaled = w.step("add", scaled, bias, magnitude=1.5)
    return scaled


def gate(w: Writer) -> None:
    """A gated feed-forward layer."""
    x = w.hidden()
    up, gated = product(w, x, "H", "F"), product(w, x, "H", "F")
    gated = w.step(w.one_of(*ACTIVATIONS), gated)
    both = w.step("mul", *_shuffled(w, gated, up), magnitude=1.0)
    down = product(w, both, "F", "H")
    if not w.pure and w.chance(0.5):
        down = reduced(w, down)
    magnitude = w.magnitude.get(down, 1) + w.magnitude.get(x, 1)
    w.keep(w.step("add", *_shuffled(w, x, down), magnitude=magnitude))


def elementwise(w: Writer) -> None:
    """A chain of functions and sums."""
    x = w.hidden()
    for _ in range(w.rng.integers(1, 5)):
        kind = w.one_of(*ACTIVATIONS, "sin", "negate", "add", "sub", "times", "abs")
        if kind in ("add", "sub"):
            other = w.hidden()
            size = w.magnitude.get(x, 1) + w.magnitude.get(other, 1)
            x = w.step(kind, *_shuffled(w, x, other), magnitude=size)
        elif kind == "times":
            x = w.step("times", x, number=w.one_of(0.5, -1.5, 0.3))
        else:
            x = w.step(kind, x)
    w.keep(x)


# --- replicas ---


def reduced(w: Writer, a: str, op: str = "") -> str:
    op = op or w.one_of("add", "add", "add", "mean", "max")
    group = w.group()
    size = group[1] if op == "add" else 1
    return w.step("all_reduce", a, op=op, group=group, magnitude=w.magnitude.get(a, 1) * size)


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


# --- graphs ---


def _layer(w: Writer, pure: bool = False) -> Writer:
    """A graph of some idioms, from one or two hidden tensors to one or two."""
    inner = w.graph()
    inner.pure = w.pure or pure
    for _ in range(w.rng.integers(1, 3)):
        inner.known.append(inner.input(w.hidden()))
    for _ in range(w.rng.integers(1, 3)):
        inner.idiom(IDIOMS)
    outputs = [n for n in inner.known if n in inner.made][-int(w.rng.integers(1, 3)) :]
    inner.body.outputs = list(dict.fromkeys([*outputs, *inner.told]))
    return inner


def call(w: Writer) -> None:
    """A graph, called once or twice."""
    if not w.depth:
        return products(w)
    inner = _layer(w)
    results = w.call(inner)
    for result in results:
        _keep(w, result)
    if w.chance(0.3) and w.type(inner.extra[0]) == w.type(results[0]):
        inner.extra[0] = results[0]
        for result in w.call(inner):
            _keep(w, result)
    return None


def _keep(w: Writer, result: str) -> None:
    """A hidden tensor may be used; others are only looked at."""
    if w.type(result).shape == w.rows_of("H"):
        w.keep(result)
    else:
        w.tell(result)


def repeat(w: Writer) -> None:
    """A graph whose first outputs are its first inputs of the next round."""
    if not w.depth:
        return gate(w)
    inner = w.graph()
    inner.known.append(inner.input(w.hidden()))
    for _ in range(w.rng.integers(1, 3)):
        inner.idiom(IDIOMS)
    inner.body.outputs = [inner.step("tanh", inner.hidden(), magnitude=1.0)]
    w.keep(w.call(inner, "repeat", count=int(w.rng.integers(0, 4)))[0])
    return None


def cond(w: Writer) -> None:
    """Two graphs, of which one is run: on all replicas, or where they are pure on some."""
    if not w.depth or w.pure:
        return products(w)
    pure = w.chance(0.5)
    branches = [_layer(w, pure=True) for _ in range(2)]
    for inner in branches:
        inner.body.outputs = [inner.step("same", inner.hidden())]
    group = (1, 1) if pure else (1, w.program.replicas)
    condition = w.outside((), "bool", "condition", group)
    then, other = (inner.body for inner in branches)
    result = w.new(w.rows_of("H"), w.float)
    operands = [condition, *branches[0].extra, *branches[1].extra]
    w.body.steps.append(Step("cond", [result], operands, {"then": then, "other": other}))
    w.magnitude[result] = max(b.magnitude.get(b.body.outputs[0], 1.0) for b in branches)
    w.keep(result)
    return None


# --- what lasts ---


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
    w.keep(after if w.chance(0.5) else w.step("add", *_shuffled(w, before, held), magnitude=3.0))


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


def layers(w: Writer) -> None:
    """A loop over layers, whose weights lie in the slots of a buffer."""
    if not w.depth or w.pure:
        return gate(w)
    inner = w.graph()
    buffer = w.buffer(Type(("H", "H"), w.float), 3, "weight", w.group())
    x = inner.input(w.hidden())
    zero = w.step("numbers", shape=(1,), dtype="int32", given={"values": (0,), "dtype": "int32"})
    number = inner.input(zero)
    where = {"buffer": buffer, "offset": 0}
    weight = inner.step("remote_load", number, shape=("H", "H"), dtype=w.float, **where)
    made = inner.step(w.one_of(*ACTIVATIONS), inner.step("matmul", x, weight))
    made = inner.step("add", *_shuffled(w, x, made), magnitude=2.0)
    inner.body.outputs = [inner.step("tanh", made), inner.step("plus", number, number=1)]
    w.keep(w.call(inner, "repeat", count=int(w.rng.integers(0, 4)))[0])
    return None


def embedding(w: Writer) -> None:
    """Rows of a table, at indices from the host."""
    table = w.weight(("F", "H"), w.float, "normal")
    indices = w.outside(w.rows, "int32", "below F", w.group())
    w.keep(w.step("gather", table, indices, shape=w.rows_of("H")))


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

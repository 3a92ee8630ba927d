"""Called graphs, loops and branches, with random contents."""

from __future__ import annotations

from fuzzing.products import ACTIVATIONS, gate, products
from fuzzing.program import Step, Type
from fuzzing.writer import Writer


def _layer(w: Writer, pure: bool = False) -> Writer:
    """A graph of some idioms, from one or two hidden tensors to one or two."""
    inner = w.graph()
    inner.pure = w.pure or pure
    for _ in range(w.rng.integers(1, 3)):
        inner.known.append(inner.input(w.hidden()))
    for _ in range(w.rng.integers(1, 3)):
        inner.idiom()
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
        inner.idiom()
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
    made = inner.step("add", *w.shuffled(x, made), magnitude=2.0)
    inner.body.outputs = [inner.step("tanh", made), inner.step("plus", number, number=1)]
    w.keep(w.call(inner, "repeat", count=int(w.rng.integers(0, 4)))[0])
    return None

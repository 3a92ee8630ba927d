"""Attention written out: whole sequences, KV caches, and graphs with the signature of a kernel."""

from __future__ import annotations

from fuzzing.products import product
from fuzzing.program import Shape, Step, Type
from fuzzing.writer import Writer

HEADS = ("h", "d")


def attention(w: Writer) -> None:
    """Self-attention over the rows, masked or not, with a bias or not."""

    x = w.hidden()
    q, k, v = _queries_keys_values(w, x)
    mask = _mask(w, "T") if w.chance(0.7) else None
    context = attend(w, q, k, v, mask)
    rank = len(w.type(context).shape)
    back = w.transpose(context, (*range(rank - 3), rank - 2, rank - 3, rank - 1))
    made = product(w, w.reshape(back, w.rows_of("H")), "H", "H")
    w.keep(w.step("add", made, x, magnitude=3.0) if w.chance(0.6) else made)


def _queries_keys_values(w: Writer, x: str) -> list[str]:
    """Three products, or the parts of one."""

    if w.chance(0.6):
        return [_by_head(w, product(w, x, "H", "H")) for _ in range(3)]
    fused, last = product(w, x, "H", "3 * H"), len(w.rows)
    parts = [
        w.step(
            "slice", fused, shape=w.rows_of("H"), start=f"{i} * H", stop=f"{i + 1} * H", axis=last
        )
        for i in range(3)
    ]
    return [_by_head(w, part) for part in parts]


def _by_head(w: Writer, x: str) -> str:
    """`(*rows, H)` as `(..., h, T, d)`."""
    split = w.reshape(x, w.rows_of(*HEADS))
    rank = len(w.rows) + 2
    return w.transpose(split, (*range(rank - 3), rank - 2, rank - 3, rank - 1))


def attend(w: Writer, q: str, k: str, v: str, mask: str | None, bias: str | None = None) -> str:
    """softmax(q k^T * scale + bias) v, masked with a large negative number."""
    shape, keys, dtype = w.type(q).shape, w.type(k).shape[-2], w.type(q).dtype
    rank = len(w.type(k).shape)
    turned = w.transpose(k, (*range(rank - 2), rank - 1, rank - 2))
    wide = w.chance(0.5)
    made: dict = {"shape": (*shape[:-1], keys), "magnitude": 2.0}
    if wide:
        settings = {"dtype": "float32"}
        scores = w.step("matmul_to", q, turned, dtype="float32", given=settings, **made)
    else:
        scores = w.step("matmul", q, turned, **made)
    scores = w.step("times", scores, number=w.one_of(0.25, 0.3, 0.5))
    if bias is not None:
        bias = (
            bias
            if w.type(bias).dtype == w.type(scores).dtype
            else w.cast(bias, w.type(scores).dtype)
        )
        scores = w.step("add", scores, bias, shape=made["shape"])
    if mask is not None:
        scores = w.step("where", mask, scores, number=w.one_of(-10000.0, -30000.0))
    weights = w.step("softmax", scores, magnitude=1.0)
    weights = w.cast(weights, dtype) if w.type(weights).dtype != dtype else weights
    return w.step("matmul", weights, v, shape=shape, magnitude=1.5)


def _mask(w: Writer, keys: str, position: str | None = None) -> str:
    """bool `(T, keys)`: whether a key lies ahead of the query, the first of them at `position`."""
    at = w.step("arange", shape=(keys,), dtype="float32", given={"stop": keys, "dtype": "float32"})
    queries = w.step(
        "arange", shape=("T", 1), dtype="float32", given={"stop": "T", "dtype": "float32"}
    )
    w.program.types[queries] = Type(("T",), "float32")
    queries = w.reshape(queries, ("T", 1))
    if position is not None:
        queries = w.step("add", queries, w.cast(position, "float32"))
    return w.step("greater", at, queries, shape=("T", keys), dtype="bool")


def cached_attention(w: Writer) -> None:
    """Attention over a KV cache, by reference, or in slots of a remote buffer."""

    if w.pure or len(w.rows) > 1:
        return attention(w)
    x, shape = w.hidden(), ("h", "L", "d")
    everywhere = (1, w.program.replicas)
    position = w.outside((), "int32", "below S + 1", everywhere)
    q, k, v = _queries_keys_values(w, x)
    remote = w.chance(0.5)
    caches = [_cache(w, shape, remote) for _ in range(2)]
    inner = w.graph() if w.depth and w.chance(0.6) else w
    tensors = [q, k, v, position]
    if inner is not w:
        tensors = [inner.input(t) for t in tensors]
        by_ref = not remote or w.chance(0.5)
        held = [inner.input(c, by_ref=by_ref) for c, _ in caches]
    else:
        held = [c for c, _ in caches]
    at = inner.reshape(tensors[3], (1,))
    for cache, new in zip(held, tensors[1:3], strict=True):
        inner.write_to("dynamic_update_", cache, at, new, axes=(1,), sizes=("T",))
    context = attend(inner, tensors[0], *held, _mask(inner, "L", tensors[3]))
    if inner is not w:
        inner.body.outputs = [context, *(held if not by_ref else [])]
        context, *written = w.call(inner)
        if written:
            caches = [(new, b) for new, (_, b) in zip(written, caches, strict=True)]
    for cache, buffer in caches:
        if buffer:
            w.body.steps.append(Step("remote_store", [], [cache], {"buffer": buffer, "offset": 1}))
    back = w.reshape(w.transpose(context, (1, 0, 2)), ("T", "H"))
    w.keep(product(w, back, "H", "H"))
    return None


def _cache(w: Writer, shape: Shape, remote: bool) -> tuple[str, str]:
    """A cache, and the buffer that it is a slot of, if any."""
    if not remote:
        return w.variable(shape, w.float, "normal"), ""
    buffer = w.buffer(Type(shape, w.float), 2, "normal", w.group())
    made = w.step("remote_load", shape=shape, dtype=w.float, buffer=buffer, offset=1)
    return made, buffer


def rotary(w: Writer) -> None:
    """Rotary positions, in halves."""
    x = w.reshape(w.hidden(), w.rows_of(*HEADS))
    shape, half, last = w.rows_of("h", "d // 2"), "d // 2", len(w.rows) + 1
    parts = [
        w.step("slice", x, shape=shape, start=a, stop=b, axis=last)
        for a, b in (("0", half), (half, "d"))
    ]
    angles = w.weight((half,), w.float, "normal")
    cosine, sine = w.step("cos", angles), w.step("sin", angles)
    one, two, three, four = (
        w.step("mul", part, factor, magnitude=w.magnitude.get(x, 1.0))
        for part, factor in (
            (parts[0], cosine),
            (parts[1], sine),
            (parts[1], cosine),
            (parts[0], sine),
        )
    )
    made = w.step(
        "concat",
        w.step("sub", one, two),
        w.step("add", three, four),
        shape=w.type(x).shape,
        axis=last,
    )
    w.keep(w.reshape(made, w.rows_of("H")))

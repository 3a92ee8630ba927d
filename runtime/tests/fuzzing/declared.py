"""Graphs with the signature of attention over a KV cache with ALiBi, which are that or are not."""

from __future__ import annotations

from fuzzing.attention import HEADS, attention
from fuzzing.products import product
from fuzzing.writer import Writer


def declared_attention(w: Writer) -> None:
    """A graph with the signature of ALiBi attention over a cache, which is that or something else.

    A chunk of tokens of one row, `(T, h, d)` each, caches `(B, h, L, d)`.
    """
    if w.pure or len(w.rows) > 1 or not w.depth:
        return attention(w)
    everywhere = (1, w.program.replicas)
    x = w.hidden()
    parts = [w.reshape(product(w, x, "H", "H"), ("T", *HEADS)) for _ in range(3)]
    name = w.one_of("verify_attention", "prompt_attention")
    inner = w.graph(w.take(name))
    q, k, v = (inner.input(p) for p in parts)
    caches = [inner.variable(("B", "h", "L", "d"), w.float, "normal") for _ in range(2)]
    slopes = inner.weight(("h",), "float32", "positive", again=0)
    position = inner.input(w.outside((), "int32", "below S + 1", everywhere))
    row = inner.input(w.outside((), "int32", "below B", everywhere))
    meaning = w.one_of("alibi", "alibi", "temperature", "unmasked", "unscaled")
    inner.body.outputs = [_over_row(inner, q, (k, v), caches, slopes, position, row, meaning)]
    if meaning == "alibi":
        inner.body.declared = _declaration("chunk of a row")
    w.keep(w.reshape(w.call(inner)[0], ("T", "H")))
    return None


def _over_row(w: Writer, q, new, caches, slopes, position, row, meaning: str) -> str:
    at = w.step("concat", w.reshape(row, (1,)), w.reshape(position, (1,)), shape=(2,), axis=0)
    for cache, part in zip(caches, new, strict=True):
        by_head = w.reshape(w.transpose(part, (1, 0, 2)), (1, "h", "T", "d"))
        w.write_to("dynamic_update_", cache, at, by_head, axes=(0, 2), sizes=(1, "T"))
    mine = []
    for cache in caches:
        one = w.step(
            "dynamic_slice",
            cache,
            w.reshape(row, (1,)),
            shape=(1, "h", "L", "d"),
            axes=(0,),
            sizes=(1,),
        )
        mine.append(w.reshape(one, ("h", "L", "d")))
    queries = w.transpose(q, (1, 0, 2))
    whole = {"stop": "T", "dtype": "float32"}
    tokens = w.step("arange", shape=("T",), dtype="float32", given=whole)
    stands = w.step("add", w.reshape(tokens, ("T", 1)), w.cast(position, "float32"))
    context = _attended(w, queries, *mine, slopes, stands, meaning)
    return w.transpose(context, (1, 0, 2))


def token_attention(w: Writer) -> None:
    """One token for each of two rows of the cache."""
    if w.pure or not w.depth:
        return attention(w)
    everywhere = (1, w.program.replicas)
    parts = [w.outside((2, *HEADS), w.float, "normal", w.group()) for _ in range(3)]
    inner = w.graph(w.take("token_attention"))
    q, k, v = (inner.input(p) for p in parts)
    caches = [inner.variable((2, "h", "L", "d"), w.float, "normal") for _ in range(2)]
    slopes = inner.weight(("h",), "float32", "positive", again=0)
    positions = inner.input(w.outside((2,), "int32", "below L", everywhere))
    for row in range(2):
        numbers = {"values": (row,), "dtype": "int32"}
        at = inner.step(
            "concat",
            inner.step("numbers", shape=(1,), dtype="int32", given=numbers),
            inner.step("slice", positions, shape=(1,), start=row, stop=row + 1, axis=0),
            shape=(2,),
            axis=0,
        )
        for cache, new in zip(caches, (k, v), strict=True):
            one = inner.step("slice", new, shape=(1, *HEADS), start=row, stop=row + 1, axis=0)
            one = inner.reshape(one, (1, "h", 1, "d"))
            inner.write_to("dynamic_update_", cache, at, one, axes=(0, 2), sizes=(1, 1))
    meaning = w.one_of("alibi", "alibi", "temperature", "unmasked", "unscaled")
    at = inner.reshape(inner.cast(positions, "float32"), (2, 1, 1, 1))
    query = inner.reshape(q, (2, "h", 1, "d"))
    context = _attended(inner, query, *caches, slopes, at, meaning)
    inner.body.outputs = [inner.reshape(context, (2, *HEADS))]
    if meaning == "alibi":
        inner.body.declared = _declaration("token of each row")
    w.tell(w.call(inner)[0])
    return None


def _declaration(queries: str) -> str:
    return f'composite("cached_attention", version=1, bias="alibi", queries="{queries}")'


def _attended(w: Writer, queries, keys, values, slopes, stands, meaning: str) -> str:
    """Scores in float32; `stands` is where the queries stand, broadcast against `(..., tokens, L)`.

    Args:
        queries: `(..., h, tokens, d)`; keys, values: `(..., h, L, d)`.
        meaning: "alibi", or what is done instead.
    """
    dtype, factors = w.type(queries).dtype, w.reshape(slopes, ("h", 1, 1))
    if meaning == "temperature":
        queries = w.cast(w.step("mul", w.cast(queries, "float32"), factors), dtype)
    whole, shape = {"stop": "L", "dtype": "float32"}, (*w.type(queries).shape[:-1], "L")
    places = w.step("arange", shape=("L",), dtype="float32", given=whole)
    distance = w.step("sub", places, stands, shape=(*w.type(stands).shape[:-1], "L"))
    bias = w.step("mul", factors, distance, shape=shape)
    rank = len(shape)
    turned = w.transpose(keys, (*range(rank - 2), rank - 1, rank - 2))
    wide = {"dtype": "float32"}
    scores = w.step("matmul_to", queries, turned, shape=shape, dtype="float32", given=wide)
    scores = w.step("times", scores, number="1.0" if meaning == "unscaled" else "d ** -0.5")
    if meaning != "temperature":
        scores = w.step("add", scores, bias)
    if meaning != "unmasked":
        zero = w.step("times", distance, number=0.0)
        ahead = w.step("greater", distance, zero, dtype="bool")
        scores = w.step("where", ahead, scores, number=-30000.0)
    weights = w.cast(w.step("softmax", scores, magnitude=1.0), dtype)
    return w.step("matmul", weights, values, shape=w.type(queries).shape, magnitude=1.5)

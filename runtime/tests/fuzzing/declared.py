"""Graphs with the signature of attention over a KV cache, which are that or are not."""

from __future__ import annotations

from dataclasses import dataclass

from fuzzing.attention import attention
from fuzzing.products import product
from fuzzing.program import Size
from fuzzing.writer import Writer


@dataclass(frozen=True)
class Attention:
    """What a graph computes.

    Attributes:
        alibi: whether there is a bias by distance.
        heads: of keys and values; it divides `h`.
        scale: of scores; None for `d ** -0.5`.
        window: the most keys that a query sees; None for all before it.
        instead: what is done in place of attention, "unmasked", "unscaled" or "temperature" (the
            slopes are no bias); empty for attention.
    """

    alibi: bool
    heads: Size
    scale: float | None
    window: int | None
    instead: str

    @classmethod
    def drawn(cls, w: Writer) -> Attention:
        alibi = w.chance(0.6)
        wrong = ("unmasked", "unscaled", *(["temperature"] if alibi else []))
        return cls(
            alibi,
            w.one_of("h", "h", "max(h // 2, 1)", 1),
            w.one_of(None, None, 0.3, 1.0),
            w.one_of(None, None, 1, 2, 5),
            w.one_of(*wrong) if w.chance(0.4) else "",
        )

    def declaration(self, queries: str) -> str:
        """How the program declares it, as code; empty where it is something else."""
        if self.instead:
            return ""
        given = {"bias": "alibi" if self.alibi else "none", "queries": queries}
        more = {"scale": self.scale, "window": self.window}
        given |= {name: value for name, value in more.items() if value is not None}
        attributes = ", ".join(f"{name}={value!r}" for name, value in given.items())
        return f'composite("cached_attention", version=1, {attributes})'


def declared_attention(w: Writer) -> None:
    """A graph with the signature of attention over a cache, which is that or something else.

    A chunk of tokens of one row, `(T, h, d)` each, caches `(B, heads, L, d)`.
    """
    if w.pure or len(w.rows) > 1 or not w.depth:
        return attention(w)
    everywhere = (1, w.program.replicas)
    what, x = Attention.drawn(w), w.hidden()
    counts: tuple[Size, ...] = ("h", what.heads, what.heads)
    parts = [w.reshape(product(w, x, "H", f"{n} * d"), ("T", n, "d")) for n in counts]
    inner = w.graph(w.take(w.one_of("verify_attention", "prompt_attention")))
    q, k, v = (inner.input(p) for p in parts)
    shape = ("B", what.heads, "L", "d")
    caches = [inner.variable(shape, w.float, "normal") for _ in range(2)]
    slopes = inner.weight(("h",), "float32", "positive", again=0) if what.alibi else None
    position = inner.input(w.outside((), "int32", "below S + 1", everywhere))
    row = inner.input(w.outside((), "int32", "below B", everywhere))
    inner.body.outputs = [_over_row(inner, q, (k, v), caches, slopes, position, row, what)]
    inner.body.declared = what.declaration("chunk of a row")
    w.keep(w.reshape(w.call(inner)[0], ("T", "H")))
    return None


def _over_row(w: Writer, q, new, caches, slopes, position, row, what: Attention) -> str:
    at = w.step("concat", w.reshape(row, (1,)), w.reshape(position, (1,)), shape=(2,), axis=0)
    for cache, part in zip(caches, new, strict=True):
        by_head = w.reshape(w.transpose(part, (1, 0, 2)), (1, what.heads, "T", "d"))
        w.write_to("dynamic_update_", cache, at, by_head, axes=(0, 2), sizes=(1, "T"))
    mine, shape = [], (what.heads, "L", "d")
    for cache in caches:
        first = w.reshape(row, (1,))
        one = w.step("dynamic_slice", cache, first, shape=(1, *shape), axes=(0,), sizes=(1,))
        mine.append(w.reshape(one, shape))
    queries = w.transpose(q, (1, 0, 2))
    whole = {"stop": "T", "dtype": "float32"}
    tokens = w.step("arange", shape=("T",), dtype="float32", given=whole)
    stands = w.step("add", w.reshape(tokens, ("T", 1)), w.cast(position, "float32"))
    return w.transpose(_attended(w, queries, *mine, slopes, stands, what), (1, 0, 2))


def token_attention(w: Writer) -> None:
    """One token for each of two rows of the cache."""
    if w.pure or not w.depth:
        return attention(w)
    everywhere, what = (1, w.program.replicas), Attention.drawn(w)
    counts: tuple[Size, ...] = ("h", what.heads, what.heads)
    parts = [w.outside((2, n, "d"), w.float, "normal", w.group()) for n in counts]
    inner = w.graph(w.take("token_attention"))
    q, k, v = (inner.input(p) for p in parts)
    caches = [inner.variable((2, what.heads, "L", "d"), w.float, "normal") for _ in range(2)]
    slopes = inner.weight(("h",), "float32", "positive", again=0) if what.alibi else None
    positions = inner.input(w.outside((2,), "int32", "below L", everywhere))
    for row in range(2):
        numbers = {"values": (row,), "dtype": "int32"}
        bounds = {"start": row, "stop": row + 1, "axis": 0}
        at = inner.step(
            "concat",
            inner.step("numbers", shape=(1,), dtype="int32", given=numbers),
            inner.step("slice", positions, shape=(1,), **bounds),
            shape=(2,),
            axis=0,
        )
        for cache, new in zip(caches, (k, v), strict=True):
            one = inner.step("slice", new, shape=(1, what.heads, "d"), **bounds)
            one = inner.reshape(one, (1, what.heads, 1, "d"))
            inner.write_to("dynamic_update_", cache, at, one, axes=(0, 2), sizes=(1, 1))
    at = inner.reshape(inner.cast(positions, "float32"), (2, 1, 1, 1))
    query = inner.reshape(q, (2, "h", 1, "d"))
    context = _attended(inner, query, *caches, slopes, at, what)
    inner.body.outputs = [inner.reshape(context, (2, "h", "d"))]
    inner.body.declared = what.declaration("token of each row")
    w.tell(w.call(inner)[0])
    return None


def _attended(w: Writer, queries, keys, values, slopes, stands, what: Attention) -> str:
    """Scores in float32; `stands` is where the queries stand, `(tokens, 1)`, or of each row.

    Heads that share keys and values are an axis behind these.

    Args:
        queries: `(..., h, tokens, d)`; keys, values: `(..., heads, L, d)`.
    """
    dtype, of_query = w.type(queries).dtype, w.type(queries).shape
    factors = None if slopes is None else w.reshape(slopes, ("h", 1, 1))
    if what.instead == "temperature":
        queries = w.cast(w.step("mul", w.cast(queries, "float32"), factors), dtype)
    if what.heads != "h":
        heads = (what.heads, f"h // ({what.heads})")
        queries, keys, values, stands = _grouped(w, heads, queries, keys, values, stands)
        factors = None if factors is None else w.reshape(factors, (*heads, 1, 1))
    shape = (*w.type(queries).shape[:-1], "L")
    rank = len(shape)
    turned = w.transpose(keys, (*range(rank - 2), rank - 1, rank - 2))
    wide = {"dtype": "float32"}
    scores = w.step("matmul_to", queries, turned, shape=shape, dtype="float32", given=wide)
    scale = "d ** -0.5" if what.scale is None else what.scale
    scores = w.step("times", scores, number="1.0" if what.instead == "unscaled" else scale)
    places = w.step(
        "arange", shape=("L",), dtype="float32", given={"stop": "L", "dtype": "float32"}
    )
    distance = w.step("sub", places, stands, shape=(*w.type(stands).shape[:-1], "L"))
    if factors is not None and what.instead != "temperature":
        scores = w.step("add", scores, w.step("mul", factors, distance, shape=shape))
    if what.instead != "unmasked":
        scores = _masked(w, scores, distance, what.window)
    weights = w.cast(w.step("softmax", scores, magnitude=1.0), dtype)
    context = w.step("matmul", weights, values, shape=w.type(queries).shape, magnitude=1.5)
    return context if what.heads == "h" else w.reshape(context, of_query)


def _grouped(w: Writer, heads: tuple[Size, Size], queries, keys, values, stands) -> list[str]:
    """With an axis of the queries' heads that share one of the keys'."""
    *front, _, tokens, d = w.type(queries).shape
    mine = w.reshape(queries, (*front, *heads, tokens, d))
    shared = [w.reshape(t, (*w.type(t).shape[:-2], 1, "L", d)) for t in (keys, values)]
    of_rows = w.type(stands).shape
    return [mine, *shared, w.reshape(stands, (*of_rows[:1], 1, *of_rows[1:])) if front else stands]


def _masked(w: Writer, scores: str, distance: str, window: int | None) -> str:
    """Without the keys ahead of the query, and those behind its window."""
    zero = w.step("times", distance, number=0.0)
    hidden = [distance]
    if window is not None:
        hidden.append(w.step("from", distance, number=0.5 - window))
    made = {"shape": w.type(scores).shape, "dtype": "float32"}
    for beyond in hidden:
        condition = w.step("greater", beyond, zero, dtype="bool")
        scores = w.step("where", condition, scores, number=-30000.0, **made)
    return scores

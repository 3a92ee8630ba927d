"""Products with quantised weights, written out, in the main graph or in one of any name."""

from __future__ import annotations

from fuzzing.program import Shape, Size
from fuzzing.writer import Writer


def quantised(w: Writer) -> None:
    """A product with a quantised weight, and now and then what only looks like one."""
    w.keep(quantised_product(w, w.hidden(), "H", "H"))


def quantised_product(w: Writer, x: str, size: Size, out: Size) -> str:
    """`x` times a weight of 8 bits, or of 4 where rows are groups."""
    four = size == "H" and len(w.type(x).shape) == 2 and w.chance(0.5)
    make = _by_group if four else _by_channel
    if not w.depth or w.chance(0.3):
        return make(w, x, size, out, False)
    usual = "group_quantized_matmul" if four else "channel_quantized_matmul"
    wrong = w.chance(0.3)
    inner = w.graph(w.take(usual))
    inner.body.outputs = [make(inner, inner.input(x), size, out, wrong)]
    if not wrong and len(w.type(x).shape) == 2:
        inner.body.declared = f'composite("{usual}", version=1)'
    return w.call(inner)[0]


def _by_channel(w: Writer, x: str, size: Size, out: Size, wrong: bool) -> str:
    """int8 with a scale for every column; wrong: with the scale squared."""
    dtype, magnitude = w.type(x).dtype, w.magnitude.get(x, 1.0) * 4
    numbers = w.weight((size, out), "int8", "bytes")
    scale = w.weight((out,), "float32", "channel")
    shape = (*w.type(x).shape[:-1], out)
    sums = w.step(
        "matmul_to",
        x,
        w.cast(numbers, dtype),
        shape=shape,
        dtype="float32",
        magnitude=magnitude,
        given={"dtype": "float32"},
    )
    made = w.step("mul", sums, scale)
    if wrong:
        made = w.step("mul", w.step("times", made, number=256.0), scale)
    return w.cast(made, dtype)


def _by_group(w: Writer, x: str, size: Size, out: Size, wrong: bool) -> str:
    """4 bits with scale and offset a group; wrong: with the offset subtracted."""
    dtype, groups = w.type(x).dtype, (out, f"{size} // G")
    shape, magnitude = (*w.type(x).shape[:-1], out), w.magnitude.get(x, 1.0) * 2
    words = w.weight((*groups, "G // 4"), "uint16", "words")
    scale = w.weight((*groups, 1), "float16", "scale")
    offset = w.weight((*groups, 1), "float16", "offset")
    wide = w.cast(scale, "float32"), w.cast(offset, "float32")
    if not wrong and w.chance(0.4):
        weight = w.cast(_decompressed(w, words, *wide, (size, out)), dtype)
        return w.step("matmul", x, weight, shape=shape, magnitude=magnitude)
    values = w.step("mul", _numbers(w, words), wide[0])
    values = w.step("sub" if wrong else "add", values, wide[1])
    weight = w.cast(w.transpose(w.reshape(values, (out, size)), (1, 0)), dtype)
    return w.step("matmul", x, weight, shape=shape, magnitude=magnitude)


def _decompressed(w: Writer, words: str, scale: str, offset: str, shape: Shape) -> str:
    """The weight, float32 `(in, out)`, by the function of popxl_addons."""
    given = words, scale, offset
    if w.chance(0.5):
        return w.step("decompress", *given, shape=shape, dtype="float32", dim=0)
    rows = w.step("decompress", *given, shape=shape[::-1], dtype="float32", dim=-1)
    return w.transpose(rows, (1, 0))


def _numbers(w: Writer, words: str) -> str:
    """The four numbers of each word, the highest first: float32 `(out, groups, G)`."""
    rows = w.type(words).shape
    rest, parts = w.cast(words, "float32"), []
    for bits in (4096.0, 256.0, 16.0):
        digit = w.step("floor", w.step("times", rest, number=1 / bits))
        rest = w.step("sub", rest, w.step("times", digit, number=bits))
        parts.append(digit)
    parts = [w.reshape(part, (*rows, 1)) for part in (*parts, rest)]
    whole = parts[0]
    for i, part in enumerate(parts[1:], 2):
        whole = w.step("concat", whole, part, shape=(*rows, i), axis=3)
    return w.reshape(whole, (*rows[:-1], "G"))

"""How fast a program runs that was not written for this runtime: one of LLaMA's shape.

    python benchmarks/foreign/llama_like.py
    python benchmarks/foreign/llama_like.py --layers 4 --shards 2 --steps 5

The program is made as public PopXL programs are: weights lie `(in, out)`, RMS norms, rotary
embeddings and attention are written out in primitive ops, and the keys and values are loaded from
remote buffers, given to a call by value, returned and stored back. Weights are random. What a step
reaches is the share of the machine's read bandwidth at which it reads its weights: the two are
measured in turn, and the median of the shares counts.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "runtime")]

import popxl  # noqa: E402 - found just above
import popxl_addons as addons  # noqa: E402
from popxl import ops  # noqa: E402
from popxl_addons.layers import Linear  # noqa: E402
from popxl_addons.named_tensors import NamedTensors  # noqa: E402
from popxl_addons.remote import load_remote_graph, named_variable_buffers  # noqa: E402
from popxl_torch.machine import read_bandwidth  # noqa: E402

FAR = -1e4
"""What is added to the scores of positions that are not there yet."""


@dataclass(frozen=True)
class Shape:
    """The sizes of a program; as many key and value heads as query heads."""

    layers: int = 24
    hidden: int = 1024
    heads: int = 16
    intermediate: int = 2816
    vocabulary: int = 32000
    sequence: int = 512
    shards: int = 1
    dtype: popxl.dtypes.dtype = popxl.float16
    epsilon: float = 1e-6

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads


@dataclass(frozen=True)
class Row:
    """What one measurement came to.

    Attributes:
        share: of the read bandwidth, at which the weights are read.
        seconds: of a step.
        bandwidth: bytes a second.
    """

    name: str
    share: float
    seconds: float
    bandwidth: float

    def __str__(self) -> str:
        return (
            f"{self.name}: {self.share:.0%} of {self.bandwidth / 1e9:.1f} GB/s, "
            f"{self.seconds * 1e3:.1f} ms a token"
        )


def speed(shape: Shape | None = None, steps: int = 15) -> list[Row]:
    """Measures the token step of a program."""
    shape = shape or Shape()
    program = Program(shape)
    with program.session:
        program.fill()
        for position in range(3):
            program.step(1, position)
        shares, seconds, rates = [], [], []
        for position in range(3, 3 + steps):
            rates.append(read_bandwidth())
            begin = time.perf_counter()
            program.step(1, position)
            seconds.append(time.perf_counter() - begin)
            shares.append(program.weight_bytes / seconds[-1] / rates[-1])
    name = f"{shape.layers} layers of {shape.hidden}, {shape.dtype.name}, {shape.shards} shard(s)"
    middle = map(statistics.median, (shares, seconds, rates))
    return [Row(name, *middle)]


# --- the program ---


class RMSNorm(addons.Module):
    """`x / sqrt(mean(x^2) + epsilon) * weight` in float32."""

    def __init__(self, epsilon: float):
        super().__init__()
        self.epsilon = epsilon

    def build(self, x: popxl.Tensor) -> popxl.Tensor:
        weight = self.add_variable_input("weight", lambda: np.ones(x.shape[-1]), x.dtype)
        wide = ops.cast(x, popxl.float32)
        power = ops.mean(wide * wide, -1, keepdims=True)
        normed = wide / ops.sqrt(power + self.epsilon)
        return ops.cast(normed, x.dtype) * weight


class Attention(addons.Module):
    """One token's attention over the keys and values so far, of the heads of this shard."""

    def __init__(self, shape: Shape, grouping: popxl.ReplicaGrouping):
        super().__init__()
        self.shape, self.grouping = shape, grouping
        self.heads = shape.heads // shape.shards
        width = self.heads * shape.head_dim
        self.query = Linear(width, bias=False, replica_grouping=grouping)
        self.key_value = Linear(2 * width, bias=False, replica_grouping=grouping)
        self.output = Linear(shape.hidden, bias=False, replica_grouping=grouping)

    def build(
        self, x: popxl.Tensor, position: popxl.Tensor, keys: popxl.Tensor, values: popxl.Tensor
    ) -> tuple[popxl.Tensor, popxl.Tensor, popxl.Tensor]:
        key, value = ops.split(self.key_value(x), 2, axis=-1)
        by_head = (1, 1, self.heads, self.shape.head_dim)
        query, key, value = (t.reshape(by_head) for t in (self.query(x), key, value))
        place = ops.cast(position, self.shape.dtype).reshape((1, 1))
        query = self._rotated(query, place).transpose((0, 2, 1, 3))
        key = self._rotated(key, place).transpose((0, 2, 3, 1))
        keys = ops.dynamic_update_(keys, position, key, [3], [1], True)
        values = ops.dynamic_update_(
            values, position, value.transpose((0, 2, 1, 3)), [2], [1], True
        )
        context = self._attended(query, keys, values, self._mask(place))
        context = context.transpose((0, 2, 1, 3)).reshape((1, -1))
        group = self.grouping.transpose()
        z = ops.collectives.replicated_all_reduce(self.output(context), "add", group)
        return z, keys, values

    def _rotated(self, x: popxl.Tensor, place: popxl.Tensor) -> popxl.Tensor:
        """Halves of each head rotated by `place` times its frequencies (arXiv 2104.09864)."""
        half = self.shape.head_dim // 2
        frequencies = 10000.0 ** (-np.arange(half) / half)
        angle = place * popxl.constant(frequencies, self.shape.dtype)
        cos, sin = ops.cos(angle), ops.sin(angle)
        a, b = x[..., :half], x[..., half:]
        return ops.concat([a * cos - b * sin, b * cos + a * sin], axis=-1)

    def _mask(self, place: popxl.Tensor) -> popxl.Tensor:
        at = popxl.constant(np.arange(self.shape.sequence)[None], self.shape.dtype)
        far, near = (popxl.constant(v, self.shape.dtype) for v in (FAR, 0.0))
        return ops.where(ops.greater(at, place), far, near)

    def _attended(
        self, query: popxl.Tensor, keys: popxl.Tensor, values: popxl.Tensor, mask: popxl.Tensor
    ) -> popxl.Tensor:
        scores = (query @ keys) * self.shape.head_dim**-0.5 + mask
        weights = ops.softmax(ops.cast(scores, popxl.float32), axis=-1)
        return ops.cast(weights, self.shape.dtype) @ values


class FeedForward(addons.Module):
    """`(swish(x @ gate) * (x @ up)) @ down`, summed over shards."""

    def __init__(self, shape: Shape, grouping: popxl.ReplicaGrouping):
        super().__init__()
        self.grouping = grouping
        width = shape.intermediate // shape.shards
        self.up = Linear(width, bias=False, replica_grouping=grouping)
        self.gate = Linear(width, bias=False, replica_grouping=grouping)
        self.down = Linear(shape.hidden, bias=False, replica_grouping=grouping)

    def build(self, x: popxl.Tensor) -> popxl.Tensor:
        up = self.up(x)
        z = self.down(ops.swish(self.gate(x)) * up)
        return ops.collectives.replicated_all_reduce(z, "add", self.grouping.transpose())


class Block(addons.Module):
    """A decoder layer; returns the new keys and values, too."""

    def __init__(self, shape: Shape, grouping: popxl.ReplicaGrouping):
        super().__init__()
        self.norm_1, self.norm_2 = RMSNorm(shape.epsilon), RMSNorm(shape.epsilon)
        self.attention = Attention(shape, grouping)
        self.feed_forward = FeedForward(shape, grouping)

    def build(
        self, x: popxl.Tensor, position: popxl.Tensor, keys: popxl.Tensor, values: popxl.Tensor
    ) -> tuple[popxl.Tensor, popxl.Tensor, popxl.Tensor]:
        z, keys, values = self.attention(self.norm_1(x), position, keys, values)
        x = x + z
        return x + self.feed_forward(self.norm_2(x)), keys, values


class Head(addons.Module):
    """The logits of this shard's part of the vocabulary."""

    def __init__(self, shape: Shape, grouping: popxl.ReplicaGrouping):
        super().__init__()
        self.norm = RMSNorm(shape.epsilon)
        part = shape.vocabulary // shape.shards
        self.head = Linear(part, bias=False, replica_grouping=grouping)

    def build(self, x: popxl.Tensor) -> popxl.Tensor:
        return self.head(self.norm(x))


class Program:
    """One token through all layers: from its embedding to the logits.

    Attributes:
        weight_bytes: what a step reads of weights, of all shards.
    """

    def __init__(self, shape: Shape, **options):
        self.shape = shape
        ir = popxl.Ir(replication=shape.shards)
        grouping = ir.replica_grouping(stride=shape.shards, group_size=1)
        with ir.main_graph:
            self.inputs = addons.InputStreams(
                x=((1, shape.hidden), shape.dtype), position=((1,), popxl.int32)
            )
            self.logits = popxl.d2h_stream((1, shape.vocabulary // shape.shards), shape.dtype)
            self.variables = self._build(ir, grouping)
        self.session = popxl.Session(ir, "cpu", **options)
        self.weight_bytes = sum(
            v.dtype.as_numpy().itemsize * int(np.prod(v.shape_on_host)) for v in self.variables
        )

    def _build(self, ir: popxl.Ir, grouping: popxl.ReplicaGrouping) -> list[popxl.Variable]:
        shape = self.shape
        heads, width = shape.heads // shape.shards, shape.head_dim
        of_keys = popxl.TensorSpec((1, heads, width, shape.sequence), shape.dtype)
        of_values = popxl.TensorSpec((1, heads, shape.sequence, width), shape.dtype)
        of_x, position = self.inputs.x.spec, self.inputs.position.spec
        facts, block = Block(shape, grouping).create_graph(of_x, position, of_keys, of_values)
        head_facts, head = Head(shape, grouping).create_graph(of_x)
        buffers = named_variable_buffers(facts, shape.layers, shard_over_dict=False)
        head_buffers = named_variable_buffers(head_facts, shard_over_dict=False)
        layers = [facts.init_remote(buffers, n, f"layer.{n}") for n in range(shape.layers)]
        of_head = head_facts.init_remote(head_buffers, 0, "head")
        caches = [
            popxl.remote_buffer(spec.shape, spec.dtype, shape.layers)
            for spec in (of_keys, of_values)
        ]

        def layer(x, n, position):
            load, names = load_remote_graph(buffers)
            weights = NamedTensors.pack(names, load.call(n))
            keys, values = (ops.remote_load(buffer, n) for buffer in caches)
            x, *new = block.bind(weights).call(x, position, keys, values)
            for buffer, value in zip(caches, new, strict=True):
                ops.remote_store(buffer, n, value)
            return x, n + 1

        with popxl.in_sequence():
            x, at = (ops.host_load(stream) for stream in self.inputs)
            n = popxl.constant(0)
            body = ir.create_graph(layer, x, n, at)
            x, _ = ops.repeat(body, shape.layers, x, n, at)
            load, names = load_remote_graph(head_buffers)
            (logits,) = head.bind(NamedTensors.pack(names, load.call(0))).call(x)
            ops.host_store(self.logits, logits)
        return [v for tree in (*layers, of_head) for v in tree.values_flat()]

    def fill(self, seed: int = 0) -> None:
        """Random weights, as a program brings them: arrays `(in, out)`."""
        generator = np.random.default_rng(seed)
        some = generator.standard_normal(1 << 20, np.float32)
        values = {}
        for v in self.variables:
            scale = 1.0 if len(v.shape) == 1 else v.shape[0] ** -0.5
            array = np.resize(some * scale, v.shape_on_host)
            values[v] = array.astype(v.dtype.as_numpy())
        self.session.write_variables_data(values)

    def step(self, token: int, position: int) -> np.ndarray:
        """The logits after a token, whose embedding is made up of its number."""
        x = np.sin(np.arange(self.shape.hidden) * (token + 1)).astype(self.shape.dtype.as_numpy())
        inputs = {self.inputs.x: x[None], self.inputs.position: np.array([position], np.int32)}
        if self.shape.shards > 1:
            inputs = {k: np.repeat(v[None], self.shape.shards, 0) for k, v in inputs.items()}
        return self.session.run(inputs)[self.logits]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, value in (("layers", 24), ("shards", 1), ("sequence", 512), ("steps", 15)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--dtype", default="float16")
    words = parser.parse_args()
    shape = Shape(
        layers=words.layers,
        shards=words.shards,
        sequence=words.sequence,
        dtype=getattr(popxl, words.dtype),
    )
    for row in speed(shape, words.steps):
        print(row, flush=True)


if __name__ == "__main__":
    main()

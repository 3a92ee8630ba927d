"""BLOOM inference as one PopXL program, and the passes that a token loop makes with it.

The program holds several passes and takes one of them a run: a *prompt pass* for each chunk size
(a chunk of tokens of one row) and a *token pass* (one token for every row). Weights are in remote
buffers, one entry a layer, and are loaded when the layer runs; so is the KV cache.

Run directly, this is the throughput benchmark: random weights and inputs, no download.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import popxl
import popxl_addons as addons
from popxl import ops

from config import BloomConfig
from modelling.bloom_lm import BloomLMHeadTP2D
from modelling.decoder import BloomDecoderBlockTP2D
from modelling.embedding import BloomEmbeddingTP2D
from modelling.sharding import axis_size

TOKEN_PASS = 0
"""The number of the token pass; prompt passes follow, one a chunk size."""

NO_LOGITS = -1
"""What `last` is for a prompt pass that another one follows: its head is not computed."""


def chunk_sizes(config: BloomConfig) -> tuple[int, ...]:
    """The sizes of the prompt passes in tokens, ascending: those that fit the context."""
    length = config.model.sequence_length
    return tuple(c for c in config.execution.prompt_chunks if c <= length) or (length,)


def inference(config: BloomConfig, **session_options: Any) -> addons.TaskSession:
    """Build the program.

    Returns:
        A session with the inputs `tokens`, `positions`, `row`, `last` and `chosen_pass`, the output
        `logits`, and the weights in `state`: `embeddings`, `layer_<n>` and `head`. The graphs of the
        passes are in `passes`: `token` and `prompt_<chunk size>`.
    """
    ir = popxl.Ir(replication=config.execution.replicas)
    with ir.main_graph:
        phases = _Phases(config)
        inputs = addons.InputStreams(
            tokens=((max(*chunk_sizes(config), config.execution.batch_size),), popxl.int32),
            positions=((config.execution.batch_size,), popxl.int32),
            row=((), popxl.int32),
            last=((), popxl.int32),
            chosen_pass=((), popxl.int32),
        )
        loaded = [ops.host_load(stream, name) for name, stream in inputs.items()]
        (logits,) = ops.call(phases.choose_pass(*loaded), *loaded)
        outputs = addons.OutputStreams(logits=(logits.shape, logits.dtype))
        ops.host_store(outputs.logits, logits)
    options = {"device_desc": config.execution.device, **session_options}
    session = addons.TaskSession(inputs, outputs, phases.variables, 1, ir, **options)
    session.passes = phases.passes
    return session


@dataclass
class _Part:
    """A phase's variables and the graph that loads one entry of them."""

    variables: addons.NamedTensors
    load: popxl.Graph
    names: list[str]

    @classmethod
    def make(cls, factories: Any, prefix: str, entries: int = 1) -> _Part:
        buffers = addons.named_variable_buffers(factories, entries)
        variables = addons.NamedTensors()
        for entry in range(entries):
            name = f"{prefix}_{entry}" if entries > 1 or prefix == "layer" else prefix
            variables.insert(name, factories.init_remote(buffers, entry, name, empty=True))
        load, names = addons.load_remote_graph(buffers, entries)
        return cls(variables, load.graph, names)

    def load_entry(self, entry: int | popxl.Tensor) -> addons.NamedTensors:
        if isinstance(entry, int):
            entry = popxl.constant(entry, popxl.int32)
        return addons.NamedTensors.pack(self.names, ops.call(self.load, entry))


class _Phases:
    """The graphs of the passes; all share the weights and the cache."""

    def __init__(self, config: BloomConfig):
        self.config = config
        model, execution = config.model, config.execution
        self.width = model.hidden_size // axis_size(config, "tp2")
        heads = model.heads // axis_size(config, "tp1")
        cache = (execution.batch_size, heads, model.sequence_length, model.head_dim)
        self.cache = popxl.TensorSpec(cache, model.dtype)
        self.caches = [popxl.remote_buffer(cache, model.dtype, model.layers) for _ in range(2)]
        self.variables = addons.NamedTensors()
        self.parts: dict[str, _Part] = {}
        self.passes: dict[str, popxl.Graph] = {}

    def _part(self, name: str, factories: Any, entries: int = 1) -> _Part:
        """The weights of a phase, made when its first graph is."""
        if name not in self.parts:
            self.parts[name] = _Part.make(factories, name, entries)
            self.variables.update(self.parts[name].variables)
        return self.parts[name]

    # --- the passes ---

    def choose_pass(self, *inputs: popxl.Tensor) -> popxl.Graph:
        """The graph of `(tokens, positions, row, last, chosen_pass)` -> logits of every row."""
        specs = [t.spec for t in inputs]
        ir = popxl.gir()
        graph = self.passes["token"] = ir.create_graph(self.token_pass, *specs[:4])
        for number, size in enumerate(chunk_sizes(self.config), start=1):
            prompt = ir.create_graph(self.prompt_pass, *specs[:4], size)
            self.passes[f"prompt_{size}"] = prompt
            graph = ir.create_graph(self._either, *specs, number, prompt, graph)
        return graph

    def _either(
        self,
        tokens: popxl.Tensor,
        positions: popxl.Tensor,
        row: popxl.Tensor,
        last: popxl.Tensor,
        chosen_pass: popxl.Tensor,
        number: int,
        this: popxl.Graph,
        others: popxl.Graph,
    ) -> tuple[popxl.Tensor, ...]:
        given = [tokens, positions, row, last]
        rest = given if len(others.inputs) == len(given) else [*given, chosen_pass]
        return ops.conditional(ops.equal(chosen_pass, number), this, others, given, rest)

    def token_pass(
        self,
        tokens: popxl.Tensor,
        positions: popxl.Tensor,
        row: popxl.Tensor,
        last: popxl.Tensor,
    ) -> popxl.Tensor:
        """One token for every row: `tokens[i]` of row i stands at `positions[i]`."""
        x = self.embed(tokens[: self.config.execution.batch_size])
        return self.head(self.blocks(x, positions))

    def prompt_pass(
        self,
        tokens: popxl.Tensor,
        positions: popxl.Tensor,
        row: popxl.Tensor,
        last: popxl.Tensor,
        size: int,
    ) -> popxl.Tensor:
        """`size` tokens of a row from `positions[0]` on; the logits after token `last` of them."""
        x = self.blocks(self.embed(tokens[:size]), positions[0], row)
        final = popxl.gir().create_graph(self._head_of_last, x, last)
        skipped = popxl.gir().create_graph(self._no_logits)
        wanted = ops.greater(last, NO_LOGITS)
        (logits,) = ops.conditional(wanted, final, skipped, [x, last])
        return logits

    def _head_of_last(self, x: popxl.Tensor, last: popxl.Tensor) -> popxl.Tensor:
        logits = self.head(ops.dynamic_slice(x, ops.reshape(last, (1,)), [0], [1], True))
        missing = self.config.execution.batch_size - 1
        if not missing:
            return logits
        return ops.concat([logits, ops.init((missing, logits.shape[1]), logits.dtype)])

    def _no_logits(self) -> popxl.Tensor:
        rows = self.config.padded_vocab_size // axis_size(self.config, "tp1")
        return ops.init((self.config.execution.batch_size, rows), popxl.float32)

    # --- the phases ---

    def embed(self, tokens: popxl.Tensor) -> popxl.Tensor:
        factories, graph = BloomEmbeddingTP2D(self.config).create_graph(tokens)
        weights = self._part("embeddings", factories).load_entry(0)
        (x,) = graph.bind(weights).call(tokens)
        return x

    def blocks(
        self, x: popxl.Tensor, position: popxl.Tensor, row: popxl.Tensor | None = None
    ) -> popxl.Tensor:
        """Every layer, in a loop over one graph."""
        given = [position] if row is None else [position, row]
        block = BloomDecoderBlockTP2D(self.config)
        factories, graph = block.create_graph(x, self.cache, self.cache, *given)
        layers = self.config.model.layers
        part = self._part("layer", factories, layers)

        def layer(x: popxl.Tensor, number: popxl.Tensor, given: list) -> list[popxl.Tensor]:
            caches = [ops.remote_load(buffer, number) for buffer in self.caches]
            (x,) = graph.bind(part.load_entry(number)).call(x, *caches, *given)
            for buffer, cache in zip(self.caches, caches, strict=True):
                ops.remote_store(buffer, number, cache)
            return [x, number + 1]

        body = popxl.gir().create_graph(layer, x, popxl.TensorSpec((), popxl.int32), given)
        x, _ = ops.repeat(body, layers, x, 0, *given)
        return x

    def head(self, x: popxl.Tensor) -> popxl.Tensor:
        factories, graph = BloomLMHeadTP2D(self.config).create_graph(x)
        tied = self.config.model.tie_word_embeddings
        if tied:
            factories.pop("weight")
        weights = self._part("head", factories).load_entry(0)
        if tied:
            table = self.parts["embeddings"].load_entry(0).weight
            weights.insert("weight", table)
        (logits,) = graph.bind(weights).call(x)
        return logits


def hf_mapping(
    config: BloomConfig, variables: addons.NamedTensors, hf_module: Any
) -> list[tuple[str, Callable[[], dict[popxl.Tensor, np.ndarray]]]]:
    """How the session's weights come from a transformers `BloomForCausalLM`, a part at a time.

    Returns:
        Names of the parts, in order, and functions that give a part's `{variable: array}`.
    """
    transformer = hf_module.transformer
    parts: list[tuple[str, Callable]] = [
        (
            "embeddings",
            lambda: BloomEmbeddingTP2D.hf_mapping(config, variables.embeddings, transformer),
        )
    ]
    for number in range(config.model.layers):
        name = f"layer_{number}"
        parts.append(
            (
                name,
                lambda name=name, number=number: BloomDecoderBlockTP2D.hf_mapping(
                    config, variables.get(name), transformer.h[number]
                ),
            )
        )
    parts.append(("head", lambda: BloomLMHeadTP2D.hf_mapping(config, variables.head, hf_module)))
    return parts


class Passes:
    """One session's passes, in numpy; use it inside `with session:`.

    Attributes:
        batch_size: rows of the KV cache.
        sequence_length: tokens that a row holds.
        vocab_size: of the logits.
    """

    def __init__(self, config: BloomConfig, session: addons.TaskSession):
        self.config, self.session = config, session
        self.batch_size = config.execution.batch_size
        self.sequence_length = config.model.sequence_length
        self.vocab_size = config.model.vocab_size
        self.chunks = chunk_sizes(config)

    def prompt(
        self,
        row: int,
        tokens: Sequence[int],
        start: int = 0,
        progress: Callable[[int], None] | None = None,
    ) -> np.ndarray:
        """Run `tokens[start:]` of a row, whose first `start` tokens are in its cache.

        Args:
            progress: called with the number of tokens done, after each chunk.

        Returns:
            float32 logits after the last token, `(vocab_size,)`.

        Raises:
            ValueError: for a row that does not exist, no token, or more than fit the context.
        """
        self._check_prompt(row, len(tokens), start)
        done = start
        while True:
            number, size = self._chunk(len(tokens) - done)
            first = min(done, self.sequence_length - size)  # back, where it would stick out
            end = min(first + size, len(tokens))
            last = end - first - 1 if end == len(tokens) else NO_LOGITS
            logits = self._run(tokens[first:end], [first], row, last, number)
            if progress:
                progress(end - done)
            done = end
            if done == len(tokens):
                return logits[0]

    def token(self, tokens: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """One token for every row.

        Args:
            tokens, positions: int32 `(batch_size,)`; an idle row's position is its length, where
                what it writes to the cache is overwritten before it is read.

        Returns:
            float32 logits, `(batch_size, vocab_size)`.
        """
        return self._run(tokens, positions, 0, 0, TOKEN_PASS)

    def _chunk(self, tokens: int) -> tuple[int, int]:
        """The pass for what is left: the smallest chunk that holds it, else the largest."""
        for number, size in enumerate(self.chunks, start=1):
            if size >= tokens:
                return number, size
        return len(self.chunks), self.chunks[-1]

    def _check_prompt(self, row: int, length: int, start: int) -> None:
        if not 0 <= row < self.batch_size:
            raise ValueError(f"row {row} is outside the batch of {self.batch_size}")
        if not 0 <= start < length:
            raise ValueError(f"there is no token to run: {length} given, {start} done before")
        if length > self.sequence_length:
            raise ValueError(
                f"{length} tokens are more than the context of {self.sequence_length} holds"
            )

    def _run(
        self,
        tokens: Sequence[int] | np.ndarray,
        positions: Sequence[int] | np.ndarray,
        row: int,
        last: int,
        chosen_pass: int,
    ) -> np.ndarray:
        inputs = self.session.inputs
        arrays = {
            inputs.tokens: _padded(tokens, inputs.tokens.shape[0]),
            inputs.positions: _padded(positions, self.batch_size),
            inputs.row: np.array(row, np.int32),
            inputs.last: np.array(last, np.int32),
            inputs.chosen_pass: np.array(chosen_pass, np.int32),
        }
        outputs = self.session.run({s: self._to_replicas(a) for s, a in arrays.items()})
        return self._from_replicas(outputs[self.session.outputs.logits])

    def _to_replicas(self, array: np.ndarray) -> np.ndarray:
        replicas = self.config.execution.replicas
        return array if replicas == 1 else np.broadcast_to(array, (replicas, *array.shape))

    def _from_replicas(self, logits: np.ndarray) -> np.ndarray:
        """`(batch_size, vocab_size)` from the parts of the vocabulary that lie over tp1."""
        if self.config.execution.replicas > 1:
            parts = logits[:: self.config.execution.tensor_parallel_2]
            logits = np.concatenate(list(parts), axis=-1)
        return logits[:, : self.vocab_size]


def _padded(values: Sequence[int] | np.ndarray, size: int) -> np.ndarray:
    array = np.zeros(size, np.int32)
    array[: len(values)] = values
    return array


def main(argv: list[str] | None = None) -> None:
    """The benchmark's command line."""
    from utils.throughput import run_benchmark

    run_benchmark(argv)


if __name__ == "__main__":
    from utils.setup import run_script

    sys.exit(run_script(main))

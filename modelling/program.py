"""Inference of a language model as one PopXL program.

The program holds several passes and runs one of them a run: *prefill* for each chunk size (a chunk
of a prompt in one slot of the KV cache), *decode* (one token for every slot), for prompt-lookup
decoding *verify* (the next tokens of one slot, with the logits after each of them) and, for the
log-likelihoods of prompts, *score* (a prefill chunk with the logits after each of its tokens).
Further ones copy between slots and the blocks of the prefix cache. Weights are in remote buffers,
one entry a layer, and are loaded when the layer runs; so is the KV cache.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import popdist
import popxl
import popxl_addons as addons
from popxl import ops

from config import BloomConfig
from modelling.architecture import architecture_of
from modelling.prefix_blocks import PrefixBlocks, kept_sizes
from modelling.sharding import axis_size
from modelling.vocabulary import vocabulary_weight

NO_LOGITS = -1
"""What `last` is for a chunk that another one follows: its head is not computed."""

LEAST_VERIFIED = 4
"""Tokens of the narrowest verify pass, unless the widest one has fewer."""


def chunk_sizes(config: BloomConfig) -> tuple[int, ...]:
    """The sizes of the prefill passes in tokens, ascending: those that fit the context."""
    length = config.model.sequence_length
    return tuple(c for c in config.execution.prompt_chunks if c <= length) or (length,)


def verify_sizes(config: BloomConfig) -> tuple[int, ...]:
    """The sizes of the verify passes in tokens, ascending.

    The widest has all look-up tokens and the one before them, the others half of the next: few
    tokens cost less. There are none where look-up is off, or the widest does not fit the context.
    """
    size = config.execution.lookup_tokens + 1
    if size == 1 or size > config.model.sequence_length:
        return ()
    sizes = [size]
    while (half := (sizes[-1] + 1) // 2) >= LEAST_VERIFIED:
        sizes.append(half)
    return tuple(reversed(sizes))


def score_sizes(config: BloomConfig) -> tuple[int, ...]:
    """The size of the scoring pass in tokens; none where it is off."""
    size = min(config.execution.score_tokens, config.model.sequence_length)
    return (size,) if size else ()


def numbered_passes(config: BloomConfig) -> list[tuple[str, int]]:
    """The kind and size of each pass, at the place that is its number.

    Prefill passes have a chunk's tokens, and so have `keep` and `reuse`, which copy a chunk to the
    prefix cache and from it; verify passes have those of `verify_sizes`, score passes those of
    `score_sizes`. These are the last: a program with them runs what settings without them number.
    """
    chunks = chunk_sizes(config)
    kept = kept_sizes(config, chunks)
    sizes = {"prefill": chunks, "keep": kept, "reuse": kept, "verify": verify_sizes(config)}
    sizes["score"] = score_sizes(config)
    each = [(kind, size) for kind, found in sizes.items() for size in found]
    return [("decode", config.execution.batch_size), *each]


class InferenceSession(addons.TaskSession):
    """The program's session.

    Attributes:
        inputs: `tokens`, `positions`, `slot`, `last` and `chosen_pass`; see `_Phases`.
        outputs: float32 logits, a stream for each kind of pass, so that none is padded:
            `decode` `(batch_size, vocabulary / tp1)`, `prefill` `(1, vocabulary / tp1)`, and
            `verify_<size>` and `score_<size>` `(size, vocabulary / tp1)`. A run stores to one of
            them, or to none.
        state: the weights: `embeddings`, `layer_<n>` and `head`.
        pass_graphs: the graph of each pass: `decode`, `prefill_<chunk size>`, `verify_<size>` and
            `score_<size>`.
    """

    pass_graphs: dict[str, popxl.Graph]


def inference(config: BloomConfig, spread: bool = True, **session_options: Any) -> InferenceSession:
    """Build the program.

    Args:
        spread: its replicas over all processes, where there are several.
        session_options: further ones of `popxl.Session`.

    Raises:
        RuntimeError: where the configured device is not there.
    """
    ir = popxl.Ir(replication="popdist" if spread and popdist.isPopdistEnvSet() else 1)
    ir.replication_factor = config.execution.replicas
    with ir.main_graph:
        phases = _Phases(config)
        sizes = (*chunk_sizes(config), *verify_sizes(config), *score_sizes(config))
        longest = max(*sizes, config.execution.batch_size)
        inputs = addons.InputStreams(
            tokens=((longest,), popxl.int32),
            positions=((config.execution.batch_size,), popxl.int32),
            slot=((), popxl.int32),
            last=((), popxl.int32),
            chosen_pass=((), popxl.int32),
        )
        loaded = [ops.host_load(stream, name) for name, stream in inputs.items()]
        ops.call(phases.choose_pass(*loaded), *loaded)
    options = {"device_desc": config.execution.device, **session_options}
    session = InferenceSession(inputs, phases.outputs, phases.variables, 1, ir, **options)
    session.pass_graphs = phases.pass_graphs
    return session


@dataclass
class _Part:
    """A phase's variables and the graph that loads one entry of them."""

    variables: addons.NamedTensors
    load: popxl.Graph
    names: list[str]

    @classmethod
    def make(cls, factories: Any, prefix: str, entries: int = 1) -> _Part:
        buffers = addons.named_variable_buffers(factories, entries, shard_over_dict=False)
        variables = addons.NamedTensors()
        for entry in range(entries):
            name = f"{prefix}_{entry}" if entries > 1 or prefix == "layer" else prefix
            with popxl.gmg():  # variables belong to the main graph
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
        self.config, self.architecture = config, architecture_of(config)
        model, execution = config.model, config.execution
        self.width = model.hidden_size // axis_size(config, "tp2")
        heads = model.heads // axis_size(config, "tp1")
        cache = (execution.batch_size, heads, model.sequence_length, model.head_dim)
        self.cache = popxl.TensorSpec(cache, model.dtype)
        self.caches = [popxl.remote_buffer(cache, model.dtype, model.layers) for _ in range(2)]
        if kept_sizes(config, chunk_sizes(config)):
            self.prefixes = PrefixBlocks(config, self.caches)
        self.outputs = self._output_streams()
        self.variables = addons.NamedTensors()
        self.parts: dict[str, _Part] = {}
        self.pass_graphs: dict[str, popxl.Graph] = {}

    def _output_streams(self) -> addons.OutputStreams:
        vocabulary = self.config.padded_vocab_size // axis_size(self.config, "tp1")
        rows = {"decode": self.config.execution.batch_size, "prefill": 1}
        rows.update({f"verify_{size}": size for size in verify_sizes(self.config)})
        rows.update({f"score_{size}": size for size in score_sizes(self.config)})
        return addons.OutputStreams(
            **{name: ((count, vocabulary), popxl.float32) for name, count in rows.items()}
        )

    def _part(self, name: str, factories: Any, entries: int = 1) -> _Part:
        """The weights of a phase, made when its first graph is."""
        if name not in self.parts:
            self.parts[name] = _Part.make(factories, name, entries)
            self.variables.update(self.parts[name].variables)
        return self.parts[name]

    # --- the passes ---

    def choose_pass(self, *inputs: popxl.Tensor) -> popxl.Graph:
        """The graph of `(tokens, positions, slot, last, chosen_pass)`: the pass of that number."""
        specs = [t.spec for t in inputs]
        graphs = [self._pass(kind, size, *specs[:4]) for kind, size in numbered_passes(self.config)]
        *others, chosen = graphs
        for number, graph in reversed([*enumerate(others)]):  # decode is found first
            chosen = popxl.gir().create_graph(self._either, *specs, number, graph, chosen)
        return chosen

    def _pass(self, kind: str, size: int, *specs: popxl.TensorSpec) -> popxl.Graph:
        """A pass that stores what it returns; prefill does so itself, where there is anything."""
        ir = popxl.gir()
        if kind in ("keep", "reuse"):
            return ir.create_graph(self.prefixes.copy, *specs, size, kind == "keep")
        name, sizes = (kind, ()) if kind == "decode" else (f"{kind}_{size}", (size,))
        graph = self.pass_graphs[name] = ir.create_graph(getattr(self, kind), *specs, *sizes)
        if name not in self.outputs:
            return graph
        return ir.create_graph(self._stored, *specs, name=name, graph=graph)

    def _stored(self, *inputs: popxl.Tensor, name: str, graph: popxl.Graph) -> None:
        (logits,) = ops.call(graph, *inputs)
        ops.host_store(self.outputs[name], logits)

    def _either(
        self,
        tokens: popxl.Tensor,
        positions: popxl.Tensor,
        slot: popxl.Tensor,
        last: popxl.Tensor,
        chosen_pass: popxl.Tensor,
        number: int,
        this: popxl.Graph,
        others: popxl.Graph,
    ) -> None:
        given = [tokens, positions, slot, last]
        rest = given if len(others.inputs) == len(given) else [*given, chosen_pass]
        ops.conditional(ops.equal(chosen_pass, number), this, others, given, rest)

    def decode(
        self,
        tokens: popxl.Tensor,
        positions: popxl.Tensor,
        slot: popxl.Tensor,
        last: popxl.Tensor,
    ) -> popxl.Tensor:
        """One token for every slot: `tokens[i]` of slot i is at `positions[i]`."""
        x = self.embed(tokens[: self.config.execution.batch_size], positions)
        return self.head(self.blocks(x, positions))

    def prefill(
        self,
        tokens: popxl.Tensor,
        positions: popxl.Tensor,
        slot: popxl.Tensor,
        last: popxl.Tensor,
        size: int,
    ) -> None:
        """`size` tokens of a slot from `positions[0]` on; stores the logits after token `last`."""
        first = positions[0]
        x = self.blocks(self.embed(tokens[:size], first), first, slot)
        ir = popxl.gir()
        head = ir.create_graph(self._head_of_last, x, last)
        final = ir.create_graph(self._stored, x, last, name="prefill", graph=head)
        nothing = ir.create_graph(lambda: None)
        ops.conditional(ops.greater(last, NO_LOGITS), final, nothing, [x, last])

    def verify(
        self,
        tokens: popxl.Tensor,
        positions: popxl.Tensor,
        slot: popxl.Tensor,
        last: popxl.Tensor,
        size: int,
    ) -> popxl.Tensor:
        """`size` tokens of a slot from `positions[0]` on; the logits after each of them."""
        each = positions[0] + popxl.constant(np.arange(size, dtype=np.int32))
        return self.head(self.blocks(self.embed(tokens[:size], each), each, slot))

    def score(
        self,
        tokens: popxl.Tensor,
        positions: popxl.Tensor,
        slot: popxl.Tensor,
        last: popxl.Tensor,
        size: int,
    ) -> popxl.Tensor:
        """A prefill chunk of `size` tokens; the logits after each of them."""
        first = positions[0]
        return self.head(self.blocks(self.embed(tokens[:size], first), first, slot))

    def _head_of_last(self, x: popxl.Tensor, last: popxl.Tensor) -> popxl.Tensor:
        return self.head(ops.dynamic_slice(x, ops.reshape(last, (1,)), [0], [1], True))

    # --- the phases ---

    def embed(self, tokens: popxl.Tensor, position: popxl.Tensor) -> popxl.Tensor:
        """`position` is that of the first token, a scalar, or of each."""
        embedding = self.architecture.embedding(self.config)
        factories, graph = embedding.create_graph(tokens, position)
        weights = self._part("embeddings", factories).load_entry(0)
        (x,) = graph.bind(weights).call(tokens, position)
        return x

    def blocks(
        self, x: popxl.Tensor, position: popxl.Tensor, slot: popxl.Tensor | None = None
    ) -> popxl.Tensor:
        """Every layer, in a loop over one graph."""
        given = [position] if slot is None else [position, slot]
        block = self.architecture.block(self.config)
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
        factories, graph = self.architecture.head(self.config).create_graph(x)
        tied = vocabulary_weight(self.config).names if self.config.model.tie_word_embeddings else ()
        for name in tied:
            factories.pop(name)
        weights = self._part("head", factories).load_entry(0)
        if tied:
            embeddings = self.parts["embeddings"].load_entry(0)
            for name in tied:
                weights.insert(name, embeddings.get(name))
        (logits,) = graph.bind(weights).call(x)
        return logits


def hf_mapping(
    config: BloomConfig, variables: addons.NamedTensors, hf_module: Any
) -> list[tuple[str, Callable[[], dict[popxl.Variable, np.ndarray]]]]:
    """How the session's weights come from a checkpoint, a part at a time.

    Returns:
        Names of the parts, in order, and functions that give a part's `{variable: array}`.
    """
    of, transformer = architecture_of(config), hf_module.transformer
    parts: list[tuple[str, Callable]] = [
        (
            "embeddings",
            lambda: of.embedding.hf_mapping(config, variables.embeddings, transformer),
        )
    ]
    for number in range(config.model.layers):
        name = f"layer_{number}"
        parts.append(
            (
                name,
                lambda name=name, number=number: of.block.hf_mapping(
                    config, variables.get(name), transformer.h[number]
                ),
            )
        )
    parts.append(("head", lambda: of.head.hf_mapping(config, variables.head, hf_module)))
    return parts

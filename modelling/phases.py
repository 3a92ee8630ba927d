"""The graphs of the program's passes, and their phases: embedding, layers, head."""

from __future__ import annotations

from typing import Any

import numpy as np
import popxl
import popxl_addons as addons
from popxl import ops

from config import BloomConfig
from modelling.architecture import architecture_of
from modelling.pass_sizes import (
    NO_LOGITS,
    chunk_sizes,
    decode_name,
    decode_sizes,
    heads,
    numbered_passes,
    score_sizes,
    share_sizes,
    verify_sizes,
)
from modelling.phase_weights import PhaseWeights
from modelling.prefix_blocks import PrefixBlocks, kept_sizes
from modelling.sharding import axis_size
from modelling.vocabulary import vocabulary_weight

Given = list[popxl.Tensor]
"""What each pass is given: tokens, positions, slots and last, as `program` loads them."""


class Phases:
    """The graphs of the passes; all share the weights and the cache."""

    def __init__(self, config: BloomConfig):
        self.config, self.architecture = config, architecture_of(config)
        model, execution = config.model, config.execution
        heads = model.heads // axis_size(config, "tp1")
        cache = (execution.batch_size, heads, model.sequence_length, model.head_dim)
        self.cache = popxl.TensorSpec(cache, model.dtype)
        self.caches = [popxl.remote_buffer(cache, model.dtype, model.layers) for _ in range(2)]
        if kept_sizes(config, chunk_sizes(config)):
            self.prefixes = PrefixBlocks(config, self.caches)
        self.outputs = self._output_streams()
        self.variables = addons.NamedTensors()
        self.parts: dict[str, PhaseWeights] = {}
        self.pass_graphs: dict[str, popxl.Graph] = {}

    def _output_streams(self) -> addons.OutputStreams:
        vocabulary = self.config.padded_vocab_size // axis_size(self.config, "tp1")
        rows = {decode_name(self.config, size): size for size in decode_sizes(self.config)[::-1]}
        rows["prefill"] = 1
        if share_sizes(self.config):
            rows["share"] = heads(self.config)
        rows.update({f"verify_{size}": size for size in verify_sizes(self.config)})
        rows.update({f"score_{size}": size for size in score_sizes(self.config)})
        return addons.OutputStreams(
            **{name: ((count, vocabulary), popxl.float32) for name, count in rows.items()}
        )

    def _part(self, name: str, factories: Any, entries: int = 1) -> PhaseWeights:
        """The weights of a phase, made when its first graph is."""
        if name not in self.parts:
            self.parts[name] = PhaseWeights.make(factories, name, entries)
            self.variables.update(self.parts[name].variables)
        return self.parts[name]

    # --- the passes ---

    def choose_pass(self, given: Given, chosen_pass: popxl.Tensor) -> popxl.Graph:
        """The graph of `(*given, chosen_pass)`: the pass of that number."""
        graphs = [self._pass(kind, size, given) for kind, size in numbered_passes(self.config)]
        *others, chosen = graphs
        for number, graph in reversed([*enumerate(others)]):  # decode passes are found first
            chosen = popxl.gir().create_graph(
                self._either, given, chosen_pass, number, graph, chosen
            )
        return chosen

    def _pass(self, kind: str, size: int, given: Given) -> popxl.Graph:
        """A pass that stores what it returns; prefill does so itself, where there is anything."""
        ir = popxl.gir()
        if kind in ("keep", "reuse"):
            return ir.create_graph(self.prefixes.copy, given, size, kind == "keep")
        name = decode_name(self.config, size) if kind == "decode" else f"{kind}_{size}"
        graph = self.pass_graphs[name] = ir.create_graph(getattr(self, kind), given, size)
        if name not in self.outputs:
            return graph
        return ir.create_graph(self._stored, given, name, graph)

    def _stored(self, given: list[popxl.Tensor], name: str, graph: popxl.Graph) -> None:
        (logits,) = ops.call(graph, *given)
        ops.host_store(self.outputs[name], logits)

    def _either(
        self,
        given: Given,
        chosen_pass: popxl.Tensor,
        number: int,
        this: popxl.Graph,
        others: popxl.Graph,
    ) -> None:
        rest = given if len(others.inputs) == len(given) else [*given, chosen_pass]
        ops.conditional(ops.equal(chosen_pass, number), this, others, given, rest)

    def decode(self, given: Given, size: int) -> popxl.Tensor:
        """A token for each of `size` slots: `tokens[i]` of `slots[i]` is at `positions[i]`."""
        tokens, positions, slots, _ = given
        at = positions[:size]
        return self.head(self.blocks(self.embed(tokens[:size], at), at, slots[:size]))

    def prefill(self, given: Given, size: int) -> None:
        """`size` tokens of `slots[0]` from `positions[0]` on; stores the logits after `last[0]`."""
        tokens, positions, slots, last = given
        first = positions[0]
        x = self.blocks(self.embed(tokens[:size], first), first, slots[0])
        self._store_where(x, last, 1)

    def share(self, given: Given, size: int) -> None:
        """Chunks of several prompts, in blocks of the smallest chunk's tokens.

        Block i is of `slots[i]`, from `positions[i]` on. Stores the logits after the tokens `last`.
        """
        tokens, positions, slots, last = given
        block = chunk_sizes(self.config)[0]
        at, of = (t[: size // block] for t in (positions, slots))
        within = popxl.constant(np.arange(block, dtype=np.int32))
        each = ops.reshape(ops.reshape(at, (-1, 1)) + within, (size,))
        x = self.blocks(self.embed(tokens[:size], each), at, of)
        self._store_where(x, last, heads(self.config))

    def verify(self, given: Given, size: int) -> popxl.Tensor:
        """`size` tokens of `slots[0]` from `positions[0]` on; the logits after each of them."""
        tokens, positions, slots, _ = given
        each = positions[0] + popxl.constant(np.arange(size, dtype=np.int32))
        return self.head(self.blocks(self.embed(tokens[:size], each), each, slots[0]))

    def score(self, given: Given, size: int) -> popxl.Tensor:
        """A prefill chunk of `size` tokens; the logits after each of them."""
        tokens, positions, slots, _ = given
        first = positions[0]
        return self.head(self.blocks(self.embed(tokens[:size], first), first, slots[0]))

    def _store_where(self, x: popxl.Tensor, last: popxl.Tensor, most: int) -> Any:
        """Store the logits after the tokens `last`, where there are any: of one, or of `most`."""
        ir, given = popxl.gir(), [x, last]

        def stored(name: str, count: int) -> popxl.Graph:
            head = ir.create_graph(self._head_of, *given, count)
            return ir.create_graph(self._stored, given, name, head)

        nothing, one = ir.create_graph(lambda: None), stored("prefill", 1)
        if most == 1:
            return ops.conditional(ops.greater(last[0], NO_LOGITS), one, nothing, given)
        several = stored("share", most)

        def either(*given: popxl.Tensor) -> None:
            ops.conditional(ops.greater(given[1][1], NO_LOGITS), several, one, [*given], [*given])

        any_of = ir.create_graph(either, *given)
        return ops.conditional(ops.greater(last[0], NO_LOGITS), any_of, nothing, given)

    def _head_of(self, x: popxl.Tensor, last: popxl.Tensor, count: int) -> popxl.Tensor:
        return self.head(ops.gather(x, last[:count]))

    # --- the phases ---

    def embed(self, tokens: popxl.Tensor, position: popxl.Tensor) -> popxl.Tensor:
        """`position` is that of the first token, a scalar, or of each."""
        embedding = self.architecture.embedding(self.config)
        factories, graph = embedding.create_graph(tokens, position)
        weights = self._part("embeddings", factories).load_entry(0)
        (x,) = graph.bind(weights).call(tokens, position)
        return x

    def blocks(self, x: popxl.Tensor, position: popxl.Tensor, slot: popxl.Tensor) -> popxl.Tensor:
        """Every layer, in a loop over one graph."""
        given = [position, slot]
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

"""The weights of a phase of the program: remote buffers, an entry a layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import popxl
import popxl_addons as addons
from popxl import ops


@dataclass
class PhaseWeights:
    """A phase's variables and the graph that loads one entry of them."""

    variables: addons.NamedTensors
    load: popxl.Graph
    names: list[str]

    @classmethod
    def make(cls, factories: Any, prefix: str, entries: int = 1) -> PhaseWeights:
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

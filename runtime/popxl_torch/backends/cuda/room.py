"""What of a program has room in a device's memory, and what is streamed from the host.

Weights are the first to have none: they are only copied in, while a cache is copied in and out.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, field

from popxl.ir import Ir
from popxl.remote_buffer import RemoteBuffer
from popxl.tensor import Variable

from popxl_torch.analysis.cost import memory_of, num_bytes
from popxl_torch.analysis.op_facts import facts_of
from popxl_torch.backends.cuda.lanes import Lanes
from popxl_torch.backends.cuda.places import PLACES, SLOT_PLACES
from popxl_torch.memory.system import given_bytes

DEVICE_MEMORY = "POPXL_DEVICE_MEMORY"
"""Environment variable: bytes of the device's memory that may be used."""

WORK_SHARE, WORK_BYTES = 0.04, 1 << 30
"""What is left for results between ops: of the memory, and in any case."""

_NUMBERS = {"int8": 1, "uint16": 4}  # in an element of a quantised weight


@dataclass
class Streamed:
    """What is on the host: variables, and the numbers of slots that the program stores to."""

    variables: set[Variable] = field(default_factory=set)
    slots: dict[RemoteBuffer, set[int]] = field(default_factory=dict)


def streamed(ir: Ir, lanes: Lanes) -> Streamed | None:
    """What is to be streamed; None where all has room. Tells in one line how much it is."""
    given = given_bytes(DEVICE_MEMORY)
    memory = lanes.free_bytes() if given is None else min(given, lanes.free_bytes())
    needs = _Needs(ir)
    room = memory - _work_space(ir, memory)
    if needs.weights + needs.slots <= room:
        return None
    found = needs.without_room(room)
    if not found.variables and not found.slots:
        return None
    weights = needs.replicas * sum(map(num_bytes, found.variables))
    slots = needs.replicas * sum(len(n) * _slot_bytes(b) for b, n in found.slots.items())
    logging.getLogger(__name__).warning(
        "weights of %.1f GB and caches of %.1f GB have no room in %.1f GB of device memory: "
        "%.1f GB of weights and %.1f GB of caches are streamed from the host, without CUDA graphs",
        *(size / 1e9 for size in (needs.weights, needs.slots, memory, weights, slots)),
    )
    return found


class _Needs:
    """Bytes of all replicas, and what of them can be streamed.

    Attributes:
        weights, slots: bytes of the variables, and of the slots that the program fills itself.
    """

    def __init__(self, ir: Ir):
        self.replicas = ir.instance_replication_factor
        self.weights, self.slots = (size * self.replicas for size in memory_of(ir))
        stored = {op.buffer for op in ir._reachable_ops() if facts_of(op).remote == "store"}
        variables: dict[RemoteBuffer, list[Variable]] = {}
        for variable in ir.main_graph.variables:
            if variable._remote is not None:
                variables.setdefault(variable._remote[0], []).append(variable)
        self._loaded = {b: v for b, v in variables.items() if b not in stored and len(v) > PLACES}
        self._stored = [b for b in stored if b not in variables and b.entries > SLOT_PLACES]

    def without_room(self, room: float) -> Streamed:
        """What is streamed where weights and slots have no room."""
        found = Streamed()
        size = self.replicas * sum(num_bytes(v) for held in self._loaded.values() for v in held)
        places = self.replicas * sum(PLACES * num_bytes(held[0]) for held in self._loaded.values())
        left = room - self.slots - (self.weights - size) - places
        for held in self._loaded.values():
            numbers = _spread([v._remote[1] for v in held], left / max(size, 1))  # type: ignore[index]
            found.variables |= {v for v in held if v._remote[1] in numbers}  # type: ignore[index]
        if left >= 0:
            return found
        size = self.replicas * sum(b.entries * _slot_bytes(b) for b in self._stored)
        left += size - self.replicas * sum(SLOT_PLACES * _slot_bytes(b) for b in self._stored)
        for buffer in self._stored:
            numbers = _spread(list(range(buffer.entries)), left / max(size, 1))
            if numbers:
                found.slots[buffer] = numbers
        return found


def _spread(numbers: list[int], share: float) -> set[int]:
    """Those of a buffer's entries that are streamed where a share stays, evenly spread."""
    share = max(0.0, share)
    return {n for n in numbers if int((n + 1) * share) == int(n * share)}


def _slot_bytes(buffer: RemoteBuffer) -> int:
    return math.prod(buffer.tensor_shape) * buffer.tensor_dtype.as_numpy().itemsize


def _work_space(ir: Ir, memory: int) -> int:
    """With the largest weight as 16-bit floats, should it be in fewer bits."""
    numbers = [v.nelms * _NUMBERS.get(v.dtype.name, 0) for v in ir.main_graph.variables]
    return min(int(WORK_SHARE * memory) + WORK_BYTES, memory // 8) + 2 * max(numbers, default=0)

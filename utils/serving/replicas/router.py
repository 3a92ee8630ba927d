"""Which replica a request goes to: one that knows its prompt's beginning, if that is not busy."""

from __future__ import annotations

import json
from collections import Counter, OrderedDict
from collections.abc import Container, Iterable, Iterator, Mapping
from itertools import takewhile
from typing import Any

from ray.serve.request_router import FIFOMixin, PendingRequest, RequestRouter, RunningReplica

BLOCK = 256
"""Characters of a prompt that are looked up together."""

REMEMBERED = 4096
"""Blocks of prompts that are remembered of each replica."""

LEAD = 4
"""Requests by which a replica that knows the prompt may be busier than the least busy one."""


class PrefixRouter(FIFOMixin, RequestRouter):
    """Ranks replicas by known prefix, then by the requests that they have in hand."""

    def initialize_state(self, **_: Any) -> None:
        self._known: dict[Any, OrderedDict[int, None]] = {}
        self._busy: Counter[Any] = Counter()

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        """Each rank is tried only where those before it are full."""
        if pending_request is None:
            return [candidate_replicas]
        pending_request.routing_context.should_backoff = True
        present = {replica.replica_id for replica in candidate_replicas}
        for gone in self._known.keys() - present:
            del self._known[gone]
        blocks = list(blocks_of(prefix_of(pending_request)))
        least = min((self._busy[r] for r in present), default=0)

        def rank(replica: RunningReplica) -> tuple[int, int, int]:
            busy = self._busy[replica.replica_id]
            known: Mapping[int, None] = self._known.get(replica.replica_id, {})
            shared = shared_blocks(known, blocks) if busy <= least + LEAD else 0
            return -shared, busy, len(known)

        return [[replica] for replica in sorted(candidate_replicas, key=rank)]

    def on_request_routed(
        self, pending_request: PendingRequest, replica_id: Any, result: Any
    ) -> None:
        self._busy[replica_id] += 1
        known = self._known.setdefault(replica_id, OrderedDict())
        for block in blocks_of(prefix_of(pending_request)):
            known[block] = None
            known.move_to_end(block)
        while len(known) > REMEMBERED:
            known.popitem(last=False)

    def on_request_completed(self, replica_id: Any, internal_request_id: str) -> None:
        self._busy[replica_id] -= 1
        if self._busy[replica_id] <= 0:
            del self._busy[replica_id]


def shared_blocks(known: Container[int], blocks: Iterable[int]) -> int:
    """How many of the first blocks are known."""
    return sum(1 for _ in takewhile(known.__contains__, blocks))


def prefix_of(request: PendingRequest) -> str:
    """The text that a request of the API begins with; '' where it has none."""
    try:
        body = json.loads(request.args[3])
        begins = body.get("prompt") or body.get("messages") or ""
    except (ValueError, AttributeError, IndexError, RecursionError):
        return ""
    return begins if isinstance(begins, str) else json.dumps(begins)


def blocks_of(text: str) -> Iterator[int]:
    """A number for each whole block, which stands for all the text up to its end."""
    so_far = 0
    for end in range(BLOCK, min(len(text), BLOCK * REMEMBERED) + 1, BLOCK):
        so_far = hash((so_far, text[end - BLOCK : end]))
        yield so_far

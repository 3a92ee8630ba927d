"""What rank 0 exchanges with other processes in a pass: predicted from the program, and counted."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from statistics import median, median_low

import numpy as np
from popxl.streams import Stream

from config import BloomConfig
from modelling.pass_sizes import ending_together, heads
from modelling.program import InferenceSession
from utils import distributed
from utils.escaping import table
from utils.generation.passes import Passes
from utils.generation.replicas import HEADER_BYTES, rows_elsewhere
from utils.our_runtime import Traffic, cost, exchanged

HEADINGS = ("between processes, a pass", "collectives", "inputs sent", "logits received")


@dataclass(frozen=True)
class PassTraffic:
    """The traffic of one pass, or of all passes so far.

    Attributes:
        collectives: those in which processes exchange something.
        inputs: sent to all other processes at once.
        logits: a message of each process in which rows of replicas begin.
    """

    collectives: Traffic
    inputs: Traffic
    logits: Traffic

    @property
    def parts(self) -> tuple[Traffic, Traffic, Traffic]:
        return self.collectives, self.inputs, self.logits

    @classmethod
    def so_far(cls, session: InferenceSession) -> PassTraffic:
        """What this process has exchanged so far."""
        job = distributed.job
        sent, received = (job.sent, job.received) if job else (Traffic(), Traffic())
        return cls(exchanged(session), replace(sent), replace(received))

    def __sub__(self, before: PassTraffic) -> PassTraffic:
        pairs = zip(self.parts, before.parts, strict=True)
        return PassTraffic(*(now - then for now, then in pairs))


def predicted(config: BloomConfig, session: InferenceSession) -> dict[str, PassTraffic]:
    """Predicted traffic of each pass, without seconds; empty in one process.

    Of the prefill passes it is the one that returns logits, of those that prompts share one in
    which as many end as can.
    """
    if not distributed.several():
        return {}
    inputs = Traffic(1, HEADER_BYTES + sum(map(_bytes, session.inputs)))
    rows = [len(held) for held in rows_elsewhere(config).values()]
    passes = {}
    for name, graph in session.pass_graphs.items():
        of_graph = cost(graph)
        kind, _, size = name.partition("_")
        stream = kind if kind in ("prefill", "share") else name
        of_each = _bytes(session.outputs[stream])
        if kind == "share":
            of_each = of_each * ending_together(config, int(size)) // heads(config)
        passes[name] = PassTraffic(
            Traffic(of_graph.process_calls, of_graph.process_bytes),
            inputs,
            Traffic(len(rows), sum(rows) * of_each),
        )
    return passes


def counted(passes: Passes) -> dict[str, PassTraffic]:
    """Counted traffic of each pass, each run once; empty in one process."""
    if not distributed.several():
        return {}
    of_each = {}
    for name, run in passes.each():
        before = PassTraffic.so_far(passes.session)
        run()
        of_each[name] = PassTraffic.so_far(passes.session) - before
    return of_each


def typical(passes: Sequence[PassTraffic]) -> PassTraffic:
    """The median of several passes of one kind."""
    by_part = zip(*(p.parts for p in passes), strict=True)
    return PassTraffic(*(_median(part) for part in by_part))


def lines(passes: Mapping[str, PassTraffic]) -> list[str]:
    """The lines of a table; none where there is no pass."""
    if not passes:
        return []
    rows: list[tuple[str, ...]] = [
        HEADINGS,
        *((f"  {name}", *map(_shown, p.parts)) for name, p in passes.items()),
    ]
    return table(rows)


def _median(traffic: Sequence[Traffic]) -> Traffic:
    calls, sizes, seconds = zip(*map(astuple, traffic), strict=True)
    return Traffic(median_low(calls), median_low(sizes), median(seconds))


def _shown(traffic: Traffic) -> str:
    size = f"{traffic.calls} of {traffic.bytes / 1e3:,.1f} kB"
    return f"{size}, {1e3 * traffic.seconds:.2f} ms" if traffic.seconds else size


def _bytes(stream: Stream) -> int:
    return math.prod(stream.shape) * np.dtype(stream.dtype.as_numpy()).itemsize

"""Runs of a session on all replicas, whichever processes hold them.

The leader decides what is run: it publishes the inputs of each run, which the followers run with
their replicas, and they give it the outputs that only they have. Tokens are chosen by the leader,
so that nothing can go apart.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import popdist
import popxl

from config import BloomConfig
from utils import distributed

NOTHING_WANTED, RELEASED = -1, -2
"""What a message of the leader begins with, where that is no number of an output."""
HEADER_BYTES = 2 * np.dtype(np.int32).itemsize
"""Of this number, and of how many rows of the output are wanted; the inputs follow."""


class Replicas:
    """Runs of a session on all replicas, whichever processes hold them."""

    def __init__(self, config: BloomConfig, session: Any):
        self._config, self._session = config, session
        self._own = distributed.own_replicas(config.execution.replicas)
        self._inputs = list(session.inputs.values())
        self._outputs = list(session.outputs.values())
        sizes = [2, *(math.prod(stream.shape) for stream in self._inputs)]
        self._places = np.cumsum(sizes)[:-1]  # where in a message the inputs begin
        self._message = np.zeros(sum(sizes), np.int32)

    def run(
        self,
        inputs: Mapping[popxl.HostToDeviceStream, np.ndarray],
        output: popxl.DeviceToHostStream | None,
        count: int = 0,
    ) -> np.ndarray | None:
        """A run with the same int32 inputs for every replica.

        Args:
            output: the stream that is wanted.
            count: of its first rows, those that are wanted.

        Returns:
            What is stored to it, `(tensor_parallel_1, count, ...)`: that of the first replica of
            each row of replicas, as all outputs are the same over tp2. None where no stream is
            wanted.
        """
        if distributed.job is not None:
            wanted = NOTHING_WANTED if output is None else self._outputs.index(output)
            parts = [inputs[stream].reshape(-1) for stream in self._inputs]
            self._message[:] = np.concatenate([[wanted, count], *parts])
            distributed.job.publish(self._message)
        outputs = self._run(inputs)
        return None if output is None else self._collect(outputs[output], count)

    def release(self) -> None:
        """Let the followers of this session go on to what comes next."""
        if distributed.job is not None:
            self._message[0] = RELEASED
            distributed.job.publish(self._message)

    def follow(self) -> None:
        """Run what the leader does, until it releases the followers, or ends the job."""
        while True:
            distributed.job.read(self._message, 0)
            (wanted, count), *values = np.split(self._message, self._places)
            if wanted == RELEASED:
                return
            inputs = zip(self._inputs, values, strict=True)
            outputs = self._run({stream: v.reshape(stream.shape) for stream, v in inputs})
            if wanted >= 0:
                rows = self._rows(outputs[self._outputs[wanted]], count)
                if len(rows):
                    distributed.job.publish(rows)

    def _run(self, inputs: Mapping[popxl.HostToDeviceStream, np.ndarray]) -> dict:
        n = len(self._own)
        of_each = {s: a if n == 1 else np.broadcast_to(a, (n, *a.shape)) for s, a in inputs.items()}
        return self._session.run(of_each)

    def _collect(self, output: np.ndarray, count: int) -> np.ndarray:
        """The output of every row of replicas, those of other processes received."""
        own = self._rows(output, count)
        if distributed.job is None:
            return own
        collected = np.empty((self._config.execution.tensor_parallel_1, *own.shape[1:]), own.dtype)
        collected[: len(own)] = own
        for rank, rows in rows_elsewhere(self._config).items():
            distributed.job.read(collected[rows.start : rows.stop], rank)
        return collected

    def _rows(self, output: np.ndarray, count: int) -> np.ndarray:
        """What the first replicas of the rows that begin here have of an output's first rows."""
        of_each = output[None] if len(self._own) == 1 else output
        tp2 = self._config.execution.tensor_parallel_2
        return of_each[-self._own.start % tp2 :: tp2, :count]


def rows_elsewhere(config: BloomConfig) -> dict[int, range]:
    """Rows of replicas, each of which lies over tp2, by the follower in which they begin."""
    tp2, count = config.execution.tensor_parallel_2, popdist.getNumInstances()
    bounds = [math.ceil(r * config.execution.replicas / count / tp2) for r in range(count + 1)]
    rows = {rank: range(bounds[rank], bounds[rank + 1]) for rank in range(1, count)}
    return {rank: held for rank, held in rows.items() if held}

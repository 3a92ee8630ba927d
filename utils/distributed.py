"""One program in several processes: rank 0 leads, and alone talks to the user; the others follow.

A process holds an equal share of the replicas. The leader decides what is run: it sends the inputs
of each run to the followers, which run it with their replicas and send the outputs that only they
have. Tokens are chosen by the leader, so that nothing can go apart.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

import numpy as np
import popdist
import popxl

from config import BloomConfig, ConfigError
from utils.escaping import escaped, in_one_line

LEADER = 0
GRACE = 8.0
"""Seconds that the leader has to end the job when a launcher ends all processes."""
NOTHING_WANTED, RELEASED = -1, -2
"""What a message of the leader begins with, where that is no number of an output."""
HEADER = 2
"""Numbers that stand before the inputs: this one, and how many rows of the output are wanted."""
HEADER_BYTES = HEADER * np.dtype(np.int32).itemsize

TERMINATED, INTERRUPTED = 128 + signal.SIGTERM, 128 + signal.SIGINT


def leads() -> bool:
    """Whether this process is the one that talks to the user."""
    return popdist.getInstanceIndex() == LEADER


def several() -> bool:
    """Whether this process is one of several."""
    return popdist.getNumInstances() > 1


def place() -> tuple[int, int]:
    """The number of this process, and of how many."""
    return popdist.getInstanceIndex(), popdist.getNumInstances()


def prepare() -> None:
    """What a script does first: followers are silent, and end when the leader does.

    Raises:
        ConfigError: where the launcher's variables are not possible.
    """
    try:
        led, follows = several(), not leads()
    except ValueError as error:
        raise ConfigError(str(error)) from None
    if led:
        _siblings()  # sees who is there now
    if follows:
        _end_when_told()
        sys.stdin, sys.stdout = (open(os.devnull, mode) for mode in ("r", "w"))  # noqa: SIM115
        sys.stderr = _NoTerminal(sys.stderr)  # type: ignore[assignment]
    elif led:
        signal.signal(signal.SIGTERM, lambda *_: _leave_when_told())


def _leave_when_told() -> None:
    if not _fails_to_meet():  # then it is about to say so, and ends
        tell_who_is_missed()
        sys.exit(TERMINATED)


def first_here() -> bool:
    """Whether this process does what is done once a machine."""
    return int(os.environ.get("LOCAL_RANK", popdist.getInstanceIndex())) == 0


def least_severity() -> int:
    """Of what this process logs: the others on its machine have the same to say."""
    if leads():
        return logging.NOTSET
    return logging.WARNING if first_here() else logging.ERROR


def launched() -> bool:
    """Whether `torchrun` started this process: an interrupt it passes on is meant for all."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def check(config: BloomConfig) -> None:
    """Raises a `ConfigError` where the processes cannot share the replicas evenly."""
    replicas, count = config.execution.replicas, popdist.getNumInstances()
    if replicas % count:
        possible = [str(n) for n in range(1, replicas + 1) if replicas % n == 0]
        raise ConfigError(
            f"tensor_parallel_1 * tensor_parallel_2 = {replicas} replicas cannot be shared evenly "
            f"by {count} processes: start {', '.join(possible)}"
        )


def join(config: BloomConfig) -> None:
    """Meet the other processes, if there are any.

    Raises:
        ConfigError: they do not come, or are too many for the replicas.
    """
    check(config)
    if popdist.getNumInstances() == 1:
        return
    meet(config.execution.device)


def meet(device: str) -> None:
    """`join`, whatever the processes share.

    Raises:
        ConfigError: they do not come.
    """
    from popdist.job import JobError, join
    from popxl import machine

    try:
        join(machine.device_kind(device))
    except (JobError, ValueError, RuntimeError) as error:
        raise ConfigError(str(error)) from None


def tell_who_is_missed() -> None:
    """Say who has ended or not come, where the processes have not met and nobody else says it.

    For a process that was told to end: a launcher does so where another one has died.
    """
    if _job() is not None:
        return
    held = _meeting()
    if held is not None:
        if held.speaks:
            tell(held.missed())
        held.give_up()
        return
    siblings = _siblings()
    if (ended := siblings.missing()) and siblings.first() == popdist.getInstanceIndex():
        tell(siblings.ended_early(ended))


def tell(error: str) -> None:
    """One line on standard error, unless it is empty."""
    if error:
        print(f"error: {escaped(error)}", file=sys.stderr, flush=True)


def sum_of_all(numbers: Sequence[int]) -> list[int]:
    """The sums over all processes, in the leader once all have called this; else the numbers."""
    job, own = _job(), np.array(numbers, np.int64)
    if job is None:
        return own.tolist()
    if not leads():
        job.send(own, LEADER)
        return own.tolist()
    others = [np.empty_like(own) for _ in range(1, job.count)]
    job.receive(others, range(1, job.count))
    return np.sum([own, *others], axis=0).tolist()


def finish(status: int, error: str = "") -> None:
    """What a script does last: end the other processes, print the error that ended this one."""
    job = _job()
    if job is not None and (leads() or status):  # a follower that is done leaves, no more
        told = in_one_line(error)
        reason = f"rank {popdist.getInstanceIndex()}: {told}" if error and not leads() else ""
        job.watch.end(status, reason)
    if leads() or (job is None and _speaks()):
        tell(error)


def _speaks() -> bool:
    """Whether this process tells errors of all while they have not met."""
    held = _meeting()
    return held.speaks if held is not None else first_here()


def own_replicas(replicas: int) -> range:
    """Those of all replicas that this process holds."""
    count = replicas // popdist.getNumInstances()
    first = popdist.getInstanceIndex() * count
    return range(first, first + count)


def rows_in(config: BloomConfig, rank: int) -> range:
    """The rows of replicas, each of which lies over tp2, that begin in a process."""
    tp2, count = config.execution.tensor_parallel_2, popdist.getNumInstances()
    held = config.execution.replicas // count
    return range(math.ceil(rank * held / tp2), math.ceil((rank + 1) * held / tp2))


def rows_elsewhere(config: BloomConfig) -> dict[int, range]:
    """Those that do not begin in the leader, by process."""
    rows = {rank: rows_in(config, rank) for rank in range(1, popdist.getNumInstances())}
    return {rank: held for rank, held in rows.items() if held}


def messages() -> tuple[Any, Any]:
    """The `Traffic` that this process has sent and received so far, beside collectives."""
    from popdist.traffic import Traffic

    job = _job()
    return (Traffic(), Traffic()) if job is None else (job.sent, job.received)


class Replicas:
    """Runs of a session on all replicas, whichever processes hold them."""

    def __init__(self, config: BloomConfig, session: Any):
        self._config, self._session = config, session
        self._own = own_replicas(config.execution.replicas)
        self._inputs = list(session.inputs.values())
        self._outputs = list(session.outputs.values())
        self._message = np.zeros(HEADER + sum(math.prod(s.shape) for s in self._inputs), np.int32)

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
        wanted = NOTHING_WANTED if output is None else self._outputs.index(output)
        job = _job()
        if job is not None:
            parts = [inputs[stream].reshape(-1) for stream in self._inputs]
            self._message[:] = np.concatenate([[wanted, count], *parts])
            job.broadcast(self._message)
        outputs = self._run(inputs)
        return None if output is None else self._collect(outputs[output], count)

    def release(self) -> None:
        """Let the followers of this session go on to what comes next."""
        job = _job()
        if job is not None:
            self._message[0] = RELEASED
            job.broadcast(self._message)

    def follow(self) -> None:
        """Run what the leader does, until it releases the followers, or ends the job."""
        job = _job()
        assert job is not None
        while True:
            job.broadcast(self._message)
            (wanted, count), *values = np.split(self._message, self._places())
            if wanted == RELEASED:
                return
            inputs = zip(self._inputs, values, strict=True)
            outputs = self._run({stream: v.reshape(stream.shape) for stream, v in inputs})
            if wanted >= 0:
                rows = self._rows(outputs[self._outputs[wanted]], count)
                if len(rows):
                    job.send(rows, LEADER)

    def _run(self, inputs: Mapping[popxl.HostToDeviceStream, np.ndarray]) -> dict:
        count = len(self._own)
        return self._session.run(
            {
                s: a if count == 1 else np.broadcast_to(a, (count, *a.shape))
                for s, a in inputs.items()
            }
        )

    def _collect(self, output: np.ndarray, count: int) -> np.ndarray:
        """The output of every row of replicas, those of other processes received."""
        own, job = self._rows(output, count), _job()
        if job is None:
            return own
        collected = np.empty((self._config.execution.tensor_parallel_1, *own.shape[1:]), own.dtype)
        collected[: len(own)] = own
        elsewhere = rows_elsewhere(self._config)
        parts = [collected[rows.start : rows.stop] for rows in elsewhere.values()]
        job.receive(parts, list(elsewhere))
        return collected

    def _rows(self, output: np.ndarray, count: int) -> np.ndarray:
        """What the first replicas of the rows that begin here have of an output's first rows."""
        of_each = output[None] if len(self._own) == 1 else output
        tp2 = self._config.execution.tensor_parallel_2
        return of_each[-self._own.start % tp2 :: tp2, :count]

    def _places(self) -> np.ndarray:
        """Where in a message the inputs begin."""
        sizes = [HEADER, *(math.prod(stream.shape) for stream in self._inputs[:-1])]
        return np.cumsum(sizes)


class _NoTerminal:
    """A stream that is no terminal: progress bars stay away."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def isatty(self) -> bool:
        return False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _end_when_told() -> None:
    """End the job on SIGTERM, also while the main thread is in a collective and runs no handler.

    SIGINT is the leader's to answer once they have met; a launcher sends it to all until they end.
    """
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)

    def wait() -> None:
        while (told := os.read(reading, 1)[0]) != signal.SIGTERM:
            if told == signal.SIGINT and _job() is None:
                os._exit(INTERRUPTED)
        if _job() is None:
            if _fails_to_meet():
                time.sleep(GRACE)  # the main thread says so, and ends
            tell_who_is_missed()
            os._exit(TERMINATED)
        if launched() and os.environ.get("GROUP_RANK", "0") == "0":
            time.sleep(
                GRACE
            )  # the leader's launcher ends all of them, and it takes its leave first
        _job().watch.end(TERMINATED, f"rank {popdist.getInstanceIndex()} was terminated")
        os._exit(TERMINATED)

    threading.Thread(target=wait, daemon=True).start()


def _job() -> Any:
    """The job that this process has joined, or None."""
    module = _job_module()
    return module.joined() if module is not None else None


def _meeting() -> Any:
    """Of this process with the others, if it has begun, or None."""
    module = _job_module()
    return module.meeting() if module is not None else None


def _fails_to_meet() -> bool:
    held = _meeting()
    return held is not None and held.raised


def _siblings() -> Any:
    """The other processes of this one's launcher."""
    from popdist.siblings import siblings

    return siblings()


def _job_module() -> Any:
    """`popdist.job` if it has been imported: it takes torch, which may not be there yet."""
    module = sys.modules.get("popdist.job")
    return module if hasattr(module, "joined") else None

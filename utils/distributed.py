"""One program in several processes: rank 0 leads and talks to the user, the others follow."""

from __future__ import annotations

import logging
import os
import signal
import sys
from typing import Any

import numpy as np
import popdist

from config import BloomConfig, ConfigError
from utils.escaping import escaped, in_one_line

job: Any = None
"""The `popdist.job.Job` that this process has joined."""


def leads() -> bool:
    """Whether this process is the one that talks to the user."""
    return popdist.getInstanceIndex() == 0


def several() -> bool:
    """Whether this process is one of several."""
    return popdist.getNumInstances() > 1


def first_here() -> bool:
    """Whether this process does what is done once a machine."""
    return int(os.environ.get("LOCAL_RANK", popdist.getInstanceIndex())) == 0


def least_severity() -> int:
    """Of what this process logs: the others on its machine have the same to say."""
    if leads():
        return logging.NOTSET
    return logging.WARNING if first_here() else logging.ERROR


def prepare() -> None:
    """What a script does first: followers fall silent.

    Raises:
        ConfigError: the launcher's variables are not possible.
    """
    try:
        follows = several() and not leads()
    except ValueError as error:
        raise ConfigError(str(error)) from None
    if follows:
        sys.stdin, sys.stdout = (open(os.devnull, mode) for mode in ("r", "w"))  # noqa: SIM115
        if sys.stderr is not None:
            sys.stderr.isatty = lambda: False  # type: ignore[method-assign]  # no progress bars


def own_replicas(replicas: int) -> range:
    """Those of all replicas that this process holds.

    Raises:
        ConfigError: the processes cannot share them evenly.
    """
    count = popdist.getNumInstances()
    if replicas % count:
        possible = [str(n) for n in range(1, replicas + 1) if replicas % n == 0]
        raise ConfigError(
            f"tensor_parallel_1 * tensor_parallel_2 = {replicas} replicas cannot be shared evenly "
            f"by {count} processes: start {', '.join(possible)}"
        )
    return range(replicas)[popdist.getInstanceIndex() * replicas // count :][: replicas // count]


def join(config: BloomConfig) -> None:
    """Meet the other processes, if there are any; raises as `own_replicas` and `meet` do."""
    own_replicas(config.execution.replicas)
    if several():
        meet(config.execution.device)


def meet(device: str) -> None:
    """Raises a `ConfigError` where the device or a launcher is not there, or a limit no number."""
    from popdist.job import join
    from popxl_torch import machine

    global job
    try:
        job = join(machine.device_kind(device))
    except (ValueError, RuntimeError) as error:
        raise ConfigError(str(error)) from None
    if not leads():
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # from now on it is the leader's to answer


def sum_of_all(numbers: list[int]) -> list[int]:
    """The sums over all processes, in the leader once all have called this; else the numbers."""
    own = np.array(numbers, np.int64)
    if job is not None and not leads():
        job.publish(own)
    elif job is not None:
        other = np.empty_like(own)
        for rank in range(1, job.count):
            job.read(other, rank)
            own += other
    return own.tolist()


def finish(status: int, error: str = "") -> None:
    """What a script does last: print the error that ended it, and end the other processes."""
    if error:
        error = error if job is None or leads() else f"rank {job.index}: {error}"
        popdist.say_once(escaped(error))
    if job is not None and (leads() or status):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        job.end(status, in_one_line(error))

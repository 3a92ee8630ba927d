"""What the processes of a job send each other while a program runs."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import popdist.job
import torch
import torch.distributed as dist

from popxl_torch.replay import effects
from popxl_torch.traffic import Traffic

Members = tuple[int, ...]
"""Numbers of processes, ascending."""


class Processes:
    """The processes that hold the replicas of a program together.

    Args:
        index: of this process.
        count: of all.
        device: where tensors are; between CUDA devices NCCL is used, otherwise gloo.
    """

    def __init__(self, index: int, count: int, device: torch.device):
        self.index, self.count, self.device = index, count, device
        self.traffic = Traffic()
        self._job: popdist.job.Job | None = None
        self._since = 0.0  # when the collective that is under way began

    def open(self, groups: Sequence[Members]) -> None:
        """Let the members of each group find each other. All processes must do the same."""
        for members in groups:
            self.job.group(members)

    @property
    def job(self) -> popdist.job.Job:
        """The job, which is joined when it is first needed."""
        if self._job is None:
            self._job = popdist.job.join(self.device.type)
        return self._job

    @contextmanager
    def counted(self, kind: str, size: int, members: Members) -> Iterator[None]:
        """A collective of `size` bytes of this process."""
        effects.do(self._begin)
        yield
        effects.do(lambda: self._end(size))

    def _begin(self) -> None:
        self._since = time.perf_counter()

    def _end(self, size: int) -> None:
        self.traffic.add(size, time.perf_counter() - self._since)

    def gather(self, x: torch.Tensor, members: Members) -> torch.Tensor:
        """Everybody's `x`, in order: `(processes, *shape)`."""
        # All at once, where an all-gather would pass them on from one to the next.
        return self.exchange([x] * len(members), members)

    def exchange(self, parts: Sequence[torch.Tensor], members: Members) -> torch.Tensor:
        """Part i to the i-th member; what they sent to this one, `(processes, *shape)`.

        Parts may differ in shape: everybody has the same ones.
        """
        own = parts[members.index(self.index)]
        received = own.new_empty((len(members), *own.shape))
        outgoing = torch.cat([_bytes(part) for part in parts])
        given, taken = [part.nbytes for part in parts], [own.nbytes] * len(members)
        incoming, group = _bytes(received), self.job.group(members)

        def send() -> None:
            dist.all_to_all_single(incoming, outgoing, taken, given, group=group)

        effects.do(lambda: self.job.do(send), incoming)
        return received


def _bytes(x: torch.Tensor) -> torch.Tensor:
    """What a tensor is made of: not every way to send knows every type."""
    return x.contiguous().view(-1).view(torch.uint8)

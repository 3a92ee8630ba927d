"""What a run takes from the host and gives to it, through streams."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping

import numpy as np
import torch
from popxl.ir import Ir
from popxl.streams import DeviceToHostStream, HostToDeviceStream, Stream

from popxl_torch.collectives.mesh import Mesh
from popxl_torch.lowering.placement import load_stream
from popxl_torch.memory.arrays import to_numpy, to_torch


class HostStreams:
    """The streams of one program; the host's arrays are `(transfers, replicas, *shape)`."""

    def __init__(self, ir: Ir, mesh: Mesh, device: torch.device):
        self.ir, self.mesh, self.device = ir, mesh, device
        self._inputs: dict[Stream, deque[torch.Tensor]] = {}
        self._outputs: dict[DeviceToHostStream, list[torch.Tensor]] = {}

    def begin(
        self,
        inputs: Mapping[HostToDeviceStream, np.ndarray],
        outputs: Iterable[DeviceToHostStream],
    ) -> None:
        """Let a run load from `inputs` and store to `outputs`."""
        self._inputs = {stream: self._queue(array) for stream, array in inputs.items()}
        self._outputs = {stream: [] for stream in outputs}

    def collect(self) -> dict[DeviceToHostStream, np.ndarray]:
        """What the run stored; zeros for transfers that it did not make."""
        return {stream: self._collected(stream) for stream in self._outputs}

    def loader(self, stream: Stream) -> Callable[[], torch.Tensor]:
        """What gives the next tensor of a stream."""

        def host_load() -> torch.Tensor:
            if not self._inputs[stream]:
                raise self._too_often(stream, "loaded from")
            return self._inputs[stream].popleft()

        return host_load

    def storer(self, stream: DeviceToHostStream) -> Callable[[torch.Tensor], None]:
        """What takes the next tensor of a stream."""

        def host_store(value: torch.Tensor) -> None:
            if len(self._outputs[stream]) == self.ir.num_host_transfers:
                raise self._too_often(stream, "stored to")
            self._outputs[stream].append(value)

        return host_store

    def _queue(self, array: np.ndarray) -> deque[torch.Tensor]:
        transfers = to_torch(array)
        if not self.mesh.lead:
            return deque(load_stream(t[0], self.device) for t in transfers)
        return deque(
            load_stream(self.mesh.from_replicas(host, tensor), self.device)
            for host, tensor in zip(array, transfers, strict=True)
        )

    def _collected(self, stream: DeviceToHostStream) -> np.ndarray:
        transfers = [self._on_host(self.mesh.flat(t)) for t in self._outputs[stream]]
        while len(transfers) < self.ir.num_host_transfers:
            zero = torch.zeros(1, dtype=stream.dtype.as_torch())
            transfers.append(zero.expand(self.mesh.replicas, *stream.shape))
        return to_numpy(transfers[0][None] if len(transfers) == 1 else torch.stack(transfers))

    def _on_host(self, value: torch.Tensor) -> torch.Tensor:
        if value.device.type != "cuda":
            return value.cpu()
        host = torch.empty(value.shape, dtype=value.dtype, pin_memory=True)  # many times faster
        host.copy_(value, non_blocking=True)
        torch.cuda.current_stream(self.device).synchronize()
        return host

    def _too_often(self, stream: Stream, what: str) -> RuntimeError:
        return RuntimeError(
            f"stream {stream.tensor_id} is {what} more than {self.ir.num_host_transfers} times "
            "in a run: set ir.num_host_transfers"
        )

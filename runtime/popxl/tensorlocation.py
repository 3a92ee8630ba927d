"""Where PopXL keeps a tensor, in its own words; every memory here is the host's or the device's."""

from __future__ import annotations

from enum import Enum


class TensorStorage(Enum):
    """In a processor's own memory, or beside it."""

    OnChip = "OnChip"
    OffChip = "OffChip"


class ReplicatedTensorSharding(Enum):
    """Whether each replica holds a part of a tensor, or all of it."""

    On = "On"
    Off = "Off"


class TensorLocation:
    """A storage, and whether what is there is sharded over replicas."""

    def __init__(
        self,
        storage: TensorStorage = TensorStorage.OnChip,
        replicated_tensor_sharding: ReplicatedTensorSharding = ReplicatedTensorSharding.Off,
    ) -> None:
        self._storage = storage
        self._sharding = replicated_tensor_sharding

    @property
    def storage(self) -> TensorStorage:
        return self._storage

    @property
    def replicated_tensor_sharding(self) -> ReplicatedTensorSharding:
        return self._sharding

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TensorLocation) and self._both() == other._both()

    def __hash__(self) -> int:
        return hash(self._both())

    def __repr__(self) -> str:
        return f"TensorLocation({self._storage}, {self._sharding})"

    def _both(self) -> tuple[TensorStorage, ReplicatedTensorSharding]:
        return self._storage, self._sharding

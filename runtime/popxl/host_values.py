"""What the host holds of a session's variables, as far as that is not what the device holds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import numpy as np

from popxl.memory_maps import is_writable
from popxl.tensor import Variable


class Device(Protocol):
    """What keeps the variables of a session where they are computed with.

    What it holds of a variable (`held`) is its own affair; it is given back to it.
    """

    written: list[Variable]

    def held(self, variables: Iterable[Variable] | None = None) -> dict[Variable, Any]: ...

    def put(self, held: Mapping[Variable, Any]) -> None: ...

    def read(
        self, variable: Variable, every_replica: bool = False, held: Any = None
    ) -> np.ndarray: ...


class HostValues:
    """The host's side of the variables of one session.

    Most variables are held once: the host's value is the device's. Two things are kept beside it.
    Where variables are not brought to the host (`keeps`), the old values of those that the program
    may write to stay here, and `get_tensor_data` gives them outside the session. And a variable
    made from a writable memory map has its host value in that file.

    A file is written to by `to_host`, for variables that the program may write to, and by
    `written`, for those that the user wrote. Files mapped read-only are never written to.
    """

    def __init__(self, device: Device, variables: Iterable[Variable], to_host_on_exit: bool):
        variables = list(variables)
        self._device = device
        self._maps = {v: v._map for v in variables if v._map is not None and is_writable(v._map)}
        read_only = [v for v in variables if v._map is not None and v not in self._maps]
        self.read_only: Variable | None = read_only[0] if read_only else None
        self.keeps = not to_host_on_exit or self.read_only is not None
        self._kept: dict[Variable, Any] = {}
        self._in_sync = True

    def attached(self) -> None:
        """The device takes the host's values."""
        if not self.keeps:
            return
        if not self._in_sync:
            self._device.put(self._kept)
        self._kept, self._in_sync = self._device.held(), True

    def ran(self) -> None:
        """The device's values may be others than the host's from now on."""
        self._in_sync = False

    def to_host(self) -> None:
        """The host takes the device's values.

        Raises:
            RuntimeError: where a variable was made from a memory map that is read-only.
        """
        if self.read_only is not None:
            raise RuntimeError(
                f"weights_to_host: variable {self.read_only.name} was made from a memory map that "
                "is read-only; map the file with mode 'r+', or give np.asarray(map)"
            )
        self._in_sync = True
        if self.keeps:
            self._kept = self._device.held()
        for variable, array in self._maps.items():
            if variable in self._device.written:
                array[...] = self._device.read(variable).reshape(array.shape)
            array.flush()

    def sync(self) -> None:
        """`to_host` where the device may hold other values, and the host can take them."""
        if not self._in_sync and self.read_only is None:
            self.to_host()

    def written(self, variable: Variable, array: np.ndarray) -> np.ndarray:
        """Take what the user writes to a variable; returns the array for the device to use."""
        held = self._maps.get(variable)
        if held is None:
            return array
        held[...] = array
        return np.asarray(held)

    def taken(self, variable: Variable) -> None:
        """The device has taken what was written."""
        if variable in self._kept:
            self._kept.update(self._device.held([variable]))

    def read(self, variable: Variable, attached: bool) -> np.ndarray:
        """The value in host shape (`(replicas, *shape)` with retrieval mode "all_replicas")."""
        every = variable.retrieval_mode == "all_replicas"
        if attached or variable not in self._kept:
            if variable in self._maps and not every:
                return self._maps[variable]
            return self._device.read(variable, every)
        return self._device.read(variable, every, self._kept[variable])

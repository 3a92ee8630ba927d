"""A session that knows its program's streams and variables by name."""

from __future__ import annotations

import shutil
from collections import deque
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import popdist
import popxl

from . import checkpoints
from .named_tensors import NamedTensorData, NamedTensors
from .streams import InputStreams, OutputStreams
from .utils import timer

DATALOADER = "dataloader.bin"
"""The file of a checkpoint that the dataloader writes."""


class TaskSession(popxl.Session):
    """`popxl.Session` with the attributes `inputs`, `outputs` (streams) and `state` (variables)."""

    def __init__(
        self,
        inputs: InputStreams | Iterable[popxl.HostToDeviceStream],
        outputs: OutputStreams | Iterable[popxl.DeviceToHostStream],
        state: NamedTensors,
        max_checkpoints: int = 1,
        *args: Any,
        **kwargs: Any,
    ):
        """
        Args:
            inputs, outputs: the program's streams; where not collections with names of their
                own, they are named by their ids.
            state: the program's variables.
            max_checkpoints: the folders that `save_checkpoint` keeps; the oldest is removed.
            args, kwargs: those of `popxl.Session`.
        """
        with timer("PopXL compilation"):
            super().__init__(*args, **kwargs)
        if not isinstance(inputs, InputStreams):
            inputs = InputStreams.from_streams(inputs)
        if not isinstance(outputs, OutputStreams):
            outputs = OutputStreams.from_streams(outputs)
        self.inputs, self.outputs, self.state = inputs, outputs, state
        self.session_state: dict[str, Any] = {"steps": 0}
        self._dataloader: Any = None
        self._checkpoints: deque[Path] = deque()
        self._max_checkpoints = max_checkpoints

    @property
    def dataloader(self) -> Any:
        """What is saved and resumed with a checkpoint; None where nothing was set."""
        return self._dataloader

    @dataloader.setter
    def dataloader(self, dl: Any) -> None:
        if not (hasattr(dl, "save") and hasattr(dl, "resume")):
            raise ValueError(f"a dataloader has the methods save and resume, got {dl!r}")
        self._dataloader = dl

    def add_session_state_info(self, info: Mapping[str, Any]) -> None:
        """Keep more in `session_state`, which is saved with a checkpoint as JSON."""
        self.session_state.update(info)

    def get_named_tensors_data(self) -> NamedTensorData:
        """The values of all variables in `state`, by name."""
        variables = cast("list[popxl.Variable]", self.state.values_flat())
        data = self.get_tensors_data(variables)
        return NamedTensorData.from_dict({k: data[t] for k, t in self.state.to_dict().items()})

    def load_from_session(self, src: TaskSession, report_missing: str = "none") -> None:
        """Take the values of the variables that have the same name in another session.

        Args:
            report_missing: what is said of names that only one session has: "none", "warn" (in
                the log) or "error".

        Raises:
            ValueError: for such names, where it is "error".
        """
        values = src.get_named_tensors_data().to_dict()
        self._write_named(values, values, report_missing)

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Write the values of all variables in `state`, and `session_state`, to a folder.

        Of several processes the first writes; all must call it.

        Raises:
            NotImplementedError: for a folder at Weights & Biases (`wandb://`).
        """
        values = self.get_named_tensors_data().to_dict()
        folder = _local(checkpoint_dir)
        if popdist.getInstanceIndex() != 0:
            return
        with timer(f"Saving checkpoint {folder}"):
            checkpoints.save(folder, values, self.session_state)
        if self._dataloader is not None:
            self._dataloader.save(str(folder / DATALOADER))
        self._checkpoints = deque(kept for kept in self._checkpoints if kept != folder)
        self._checkpoints.append(folder)
        while len(self._checkpoints) > max(self._max_checkpoints, 1):
            shutil.rmtree(self._checkpoints.popleft(), ignore_errors=True)

    def load_checkpoint(
        self, checkpoint_dir: str, report_missing: str = "warn", skip_memmap: bool = False
    ) -> None:
        """Take the values that `save_checkpoint` wrote, by name, and the session's state.

        Args:
            report_missing: what is said of names that only the checkpoint or the program has:
                "none", "warn" (in the log) or "error".
            skip_memmap: leave variables alone whose values were in memory maps.

        Raises:
            FileNotFoundError: where the folder is no checkpoint.
            ValueError: for names that differ, where `report_missing` is "error".
        """
        folder = _local(checkpoint_dir)
        wanted = {name: t.dtype.as_numpy() for name, t in self.state.to_dict().items()}
        with timer(f"Loading checkpoint {folder}"):
            values = checkpoints.load(folder, wanted, not skip_memmap)
            self._write_named(values, checkpoints.names(folder), report_missing)
        if self._dataloader is not None:
            self._dataloader.resume(filename=str(folder / DATALOADER))
        self.session_state = checkpoints.load_session_state(folder)

    def _write_named(
        self, values: Mapping[str, np.ndarray], there: Iterable[str], report_missing: str
    ) -> None:
        variables = cast("dict[str, popxl.Variable]", self.state.to_dict())
        checkpoints.report(there, variables, report_missing)
        self.write_variables_data({variables[n]: v for n, v in values.items() if n in variables})

    def run(
        self,
        inputs: Mapping[popxl.HostToDeviceStream, np.ndarray] | None = None,
        downcast_inputs: bool = True,
    ) -> dict[popxl.DeviceToHostStream, np.ndarray]:
        """`popxl.Session.run`, counted in `session_state["steps"]`."""
        outputs = super().run(inputs, downcast_inputs)
        self.session_state["steps"] += 1
        return outputs


def _local(checkpoint_dir: str) -> Path:
    if checkpoint_dir.startswith("wandb://"):
        raise NotImplementedError(f"{checkpoint_dir}: checkpoints are kept in local folders here")
    return Path(checkpoint_dir).expanduser()

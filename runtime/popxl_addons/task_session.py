"""A session that knows its program's streams and variables by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, cast

import numpy as np
import popxl

from .named_tensors import NamedTensorData, NamedTensors
from .streams import InputStreams, OutputStreams
from .utils import timer


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
            max_checkpoints: without effect: a forward-only program has no checkpoints.
            args, kwargs: those of `popxl.Session`.
        """
        with timer("PopXL compilation"):
            super().__init__(*args, **kwargs)
        if not isinstance(inputs, InputStreams):
            inputs = InputStreams.from_streams(inputs)
        if not isinstance(outputs, OutputStreams):
            outputs = OutputStreams.from_streams(outputs)
        self.inputs, self.outputs, self.state = inputs, outputs, state
        self.session_state = {"steps": 0}

    def get_named_tensors_data(self) -> NamedTensorData:
        """The values of all variables in `state`, by name."""
        variables = cast("list[popxl.Variable]", self.state.values_flat())
        data = self.get_tensors_data(variables)
        return NamedTensorData.from_dict({k: data[t] for k, t in self.state.to_dict().items()})

    def run(
        self,
        inputs: Mapping[popxl.HostToDeviceStream, np.ndarray] | None = None,
        downcast_inputs: bool = True,
    ) -> dict[popxl.DeviceToHostStream, np.ndarray]:
        """`popxl.Session.run`, counted in `session_state["steps"]`."""
        outputs = super().run(inputs, downcast_inputs)
        self.session_state["steps"] += 1
        return outputs

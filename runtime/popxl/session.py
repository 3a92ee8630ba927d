"""Running a program: inputs in, outputs out, variables read and written."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from popxl.dtypes import DOWNCAST
from popxl.host_values import HostValues
from popxl.ir import Ir
from popxl.streams import DeviceToHostStream, HostToDeviceStream
from popxl.tensor import Constant, Tensor, Variable
from popxl.utils import to_numpy


class Session:
    """A program on a device. Use it as a context manager: inside, the device is attached.

    Args:
        ir: the program; it must not be changed afterwards.
        device_desc: "cpu"; "cuda" (ours); "auto" (ours), "ipu_hw" and "ipu_model" take the best
            device there is.
        weights_to_host_on_exit: bring variables to the host when the session ends. Without, or
            where a variable was made from a read-only `np.memmap`, the host keeps its values: they
            are what `get_tensor_data` gives after the session, and what the next one starts with.
        composite_kernels: ours: whether kernels stand in for whole graphs they know.

    Raises:
        ValueError: for another device.
        RuntimeError: where the device is not there.
        MemoryError: from every method that needs memory of the device, where there is too little.
    """

    def __init__(
        self,
        ir: Ir,
        device_desc: str = "cpu",
        weights_to_host_on_exit: bool = True,
        *,
        composite_kernels: bool = True,
    ):
        from popxl_torch.executor import Executor  # late: building a program takes no torch

        self._ir = ir
        self._attached = 0
        ir._drawings.checkpoint("FINAL")
        self._executor = Executor(ir, device_desc, composite_kernels)
        self._variables = self._executor.variables
        self._host = HostValues(self._variables, ir.main_graph.variables, weights_to_host_on_exit)
        self._inputs = ir.get_all_h2d_streams()
        self._outputs = ir.get_all_d2h_streams()

    @property
    def ir(self) -> Ir:
        return self._ir

    @property
    def is_attached(self) -> bool:
        return self._attached > 0

    @property
    def device(self) -> str:
        """Ours: the kind of device that it is on, "cpu" or "cuda"."""
        return self._executor.device.type

    @device.setter
    def device(self, value: Any) -> None:
        """Programs written for the SDK set an IPU here: this session stays where it is."""

    @property
    def traffic(self) -> Any:
        """Ours: the collectives that this process took part in with others so far, a `Traffic`."""
        return self._executor.traffic()

    def __enter__(self) -> Session:
        self._executor.attach()
        if not self._attached:
            self._host.attached()
        self._attached += 1
        return self

    def __exit__(self, error: object, *_: object) -> None:
        if self._attached == 1 and error is None and not self._host.keeps:
            self._host.to_host()
        self._attached -= 1

    def expected_inputs(self) -> list[HostToDeviceStream]:
        """The streams that `run` needs data for."""
        return sorted(self._inputs, key=lambda s: s.tensor_id)

    def create_host_outputs(self) -> dict[DeviceToHostStream, np.ndarray]:
        """An array for each output of a run, its contents undefined."""
        return {s: np.empty(self._host_shape(s), s.dtype.as_numpy()) for s in self._outputs}

    def run(
        self, inputs: Mapping[HostToDeviceStream, Any] | None = None, downcast_inputs: bool = True
    ) -> dict[DeviceToHostStream, np.ndarray]:
        """Run the program once.

        Args:
            inputs: an array for each stream that the program loads from, of shape
                `(num_host_transfers, replicas, *shape)` without the first two where they are 1.
                More transfers may be given than are used, and one element in any shape.
            downcast_inputs: narrow 64-bit arrays to 32 bits.

        Returns:
            An array for each stream that the program stores to, shaped likewise. Where replicas
            hold the same value their parts may share memory: copy before writing to it.

        Raises:
            ValueError: for missing, unknown or misshapen inputs, or where no device is attached.
            TypeError: for an input of another dtype.
        """
        self._need_attached("run")
        given = self._checked_inputs(inputs or {}, downcast_inputs)
        self._host.ran()
        results = self._executor.run(given, self._outputs)
        return {
            stream: array.reshape(self._host_shape(stream)) for stream, array in results.items()
        }

    def run_with_outputs(
        self,
        inputs: Mapping[HostToDeviceStream, Any] | None = None,
        outputs: Mapping[DeviceToHostStream, np.ndarray] | None = None,
        downcast_inputs: bool = True,
    ) -> None:
        """`run` that fills the arrays given.

        Raises:
            ValueError: where an array is missing, unknown or of another shape.
            TypeError: where one is of another dtype.
        """
        self._need_attached("run_with_outputs")
        outputs = outputs or {}
        self._validate_run_outputs(outputs)
        for stream, array in self.run(inputs, downcast_inputs).items():
            used = self._used(outputs[stream])
            used[...] = array.reshape(used.shape)

    def weights_to_host(self) -> None:
        """Bring variables to the host, and to the files that they were made from.

        Raises:
            RuntimeError: where a variable was made from a memory map that is read-only.
        """
        self._need_attached("weights_to_host")
        self._host.to_host()

    def weights_from_host(self) -> None:
        """Bring variables to the device: where the host keeps its values, these replace them."""
        self._need_attached("weights_from_host")
        self._host.attached()

    def get_tensor_data(self, tensor: Variable | Constant) -> np.ndarray:
        """What a variable or constant holds, in host shape: a copy, or the memory map it is in.

        In the session that is the device's value, which the host takes; outside the host's.

        Raises:
            TypeError: for another tensor.
        """
        return self.get_tensors_data([tensor])[tensor]

    def get_tensors_data(self, tensors: Iterable[Variable | Constant]) -> dict[Tensor, np.ndarray]:
        """`get_tensor_data` of several."""
        asked = list(tensors)
        for tensor in asked:
            if not isinstance(tensor, Variable | Constant):
                raise TypeError(f"{tensor!r} is neither variable nor constant: it keeps no data")
        if self.is_attached and any(isinstance(tensor, Variable) for tensor in asked):
            self._host.sync()
        return {tensor: self._data_of(tensor) for tensor in asked}

    def write_variable_data(self, tensor: Variable, data: Any) -> None:
        """Set a variable.

        Args:
            data: of the variable's dtype and `shape_on_host` (or with a leading 1 where there is
                one group); its memory is used, not copied. A number fills a scalar.

        Raises:
            TypeError: where it is no variable, or of another dtype.
            ValueError: where the shapes differ.
            NotImplementedError: where each replica of a group has a value of its own to be read
                back ("all_replicas"): there would be one for all of them.
        """
        self.write_variables_data({tensor: data})

    def write_variables_data(self, tensors: Mapping[Variable, Any]) -> None:
        """`write_variable_data` of several; nothing is written unless all can be."""
        arrays = {tensor: self._variable_array(tensor, data) for tensor, data in tensors.items()}
        for tensor, array in arrays.items():
            self._variables.write(tensor, self._host.written(tensor, array))
            self._host.taken(tensor)

    def fill_variable_data(
        self, tensor: Variable, values: np.ndarray, swapped: bool = False
    ) -> None:
        """Ours: set a variable to `values` over and over, as `numpy.resize` does, where it lies.

        Nothing as large as the variable passes through the host. Of several processes each fills
        its own groups' values, all from the first of `values` on.

        Args:
            values: of the variable's dtype, one dimension.
            swapped: fill it as if its last two dimensions were swapped, and keep its bytes so.

        Raises:
            TypeError: where it is no variable, or of another dtype.
            ValueError: where `values` are none or of several dimensions.
        """
        self._need_variable(tensor)
        _need_dtype_of(tensor, values)
        if values.ndim != 1 or not values.size:
            raise ValueError(f"values must be of one dimension and not empty, got {values.shape}")
        self._variables.fill(tensor, values, swapped)
        self._host.taken(tensor)

    def _data_of(self, tensor: Tensor) -> np.ndarray:
        if isinstance(tensor, Constant):
            return tensor._data.copy()
        assert isinstance(tensor, Variable)
        self._need_own(tensor)
        return self._host.read(tensor, self.is_attached)

    def _variable_array(self, tensor: Any, data: Any) -> np.ndarray:
        """`data` as what the variable can hold."""
        self._need_variable(tensor)
        grouping = tensor.replica_grouping
        each_its_own = tensor.retrieval_mode == "all_replicas"
        if each_its_own and len(grouping.assignment) > grouping.num_groups:
            raise NotImplementedError(
                f"variable {tensor.name}: PopXL does not write to what is read back from "
                "all replicas"
            )
        if isinstance(data, int | float):
            data = np.asarray(data, tensor.dtype.as_numpy())
        array = to_numpy(data, downcast=False, copy=False)
        _need_dtype_of(tensor, array)
        groups = grouping.num_groups
        if groups == 1 and array.shape == (1, *tensor.shape):
            array = array[0]
        if array.shape != tensor.shape_on_host:
            raise ValueError(
                f"variable {tensor.name}: expected data of shape {tensor.shape_on_host} "
                f"({groups} groups of {tensor.shape}), got {array.shape}"
            )
        return array

    def _need_variable(self, tensor: Any) -> None:
        if not isinstance(tensor, Variable):
            raise TypeError(f"{tensor!r} is not a variable: it cannot be written")
        self._need_own(tensor)

    def _need_own(self, tensor: Tensor) -> None:
        if tensor.ir is not self._ir:
            raise ValueError(f"{tensor.name} belongs to another Ir than the session's")

    def _need_attached(self, what: str) -> None:
        if not self.is_attached:
            raise ValueError(f"{what} needs an attached device: call it inside `with session:`")

    def _full_input_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The host shape of an input of `shape`; programs written for the SDK ask for it."""
        return (*(s for s in self._lead if s > 1), *shape)

    def _validate_run_inputs(self, inputs: Mapping[HostToDeviceStream, np.ndarray]) -> None:
        """Raises what `run` raises for such inputs; programs written for the SDK ask for it."""
        self._check_streams("inputs", self._inputs, inputs)
        for stream, array in inputs.items():
            self._check_array(stream, array)

    def _validate_run_outputs(self, outputs: Mapping[DeviceToHostStream, np.ndarray]) -> None:
        """Raises what `run_with_outputs` raises for such outputs."""
        self._check_streams("outputs", self._outputs, outputs)
        for stream, array in outputs.items():
            self._check_array(stream, array)

    def _host_shape(self, stream: Any) -> tuple[int, ...]:
        return self._full_input_shape(stream.shape)

    def _checked_inputs(
        self, inputs: Mapping[HostToDeviceStream, Any], downcast: bool
    ) -> dict[HostToDeviceStream, np.ndarray]:
        self._check_streams("inputs", self._inputs, inputs)
        checked = {}
        for stream, data in inputs.items():
            narrow = downcast and stream.dtype not in DOWNCAST
            array = to_numpy(data, downcast=narrow, copy=False)
            self._check_array(stream, array)
            checked[stream] = self._used(array).reshape((*self._lead, *stream.shape))
        return checked

    @property
    def _lead(self) -> tuple[int, int]:
        return self._ir.num_host_transfers, self._ir.instance_replication_factor

    def _used(self, array: np.ndarray) -> np.ndarray:
        """The transfers of a stream's array that a run makes; the array may have more."""
        transfers = self._ir.num_host_transfers
        return array[:transfers] if transfers > 1 else array

    def _check_streams(self, what: str, expected: set, given: Mapping) -> None:
        unknown = [getattr(s, "tensor_id", repr(s)) for s in given if s not in expected]
        if unknown:
            names = ", ".join(sorted(s.tensor_id for s in expected)) or "none"
            raise ValueError(f"{what}: the program has no stream {unknown[0]}; it has: {names}")
        missing = sorted(s.tensor_id for s in expected if s not in given)
        if missing:
            raise ValueError(f"{what}: nothing was given for stream {', '.join(missing)}")

    def _check_array(self, stream: Any, array: np.ndarray) -> None:
        if not isinstance(array, np.ndarray):
            raise TypeError(
                f"stream {stream.tensor_id}: expected a numpy array, got {type(array).__name__}"
            )
        expected = self._host_shape(stream)
        if not _fits(array.shape, expected, stream.shape, self._ir.num_host_transfers):
            raise ValueError(
                f"stream {stream.tensor_id}: expected an array of shape {expected} "
                f"(transfers, replicas, shape), got {array.shape}"
            )
        if array.dtype != stream.dtype.as_numpy():
            raise TypeError(
                f"stream {stream.tensor_id}: expected {stream.dtype}, got {array.dtype.name}"
            )


def _need_dtype_of(variable: Variable, array: np.ndarray) -> None:
    if array.dtype != variable.dtype.as_numpy():
        raise TypeError(
            f"variable {variable.name} is {variable.dtype}, the data {array.dtype.name}"
        )


def _fits(
    given: tuple[int, ...], expected: tuple[int, ...], shape: tuple[int, ...], transfers: int
) -> bool:
    """Whether an array's shape serves a stream of `shape`, as the SDK sees it.

    There may be more transfers than are used, and the shape of a single element does not matter.
    """
    if transfers > 1 and given and given[0] > transfers:
        given = (transfers, *given[1:])
    lead = len(expected) - len(shape)
    single = math.prod(shape) == 1 == math.prod(given[lead:])
    return given == expected or (single and given[:lead] == expected[:lead])

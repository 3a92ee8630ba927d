"""Tensors of a program: what an op reads and makes. They carry shape, dtype and name, no data."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NewType

import numpy as np

from popxl import dtypes
from popxl.context import get_current_context, get_current_graph, get_main_graph
from popxl.errors import UndefinedValue
from popxl.memory_maps import memory_map
from popxl.replica_grouping import ReplicaGrouping
from popxl.utils import to_numpy

if TYPE_CHECKING:
    from popxl.graph import Graph
    from popxl.ir import Ir
    from popxl.remote_buffer import RemoteBuffer
    from popxl.sharding import Sharding


ScalarType = int | float | bool
HostTensor = np.ndarray | Iterable
"""What a tensor can be made from beside a number: an array, a torch tensor, a list."""
host_tensor_types = (np.ndarray, Iterable)
HostScalarTensor = ScalarType | HostTensor


class TensorSpec(Mapping):
    """Shape and dtype of a tensor that need not exist, e.g. a graph's input to be.

    Raises:
        TypeError: where a shape is not made of integers.
        ValueError: for a negative size or an unknown dtype.
    """

    def __init__(
        self, shape: Iterable[int], dtype: dtypes.dtype, meta_shape: Iterable[int] = ()
    ) -> None:
        self.shape = _sizes(shape)
        self.dtype = dtypes.dtype.as_dtype(dtype)
        self.meta_shape = _sizes(meta_shape)

    def to_dict(self) -> dict[str, Any]:
        return {"shape": self.shape, "dtype": self.dtype, "meta_shape": self.meta_shape}

    def to_tuple(self) -> tuple:
        return self.shape, self.dtype, self.meta_shape

    def __getitem__(self, key: str) -> Any:
        return self.to_dict()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.to_dict())

    def __len__(self) -> int:
        return len(self.to_dict())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TensorSpec) and self.to_tuple() == other.to_tuple()

    def __hash__(self) -> int:
        return hash(self.to_tuple())

    def __repr__(self) -> str:
        return f"TensorSpec(shape={self.shape}, dtype={self.dtype}, meta_shape={self.meta_shape})"


def _sizes(shape: Iterable[int]) -> tuple[int, ...]:
    try:
        sizes = tuple(operator.index(size) for size in shape)
    except TypeError:
        raise TypeError(f"a shape must be a tuple of integers, got {shape!r}") from None
    if any(size < 0 for size in sizes):
        raise ValueError(f"shape {sizes}: a size must be at least 0")
    return sizes


Operator = Callable[[Any, Any], "Tensor"]


def _operators(op: str) -> tuple[Operator, Operator]:
    """The operator that an op is, of a tensor and anything, and the one of these swapped."""

    def forward(self: Tensor, other: Any) -> Tensor:
        return getattr(_ops(), op)(self, self._as_tensor(other))

    def reflected(self: Tensor, other: Any) -> Tensor:
        return getattr(_ops(), op)(self._as_tensor(other), self)

    return forward, reflected


class Tensor:
    """A value in one graph; made by ops, `graph_input`, `variable` and `constant`."""

    __array_ufunc__ = None  # `array + tensor` is the tensor's addition, not numpy's
    _graph: Graph
    _spec: TensorSpec
    _name: str
    _place: tuple[int | None, str] | None = None

    def __init__(self):
        raise RuntimeError("popxl.Tensor cannot be constructed directly: ops and variables make it")

    @classmethod
    def _make(cls, graph: Graph, spec: TensorSpec, name: str) -> Any:
        self = super().__new__(cls)
        self._graph, self._spec = graph, spec
        self._name = graph._register(self, name)
        return self

    @property
    def id(self) -> str:
        """Graph and name, unique in the Ir."""
        return f"{self._graph.name}/{self._name}" if self._graph.name else self._name

    @property
    def name(self) -> str:
        """Unique in its graph."""
        return self._name

    @property
    def scope(self) -> str:
        """The name of its graph; empty for the main graph."""
        return self._graph.name

    @property
    def ir(self) -> Ir:
        return self._graph.ir

    @property
    def spec(self) -> TensorSpec:
        return self._spec

    @property
    def shape(self) -> tuple[int, ...]:
        return self._spec.shape

    @property
    def dtype(self) -> dtypes.dtype:
        return self._spec.dtype

    @property
    def meta_shape(self) -> tuple[int, ...]:
        """The shape of the whole where this is a shard of it; otherwise empty."""
        return self._spec.meta_shape

    @property
    def ipu(self) -> int:
        """The IPU of a replica that `popxl.ipu` placed it on; the first by default.

        Raises:
            UndefinedValue: where no op makes this tensor, or one inside `popxl.ipu(None)`.
        """
        ipu = self._placed("IPU")[0]
        if ipu is None:
            raise UndefinedValue(f"{self.name} is made on no IPU in particular")
        return ipu

    @property
    def tile_set(self) -> str:
        """ "io" for what is made inside `popxl.io_tiles`, else "compute".

        Raises:
            UndefinedValue: where no op makes this tensor.
        """
        return self._placed("tile set")[1]

    def _placed(self, what: str) -> tuple[int | None, str]:
        if self._place is None:
            raise UndefinedValue(f"{self.name} is made by no op: its {what} is not defined")
        return self._place

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def nelms(self) -> int:
        return math.prod(self.shape)

    def strides(self, shape: Iterable[int] | None = None) -> tuple[int, ...]:
        """Bytes from one element to the next along each dimension of a C-ordered array."""
        shape = self.shape if shape is None else tuple(shape)
        item = self.dtype.as_numpy().itemsize
        return tuple(item * math.prod(shape[i + 1 :]) for i in range(len(shape)))

    # --- the same as ops, as methods ---

    def reshape(self, shape: Iterable[int]) -> Tensor:
        return _ops().reshape(self, shape)

    def reshape_(self, shape: Iterable[int]) -> Tensor:
        return _ops().reshape_(self, shape)

    def transpose(self, permutation: Iterable[int] | None = None) -> Tensor:
        return _ops().transpose(self, permutation)

    def transpose_(self, permutation: Iterable[int] | None = None) -> Tensor:
        return _ops().transpose_(self, permutation)

    def flatten(self) -> Tensor:
        return _ops().flatten(self)

    def flatten_(self) -> Tensor:
        return _ops().flatten_(self)

    def detach(self) -> Tensor:
        return _ops().detach(self)

    def detach_(self) -> Tensor:
        return _ops().detach_(self)

    def copy_to_ipu(self, destination: int, source: int | None = None) -> Tensor:
        """`ops.ipu_copy`: the same value."""
        return _ops().ipu_copy(self, destination, source)

    def diag(self) -> Tensor:
        """The diagonal of a square matrix.

        Raises:
            ValueError: where this is no square matrix.
        """
        if self.rank != 2 or self.shape[0] != self.shape[1]:
            raise ValueError(f"diag of {self.name}: it needs a square matrix, got {self.shape}")
        rows = np.arange(self.shape[0], dtype=np.int32)
        on_flat = constant(rows * (self.shape[0] + 1))
        return _ops().gather(self.flatten(), on_flat)

    @property
    def T(self) -> Tensor:  # noqa: N802 - PopXL's name
        """Transposed: all axes reversed."""
        return self.transpose()

    @property
    def T_(self) -> Tensor:  # noqa: N802 - PopXL's name
        """Transposed in place."""
        return self.transpose_()

    # --- operators ---

    def _as_tensor(self, value: Any, dtype: dtypes.dtype | None = None) -> Tensor:
        """`value` itself where it is a tensor, else a constant of this tensor's dtype."""
        if isinstance(value, Tensor):
            return value
        made = constant(value, dtype or self.dtype, downcast=False)
        if made.nelms == 0:
            raise ValueError(f"{value!r} has no elements: it cannot be an operand")
        return made

    __add__, __radd__ = _operators("add")
    __sub__, __rsub__ = _operators("sub")
    __mul__, __rmul__ = _operators("mul")
    __truediv__, __rtruediv__ = _operators("div")
    __pow__, __rpow__ = _operators("pow")
    __mod__, __rmod__ = _operators("fmod")
    __matmul__, __rmatmul__ = _operators("matmul")
    __and__, __rand__ = _operators("logical_and")
    __or__, __ror__ = _operators("logical_or")

    def __iadd__(self, other: Any) -> Tensor:
        _ops().add_(self, other)
        return self

    def __neg__(self) -> Tensor:
        return _ops().negate(self)

    def __invert__(self) -> Tensor:
        return _ops().logical_not(self)

    def __getitem__(self, key: Any) -> Tensor:
        """Integers and slices pick, integer tensors gather along axis 0, bool tensors mask.

        `t[mask]` is `where(mask, t, 0)`, of the shape that both broadcast to. In place of a
        tensor a numpy array, a torch tensor or a list may stand.

        Raises:
            TypeError: for other keys.
            IndexError: for an integer out of range, or more keys than dimensions.
        """
        from popxl.ops.indexing import getitem

        return getitem(self, key)

    def __len__(self) -> int:
        """The size of the first dimension; `if tensor:` asks whether it is above 0.

        Raises:
            ValueError: for a scalar.
        """
        if not self.shape:
            raise ValueError(f"{self.name} is a scalar and has no length")
        return self.shape[0]

    # A tensor has a length, and so a truth (`len(t) > 0`), but its elements are not there to be
    # gone through while the program is built.
    __iter__ = None
    __contains__ = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}[{self.id} {self.dtype} {self.shape}]"


class Variable(Tensor):
    """A tensor of the main graph that keeps its value between runs, one a group of replicas."""

    _data: np.ndarray
    _map: np.memmap | None = None
    _grouping: ReplicaGrouping
    _remote: tuple[RemoteBuffer, int] | None
    _retrieval_mode: str
    _sharding: Sharding | None

    @property
    def _memmap_arr(self) -> np.memmap | None:
        """The memory map it was made from; programs written for the SDK ask for it."""
        return self._map

    @property
    def replica_grouping(self) -> ReplicaGrouping:
        return self._grouping

    @property
    def retrieval_mode(self) -> str:
        """What is read back: "one_per_group" or "all_replicas"."""
        return self._retrieval_mode

    @property
    def shape_on_replica(self) -> tuple[int, ...]:
        return self.shape

    @property
    def shape_on_host(self) -> tuple[int, ...]:
        """`(num_groups, *shape)`, or `shape` where there is one group."""
        groups = self._grouping.num_groups
        return (groups, *self.shape) if groups > 1 else self.shape


class Shard(Tensor):
    """What a replica holds of a replica-sharded variable; writing to it writes the variable."""

    _of: Variable


class Constant(Tensor):
    """A tensor whose value is part of the program, the same on every replica."""

    _data: np.ndarray


TensorLike = Tensor | HostScalarTensor

TensorByRef = NewType("TensorByRef", Tensor)
"""Annotate a parameter with it to have `Ir.create_graph` make the input by reference."""


def graph_input(
    shape: Iterable[int],
    dtype: dtypes.dtype,
    name: str | None = None,
    by_ref: bool = False,
    meta_shape: Iterable[int] | None = None,
) -> Tensor:
    """A new input of the current graph, after those it has.

    Raises:
        RuntimeError: in a main graph, which has no inputs.
    """
    graph = get_current_graph()
    if graph is graph.ir.main_graph:
        raise RuntimeError("the main graph takes no inputs: use a stream or a variable")
    tensor = Tensor._make(
        graph, TensorSpec(shape, dtype, meta_shape or ()), _scoped(name or "input")
    )
    graph._inputs.append(tensor)
    if by_ref:
        graph._by_ref_inputs.add(tensor)
    return tensor


def graph_output(t: Tensor) -> None:
    """Make `t` the next output of the current graph."""
    graph = get_current_graph()
    graph._check_owned(t, "graph_output")
    graph._outputs.append(t)


def constant(
    data: Any,
    dtype: dtypes.dtype | None = None,
    name: str | None = None,
    downcast: bool = True,
    log2_scale: int | None = None,
    nan_on_overflow: bool | None = None,
) -> Constant:
    """A constant of the current graph with the value of `data`."""
    array = to_numpy(data, dtype, downcast, True, log2_scale, nan_on_overflow)
    spec = TensorSpec(array.shape, dtypes.dtype.as_dtype(array.dtype))
    made = Constant._make(get_current_graph(), spec, _scoped(name or "constant"))
    made._data = array
    return made


def variable(
    data: Any,
    dtype: dtypes.dtype | None = None,
    name: str | None = None,
    downcast: bool = True,
    replica_grouping: ReplicaGrouping | None = None,
    retrieval_mode: str | None = None,
    log2_scale: int | None = None,
    nan_on_overflow: bool | None = None,
) -> Variable:
    """A variable with the initial value `data`, which is kept, not copied, where it fits as it is.

    Args:
        data: `(num_groups, *shape)` where the grouping has more than one group, else `shape`. An
            `np.memmap` of mode r+ or w+ is where the host keeps the variable: what the program
            writes is written to the file by `Session.weights_to_host`, so when the session ends.
        replica_grouping: which replicas share a value; all of them where None.
        retrieval_mode: "one_per_group" (default) or "all_replicas", what is read back.

    Raises:
        ValueError: where there is not one entry a group, the current graph is not the main graph,
            or a writable memory map is not of the variable's dtype and in C order.
    """
    given = data, dtype, downcast, log2_scale, nan_on_overflow
    return _make_variable(given, name, replica_grouping, retrieval_mode)


def remote_variable(
    data: Any,
    remote_buffer: RemoteBuffer,
    offset: int = 0,
    dtype: dtypes.dtype | None = None,
    name: str | None = None,
    downcast: bool = True,
    replica_grouping: ReplicaGrouping | None = None,
    retrieval_mode: str | None = "one_per_group",
    log2_scale: int | None = None,
    nan_on_overflow: bool | None = None,
) -> Variable:
    """A variable that lives in slot `offset` of a remote buffer; load it with `ops.remote_load`.

    Raises:
        ValueError: where the offset is outside the buffer, or the data does not fill a slot of it.
    """
    _check_slot(f"remote_variable {name or ''}", remote_buffer, offset)
    given = data, dtype, downcast, log2_scale, nan_on_overflow
    slot = (remote_buffer, int(offset))
    made = _make_variable(given, name, replica_grouping, retrieval_mode, slot)
    _check_fills_slot(made, remote_buffer)
    return made


def _check_slot(what: str, buffer: RemoteBuffer, offset: int) -> None:
    if not 0 <= offset < buffer.entries:
        raise ValueError(f"{what}: offset {offset} is outside {buffer}")
    if buffer._ir is not get_main_graph().ir:
        raise ValueError(f"{what}: {buffer} belongs to another Ir")


def _check_fills_slot(variable: Variable, buffer: RemoteBuffer) -> None:
    """A slot takes any data of its dtype and size: `(1, 1)` may lie in a buffer of `(1,)`."""
    size = math.prod(buffer.tensor_shape)
    if (variable.nelms, variable.dtype) != (size, buffer.tensor_dtype):
        raise ValueError(
            f"variable {variable.name} is {variable.dtype} {variable.shape}, a slot of {buffer} "
            f"holds {size} elements of {buffer.tensor_dtype}"
        )


def _make_variable(
    given: tuple,
    name: str | None,
    grouping: ReplicaGrouping | None,
    retrieval_mode: str | None,
    remote: tuple[RemoteBuffer, int] | None = None,
) -> Variable:
    """Args: the data and its dtype, downcast, log2_scale and nan_on_overflow; the rest."""
    data, dtype, downcast, *overflow = given
    mapped = memory_map(name, data, dtype, grouping)
    array = to_numpy(data, dtype, downcast, False, *overflow)
    graph = get_main_graph()
    if get_current_graph() is not graph:
        raise ValueError(
            f"variable {name or ''}: it must be made in the main graph; "
            f"in graph {get_current_graph().name} use graph_input or constant"
        )
    grouping = grouping or graph.ir.replica_grouping()
    mode = retrieval_mode or "one_per_group"
    if mode not in ("one_per_group", "all_replicas"):
        raise ValueError(f"retrieval_mode {mode!r}: allowed are one_per_group and all_replicas")
    shape = _shape_of_group(name, array, grouping, graph.ir.replication_factor)
    spec = TensorSpec(shape, dtypes.dtype.as_dtype(array.dtype))
    made = Variable._make(graph, spec, _scoped(name or "variable"))
    made._data, made._grouping, made._retrieval_mode, made._remote = array, grouping, mode, remote
    made._sharding, made._map = None, mapped
    return made


def _shape_of_group(
    name: str | None, array: np.ndarray, grouping: ReplicaGrouping, replicas: int
) -> tuple[int, ...]:
    if len(grouping.assignment) != replicas:
        raise ValueError(
            f"variable {name or ''}: its grouping is of {len(grouping.assignment)} replicas, "
            f"the Ir has {replicas}"
        )
    groups = grouping.num_groups
    if groups > 1 and array.shape[:1] != (groups,):
        raise ValueError(
            f"variable {name or ''}: its grouping has {groups} groups, so its data must be of "
            f"shape ({groups}, ...), got {array.shape}"
        )
    return array.shape[1:] if groups > 1 else array.shape


def _scoped(name: str) -> str:
    scope = get_current_context().name_scope
    return f"{scope}/{name}" if scope else name


def _ops() -> Any:
    import popxl.ops

    return popxl.ops

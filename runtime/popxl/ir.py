"""A program: a main graph and the graphs it calls."""

from __future__ import annotations

import inspect
import itertools
import os
import typing
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from popxl.dot import Drawings
from popxl.graph import Declaration, Graph
from popxl.module import Module
from popxl.replica_grouping import ReplicaGrouping
from popxl.session_options import PartOfPopart
from popxl.streams import DeviceToHostStream, HostToDeviceStream
from popxl.tensor import Tensor, TensorByRef, TensorSpec, graph_input, graph_output

if typing.TYPE_CHECKING:
    from popxl.remote_buffer import RemoteBuffer

_ids = itertools.count()


class Ir:
    """PopXL's intermediate representation of one program.

    Args:
        replication: how many replicas run it, or "popdist": `popdist.getNumTotalReplicas()`, one
            a process unless POPDIST_NUM_LOCAL_REPLICAS or `replication_factor` says more.

    Raises:
        ValueError: for a replication below 1 or of another kind.
    """

    def __init__(self, replication: int | typing.Literal["popdist"] = 1):
        import popdist

        self._id = next(_ids)
        self._popdist = replication == "popdist"
        self._instances = popdist.getNumInstances() if self._popdist else 1
        self._num_host_transfers = 1
        self._names: dict[str, int] = {}
        self._taken: set[str] = set()
        self._remote_buffers: list[RemoteBuffer] = []
        self._pb_ir = PartOfPopart(self)
        self._drawings = Drawings(self)
        self._graphs: list[Graph] = []
        self._main_graph = Graph._make(self, "")
        self.replication_factor = (
            popdist.getNumTotalReplicas() if replication == "popdist" else replication
        )

    @property
    def id(self) -> int:
        return self._id

    @property
    def main_graph(self) -> Graph:
        return self._main_graph

    @property
    def replication_factor(self) -> int:
        """Replicas in all processes together."""
        return self._replication_factor

    @replication_factor.setter
    def replication_factor(self, value: int):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"replication must be 'popdist' or an integer from 1, got {value!r}")
        if value % self._instances:
            raise ValueError(
                f"a replication factor of {value} cannot be shared evenly by "
                f"{self._instances} processes"
            )
        self._replication_factor = value
        if self._popdist:
            import popdist

            offset = popdist.getInstanceIndex() * self.instance_replication_factor
            self._pb_ir.getSessionOptions().globalReplicaOffset = offset

    @property
    def instance_replication_factor(self) -> int:
        """Replicas in this process."""
        return self._replication_factor // self._instances

    @property
    def num_host_transfers(self) -> int:
        """Tensors that each stream carries in one run."""
        return self._num_host_transfers

    @num_host_transfers.setter
    def num_host_transfers(self, value: int):
        if value < 1:
            raise ValueError(f"num_host_transfers must be at least 1, got {value}")
        self._num_host_transfers = int(value)

    def replica_grouping(self, stride: int = 1, group_size: int | None = None) -> ReplicaGrouping:
        """Groups of `group_size` replicas that are `stride` apart.

        Without a group size: as many as there are (one group for stride 1).

        Raises:
            ValueError: where stride x group_size does not divide the replication factor.
        """
        return ReplicaGrouping._from_strides(self, stride, group_size)

    def replica_grouping_from_assignments(self, assignment: Iterable[int]) -> ReplicaGrouping:
        """Groups given by the group number of each replica.

        Raises:
            ValueError: where there is not one number a replica.
        """
        return ReplicaGrouping._from_assignments(self, assignment)

    def create_empty_graph(self, name: str | None = None) -> Graph:
        """A graph without inputs, ops and outputs."""
        graph = Graph._make(self, self._unique_name(name or "graph", numbered=True))
        self._graphs.append(graph)
        return graph

    def create_graph(self, fn: Callable | Module, *args: Any, **kwargs: Any) -> Graph:
        """The graph of the ops that `fn(*args, **kwargs)` makes.

        Tensors and TensorSpecs among the arguments (also in a list, tuple, `*args` or `**kwargs`)
        become inputs of the same shape and dtype, by reference where the parameter is annotated
        `TensorByRef`; other arguments are passed on. What `fn` returns becomes the outputs.

        Raises:
            TypeError: where `fn` cannot be called, or a list mixes tensors and other things.
            ValueError: where the arguments do not fit the signature or `fn` returns something
                other than None, a tensor or an iterable of tensors.
        """
        build = fn.build if isinstance(fn, Module) else fn
        if not callable(build):
            raise TypeError(f"create_graph needs a function or a popxl.Module, got {fn!r}")
        signature = inspect.signature(build)
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError as error:
            raise ValueError(f"create_graph({_name_of(fn)}): {error}") from None
        bound.apply_defaults()
        settings = dict(bound.arguments)
        graph = self.create_empty_graph(_name_of(fn))
        with graph:
            by_ref = _parameters_by_ref(build)
            for name, value in bound.arguments.items():
                named = signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD
                bound.arguments[name] = _to_inputs(name, value, name in by_ref, named)
            for output in _outputs_of(fn(*bound.args, **bound.kwargs), _name_of(fn)):
                graph_output(output)
        declared = getattr(build, "__popxl_composite__", None)
        if declared is not None:
            name, version, attributes = declared
            graph._declare(Declaration(name, version, attributes | _no_tensors(settings)))
        return graph

    def get_all_h2d_streams(self) -> set[HostToDeviceStream]:
        """The streams that some op of the program loads from."""
        return {op.stream for op in self._reachable_ops() if op.kind == "host_load"}

    def get_all_d2h_streams(self) -> set[DeviceToHostStream]:
        """The streams that some op of the program stores to."""
        return {op.stream for op in self._reachable_ops() if op.kind == "host_store"}

    def dot_checkpoint(self, check: str, save_dir: Path | str | None = None) -> None:
        """Write the program as it is now to `<check>.dot`, for Graphviz; again to `<check>_1.dot`.

        The environment variable POPART_DOT_CHECKS names the checkpoints that are to be written, as
        in "first:FINAL", or ALL; FINAL is the program that a session is made of. Where neither it
        nor the option `dotChecks` is there, all are.

        Args:
            save_dir: where files of this and later checkpoints go; made where it is missing.
        """
        options = self._pb_ir.getSessionOptions()
        if save_dir is not None:
            Path(save_dir).mkdir(parents=True, exist_ok=True)
            options.logDir = str(save_dir)
        if "POPART_DOT_CHECKS" not in os.environ and not options.dotChecks:
            options.dotChecks = {"ALL"}
        self._drawings.checkpoint(check)

    def _reachable_ops(self) -> Iterable[Any]:
        """The ops of every graph that the main graph calls, each graph once, callees first."""
        return (op for graph in self._reachable_graphs() for op in graph._ops)

    def _reachable_graphs(self) -> list[Graph]:
        order: dict[Graph, None] = {}

        def visit(graph: Graph) -> None:
            for called in graph.called_graphs:
                if called not in order:
                    visit(called)
            order[graph] = None

        visit(self._main_graph)
        return list(order)

    def _add_remote_buffer(self, buffer: RemoteBuffer) -> int:
        self._remote_buffers.append(buffer)
        return len(self._remote_buffers)  # numbers start at 1

    def _unique_name(self, name: str, numbered: bool = False) -> str:
        """`name`, with a number behind it where it is `numbered` or taken."""
        count = self._names.get(name, 0)
        self._names[name] = count + 1
        unique = f"{name}_{count}" if numbered or count else name
        if unique in self._taken:
            return self._unique_name(name, numbered)
        self._taken.add(unique)
        return unique

    def __repr__(self) -> str:
        return f"Ir[{self._id} replicas={self._replication_factor} graphs={len(self._graphs) + 1}]"


def _name_of(fn: Any) -> str:
    name = type(fn).__qualname__ if isinstance(fn, Module) else getattr(fn, "__qualname__", "graph")
    return name.replace(".<locals>", "")


def _parameters_by_ref(build: Callable) -> set[str]:
    """The parameters annotated `TensorByRef`, or a list or tuple of it."""
    try:
        hints = typing.get_type_hints(build)
    except (NameError, TypeError):
        hints = getattr(build, "__annotations__", {})
    return {
        name
        for name, hint in hints.items()
        if hint is TensorByRef
        or TensorByRef in typing.get_args(hint)
        or (isinstance(hint, str) and "TensorByRef" in hint)
    }


def _to_inputs(name: str, value: Any, by_ref: bool, keywords: bool) -> Any:
    """`value` with every Tensor or TensorSpec in it replaced by a new input of the graph.

    Args:
        keywords: whether it is what `**kwargs` collected; other dicts are passed on.
    """
    if isinstance(value, Tensor | TensorSpec):
        return graph_input(value.shape, value.dtype, name, by_ref, value.meta_shape)
    if isinstance(value, list | tuple):
        named = {f"{name}_{i}": item for i, item in enumerate(value)}
    elif isinstance(value, dict) and keywords:
        named = value
    else:
        return value
    if not _all_tensors(name, named.values()):
        return value
    inputs = {key: _to_inputs(key, item, by_ref, False) for key, item in named.items()}
    return inputs if keywords else list(inputs.values())


def _no_tensors(arguments: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in arguments.items() if not isinstance(v, Tensor | TensorSpec)}


def _all_tensors(name: str, values: Iterable[Any]) -> bool:
    kinds = {isinstance(item, Tensor | TensorSpec) for item in values}
    if len(kinds) > 1:
        raise TypeError(f"create_graph: argument {name} mixes tensors with other things")
    return kinds == {True}


def _outputs_of(returned: Any, name: str) -> list[Tensor]:
    if returned is None:
        return []
    if isinstance(returned, Tensor):
        return [returned]
    outputs = list(returned) if isinstance(returned, Iterable) else [returned]
    for output in outputs:
        if not isinstance(output, Tensor):
            raise ValueError(
                f"create_graph({name}): it must return None, a tensor or an iterable of tensors, "
                f"got {type(output).__name__}"
            )
    return outputs

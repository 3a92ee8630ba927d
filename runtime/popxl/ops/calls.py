"""Ops that run other graphs: call, repeat, conditional."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from popxl import dtypes
from popxl.context import get_current_graph, get_ir
from popxl.graph import Graph, Op
from popxl.ops._build import emit, need_dtype, tensor_operand
from popxl.tensor import Tensor


class CallSiteInfo:
    """What a call or repeat op connects: tensors of the parent and of the called graph."""

    def __init__(self, subgraph_op: Op):
        self._op = subgraph_op

    @property
    def called_graph(self) -> Graph:
        return self._op.graphs[0]

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """The parent's tensors that go in."""
        return self._op.inputs

    @property
    def outputs(self) -> tuple[Tensor, ...]:
        """The parent's tensors that come out."""
        return self._op.outputs

    # These four raise IndexError where there is no such input or output.

    def graph_to_parent_input_index(self, idx: int) -> int:
        return _within(idx, self._op.inputs, "input")

    def parent_to_graph_input_index(self, idx: int) -> int:
        return _within(idx, self._op.inputs, "input")

    def graph_to_parent_output_index(self, idx: int) -> int:
        return _within(idx, self._op.outputs, "output")

    def parent_to_graph_output_index(self, idx: int) -> int:
        return _within(idx, self._op.outputs, "output")

    def parent_input(self, idx: int) -> Tensor:
        return self._op.inputs[idx]

    def parent_output(self, idx: int) -> Tensor:
        return self._op.outputs[idx]

    def graph_to_parent(self, graph_tensor: Tensor) -> Tensor:
        """The parent's tensor for an input or output of the called graph.

        Raises:
            ValueError: where it is neither.
        """
        graph = self.called_graph
        if graph_tensor in graph._inputs:
            return self.parent_input(
                self.graph_to_parent_input_index(graph._inputs.index(graph_tensor))
            )
        if graph_tensor in graph._outputs:
            return self.parent_output(
                self.graph_to_parent_output_index(graph._outputs.index(graph_tensor))
            )
        raise ValueError(f"{graph_tensor.name} is neither input nor output of graph {graph.name}")

    def parent_to_graph(self, parent_tensor: Tensor) -> Tensor:
        """The called graph's input for a tensor of the parent (the first where it goes in twice).

        Raises:
            ValueError: where it does not go in.
        """
        if parent_tensor not in self._op.inputs:
            raise ValueError(
                f"{parent_tensor.name} is no input of the call of graph {self.called_graph.name}"
            )
        index = self.parent_to_graph_input_index(self._op.inputs.index(parent_tensor))
        return self.called_graph._inputs[index]

    def set_parent_input_modified(
        self, parent_tensor: Tensor, infer_modified_regions: bool = False
    ) -> None:
        """Pass this input by reference at this call: what the graph writes reaches the parent.

        Raises:
            ValueError: where the tensor does not go in.
        """
        tensor_operand("set_parent_input_modified", parent_tensor)
        if parent_tensor not in self._op.inputs:
            raise ValueError(f"{parent_tensor.name} is no input of this {self._op.kind}")
        index = self._op.inputs.index(parent_tensor)
        self._op.modifies = tuple(sorted({*self._op.modifies, index}))


def _within(idx: int, things: Sequence[Tensor], what: str) -> int:
    if not 0 <= idx < len(things):
        raise IndexError(f"there is no {what} {idx}: there are {len(things)}")
    return idx


class ConditionalSiteInfo(CallSiteInfo):
    """What a conditional op connects; its inputs are the condition, then each branch's."""

    def _start(self, then_branch: bool) -> int:
        return 1 if then_branch else 1 + len(self._op.graphs[0]._inputs)

    @property
    def called_graph(self) -> tuple[Graph, ...]:  # type: ignore[override]
        """The graph of the then branch and that of the else branch."""
        return self._op.graphs

    def is_parent_index_in_then_branch(self, idx: int) -> bool:
        """Whether the parent's input `idx` goes to the then branch.

        Raises:
            ValueError: for index 0, the condition.
            IndexError: where there is no such input.
        """
        _within(idx, self._op.inputs, "input")
        if idx == 0:
            raise ValueError("input 0 of a conditional is its condition, of neither branch")
        return idx < self._start(False)

    def graph_to_parent_input_index(self, idx: int, then_branch: bool = True) -> int:
        branch = self._op.graphs[0 if then_branch else 1]
        return self._start(then_branch) + _within(idx, branch._inputs, "input")

    def parent_to_graph_input_index(self, idx: int) -> int:
        return idx - self._start(self.is_parent_index_in_then_branch(idx))

    def graph_to_parent_output_index(self, idx: int, then_branch: bool = True) -> int:
        return _within(idx, self._op.outputs, "output")

    def parent_to_graph_output_index(self, idx: int, then_branch: bool = True) -> int:
        return _within(idx, self._op.outputs, "output")

    def graph_to_parent(self, graph_tensor: Tensor) -> Tensor:
        """The parent's tensor for an input or output of either branch.

        Raises:
            ValueError: where it is neither.
        """
        for graph, then_branch in zip(self._op.graphs, (True, False), strict=True):
            if graph_tensor in graph._inputs:
                index = graph._inputs.index(graph_tensor)
                return self.parent_input(self.graph_to_parent_input_index(index, then_branch))
            if graph_tensor in graph._outputs:
                return self.parent_output(graph._outputs.index(graph_tensor))
        raise ValueError(f"{graph_tensor.name} is neither input nor output of a branch")

    def parent_to_graph(self, parent_tensor: Tensor) -> Tensor:
        """The input of the branch that a tensor of the parent goes to.

        Raises:
            ValueError: where it is the condition or does not go in.
        """
        if parent_tensor not in self._op.inputs:
            raise ValueError(f"{parent_tensor.name} is no input of this conditional")
        index = self._op.inputs.index(parent_tensor)
        graph = self._op.graphs[0 if self.is_parent_index_in_then_branch(index) else 1]
        return graph._inputs[self.parent_to_graph_input_index(index)]

    def set_parent_input_modified(
        self, parent_tensor: Tensor, infer_modified_regions: bool = True
    ) -> None:
        super().set_parent_input_modified(parent_tensor, infer_modified_regions)


def call(graph: Graph, *inputs: Any, inputs_dict: Mapping[Tensor, Any] | None = None) -> tuple:
    """Run `graph`; returns its outputs.

    Args:
        inputs: tensors, numbers or lists of them, by position.
        inputs_dict: further inputs, from the graph's input tensor to the caller's.

    Raises:
        ValueError: for missing, doubled or too many inputs, or tensors of another graph.
        TypeError: where an input differs in dtype from the graph's.
    """
    return call_with_info(graph, *inputs, inputs_dict=inputs_dict).outputs


def call_with_info(
    graph: Graph,
    *inputs: Any,
    inputs_dict: Mapping[Tensor, Any] | None = None,
    check_inputs: bool = True,
) -> CallSiteInfo:
    """`call` that returns what it connected."""
    _check_graph("call", graph)
    return _emit_call("call", graph, inputs, inputs_dict)


def repeat(
    graph: Graph,
    repeat_count: int,
    *inputs: Any,
    inputs_dict: Mapping[Tensor, Any] | None = None,
) -> tuple[Tensor, ...]:
    """Run `graph` `repeat_count` times, its N outputs becoming its first N inputs each time.

    Raises:
        ValueError: for a negative count, or an output that does not fit the input it feeds.
    """
    return repeat_with_info(graph, repeat_count, *inputs, inputs_dict=inputs_dict).outputs


def repeat_with_info(
    graph: Graph,
    repeat_count: int,
    *inputs: Any,
    inputs_dict: Mapping[Tensor, Any] | None = None,
    check_inputs: bool = True,
) -> CallSiteInfo:
    """`repeat` that returns what it connected."""
    _check_graph("repeat", graph)
    if repeat_count < 0:
        raise ValueError(
            f"repeat of graph {graph.name}: the count must be at least 0, got {repeat_count}"
        )
    if len(graph._outputs) > len(graph._inputs):
        raise ValueError(
            f"repeat: graph {graph.name} has {len(graph._outputs)} outputs and only "
            f"{len(graph._inputs)} inputs for them to feed"
        )
    for fed, output in zip(graph._inputs, graph._outputs, strict=False):
        if fed.spec.to_tuple()[:2] != output.spec.to_tuple()[:2]:
            raise ValueError(
                f"repeat: output {output.name} {output.dtype} {output.shape} of graph "
                f"{graph.name} cannot feed input {fed.name} {fed.dtype} {fed.shape}"
            )
    return _emit_call("repeat", graph, inputs, inputs_dict, count=int(repeat_count))


def conditional(
    cond: Tensor,
    then_branch: Graph,
    else_branch: Graph,
    then_inputs: Iterable[Any] | None = None,
    else_inputs: Iterable[Any] | None = None,
    then_inputs_dict: Mapping[Tensor, Any] | None = None,
    else_inputs_dict: Mapping[Tensor, Any] | None = None,
) -> tuple[Tensor, ...]:
    """Run one graph or the other, as `cond` (a bool scalar) says; returns its outputs.

    Raises:
        TypeError: where the condition is not bool.
        ValueError: where it is no scalar, or the branches' outputs differ in shape or dtype.
    """
    given = then_inputs, else_inputs, then_inputs_dict, else_inputs_dict
    return conditional_with_info(cond, then_branch, else_branch, *given).outputs


def conditional_with_info(
    cond: Tensor,
    then_branch: Graph,
    else_branch: Graph,
    then_inputs: Iterable[Any] | None = None,
    else_inputs: Iterable[Any] | None = None,
    then_inputs_dict: Mapping[Tensor, Any] | None = None,
    else_inputs_dict: Mapping[Tensor, Any] | None = None,
    check_inputs: bool = True,
) -> ConditionalSiteInfo:
    """`conditional` that returns what it connected."""
    _check_graph("conditional", then_branch)
    _check_graph("conditional", else_branch)
    need_dtype("conditional", tensor_operand("conditional", cond), "condition", dtypes.bool)
    if cond.nelms != 1:
        raise ValueError(
            f"conditional: the condition must be a scalar, {cond.name} is {cond.shape}"
        )
    specs = [[t.spec.to_tuple()[:2] for t in g._outputs] for g in (then_branch, else_branch)]
    if specs[0] != specs[1]:
        raise ValueError(
            f"conditional: outputs of {then_branch.name} {specs[0]} and of {else_branch.name} "
            f"{specs[1]} differ"
        )
    then_given = _connect("conditional", then_branch, tuple(then_inputs or ()), then_inputs_dict)
    else_given = _connect("conditional", else_branch, tuple(else_inputs or ()), else_inputs_dict)
    start = 1 + len(then_given)
    modifies = [1 + i for i in _by_ref(then_branch)] + [start + i for i in _by_ref(else_branch)]
    emit(
        "conditional",
        [cond, *then_given, *else_given],
        [t.spec for t in then_branch._outputs],
        graphs=(then_branch, else_branch),
        modifies=tuple(modifies),
    )
    return ConditionalSiteInfo(get_current_graph()._ops[-1])


def _emit_call(
    kind: str,
    graph: Graph,
    inputs: tuple,
    inputs_dict: Mapping[Tensor, Any] | None,
    **attributes: Any,
) -> CallSiteInfo:
    given, specs = _connect(kind, graph, inputs, inputs_dict), [t.spec for t in graph._outputs]
    name, by_ref = f"{graph.name}.out", _by_ref(graph)
    emit(kind, given, specs, name=name, graphs=(graph,), modifies=by_ref, **attributes)
    return CallSiteInfo(get_current_graph()._ops[-1])


def _by_ref(graph: Graph) -> tuple[int, ...]:
    return tuple(i for i, t in enumerate(graph._inputs) if t in graph._by_ref_inputs)


def _check_graph(kind: str, graph: Graph) -> None:
    if not isinstance(graph, Graph):
        raise TypeError(f"{kind}: expected a graph, got {type(graph).__name__} {graph!r}")
    if graph.ir is not get_ir():
        raise ValueError(f"{kind} of graph {graph.name}: it belongs to another Ir")
    if graph in (get_current_graph(), graph.main_graph):
        raise ValueError(f"{kind}: a graph cannot call itself or the main graph, got {graph!r}")


def _connect(
    kind: str, graph: Graph, inputs: tuple, inputs_dict: Mapping[Tensor, Any] | None
) -> list[Tensor]:
    """The caller's tensor for each input of `graph`, checked."""
    where = f"{kind} of graph {graph.name}"
    positional = _flat(inputs)
    if len(positional) > len(graph._inputs):
        raise ValueError(f"{where}: {len(positional)} inputs given, it has {len(graph._inputs)}")
    given: dict[Tensor, Any] = dict(zip(graph._inputs, positional, strict=False))
    for target, value in (inputs_dict or {}).items():
        if target not in graph._inputs:
            raise ValueError(f"{where}: {getattr(target, 'name', target)!r} is not an input of it")
        if target in given:
            raise ValueError(f"{where}: input {target.name} is given twice")
        given[target] = value
    missing = [t.name for t in graph._inputs if t not in given]
    if missing:
        raise ValueError(f"{where}: no value for input {', '.join(missing)}")
    return [_fitting(where, target, given[target]) for target in graph._inputs]


def _flat(inputs: Iterable[Any]) -> list[Any]:
    flat: list[Any] = []
    for item in inputs:
        several = isinstance(item, Iterable) and not isinstance(item, Tensor | str)
        flat.extend(item if several else [item])
    return flat


def _fitting(where: str, target: Tensor, value: Any) -> Tensor:
    tensor = target._as_tensor(value)
    if tensor.shape != target.shape:
        raise ValueError(
            f"{where}: input {target.name} is of shape {target.shape}, "
            f"{tensor.name} of {tensor.shape}"
        )
    if tensor.dtype != target.dtype:
        raise TypeError(
            f"{where}: input {target.name} is {target.dtype}, {tensor.name} is {tensor.dtype}"
        )
    return tensor

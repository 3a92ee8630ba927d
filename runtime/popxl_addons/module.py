"""Modules: layers that make a graph and the factories of its variables."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Self

import popxl
from popxl_shared.absent import GRADIENTS

from .data_source import DataIter
from .graph import BoundGraph, GraphWithNamedArgs
from .graph_cache import call_key
from .module_call import ModuleCall
from .named_tensors import NamedTensors
from .variable_factory import (
    NamedVariableFactories,
    VariableFactory,
    add_replica_sharded_variable_input,
    add_variable_input,
)

GraphLike = popxl.Graph | GraphWithNamedArgs | BoundGraph


@dataclass
class _Built:
    """What one module, without its sub-modules, has added to the graph being built."""

    factories: NamedVariableFactories = field(default_factory=NamedVariableFactories)
    inputs: NamedTensors = field(default_factory=NamedTensors)

    def add(self, name: str, factory: Any, inputs: Any, overwrite: bool) -> None:
        self.factories.insert(name, factory, overwrite)
        self.inputs.insert(name, inputs, overwrite)


class Aux(dict[str, Any]):
    """What `build` keeps for `build_grad`: written in programs that run forward, never read."""

    def __getitem__(self, name: str) -> Any:
        raise KeyError(f"aux[{name!r}] can only be read in build_grad: {GRADIENTS}")


class Module(popxl.Module):
    """A layer. Subclass it and write `build`, which adds variables with `add_variable_input`.

    A module that is an attribute of another is its sub-module: called in the other's `build` it
    adds to the same graph, and its variables are named `attribute.variable`.
    """

    _name_scope: str | None = None  # also of a module that does not call `super().__init__()`

    def __init__(self, cache: bool = False, grad_inlining_error: str = "error"):
        """
        Args:
            cache: `create_graph` gives the graph it made before for arguments like these; not for
                a module that writes its own gradient graph (`build_grad`).
            grad_inlining_error: of gradient graphs ("error", "warning" or "none"); no effect.

        Raises:
            ValueError: for another `grad_inlining_error`, or a `cache` with `build_grad`.
        """
        if grad_inlining_error not in ("error", "warning", "none"):
            raise ValueError(
                f"grad_inlining_error is 'error', 'warning' or 'none', got {grad_inlining_error!r}"
            )
        if cache and hasattr(self, "build_grad"):
            raise ValueError(
                f"{type(self).__name__} has a build_grad, so its graphs cannot be cached: "
                "leave cache=False"
            )
        self.aux = Aux()
        self._children: dict[str, Module] = {}
        self._built = _Built()
        self._sub_modules: list[Module] = []
        self._graphs: dict[Hashable, tuple[NamedVariableFactories, GraphWithNamedArgs]] = {}
        self._caches = cache

    def create_graph(
        self, *args: Any, **kwargs: Any
    ) -> tuple[NamedVariableFactories, GraphWithNamedArgs]:
        """A graph of this module, and the factories of the variables that it takes.

        Args:
            args, kwargs: those of `build`; tensors and TensorSpecs become inputs of the graph.
        """
        if not self._caches:
            return self._create_graph(*args, **kwargs)
        key = (popxl.gir(), call_key(self.build, *args, **kwargs))
        if key not in self._graphs:
            self._graphs[key] = self._create_graph(*args, **kwargs)
        factories, graph = self._graphs[key]
        return factories.copy(), graph.copy()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Add this module to the current graph; returns what `build` does."""
        scope = popxl.name_scope(self._name_scope) if self._name_scope else nullcontext()
        with scope:
            return super().__call__(*args, **kwargs)

    def add_variable_input(
        self,
        name: str,
        data_iter: DataIter,
        dtype: popxl.dtypes.dtype | None = None,
        by_ref: bool = False,
        replica_grouping: popxl.ReplicaGrouping | None = None,
        overwrite: bool = False,
    ) -> popxl.Tensor:
        """In `build`: an input of the graph for a variable; see `VariableFactory`.

        Raises:
            ValueError: where the name is taken (unless `overwrite`).
        """
        tensor, factory = add_variable_input(name, data_iter, dtype, by_ref, replica_grouping)
        self._built.add(name, factory, tensor, overwrite)
        return tensor

    def add_replica_sharded_variable_input(
        self,
        name: str,
        data_iter: DataIter,
        dtype: popxl.dtypes.dtype | None = None,
        by_ref: bool = False,
        replica_grouping: popxl.ReplicaGrouping | None = None,
        shard_over: int | None = None,
    ) -> popxl.Tensor:
        """In `build`: an input of the graph for a part of a variable.

        The variables that the factory makes are whole: a remote one is loaded in parts, another
        is split with `ops.collectives.replica_sharded_slice` before the graph is called.

        Args:
            shard_over: parts that a value is split into; the size of a replica group where None.

        Raises:
            ValueError: where the name is taken.
        """
        tensor, factory = add_replica_sharded_variable_input(
            name, data_iter, dtype, by_ref, replica_grouping, shard_over
        )
        self._built.add(name, factory, tensor, overwrite=False)
        return tensor

    def add_variable_inputs(
        self, name: str | int, variable_f: NamedVariableFactories, overwrite: bool = False
    ) -> NamedTensors:
        """In `build`: inputs of the graph for all variables of another graph.

        So one graph is called with several sets of variables:

            factories, graph = self.layer.create_graph(x)
            for i in range(layers):
                (x,) = graph.bind(self.add_variable_inputs(i, factories)).call(x)

        Raises:
            ValueError: for a negative number, or a name that is taken (unless `overwrite`).
        """
        inputs = NamedTensors.from_dict(
            {key: factory.create_input(str(name)) for key, factory in variable_f.to_dict().items()}
        )
        if overwrite:
            for key, factory in variable_f.to_dict().items():
                self._built.add(f"{name}.{key}", factory, inputs.get(key), overwrite=True)
        else:
            self._built.add(str(name), variable_f.copy(), inputs.copy(), overwrite=False)
        return inputs

    def add_variable_factory(
        self, variable_f: VariableFactory, name: str | None = None
    ) -> popxl.Tensor:
        """In `build`: an input of the graph for a factory, called `name` or as the factory is.

        Raises:
            ValueError: where neither has a name, or the name is taken.
        """
        name = name or variable_f.name
        if not name:
            raise ValueError("the factory has no name: give one")
        tensor = variable_f.create_input()
        self._built.add(name, variable_f, tensor, overwrite=False)
        return tensor

    def call_module(
        self,
        module: Module,
        name: str | None = None,
        autodiff: str = "auto",
        grads_provided: Iterable[popxl.Tensor] | None = None,
        grads_required: Iterable[popxl.Tensor] | None = None,
    ) -> ModuleCall:
        """In `build`: a function that makes a graph of `module` and calls it.

        Args:
            name: of the module's variables in this one; the name of its class where None.
            autodiff, grads_provided, grads_required: of gradient graphs; only "auto" or "none",
                and None.

        Raises:
            NotImplementedError: where gradients are asked for.
        """
        if autodiff not in ("auto", "none") or grads_provided or grads_required:
            raise NotImplementedError(
                "call_module: gradients are not supported, programs here are forward only"
            )
        return ModuleCall(self, module, name or type(module).__name__)

    @classmethod
    def from_list(cls, sub_modules: Sequence[Module]) -> Self:
        """A module whose sub-modules are called 0, 1, …; it can be indexed and iterated over."""
        self = cls()
        for i, module in enumerate(sub_modules):
            setattr(self, str(i), module)
        self._sub_modules = list(sub_modules)
        return self

    @classmethod
    def from_variable_factories(cls, inputs: Sequence[VariableFactory]) -> Self:
        """A module with an input of the current graph for each factory, called 0, 1, …"""
        self = cls()
        for i, factory in enumerate(inputs):
            setattr(self, str(i), self.add_variable_factory(factory, str(i)))
        return self

    def get(self, key: str | int) -> Any:
        """The attribute called `key`, which may be a number."""
        return getattr(self, str(key))

    def __getitem__(self, item: str | int) -> Any:
        return self.get(item)

    def __iter__(self) -> Iterator[Module]:
        if not self._sub_modules:
            raise TypeError(f"{type(self).__name__} was not made by Module.from_list")
        return iter(self._sub_modules)

    def set_name_scope(self, name: str) -> None:
        """Prefix the names of the tensors that this module makes."""
        self._name_scope = name

    def __setattr__(self, key: str, value: Any) -> None:
        children = self.__dict__.get("_children")
        if isinstance(value, Module):
            if children is None:
                raise RuntimeError(
                    f"{type(self).__name__}.__init__ must call super().__init__() "
                    f"before it sets {key}"
                )
            children[key] = value
            value.set_name_scope(key)
        elif children:
            children.pop(key, None)
        super().__setattr__(key, value)

    def _create_graph(
        self, *args: Any, **kwargs: Any
    ) -> tuple[NamedVariableFactories, GraphWithNamedArgs]:
        with self._fresh():
            graph = popxl.gir().create_graph(self, *args, **kwargs)
            built = self._collect()
        return built.factories, GraphWithNamedArgs(graph, built.inputs, from_module=self)

    @contextmanager
    def _fresh(self) -> Iterator[None]:
        """Nothing built in this module and those below; what was, comes back at the end."""
        before = {module: module._built for module in self._tree()}
        for module in before:
            module._built = _Built()
        try:
            yield
        finally:
            for module in self._tree():
                module._built = before.get(module) or _Built()

    def _collect(self) -> _Built:
        collected = _Built(self._built.factories.copy(), self._built.inputs.copy())
        for name, child in self._children.items():
            below = child._collect()
            collected.factories.update(NamedVariableFactories.from_dict({name: below.factories}))
            collected.inputs.update(NamedTensors.from_dict({name: below.inputs}))
        return collected

    def _tree(self) -> list[Module]:
        modules: dict[Module, None] = {self: None}
        for child in self._children.values():
            modules.update(dict.fromkeys(child._tree()))
        return list(modules)

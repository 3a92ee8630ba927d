"""Layers, names and files on top of PopXL.

It stands on PopXL's public interface alone and computes nothing itself, so it runs on any `popxl`.
"""

from . import array_munging, layers, ops, transforms
from .dot_tree import DotTree
from .graph import BoundGraph, GraphWithNamedArgs
from .graph_cache import GraphCache
from .module import Module
from .named_replica_grouping import NamedReplicaGrouping
from .named_tensors import NamedTensorData, NamedTensors
from .ops.cross_entropy import cross_entropy, cross_entropy_with_grad
from .ops.streams import host_load, host_store
from .patterns import apply_pre_alias_patterns
from .remote import (
    NamedRemoteBuffers,
    create_remote_buffer,
    load_remote,
    load_remote_graph,
    named_buffers,
    named_variable_buffers,
    store_remote,
    store_remote_graph,
)
from .seed_variable import seed_variable
from .streams import InputStreams, OutputStreams
from .task_session import TaskSession
from .transforms import (
    set_available_memory_proportion_by_ipu,
    set_graph_available_memory_proportion_by_ipu,
)
from .utils import OrderedDict, WeightsDict, timer
from .variable_factory import (
    NamedVariableFactories,
    VariableFactory,
    add_variable_input,
)

__all__ = [
    "BoundGraph",
    "DotTree",
    "GraphCache",
    "GraphWithNamedArgs",
    "InputStreams",
    "Module",
    "NamedRemoteBuffers",
    "NamedReplicaGrouping",
    "NamedTensorData",
    "NamedTensors",
    "NamedVariableFactories",
    "OrderedDict",
    "OutputStreams",
    "TaskSession",
    "VariableFactory",
    "WeightsDict",
    "add_variable_input",
    "apply_pre_alias_patterns",
    "array_munging",
    "create_remote_buffer",
    "cross_entropy",
    "cross_entropy_with_grad",
    "host_load",
    "host_store",
    "layers",
    "load_remote",
    "load_remote_graph",
    "named_buffers",
    "named_variable_buffers",
    "ops",
    "seed_variable",
    "set_available_memory_proportion_by_ipu",
    "set_graph_available_memory_proportion_by_ipu",
    "store_remote",
    "store_remote_graph",
    "timer",
    "transforms",
]

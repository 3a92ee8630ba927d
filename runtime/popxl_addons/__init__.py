"""Layers, names and files on top of PopXL.

It stands on PopXL's public interface alone and computes nothing itself, so it runs on any `popxl`:
all but the counts of operations, and the names of what this runtime does not do.
"""

from __future__ import annotations

import subprocess
from typing import Any

from . import array_munging, layers, ops, transforms
from .debugging import print_tensor, print_text
from .dot_tree import DotTree
from .graph import BoundGraph, GraphWithNamedArgs
from .graph_cache import GraphCache
from .module import Module
from .named_replica_grouping import NamedReplicaGrouping
from .named_tensors import NamedTensorData, NamedTensors
from .ops.cross_entropy import cross_entropy, cross_entropy_with_grad
from .ops.streams import host_load, host_store
from .patterns import apply_pre_alias_patterns
from .performance_utils import (
    evaluate_FLOPs,
    evaluate_ir_FLOPs,
    format_flops_scientific,
    print_FLOPs,
    total_FLOPs,
)
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
from .route_tensor import is_subgraph, route_tensor_into_graph
from .seed_variable import seed_variable
from .streams import InputStreams, OutputStreams
from .task_session import TaskSession
from .transforms import (
    RemoteHandle,
    autodiff,
    autodiff_with_accumulation,
    batch_serial_buffer,
    batch_serialise,
    batch_serialise_fwd_and_grad,
    pipelined_execution,
    recompute_graph,
    set_available_memory_proportion_by_ipu,
    set_graph_available_memory_proportion_by_ipu,
)
from .utils import OrderedDict, WeightsDict, timer
from .variable_factory import (
    NamedVariableFactories,
    VariableFactory,
    add_replica_sharded_variable_input,
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
    "RemoteHandle",
    "TaskSession",
    "VariableFactory",
    "WeightsDict",
    "add_replica_sharded_variable_input",
    "add_variable_input",
    "apply_pre_alias_patterns",
    "array_munging",
    "autodiff",
    "autodiff_with_accumulation",
    "batch_serial_buffer",
    "batch_serialise",
    "batch_serialise_fwd_and_grad",
    "create_remote_buffer",
    "cross_entropy",
    "cross_entropy_with_grad",
    "evaluate_FLOPs",
    "evaluate_ir_FLOPs",
    "format_flops_scientific",
    "host_load",
    "host_store",
    "is_subgraph",
    "layers",
    "load_remote",
    "load_remote_graph",
    "named_buffers",
    "named_variable_buffers",
    "ops",
    "seed_variable",
    "pipelined_execution",
    "print_FLOPs",
    "print_tensor",
    "print_text",
    "recompute_graph",
    "route_tensor_into_graph",
    "set_available_memory_proportion_by_ipu",
    "set_graph_available_memory_proportion_by_ipu",
    "store_remote",
    "store_remote_graph",
    "timer",
    "total_FLOPs",
    "transforms",
]


def __getattr__(name: str) -> Any:
    """GIT_COMMIT: the commit of the repository that the program is started in, None without one."""
    if name != "GIT_COMMIT":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    command = ["git", "rev-parse", "--short=7", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, check=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None

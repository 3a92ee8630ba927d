"""PopXL on PyTorch: build a program for replicas of a device, run it on any machine."""

# ruff: noqa: F401 - imported to be part of the interface

from popxl import dtypes, errors, ops, random_seed, transforms, utils
from popxl.context import (
    gcg,
    get_current_graph,
    get_ir,
    get_main_graph,
    gir,
    gmg,
    in_sequence,
    io_tiles,
    ipu,
    name_scope,
)
from popxl.dtypes import (
    bfloat16,
    bool,
    double,
    dtype,
    float,
    float8_143,
    float8_152,
    float16,
    float32,
    float64,
    half,
    int8,
    int16,
    int32,
    int64,
    uint8,
    uint16,
    uint32,
    uint64,
)
from popxl.graph import Graph
from popxl.ir import Ir
from popxl.module import Module
from popxl.random_seed import create_seeds
from popxl.remote_buffer import RemoteBuffer, remote_buffer
from popxl.replica_grouping import ReplicaGrouping
from popxl.session import Session
from popxl.sharding import (
    remote_replica_sharded_variable,
    replica_sharded_buffer,
    replica_sharded_variable,
)
from popxl.streams import DeviceToHostStream, HostToDeviceStream, d2h_stream, h2d_stream
from popxl.tensor import (
    Constant,
    Tensor,
    TensorByRef,
    TensorSpec,
    Variable,
    constant,
    graph_input,
    graph_output,
    remote_variable,
    variable,
)
from popxl.tensorlocation import ReplicatedTensorSharding, TensorLocation, TensorStorage

__all__ = [name for name in dir() if not name.startswith("_")]

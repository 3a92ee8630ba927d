"""The ops of PopXL that a forward-only program uses."""

# ruff: noqa: F401 - imported to be part of the interface

from popxl.ops import collectives, var_updates
from popxl.ops.calls import (
    CallSiteInfo,
    ConditionalSiteInfo,
    call,
    call_with_info,
    conditional,
    conditional_with_info,
    repeat,
    repeat_with_info,
)
from popxl.ops.code import remote_code_load
from popxl.ops.creation import init
from popxl.ops.elementwise import (
    abs,
    add,
    add_,
    cast,
    ceil,
    clip,
    cos,
    div,
    equal,
    exp,
    floor,
    fmod,
    gelu,
    geluerf,
    greater,
    increment_mod,
    increment_mod_,
    isfinite,
    isinf,
    isnan,
    log,
    log2,
    logical_and,
    logical_not,
    logical_or,
    maximum,
    mul,
    negate,
    pow,
    relu,
    scaled_add,
    sign,
    sin,
    sqrt,
    sub,
    swish,
    tanh,
    where,
)
from popxl.ops.gathers import groupedgather, tied_gather
from popxl.ops.host import host_load, host_store, print_tensor
from popxl.ops.in_place import exp_, gelu_, geluerf_, relu_, scaled_add_, swish_
from popxl.ops.indexing import (
    dynamic_slice,
    dynamic_update,
    dynamic_update_,
    gather,
    onehot,
    scatter,
    slice,
    slice_,
)
from popxl.ops.matmul import matmul
from popxl.ops.random import (
    dropout,
    random_normal,
    random_uniform,
    shaped_dropout,
    split_random_seed,
)
from popxl.ops.reductions import (
    argmax,
    argmin,
    cumsum,
    histogram,
    layer_norm,
    logsum,
    logsumexp,
    max,
    mean,
    median,
    min,
    prod,
    softmax,
    sum,
    sumsquare,
    topk,
)
from popxl.ops.remote import remote_load, remote_load_, remote_store
from popxl.ops.scatter_reduce import grouped_scatter_reduce, scatter_reduce
from popxl.ops.shape import (
    concat,
    concat_,
    detach,
    detach_,
    flatten,
    flatten_,
    identity,
    io_tile_copy,
    reshape,
    reshape_,
    split,
    squeeze,
    transpose,
    transpose_,
)

__all__ = [name for name in dir() if not name.startswith("_")]

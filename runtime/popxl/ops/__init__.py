"""The ops of PopXL that a forward-only program uses."""

# ruff: noqa: F401 - imported to be part of the interface

import popxl.ops.call  # the module, before the function takes its name
from popxl.ops import collectives, utils, var_updates
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
from popxl.ops.elementwise import (
    clip as clamp,
)
from popxl.ops.float8 import (
    conv_pow2scaled,
    conv_transpose_pow2scaled,
    matmul_pow2scaled,
    pow2scale_cast_from_fp8,
    pow2scale_cast_to_fp8,
)
from popxl.ops.host import host_load, host_store, print_tensor
from popxl.ops.indexing import (
    dynamic_slice,
    dynamic_update,
    dynamic_update_,
    gather,
    onehot,
    scatter,
    slice,
)
from popxl.ops.ipu_copy import ipu_copy
from popxl.ops.matmul import matmul
from popxl.ops.optimisers import lamb_square
from popxl.ops.reductions import (
    argmax,
    argmin,
    cumsum,
    layer_norm,
    logsumexp,
    max,
    mean,
    min,
    prod,
    softmax,
    sum,
    sumsquare,
    topk,
)
from popxl.ops.remote import remote_load, remote_load_, remote_store
from popxl.ops.shape import (
    concat,
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

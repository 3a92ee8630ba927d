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
from popxl.ops.code import remote_code_load
from popxl.ops.conv import conv, conv_transpose, multi_conv_options
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
    exp_,
    floor,
    fmod,
    gelu,
    gelu_,
    geluerf,
    geluerf_,
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
    relu_,
    scaled_add,
    scaled_add_,
    sign,
    sin,
    sqrt,
    sub,
    swish,
    swish_,
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
from popxl.ops.gathers import groupedgather, tied_gather
from popxl.ops.host import host_load, host_store, print_tensor
from popxl.ops.indexing import (
    dynamic_slice,
    dynamic_update,
    dynamic_update_,
    gather,
    onehot,
    scatter,
    slice,
    slice_,
    subsample,
)
from popxl.ops.interpolate import interpolate
from popxl.ops.ipu_copy import ipu_copy
from popxl.ops.matmul import matmul
from popxl.ops.negative_log_likelihood import nll_loss, nll_loss_with_softmax_grad
from popxl.ops.norms import batch_norm_inference, group_norm, layer_norm
from popxl.ops.optimisers import lamb_square
from popxl.ops.pool import average_pool, max_pool
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
    l1,
    l2,
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
from popxl.ops.roi_align import roi_align
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

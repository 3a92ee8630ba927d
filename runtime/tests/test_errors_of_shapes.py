"""Shapes, axes and settings that do not fit: refused with the tensor's name and its shape."""

from __future__ import annotations

import numpy as np
import popxl
import pytest
from popxl import ops

CASES = {
    "broadcast": (lambda t: ops.add(t.x, t.y), ValueError, r"add: .*x \(2, 3\) and y \(3, 4\)"),
    "where shapes": (lambda t: ops.where(t.flag, t.y, t.y), ValueError, r"where: .*y \(3, 4\)"),
    "add_ grows": (lambda t: ops.add_(t.row, t.x), ValueError, r"add_: .*\(2, 3\).*row .*\(3,\)"),
    "copy": (
        lambda t: ops.var_updates.copy_var_update_(t.x, t.row),
        ValueError,
        r"copy_var_update_: x is \(2, 3\), row is \(3,\)",
    ),
    "scaled_add": (lambda t: ops.scaled_add(t.x, t.x, t.row), ValueError, r"row .*scalar.*\(3,\)"),
    "matmul inner": (
        lambda t: ops.matmul(t.x, t.x),
        ValueError,
        r"matmul: inner sizes differ: x \(2, 3\) and x \(2, 3\)",
    ),
    "matmul scalar": (lambda t: ops.matmul(t.x, t.scalar), ValueError, r"matmul: .*\(\)"),
    "matmul batches": (
        lambda t: ops.matmul(
            ops.init((2, 2, 3), popxl.float32), ops.init((3, 3, 2), popxl.float32)
        ),
        ValueError,
        r"matmul: batches.*\(2, 2, 3\).*\(3, 3, 2\)",
    ),
    "reshape": (lambda t: t.x.reshape((4, 2)), ValueError, r"reshape: x \(2, 3\) has 6.*\(4, 2\)"),
    "reshape unknown": (lambda t: t.x.reshape((-1, 4)), ValueError, r"reshape: x .*\(-1, 4\)"),
    "reshape unknowns": (lambda t: t.x.reshape_((-1, -1)), ValueError, r"reshape_: x .*\(-1, -1\)"),
    "transpose": (
        lambda t: t.x.transpose((0, 0)),
        ValueError,
        r"\(0, 0\) is no order .* x \(2, 3\)",
    ),
    "transpose rank": (lambda t: t.x.transpose((0,)), ValueError, r"\(0,\) is no order .* x"),
    "squeeze": (lambda t: ops.squeeze(t.x, (0,)), ValueError, r"squeeze: axis 0 of x \(2, 3\)"),
    "split": (lambda t: ops.split(t.x, 2, 1), ValueError, "split: axis 1 of size 3 .* in 2"),
    "split sizes": (lambda t: ops.split(t.x, [1, 2]), ValueError, r"\[1, 2\] do not add up to 2"),
    "concat": (lambda t: ops.concat([t.x, t.y]), ValueError, r"concat: .*\(2, 3\), \(3, 4\)"),
    "concat ranks": (lambda t: ops.concat([t.x, t.row]), ValueError, r"concat: .*\(2, 3\), \(3,\)"),
    "concat nothing": (lambda t: ops.concat([]), ValueError, "concat: at least one tensor"),
    "slice lengths": (lambda t: ops.slice(t.x, [0], [1, 2]), ValueError, r"lengths \[1, 2\]"),
    "slice step": (lambda t: ops.slice(t.x, step=0), ValueError, "step along axis 0 of x is 0"),
    "slice axes": (
        lambda t: ops.slice(t.x, [0, 1], axis=[0, -2]),
        ValueError,
        "x name an axis twice",
    ),
    "layer_norm": (
        lambda t: ops.layer_norm(t.y, t.row, t.row),
        ValueError,
        r"layer_norm: weight must be of shape \(4,\), got \(3,\)",
    ),
    "layer_norm scalar": (
        lambda t: ops.layer_norm(t.scalar, t.scalar, t.scalar),
        ValueError,
        r"layer_norm: scalar must be \(batch, channels, \.\.\.\), .*got \(\)",
    ),
    "scatter": (
        lambda t: ops.scatter(t.x, t.index, t.row),
        ValueError,
        r"scatter: indices \(2,\) and values \(3,\).* rank 2 as x \(2, 3\)",
    ),
    "scatter beyond": (
        lambda t: ops.scatter(
            t.x, ops.init((2, 4), popxl.int32), ops.init((2, 4), popxl.float32), axis=0
        ),
        ValueError,
        r"scatter: indices \(2, 4\) are longer than x \(2, 3\) along axis 1",
    ),
    "dynamic_slice": (
        lambda t: ops.dynamic_slice(t.x, t.index, [0], [1], True),
        ValueError,
        r"dynamic_slice: axes \(0,\), sizes \(1,\) and index index \(2,\)",
    ),
    "dynamic_slice nothing": (
        lambda t: ops.dynamic_slice(t.x, ops.init((0,), popxl.int32), [], [], True),
        ValueError,
        "of one length from 1 on",
    ),
    "dynamic_slice size": (
        lambda t: ops.dynamic_slice(t.x, t.index, [0, 1], [1, 4], True),
        ValueError,
        "dynamic_slice: size 4 is outside 1 to 3, axis 1",
    ),
    "dynamic_update": (
        lambda t: ops.dynamic_update_(t.x, t.index, t.row, [0, 1], [1, 2], True),
        ValueError,
        r"dynamic_update_: t_update must be of shape \(1, 2\), row is \(3,\)",
    ),
    "onehot values": (
        lambda t: ops.onehot(t.index, 4, t.row, 0),
        ValueError,
        r"onehot: values must be of shape \(2,\), got \(3,\)",
    ),
    "onehot classes": (lambda t: ops.onehot(t.index, 0, t.x[0, :2], 0), ValueError, "got 0"),
    "onehot variable": (
        lambda t: ops.onehot(t.index, t.index, t.x[0, :2], 0),
        TypeError,
        "onehot: num_classes must be an integer or a constant",
    ),
    "topk": (lambda t: ops.topk(t.x, 4, 1, True, True), ValueError, r"topk: .*1 to 3.*got 4"),
    "diag": (lambda t: t.x.diag(), ValueError, r"diag of x: .*\(2, 3\)"),
    "gather nothing": (
        lambda t: ops.gather(t.empty, t.index),
        ValueError,
        r"axis 0 of empty \(0, 3\)",
    ),
    "max of nothing": (
        lambda t: ops.max(t.empty),
        ValueError,
        r"max: axis 0 of empty .* no elements",
    ),
    "argmax of nothing": (lambda t: ops.argmax(t.empty), ValueError, "argmax: axis 0 of empty"),
    "clip": (lambda t: ops.clip(t.x, 2, 1), ValueError, "clip: min 2 is above max 1"),
    "modulus": (lambda t: ops.increment_mod(t.x, 1, 0), ValueError, "modulus must not be 0"),
    "shape": (
        lambda t: ops.init((2, -1), popxl.int32),
        ValueError,
        r"shape \(2, -1\): .* at least 0",
    ),
    "shape of floats": (lambda t: ops.init((2.5,), popxl.int32), TypeError, r"got \(2.5,\)"),
    "shape of one": (lambda t: ops.init(3, popxl.int32), TypeError, "tuple of integers, got 3"),
    "init type": (lambda t: ops.init((2,), popxl.int32, init_type="one"), ValueError, "got 'one'"),
    "print format": (lambda t: ops.print_tensor(t.x, float_format="hex"), ValueError, "'hex'"),
    "index": (lambda t: t.x[2], IndexError, r"index 2 is outside axis 0 of x \(2, 3\)"),
    "indices": (lambda t: t.x[0, 0, 0], IndexError, r"x of shape \(2, 3\) takes 2 indices, got 3"),
    "index bool": (lambda t: t.x[True], TypeError, r"x\[True\]: an index must be"),
    "index none": (lambda t: t.x[None], TypeError, r"x\[None\]"),
    "index array": (lambda t: t.x[0, np.array([1])], TypeError, "an index must be"),
    "len": (lambda t: len(t.scalar), ValueError, "scalar is a scalar"),
    "iterate": (lambda t: list(t.x), TypeError, "not iterable"),
    "truth": (lambda t: bool(t.scalar), ValueError, "scalar is a scalar and has no length"),
}


@pytest.mark.parametrize("case", CASES)
def test_refused_while_the_program_is_built(case, things):
    build, error, message = CASES[case]
    with pytest.raises(error, match=message):
        build(things)

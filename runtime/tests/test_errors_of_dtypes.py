"""Dtypes that do not fit, and what is no tensor: refused with what was given and what fits."""

from __future__ import annotations

import popxl
import pytest
from popxl import ops

UNARY_FLOAT = ["cos", "sin", "exp", "log", "sqrt", "tanh", "gelu", "geluerf", "swish"]
UNARY_NUMBER = ["abs", "negate", "sign", "ceil", "floor", "relu", "clip"]
BINARY = ["add", "sub", "mul", "div", "fmod", "pow", "greater", "maximum", "add_"]
REDUCTIONS = ["sum", "mean", "max", "min", "prod", "sumsquare", "logsumexp"]
AXIS = [*REDUCTIONS, "argmax", "argmin", "cumsum", "softmax"]

CASES = {
    "matmul dtypes": (lambda t: t.x @ t.half.T, TypeError, "matmul: .*x is float32.*is float16"),
    "where dtypes": (lambda t: ops.where(t.flag, t.x, t.half), TypeError, "half is float16"),
    "copy dtypes": (
        lambda t: ops.var_updates.copy_var_update_(t.x, t.half),
        TypeError,
        "copy_var_update_: .*x is float32, half is float16",
    ),
    "concat dtypes": (lambda t: ops.concat([t.x, t.half]), TypeError, "concat: .*half is float16"),
    "gather index": (lambda t: ops.gather(t.x, t.row), TypeError, "indices row must hold integers"),
    "scatter index": (lambda t: ops.scatter(t.x, t.x, t.x), TypeError, "scatter: indices x must"),
    "dynamic index": (
        lambda t: ops.dynamic_slice(t.x, t.row, [0], [1], True),
        TypeError,
        "dynamic_slice: index row must hold integers, got float32",
    ),
    "update dtype": (
        lambda t: ops.dynamic_update(t.x, t.index, t.half, [0, 1], [2, 3], True),
        TypeError,
        "dynamic_update: .*half is float16",
    ),
    "onehot index": (lambda t: ops.onehot(t.x, 2, t.row, 0), TypeError, "onehot: t x must hold"),
    "scaled_add dtype": (
        lambda t: ops.scaled_add(t.x, t.x, t.half[0, 0]),
        TypeError,
        "scaled_add: ",
    ),
    "layer_norm dtype": (
        lambda t: ops.layer_norm(t.half, t.row, t.row),
        TypeError,
        "layer_norm: .*half is float16, row is float32",
    ),
    "layer_norm integers": (
        lambda t: ops.layer_norm(t.index, t.index, t.index),
        TypeError,
        "layer_norm: index must hold floats, got int32",
    ),
    "layer_norm none": (lambda t: ops.layer_norm(t.x, t.row, None), TypeError, "got NoneType None"),
    "softmax integers": (lambda t: ops.softmax(t.index, 0), TypeError, "softmax: index .* int32"),
    "logsumexp integers": (
        lambda t: ops.logsumexp(t.index),
        TypeError,
        "logsumexp: index .* int32",
    ),
    "matmul bools": (lambda t: t.flag @ t.flag.T, TypeError, "matmul: flag must hold numbers"),
    "cumsum bools": (lambda t: ops.cumsum(t.flag), TypeError, "cumsum: flag must hold numbers"),
    "topk bools": (lambda t: ops.topk(t.flag, 1, 0, True, True), TypeError, "topk: flag must hold"),
    "argmax bools": (lambda t: ops.argmax(t.flag), TypeError, "argmax: flag must hold numbers"),
    "increment": (
        lambda t: ops.increment_mod_(t.x, t.x, 3),
        TypeError,
        "increment must be a number",
    ),
    "increment bools": (lambda t: ops.increment_mod(t.flag, 1, 3), TypeError, "flag must hold"),
    "cast": (
        lambda t: ops.cast(t.x, "float7"),
        ValueError,
        "'float7' is not .* known are bool, int8",
    ),
    "no dtype": (lambda t: ops.init((2,), None), ValueError, "None is not an element type"),
    "no tensor": (lambda t: ops.add(1, 2), TypeError, "add: at least one operand must be a tensor"),
    "no numbers": (lambda t: ops.add(t.x, "one"), (TypeError, ValueError), "one|str"),
    "ragged": (lambda t: popxl.constant([[1], [2, 3]]), ValueError, "inhomogeneous"),
    "objects": (
        lambda t: popxl.constant(object()),
        TypeError,
        "a tensor holds numbers, got object",
    ),
    "no elements": (lambda t: t.x + [], ValueError, r"\[\] has no elements"),
}


@pytest.mark.parametrize("case", CASES)
def test_refused_while_the_program_is_built(case, things):
    build, error, message = CASES[case]
    with pytest.raises(error, match=message):
        build(things)


@pytest.mark.parametrize("name", UNARY_FLOAT)
def test_functions_of_floats_refuse_integers(name, things):
    with pytest.raises(TypeError, match=f"{name}: index must hold floats, got int32"):
        getattr(ops, name)(things.index)


@pytest.mark.parametrize("name", [*UNARY_NUMBER, *REDUCTIONS])
def test_arithmetic_refuses_bools(name, things):
    with pytest.raises(TypeError, match=f"{name}: flag must hold (numbers|floats), got bool"):
        getattr(ops, name)(things.flag)


@pytest.mark.parametrize("name", BINARY)
def test_dtypes_are_not_mixed_and_bools_do_not_add(name, things):
    with pytest.raises(TypeError, match=f"{name}: .*x is float32, half is float16; use ops.cast"):
        getattr(ops, name)(things.x, things.half)
    with pytest.raises(TypeError, match=f"{name}: flag must hold numbers, got bool"):
        getattr(ops, name)(things.flag, things.flag)


@pytest.mark.parametrize("name", AXIS)
def test_axes_that_are_not_there(name, things):
    with pytest.raises(ValueError, match=rf"{name}: axis 2 is outside x of shape \(2, 3\)"):
        getattr(ops, name)(things.x, 2)


@pytest.mark.parametrize("name", REDUCTIONS)
def test_axes_named_twice(name, things):
    with pytest.raises(ValueError, match=rf"{name}: axes \[0, -2\] of x name an axis twice"):
        getattr(ops, name)(things.x, [0, -2])


@pytest.mark.parametrize(
    "name",
    [*UNARY_FLOAT, *UNARY_NUMBER, *AXIS, "isnan", "logical_not", "identity", "detach", "flatten"],
)
def test_what_is_no_tensor_is_named(name):
    with popxl.Ir().main_graph, pytest.raises(TypeError, match="expected a tensor, got int 3"):
        getattr(ops, name)(3, **({"axis": 0} if name == "softmax" else {}))

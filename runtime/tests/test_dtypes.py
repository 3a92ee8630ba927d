"""Element types, host arrays of them, and specs of tensors."""

from __future__ import annotations

import pickle

import ml_dtypes
import numpy as np
import popxl
import pytest
import torch
from popxl import TensorSpec, dtypes
from popxl.utils import to_numpy

NAMES = "bool int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 bfloat16 float32 float64"
DTYPES = [getattr(popxl, name) for name in NAMES.split()]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_dtype_is_found_by_all_its_names(dtype):
    as_dtype = popxl.dtype.as_dtype
    assert popxl.dtype.from_name(dtype.name) is dtype
    for other in (dtype, dtype.name, dtype.as_numpy(), dtype.as_numpy().type, dtype.as_torch()):
        assert as_dtype(other) is dtype
    assert repr(dtype) == dtype.name
    assert pickle.loads(pickle.dumps(dtype)) is dtype


def test_aliases_and_python_types():
    assert popxl.half is popxl.float16
    assert popxl.float is popxl.float32
    assert popxl.double is popxl.float64
    found = [popxl.dtype.as_dtype(t) for t in (bool, int, float, "half", "float", "double")]
    assert found == [
        popxl.bool,
        popxl.int64,
        popxl.float32,
        popxl.float16,
        popxl.float32,
        popxl.float64,
    ]


@pytest.mark.parametrize("wrong", ["float7", None, [], "U5", np.dtype("U5"), str, 3.5])
def test_what_is_no_dtype_is_refused(wrong):
    with pytest.raises(ValueError, match="element type"):
        popxl.dtype.as_dtype(wrong)


def test_kinds_of_dtypes():
    assert {d.name for d in DTYPES if d.is_floating_point} == {
        "float16",
        "bfloat16",
        "float32",
        "float64",
    }
    assert all(d.is_int == (d.as_numpy().kind in "iu") for d in DTYPES)
    assert not any(d.is_signed for d in DTYPES if d.as_numpy().kind in "ub")
    assert all(d.is_signed for d in DTYPES if d.is_floating_point or d.as_numpy().kind == "i")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_numpy_and_torch_agree_on_the_size(dtype):
    assert dtype.as_numpy().itemsize == torch.empty(0, dtype=dtype.as_torch()).element_size()


# --- to_numpy ---


@pytest.mark.parametrize("dtype", [d for d in DTYPES if "64" not in d.name], ids=str)
def test_arrays_of_torch_and_numpy_are_shared_or_copied(dtype):
    tensor = torch.zeros(3, dtype=dtype.as_torch())
    array = np.zeros(3, dtype.as_numpy())
    for given in (tensor, array):
        shared, own = to_numpy(given, copy=False), to_numpy(given)
        assert shared.dtype == own.dtype == dtype.as_numpy()
        shared[0] = 1
        np.testing.assert_array_equal(np.asarray(to_numpy(given), float), [1, 0, 0])
        np.testing.assert_array_equal(own.astype(float), [0, 0, 0])


def test_elements_of_64_bits_are_narrowed_unless_told_otherwise():
    for wide, narrow in [("int64", "int32"), ("uint64", "uint32"), ("float64", "float32")]:
        array = np.ones(2, wide)
        assert to_numpy(array).dtype == narrow
        assert to_numpy(array, downcast=False).dtype == wide
    assert to_numpy([1, 2]).dtype == np.int32
    assert to_numpy(1.5).dtype == np.float32
    assert to_numpy([1, 2], popxl.float16).dtype == np.float16
    assert to_numpy(True).dtype == np.bool_


def test_bfloat16_keeps_its_bits():
    tensor = torch.tensor([1.0, -2.5, 3e38], dtype=torch.bfloat16)
    array = to_numpy(tensor)
    assert array.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(array.astype(np.float32), tensor.float().numpy())


def test_a_tensor_with_gradient_is_an_array_too():
    np.testing.assert_array_equal(to_numpy(torch.ones(2, requires_grad=True)), [1, 1])


def test_constants_and_variables_take_the_dtype_asked_for():
    with popxl.Ir().main_graph:
        assert popxl.constant([1, 2]).dtype == popxl.int32
        assert popxl.constant(np.zeros(2)).dtype == popxl.float32
        assert popxl.constant(1, popxl.bfloat16).dtype == popxl.bfloat16
        assert popxl.variable([1.5], dtypes.float16).dtype == popxl.float16
        assert popxl.constant(2**40, downcast=False).dtype == popxl.int64


# --- TensorSpec ---


def test_a_spec_is_a_mapping_and_a_tuple():
    spec = TensorSpec([2, np.int64(3)], "float16", (12,))
    assert spec.shape == (2, 3)
    assert spec.dtype is popxl.float16
    assert spec.meta_shape == (12,)
    assert spec.to_tuple() == ((2, 3), popxl.float16, (12,))
    assert dict(spec) == dict(**spec) == spec.to_dict()
    assert spec["dtype"] is popxl.float16
    assert len(spec) == 3


def test_equal_specs_are_one_key():
    one, same = TensorSpec((2,), popxl.int8), TensorSpec((2,), popxl.int8)
    others = [
        TensorSpec((3,), popxl.int8),
        TensorSpec((2,), popxl.int16),
        TensorSpec((2,), popxl.int8, (4,)),
    ]
    assert one == same
    assert len({one, same}) == 1
    assert all(one != other for other in others)
    assert TensorSpec((), popxl.int8).meta_shape == ()

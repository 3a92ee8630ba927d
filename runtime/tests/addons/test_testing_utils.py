"""What programs' own tests use: a module run on host arrays, ops counted, printing switched."""

from __future__ import annotations

import subprocess

import numpy as np
import popxl
import popxl_addons as addons
import pytest
from popxl import ops
from popxl_addons.layers import Linear
from popxl_addons.performance_utils import (
    evaluate_FLOPs,
    format_flops_scientific,
    print_FLOPs,
    total_FLOPs,
)
from popxl_addons.testing_utils import TensorInput, ops_of_type, run_module


def test_a_module_is_run_with_weights_for_its_variables(rng):
    x, w = rng.normal(size=(2, 4)), rng.normal(size=(4, 3)).astype(np.float32)

    def weights(variables):
        return {variables.weight: w, variables.bias: np.ones(3, np.float32)}

    (y,) = run_module(Linear(3), TensorInput(x, popxl.float32), weights=weights)

    assert y.dtype == np.float32
    np.testing.assert_allclose(y, x @ w + 1, rtol=1e-5, atol=1e-5)


def test_a_module_is_run_with_the_data_of_its_own():
    (y,) = run_module(Linear(2, bias=False), TensorInput(np.zeros((1, 4), np.float16)))
    np.testing.assert_array_equal(y, np.zeros((1, 2), np.float16))


def test_a_module_is_run_with_keywords_and_other_arguments():
    class Scaled(addons.Module):
        def build(self, x, factor, shift):
            return x * factor, x + shift

    x = np.arange(3, dtype=np.float32)
    double, shifted = run_module(Scaled(), TensorInput(x), 2, shift=TensorInput(x[:1] + 5))

    np.testing.assert_array_equal(double, x * 2)
    np.testing.assert_array_equal(shifted, x + 5)


def test_ops_are_counted_by_type():
    assert ops_of_type([1, 2.0, "a", True], int) == 2


@pytest.mark.parametrize(
    ("lowest", "level", "printed"),
    [
        ("INFO", "DEBUG", False),
        ("INFO", "WARN", True),
        ("TRACE", "DEBUG", True),
        (None, "INFO", True),
    ],
)
def test_printing_goes_by_the_level_in_the_environment(
    run, monkeypatch, capfd, lowest, level, printed
):
    monkeypatch.delenv("MODEL_LOG_LEVEL", raising=False)
    if lowest:
        monkeypatch.setenv("MODEL_LOG_LEVEL", lowest)

    def build(x):
        addons.print_text("reached", level=level)
        return addons.print_tensor(x, "named", level=level)

    run(build, np.ones(2, np.float32))

    errors = capfd.readouterr().err
    assert ("reached" in errors, "named" in errors) == (printed, printed)


def test_a_level_that_is_none(main_graph):
    with pytest.raises(ValueError, match="level 'LOUD': allowed are TRACE, DEBUG, INFO, WARN"):
        addons.print_text("x", level="LOUD")


def test_the_commit_is_that_of_the_folder_the_program_starts_in(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert addons.GIT_COMMIT is None
    for command in (
        ["init", "-q"],
        ["-c", "user.name=a", "-c", "user.email=a", "commit", "-qm", "a", "--allow-empty"],
    ):
        subprocess.run(["git", *command], check=True)
    assert len(addons.GIT_COMMIT) == 7


def test_operations_are_counted_as_popxl_counts_them(capsys):
    ir = popxl.Ir(replication=2)
    with ir.main_graph:
        a, b = (popxl.constant(np.ones(s, np.float32)) for s in ((10, 9), (9, 5)))
        body = ir.create_graph(lambda x: x + 1, a)
        a, *_ = ops.repeat(body, 3, a)
        y = a @ b
    flops = evaluate_FLOPs(ir.main_graph)
    assert list(flops["MatMul"].values()) == [2 * 10 * 9 * 5]
    assert flops["TOT"] == 900 + 3 * 90
    assert total_FLOPs(ir) == 2 * flops["TOT"]
    assert y.shape == (10, 5)
    for mode in ("type", "flat"):
        print_FLOPs(flops, mode)
        assert "9.000E+02" in capsys.readouterr().out.replace("0.900E+03", "9.000E+02")


@pytest.mark.parametrize(
    ("value", "form", "text"),
    [(9072, "nearest3", "9.072E+03"), (0, "nearest3", "0.000E+00"), (5e11, "T", "0.500E+12")],
)
def test_numbers_of_operations_are_short(value, form, text):
    assert format_flops_scientific(value, form) == text


def test_subgraphs():
    ir = popxl.Ir()
    first, second, third = (ir.create_empty_graph(n) for n in "abc")
    for caller, called in ((ir.main_graph, first), (first, second), (ir.main_graph, third)):
        with caller:
            ops.call(called)
    assert addons.is_subgraph(ir.main_graph, second)
    assert not addons.is_subgraph(first, third)

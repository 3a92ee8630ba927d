"""Pipelines: stages of a program that run for several steps."""

import numpy as np
import popxl
import pytest
from popxl import ops
from popxl_addons import pipelined_execution

STEPS = 6


def _streams():
    return popxl.h2d_stream((3,), popxl.float32), popxl.d2h_stream((3,), popxl.float32)


@pytest.mark.parametrize("stages", [1, 2, 3])
def test_each_step_goes_through_all_stages(rng, stages):
    ir = popxl.Ir()
    with ir.main_graph:
        inputs, outputs = _streams()
        scale = popxl.variable(np.float32(3), name="scale")
        with pipelined_execution(STEPS) as pipeline:
            with pipeline.stage(0):
                x = ops.host_load(inputs)
            for stage in range(stages):
                with pipeline.stage(stage), popxl.ipu(stage):
                    x = (x * scale + 1).copy_to_ipu(stage + 1)
            with pipeline.stage(stages - 1), popxl.ipu(stages):
                ops.host_store(outputs, x)
    ir.num_host_transfers = STEPS
    x = rng.standard_normal((STEPS, 3)).astype(np.float32)

    with popxl.Session(ir, "cpu") as session:
        (y,) = session.run({inputs: x}).values()

    for _ in range(stages):
        x = x * 3 + 1
    np.testing.assert_allclose(y, x, rtol=1e-6)


def test_a_stage_keeps_what_it_writes_from_step_to_step():
    ir = popxl.Ir()
    with ir.main_graph:
        counts = popxl.d2h_stream((), popxl.float32)
        counter = popxl.variable(np.float32(0), name="counter")
        after = popxl.d2h_stream((), popxl.float32)
        with pipelined_execution(STEPS) as pipeline:
            with pipeline.stage(1):
                ops.host_store(counts, counter)
            with pipeline.stage(0):
                t = popxl.constant(np.float32(2)) * 1
            with pipeline.stage(1):
                counter += pipeline.stash_and_restore_tensor(t)
        ops.host_store(after, counter)
    ir.num_host_transfers = STEPS

    with popxl.Session(ir, "cpu") as session:
        results = session.run()

    np.testing.assert_array_equal(results[counts], 2 * np.arange(STEPS))
    assert results[after][0] == 2 * STEPS


def _pipeline(first, second, steps=STEPS):
    with popxl.Ir().main_graph:
        given = popxl.variable(np.zeros(3, np.float32), name="given")
        stream, buffer = _streams()[0], popxl.remote_buffer((3,), popxl.float32, 1)
        with pipelined_execution(steps) as pipeline:
            with pipeline.stage(0):
                x = first(given, stream, buffer)
            with pipeline.stage(1):
                second(given, stream, buffer, x)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (lambda v, s, b: v + 1, lambda v, s, b, x: ops.add_(v, x)),
        (lambda v, s, b: v + 1, lambda v, s, b, x: ops.add_(v.reshape_((3, 1)), x.reshape((3, 1)))),
        (lambda v, s, b: ops.remote_load(b, 0), lambda v, s, b, x: ops.remote_store(b, 0, x)),
        (lambda v, s, b: ops.host_load(s), lambda v, s, b, x: ops.host_load(s)),
    ],
    ids=["variable", "view", "buffer", "stream"],
)
def test_stages_that_see_what_another_keeps_are_refused(first, second):
    with pytest.raises(NotImplementedError, match="stage . writes to .* stage . uses, too"):
        _pipeline(first, second)


def test_what_is_no_pipeline_is_refused():
    with pytest.raises(ValueError, match="2 stages need at least 4 steps, got 3"):
        _pipeline(lambda v, s, b: v + 1, lambda v, s, b, x: x + 1, steps=3)
    with (
        popxl.Ir().main_graph,
        pytest.raises(RuntimeError, match="add is in no stage"),
        pipelined_execution(STEPS),
    ):
        popxl.constant(1) + 1
    with (
        popxl.Ir().main_graph,
        pytest.raises(ValueError, match="stage 0 uses .*, which stage 1"),
        pipelined_execution(STEPS) as pipeline,
    ):
        with pipeline.stage(1):
            x = popxl.constant(1) + 1
        with pipeline.stage(0):
            x + 1
    with pytest.raises(RuntimeError, match="stash_and_restore_tensor belongs"):
        pipeline.stash_and_restore_tensor(x)

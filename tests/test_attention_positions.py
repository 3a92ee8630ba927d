"""Attention of replicas that stand at different positions: what the graph says, by every path."""

from __future__ import annotations

import numpy as np
import popxl
import pytest
from popxl import ops

from modelling.cached_attention import prompt_attention, token_attention, verify_attention

ROWS, HEADS, SIZE, LENGTH, TOKENS = 2, 2, 4, 8, 2

PLACES = {
    "token": (token_attention, [[3, 6], [1, 0]]),
    "chunk": (prompt_attention, [3, 1]),
    "tokens": (verify_attention, [[3, 4], 1]),
}


@pytest.mark.parametrize("queries", PLACES)
def test_a_recording_follows_positions_that_come_to_differ(queries):
    function, places = PLACES[queries]
    rng = np.random.default_rng(0)
    ir = popxl.Ir(replication=2)
    first = [rng.standard_normal((2, TOKENS, HEADS, SIZE)) for _ in range(3)]
    first += [rng.standard_normal((2, ROWS, HEADS, LENGTH, SIZE)) for _ in range(2)]
    first += [np.tile(np.array([0.5, 2]), (2, 1))]
    floats = [a.astype(np.float32) for a in first]
    whole = [np.stack([np.array(p, np.int32)] * 2) for p in places]
    with ir.main_graph:
        streams = [popxl.h2d_stream(a.shape[1:], popxl.float32) for a in floats]
        streams += [popxl.h2d_stream(a.shape[1:], popxl.int32) for a in whole]
        loaded = [ops.host_load(stream) for stream in streams]
        graph = ir.create_graph(function, *loaded)
        (context,) = ops.call(graph, *loaded)
        out = popxl.d2h_stream(context.shape, context.dtype)
        ops.host_store(out, context)
    with popxl.Session(ir) as session, popxl.Session(ir, composite_kernels=False) as plain:
        for step in range(5):
            moved = [a.copy() for a in whole]
            moved[0][1] -= 2 if step == 3 else 0
            given = dict(zip(streams, [*floats, *moved], strict=True))
            np.testing.assert_allclose(
                session.run(given)[out], plain.run(given)[out], rtol=1e-5, atol=1e-5
            )

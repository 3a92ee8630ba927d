"""The pass of the public BLOOM program over 1024 tokens: 24 layers of 1024, float16."""

from __future__ import annotations

import sys

import popxl
from popxl_torch.analysis.cost import cost_of
from popxl_torch.machine import fastest_matmul_type, matmul_rate
from timing import fill_randomly, inputs_of, share, show

from config import BloomConfig
from inference import inference

LAYERS, HIDDEN, HEADS, LENGTH = 24, 1024, 16, 1024
VOCABULARY = 32000
PRODUCTS = [(LENGTH, k * HIDDEN, n * HIDDEN) for k, n in ((1, 3), (1, 1), (1, 4), (4, 1))]


def main(rounds: int = 3, layers: int = LAYERS) -> None:
    config = BloomConfig()
    model, execution = config.model, config.execution
    model.layers, model.hidden_size, model.attention.heads = layers, HIDDEN, HEADS
    model.sequence_length, model.dtype = LENGTH, popxl.float16
    model.embedding.vocab_size = VOCABULARY
    execution.tensor_parallel_1 = execution.tensor_parallel_2 = 1
    session = inference(config)
    work = cost_of(session.ir.main_graph).operations
    dtype = fastest_matmul_type(PRODUCTS, popxl.float16)
    with session:
        fill_randomly(session)

        def run(number: int) -> None:
            session.run(inputs_of(session, words=7 + number, last_token_indices=LENGTH - 1))

        found = share(run, work, lambda: matmul_rate(PRODUCTS, dtype), rounds)
    show(f"BLOOM, {layers} layers of {HIDDEN}, float16: {LENGTH} tokens", found, "operations/s")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))

"""The token pass of the public LLaMA program with its own cache: 24 layers of 1024, float16."""

from __future__ import annotations

import sys

import popxl
from popxl_torch.machine import read_bandwidth
from timing import fill_randomly, inputs_of, share, show

from config import LlamaConfig
from inference import inference

LAYERS, HIDDEN, INNER, HEADS, LENGTH = 24, 1024, 2816, 16, 512


def main(rounds: int = 15, layers: int = LAYERS) -> None:
    config = LlamaConfig()
    model, execution = config.model, config.execution
    model.layers, model.hidden_size, model.intermediate_size = layers, HIDDEN, INNER
    model.attention.heads = model.attention.kv_heads = HEADS
    model.sequence_length, model.dtype = LENGTH, popxl.float16
    execution.tensor_parallel, execution.use_cache = 1, True
    session = inference(config)
    with session:
        total = fill_randomly(session)
        read = total - model.embedding.vocab_size * HIDDEN * 2  # of the embedding, one row

        def run(position: int) -> None:
            session.run(inputs_of(session, words=7 + position, last_token_indices=position))

        found = share(run, read, read_bandwidth, rounds)
    show(f"LLaMA, {layers} layers of {HIDDEN}, float16: weights of a token", found, "bytes/s")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))

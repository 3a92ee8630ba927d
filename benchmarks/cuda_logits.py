"""Logits of a device against those of the CPU, of a small model."""

from __future__ import annotations

import dataclasses

import numpy as np
from cuda_cases import Row
from cuda_limits import give_back

LOGITS = {"full": 0.03, "int8": 0.03, "int4": 0.03}  # of the largest, in bfloat16


def logits_row(device: str, weight_precision: str) -> Row:
    """Logits of a prompt and of tokens after it, against the CPU's with the same weights."""
    name = f"logits, {weight_precision}"
    try:
        found, expected = (small_logits(where, weight_precision) for where in (device, "cpu"))
    except (RuntimeError, MemoryError, ValueError) as error:
        return Row(name, f"not run: {str(error).splitlines()[0]}")
    error = float(np.abs(found - expected).max() / np.abs(expected).max())
    aim = LOGITS[weight_precision]
    return Row(name, f"off by {error:.2%} of the largest", "the CPU", f"{aim:.0%}", error <= aim)


def small_logits(device: str, weight_precision: str) -> np.ndarray:
    """Of two layers of the 560M model's shape in bfloat16: `(5, rows, vocab_size)`."""
    from config import parse_arguments
    from inference import inference
    from utils.passes import Passes
    from utils.random_weights import fill_randomly

    shape = ["--layers", "2", "--vocab_size", "1000", "--sequence_length", "600"]
    shape += ["--batch_size", "2", "--precision", "bfloat16", "--device", device]
    config, _ = parse_arguments(["--config", "bloom_560M", *shape])
    model = dataclasses.replace(config.model, weight_precision=weight_precision)
    session = inference(dataclasses.replace(config, model=model))
    fill_randomly(session, np.random.default_rng(0))
    text = np.random.default_rng(1).integers(1000, size=(2, 560)).tolist()
    with session:
        passes = Passes(config, session)
        starts = np.array([7, 555], np.int32)
        logits = [np.stack([passes.prompt(row, text[row][:at]) for row, at in enumerate(starts)])]
        for i in range(4):
            tokens = np.array([text[row][at + i] for row, at in enumerate(starts)], np.int32)
            logits.append(passes.token(tokens, starts + i).copy())
    del session, passes
    give_back(device)
    return np.stack(logits)

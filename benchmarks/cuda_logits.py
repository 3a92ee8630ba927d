"""Logits of a device against those of the CPU, of a small model.

A process of its own a row: what goes wrong on a device may leave nothing for others to use.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from cuda_cases import Row

ROOT = Path(__file__).resolve().parents[1]
LOGITS = {"full": 0.03, "int8": 0.03, "int4": 0.03}  # of the largest, in bfloat16


def logits_row(device: str, weight_precision: str, seconds: float) -> tuple[Row, str]:
    """Logits of a prompt and of tokens after it, against the CPU's with the same weights.

    Args:
        seconds: that it may take.

    Returns:
        What is printed of it, and what was written to standard error.
    """
    name = f"logits, {weight_precision}"
    try:
        done = subprocess.run(
            [sys.executable, __file__, device, weight_precision],
            capture_output=True,
            text=True,
            timeout=seconds,
            env={**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT / "runtime"), str(ROOT)))},
        )
    except subprocess.TimeoutExpired:
        return Row(name, f"not run: it took longer than {seconds:.0f} s"), ""
    if done.returncode:
        return Row(name, f"not run: {last_line(done.stderr)}"), done.stderr
    error, aim = float(done.stdout), LOGITS[weight_precision]
    value = f"off by {error:.2%} of the largest"
    return Row(name, value, "the CPU", f"{aim:.0%}", error <= aim), done.stderr


def last_line(said: str) -> str:
    """Of what a process that failed wrote to standard error."""
    return (said.strip().splitlines() or ["no message"])[-1]


def difference(device: str, weight_precision: str) -> float:
    """The largest difference of logits, as a share of the largest one."""
    found, expected = (small_logits(where, weight_precision) for where in (device, "cpu"))
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def small_logits(device: str, weight_precision: str) -> np.ndarray:
    """Of two layers of the 560M model's shape in bfloat16: `(5, rows, vocab_size)`."""
    from config import parse_arguments
    from modelling.program import inference
    from utils.checkpoints.random_weights import fill_randomly
    from utils.generation.passes import Passes
    from utils.setup import setup_logging

    setup_logging("warning")
    shape = ["--layers", "2", "--vocab_size", "1000", "--sequence_length", "600"]
    shape += ["--batch_size", "2", "--precision", "bfloat16", "--device", device]
    config, _ = parse_arguments(["--config", "bloom_560M", *shape])
    session = inference(config.changed(weight_precision=weight_precision))
    fill_randomly(session, np.random.default_rng(0))
    text = np.random.default_rng(1).integers(1000, size=(2, 560)).tolist()
    with session:
        passes = Passes(config, session)
        starts = np.array([7, 555], np.int32)
        logits = [np.stack([passes.prefill(row, text[row][:at]) for row, at in enumerate(starts)])]
        for i in range(4):
            tokens = np.array([text[row][at + i] for row, at in enumerate(starts)], np.int32)
            logits.append(passes.decode(tokens, starts + i).copy())
    return np.stack(logits)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=difference.__doc__)
    parser.add_argument("device")
    parser.add_argument("weight_precision", choices=LOGITS)
    print(difference(**vars(parser.parse_args())))

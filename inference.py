"""The inference program for those who import it; run directly, the throughput benchmark."""

from __future__ import annotations

from modelling.program import InferenceSession, inference
from utils.setup import run_script

__all__ = ["InferenceSession", "inference", "main"]


def main(argv: list[str] | None = None) -> None:
    """Measure with random weights and inputs; nothing is downloaded."""
    from utils.benchmark import run_benchmark  # late: importing the program needs none of it

    run_benchmark(argv)


if __name__ == "__main__":
    run_script(main)

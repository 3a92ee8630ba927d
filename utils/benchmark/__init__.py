"""The throughput benchmark: random inputs, and what is measured beside the machine's limits."""

from utils.benchmark.command import run_benchmark

__all__ = ["run_benchmark"]

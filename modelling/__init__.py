"""BLOOM as PopXL builders, sharded by two-dimensional tensor parallelism."""

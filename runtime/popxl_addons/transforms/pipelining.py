"""Pipelining: stages of a program that work on several steps at once; see `popxl.pipelining`."""

from popxl.pipelining import pipelined_execution

__all__ = ["pipelined_execution"]

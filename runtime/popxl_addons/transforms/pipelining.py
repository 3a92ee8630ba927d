"""The name of pipelining over the IPUs of a replica, which rewrites a graph."""

from .._absent import REWRITING, absent

pipelined_execution = absent("popxl_addons.pipelined_execution", REWRITING)

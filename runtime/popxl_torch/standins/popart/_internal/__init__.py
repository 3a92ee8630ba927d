"""Poplar's insides, which are not here: see `ir`."""

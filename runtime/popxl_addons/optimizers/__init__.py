"""The names of optimisers, which are not there."""

"""Stands in for cppimport, which compiles C++ at import: nothing is compiled."""

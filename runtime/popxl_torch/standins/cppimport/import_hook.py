"""A program imports this to have its C++ compiled at import: here it finds none."""

"""Exceptions of PopXL's own."""


class UndefinedValue(Exception):  # noqa: N818 - PopXL's name
    """A property that a tensor does not have, such as the IPU of a variable."""

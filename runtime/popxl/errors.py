"""PopXL's own kinds of errors."""


class UndefinedValue(Exception):  # noqa: N818 - PopXL's name
    """A property of a tensor that is not set, e.g. the IPU that it is on."""

"""Reading files that others may have written: settings, tokenizers, manifests, headers.

A file is opened once, and known to be a regular one of bounded size before anything of it is read;
its content is parsed within bounds and checked for its types. Anything else is one line that names
the file, raised as the error that the caller names.
"""

from __future__ import annotations

import io
import json
import math
import os
import stat
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import yaml

from utils.escaping import in_one_line, shown

SETTINGS_BYTES = 1 << 22
"""Of a file of settings or a manifest."""

INDEX_BYTES = 1 << 24
"""Of the index of a checkpoint's shards."""

YAML_BYTES = 1 << 18
"""Of YAML, which is read slowly."""

DEPTH, VALUES = 64, 1_000_000
"""How deep values may be nested, and how many there may be; an alias counts as what it stands for.
"""

DIGITS = 100
"""Of an integer: more than transformers' "very large" one has, fewer than floats can hold."""

NAME_BYTES = 255
"""Of a file's name, on every file system there is; and of a tensor's."""

KINDS = {
    stat.S_ISDIR: "a folder",
    stat.S_ISFIFO: "a pipe",
    stat.S_ISCHR: "a device",
    stat.S_ISBLK: "a device",
    stat.S_ISSOCK: "a socket",
}

Fault = type[Exception]
"""The class of the error that the caller's user is to see."""


def open_regular(
    path: Path, fault: Fault, most: int | None = None, *, absent: bool = False
) -> BinaryIO:
    """The file at `path`, opened for reading, unbuffered; it is a regular one.

    Opening neither waits for a pipe's other end nor makes a terminal this process's own.

    Args:
        most: bytes that it may have.
        absent: raise a `FileNotFoundError` where there is none.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    except FileNotFoundError as error:
        if absent:
            raise
        raise fault(f"cannot read {path}: {error.strerror}") from None
    except (OSError, ValueError) as error:
        raise fault(f"cannot read {in_one_line(str(path))}: {_reason(error)}") from None
    try:
        _check_kind(path, os.fstat(descriptor), fault, most)
        return os.fdopen(descriptor, "rb", buffering=0)
    except BaseException:
        os.close(descriptor)
        raise


def _check_kind(path: Path, found: os.stat_result, fault: Fault, most: int | None) -> None:
    if not stat.S_ISREG(found.st_mode):
        kind = next((name for test, name in KINDS.items() if test(found.st_mode)), "something else")
        raise fault(f"{path} is no regular file but {kind}")
    if most is not None and found.st_size > most:
        raise fault(f"{path} has {found.st_size:,} bytes; such a file may have {most:,}")


def is_regular(path: Path) -> bool:
    """Whether there is a regular file, or a link to one. It is for choosing among files: what is
    opened is looked at again."""
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except (OSError, ValueError):
        return False


def read_bytes(path: Path, fault: Fault, most: int, *, absent: bool = False) -> bytes:
    """All of a file of at most `most` bytes."""
    with open_regular(path, fault, most, absent=absent) as file:
        try:
            with io.BufferedReader(file) as buffered:  # type: ignore[type-var]
                data = buffered.read(most + 1)
        except OSError as error:
            raise fault(f"cannot read {path}: {error.strerror}") from None
    if len(data) > most:  # it grows, or does not know its size as those of /proc
        raise fault(f"{path} has more than the {most:,} bytes that such a file may have")
    return data


def read_json(path: Path, fault: Fault, most: int = SETTINGS_BYTES, *, absent: bool = False) -> Any:
    """What a JSON file says."""
    return parse_json(read_bytes(path, fault, most, absent=absent), path, fault)


def parse_json(data: bytes, path: Path, fault: Fault, most: int = VALUES) -> Any:
    """What JSON that was read from `path` says, which has at most so many values."""
    try:
        found = json.loads(
            data.decode(), parse_int=_whole, parse_float=_float, parse_constant=_no_constant
        )
        check_values(found, most)
    except RecursionError:
        raise fault(f"{path} is damaged: it is nested too deeply") from None
    except (ValueError, MemoryError) as error:
        raise fault(f"{path} is not JSON: {_reason(error)}") from None
    return found


def read_mapping(path: Path, fault: Fault, *, absent: bool = False) -> dict[str, Any]:
    """What a JSON file of settings says, which is a mapping."""
    found = read_json(path, fault, absent=absent)
    if not isinstance(found, dict):
        raise fault(f"{path} must map settings to values")
    return found


def read_yaml(path: Path, fault: Fault) -> Any:
    """What a YAML file says. Names of types in it make no objects."""
    data = read_bytes(path, fault, YAML_BYTES)
    try:
        return _parsed_yaml(data.decode())
    except RecursionError:
        raise fault(f"{path} is not YAML: it is nested too deeply") from None
    except Exception as error:  # PyYAML's own, and whatever its constructors trip over
        raise fault(f"{path} is not YAML: {_reason(error)}") from None


def _parsed_yaml(text: str) -> Any:
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _measure(node, {})  # before aliases and merge keys become what they stand for
        found = loader.construct_document(node)
    finally:
        loader.dispose()
    check_values(found)
    return found


def _measure(node: yaml.Node, known: dict[int, tuple[int, int] | None]) -> tuple[int, int]:
    """How many values a node stands for, and how deep they are nested."""
    if id(node) in known:
        measured = known[id(node)]
        if measured is None:
            raise ValueError("a value contains itself")
        return measured
    known[id(node)] = None
    children: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        children = [part for pair in node.value for part in pair]
    elif isinstance(node, yaml.SequenceNode):
        children = node.value
    sizes = [_measure(child, known) for child in children]
    count, depth = 1 + sum(size for size, _ in sizes), 1 + max((d for _, d in sizes), default=0)
    if count > VALUES or depth > DEPTH:
        raise ValueError("its aliases stand for too much")
    known[id(node)] = count, depth
    return count, depth


def check_values(value: Any, most: int = VALUES) -> None:
    """Raises a `ValueError` for values that are too many, too deep or too large, and for text that
    is not Unicode."""
    pending, count = [(value, 0)], 0
    while pending:
        found, depth = pending.pop()
        count += 1
        if count > most or depth > DEPTH:
            raise ValueError(f"more than {most:,} values, or nested more than {DEPTH} deep")
        if isinstance(found, dict):
            pending += [(part, depth + 1) for pair in found.items() for part in pair]
        elif isinstance(found, list | tuple | set):
            pending += [(part, depth + 1) for part in found]
        elif isinstance(found, str) and not found.isascii():
            found.encode()  # a lone surrogate is a UnicodeEncodeError, which is a ValueError
        elif isinstance(found, int) and abs(found) >= 10**DIGITS:
            raise ValueError(f"an integer has more than {DIGITS} digits")


def _whole(digits: str) -> int:
    if len(digits) > DIGITS:
        raise ValueError(f"an integer has more than {DIGITS} digits")
    return int(digits)


def _float(digits: str) -> float:
    if not math.isfinite(number := float(digits)):
        raise ValueError("a number is larger than floats can be")
    return number


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON's")


def _reason(error: BaseException) -> str:
    if isinstance(error, UnicodeEncodeError):
        return "a text in it has half a character (a lone surrogate)"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split())[:300] or type(error).__name__


@dataclass(frozen=True)
class Fields:
    """A mapping from a file, whose values are read with the type that they must have.

    Args:
        place: the file, and where in it; errors begin with it.
    """

    values: Any
    place: str
    fault: Fault

    def __post_init__(self) -> None:
        if not isinstance(self.values, dict):
            raise self.fault(f"{self.place} is damaged: it is no mapping but {shown(self.values)}")

    def check_names(self, *known: str) -> None:
        """Raises where there is a name that is not known."""
        for name in self.values:
            if name not in known:
                raise self.fault(f"{self.place} is damaged: unknown {shown(name)}")

    def text(self, name: str) -> str:
        return self._typed(name, str, "a text")

    def count(self, name: str) -> int:
        """An integer of 0 or more, and no larger than a file can be."""
        found = self._typed(name, int, "an integer")
        if not 0 <= found <= sys.maxsize:
            raise self.fault(f"{self.place} is damaged: {name} cannot be {shown(found)}")
        return found

    def counts(self, name: str) -> list[int]:
        """A list of such numbers."""
        found = self._typed(name, list, "a list")
        if not all(type(number) is int and 0 <= number <= sys.maxsize for number in found):
            raise self.fault(f"{self.place} is damaged: {name} cannot be {shown(found)}")
        return found

    def mapping(self, name: str) -> dict[str, Any]:
        return self._typed(name, dict, "a mapping")

    def _typed(self, name: str, kind: type, called: str) -> Any:
        found = self.values.get(name)
        if type(found) is not kind:
            there = shown(found) if name in self.values else "missing"
            raise self.fault(f"{self.place} is damaged: {name} must be {called}, not {there}")
        return found


def is_file_name(name: Any) -> bool:
    """Whether it can name a file of a folder, and nothing outside that."""
    return is_plain_name(name) and name not in (".", "..") and "/" not in name and "\\" not in name


def is_plain_name(name: Any) -> bool:
    """Whether it is a text of 1 to 255 bytes that can be printed."""
    return (
        isinstance(name, str)
        and name.isprintable()  # also no NUL, no line feed and no lone surrogate
        and 0 < len(name.encode()) <= NAME_BYTES
    )

"""Command line options made of the fields of dataclasses.

Only the name of an option may be spelt with hyphens for underscores; its value is never changed,
and may begin with a hyphen.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import types
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Union, get_args, get_origin, get_type_hints

MISSING = dataclasses.MISSING
METAVARS = {int: "N", float: "X", str: "TEXT"}
LONGEST_NAME, MOST_NAMES = 80, 200
"""Characters and number of names that are compared, which takes the product of their lengths."""
TRUTHS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def field(
    *,
    help: str,
    default: Any = MISSING,
    default_factory: Any = MISSING,
    metavar: str | None = None,
    group: str | None = None,
    repeat: bool = False,
    **more: Any,
) -> Any:
    """A dataclass field that is an option.

    Args:
        metavar: what stands for the value in the help; by its type if None.
        group: title of the group of options that it is shown in; that of its dataclass if None.
        repeat: a list is made by giving the option several times, not several values.
        more: further metadata, for others than the command line.
    """
    metadata = {"help": help, "metavar": metavar, "group": group, "repeat": repeat, **more}
    return dataclasses.field(default=default, default_factory=default_factory, metadata=metadata)


class Parser(argparse.ArgumentParser):
    """Options of several dataclasses.

    Args:
        refuse: raises an error with the message it is given.
    """

    def __init__(self, refuse: Callable[[str], Any], **settings: Any):
        self._refuse = refuse
        self._sections: dict[str, Any] = {}
        self._one_value: set[str] = set()
        settings.setdefault("usage", "%(prog)s [--OPTION VALUE ...]")
        # No abbreviations: `--layer` would work until a second option begins with it.
        super().__init__(allow_abbrev=False, add_help=False, formatter_class=_formatter, **settings)

    def error(self, message: str) -> Any:
        """In place of argparse's own, which prints the whole usage before it."""
        self._refuse(f"{message} (--help lists every option)")

    def add_one(self, group: Any, name: str, **settings: Any) -> None:
        """An option that takes one value."""
        group.add_argument(f"--{name}", default=argparse.SUPPRESS, **settings)
        self._one_value.add(f"--{name}")

    def add_dataclass(
        self, kind: type, title: str, defaults: Any = None, flags: bool = True
    ) -> None:
        """An option for each field of a dataclass, its own before inherited ones.

        Args:
            defaults: an instance with the defaults that the help shows; the fields' own if None.
            flags: a bool is switched on by its option alone; it takes true or false otherwise.
        """
        hints, own = get_type_hints(kind), kind.__dict__.get("__annotations__", {})
        for setting in sorted(dataclasses.fields(kind), key=lambda f: f.name not in own):
            group = self._section(setting.metadata.get("group") or title)
            default = _default(setting) if defaults is None else getattr(defaults, setting.name)
            self._add(group, setting, hints[setting.name], default, flags)

    def parse(self, argv: Sequence[str]) -> argparse.Namespace:
        """What was given; nothing for options that were not. Raises what `refuse` does."""
        found, unknown = self.parse_known_args(self._joined(argv))
        if unknown:
            self.error(f"unknown {cut(unknown[0])}{nearest(unknown[0], self._names)}")
        return found

    def _section(self, title: str) -> Any:
        if title not in self._sections:
            self._sections[title] = self.add_argument_group(title)
        return self._sections[title]

    def _add(self, group: Any, setting: Any, hint: Any, default: Any, flags: bool) -> None:
        kind, several = _kind(hint)
        metadata = setting.metadata
        metavar = metadata.get("metavar") or METAVARS.get(kind)
        text = _help(metadata.get("help", ""), default)
        name = f"--{setting.name}"
        settings: dict[str, Any] = {"help": text, "default": argparse.SUPPRESS}
        if kind is bool and flags:
            group.add_argument(name, action="store_true", **settings)
        elif kind is bool:
            settings |= {"nargs": "?", "const": True, "type": _truth, "metavar": "true|false"}
            group.add_argument(name, **settings)
        elif several and not metadata.get("repeat"):
            group.add_argument(name, nargs="+", type=_parsed(kind), metavar=metavar, **settings)
        else:
            action = "append" if several else "store"
            group.add_argument(name, action=action, type=_parsed(kind), metavar=metavar, **settings)
            self._one_value.add(name)

    @property
    def _names(self) -> list[str]:
        return [name for action in self._actions for name in action.option_strings]

    def _joined(self, argv: Sequence[str]) -> list[str]:
        """Names with underscores; a single value joined to its option, whatever it begins with."""
        names, joined, waits = set(self._names), [], False
        for word in argv:
            name = _with_underscores(word.partition("=")[0])
            if name in names:
                joined.append(name + word[len(name) :])
                waits = "=" not in word and name in self._one_value
            elif waits:
                joined[-1] += f"={word}"
                waits = False
            else:
                joined.append(word)
        return joined


def read(kind: type, found: argparse.Namespace, defaults: Any = None) -> Any:
    """The dataclass with what was given, the rest from `defaults` or its own."""
    given, hints = {}, get_type_hints(kind)
    for setting in dataclasses.fields(kind):
        if hasattr(found, setting.name):
            several = _kind(hints[setting.name])[1]
            given[setting.name] = _given(getattr(found, setting.name), several)
    return kind(**given) if defaults is None else dataclasses.replace(defaults, **given)


def is_given(name: str, argv: Iterable[str]) -> bool:
    """Whether a command line has an option, however its name is spelt."""
    return any(_with_underscores(word.partition("=")[0]) == f"--{name}" for word in argv)


def nearest(name: str, known: Iterable[str]) -> str:
    """` (did you mean ...?)`, or '' where nothing is near."""
    short = [other for other in known if len(other) < LONGEST_NAME][:MOST_NAMES]
    by_lower = {other.lower(): other for other in short}
    found = difflib.get_close_matches(name[:LONGEST_NAME].lower(), by_lower, n=1)
    return f" (did you mean {by_lower[found[0]]}?)" if found else ""


def cut(text: str) -> str:
    return text if len(text) <= LONGEST_NAME else text[:LONGEST_NAME] + "…"


def _formatter(prog: str) -> argparse.HelpFormatter:
    return argparse.HelpFormatter(prog, max_help_position=30)


def _with_underscores(name: str) -> str:
    return "--" + name[2:].replace("-", "_") if name.startswith("--") else name


def _kind(hint: Any) -> tuple[type, type | None]:
    """The type of a value, and that of their sequence where there are several."""
    if get_origin(hint) in (Union, types.UnionType):
        hint = next(kind for kind in get_args(hint) if kind is not type(None))
    if get_origin(hint) in (list, tuple):
        return get_args(hint)[0], get_origin(hint)
    return hint, None


def _default(setting: Any) -> Any:
    """None where there is none."""
    if setting.default is MISSING and setting.default_factory is MISSING:
        return None
    return setting.default_factory() if setting.default is MISSING else setting.default


def _help(text: str, default: Any) -> str:
    if default is not None and default is not False and default not in ([], (), ""):
        text += f" (default: {_shown(default)})"
    return text.replace("%", "%%")


def _shown(default: Any) -> str:
    values = default if isinstance(default, list | tuple) else [default]
    return " ".join(str(v).lower() if isinstance(v, bool) else str(v) for v in values)


def _parsed(kind: type) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        try:
            return kind(text)
        except ValueError:
            wanted = "whole number" if kind is int else "number"
            raise argparse.ArgumentTypeError(f"must be a {wanted}, not {cut(text)!r}") from None

    return parse


def _truth(text: str) -> bool:
    if text.lower() not in TRUTHS:
        raise argparse.ArgumentTypeError(f"must be true or false, not {cut(text)!r}")
    return TRUTHS[text.lower()]


def _given(value: Any, several: type | None) -> Any:
    """argparse takes the value of `--stop=--` for the end of options, and gives [] for it."""
    if several:
        return several("--" if part == [] else part for part in value)
    return "--" if value == [] else value

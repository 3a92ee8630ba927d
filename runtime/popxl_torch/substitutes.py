"""Functions of a program that are replaced when their module is imported."""

from __future__ import annotations

import functools
import importlib.machinery
import importlib.util
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from popxl_torch.absent import AbsentModules

USED = "POPXL_TORCH_USED"
"""The environment variable with the file in which processes note what they substituted."""


class SubstituteError(Exception):
    """A substitution that cannot be made, in one line."""


@dataclass
class Substitute:
    """The function `name` of `module` becomes the function `other` of `file`."""

    module: str
    name: str
    file: Path
    other: str
    installed: bool = False

    @classmethod
    def parse(cls, text: str) -> Substitute:
        """From `package.module.name=file.py[:function]`; the function has the name by default.

        Raises SubstituteError for a text of another form.
        """
        dotted, equals, source = text.partition("=")
        module, dot, name = dotted.rpartition(".")
        if not equals or not dot or not all(part.isidentifier() for part in dotted.split(".")):
            raise SubstituteError(
                f"{text!r} is not of the form package.module.function=file.py[:function]"
            )
        file, colon, other = source.rpartition(":")
        if not colon or not other.isidentifier():
            file, other = source, name
        return cls(module, name, Path(file).resolve(), other)

    def __str__(self) -> str:
        """What `parse` takes, from any folder."""
        return f"{self.dotted}={self.file}:{self.other}"

    @functools.cached_property
    def function(self) -> Callable[..., Any]:
        """The function of the file, which is run for it once.

        Raises SubstituteError for a missing file or a missing function.
        """
        return _function_of(self.file, self.other)

    @property
    def dotted(self) -> str:
        return f"{self.module}.{self.name}"

    def install(self, module: ModuleType) -> None:
        """Replace the function in its module and wherever it has been imported from there."""
        if not hasattr(module, self.name):
            raise SubstituteError(
                f"{self.dotted} cannot be replaced: {self.module} has no such name"
            )
        original = getattr(module, self.name)
        if isinstance(original, ModuleType):
            raise SubstituteError(f"{self.dotted} is a module: name the function in it")
        setattr(module, self.name, self.function)
        for other in list(sys.modules.values()):
            for name, value in list(getattr(other, "__dict__", {}).items()):
                if value is original and callable(value):
                    setattr(other, name, self.function)
        self.note()

    def note(self) -> None:
        """The function is in place, in this process or in one that it started."""
        self.installed = True
        if USED in os.environ:
            with open(os.environ[USED], "a") as file:
                file.write(f"{self.dotted}\n")


def install(substitutes: Sequence[Substitute]) -> None:
    """From now on the modules of `substitutes` have the functions that these give.

    Raises SubstituteError for a missing file or a missing function.
    """
    for substitute in substitutes:
        substitute.function  # noqa: B018 - an error now rather than in the middle of the program
    modules = {substitute.module for substitute in substitutes}
    sys.meta_path.insert(0, AbsentModules(modules))  # type: ignore[arg-type]
    sys.meta_path.insert(0, _Patcher(substitutes))  # type: ignore[arg-type]
    for substitute in substitutes:
        if substitute.module in sys.modules:
            substitute.install(sys.modules[substitute.module])


def unused(substitutes: Sequence[Substitute]) -> list[str]:
    """One line for each that was installed neither here nor in a process started from here."""
    elsewhere = Path(os.environ[USED]).read_text().split() if USED in os.environ else []
    return [
        f"{s.dotted} was not substituted: the program never imported {s.module}"
        for s in substitutes
        if not s.installed and s.dotted not in elsewhere
    ]


class _Patcher:
    """A finder that has the functions replaced as soon as their module has been run."""

    def __init__(self, substitutes: Sequence[Substitute]) -> None:
        self._substitutes = substitutes

    def find_spec(
        self, name: str, path: object = None, target: object = None
    ) -> importlib.machinery.ModuleSpec | None:
        mine = [s for s in self._substitutes if s.module == name]
        if not mine:
            return None
        spec = next(filter(None, (_ask(finder, name, path) for finder in self._others())), None)
        if spec is None or spec.loader is None:  # a compiled module: all there is, is substituted
            return importlib.machinery.ModuleSpec(name, _OnlySubstitutes(mine))  # type: ignore
        execute = spec.loader.exec_module
        spec.loader.exec_module = functools.partial(_execute, execute, mine)  # type: ignore
        return spec

    def _others(self) -> list[Any]:
        return [finder for finder in sys.meta_path if finder is not self]


def _execute(
    execute: Callable[[ModuleType], None], substitutes: Sequence[Substitute], module: ModuleType
) -> None:
    with AbsentModules.allowed():
        execute(module)
    for substitute in substitutes:
        substitute.install(module)


class _OnlySubstitutes:
    """Loads a module that cannot be found: it has what is substituted in it, no more."""

    def __init__(self, substitutes: Sequence[Substitute]) -> None:
        self._substitutes = substitutes

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> None:
        """An ordinary module will do."""

    def exec_module(self, module: ModuleType) -> None:
        for substitute in self._substitutes:
            setattr(module, substitute.name, substitute.function)
            substitute.note()


def _ask(finder: Any, name: str, path: object) -> importlib.machinery.ModuleSpec | None:
    if isinstance(finder, AbsentModules) or not hasattr(finder, "find_spec"):
        return None
    spec: importlib.machinery.ModuleSpec | None = finder.find_spec(name, path)
    return spec


def _function_of(file: Path, name: str) -> Callable[..., Any]:
    """The function of a file, which is run for it."""
    if not file.is_file():
        raise SubstituteError(f"there is no file {file}")
    spec = importlib.util.spec_from_file_location(f"popxl_torch_substitute_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise SubstituteError(f"{file} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    function = getattr(module, name, None)
    if not callable(function):
        raise SubstituteError(f"{file} has no function {name}")
    return function  # type: ignore[no-any-return]

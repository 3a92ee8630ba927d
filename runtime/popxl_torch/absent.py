"""Placeholders for compiled code of a program that cannot be built here.

A module whose function is substituted may import a C++ op when it is imported. The op is not called
after the substitution, but its import must not fail.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.machinery
import sys
from collections.abc import Iterable, Iterator
from types import FrameType, ModuleType
from typing import Any

COMPILERS = ("cppimport",)
"""What compiles C++ at import: an installed one would try, and fail without Poplar's headers."""


class AbsentCodeError(RuntimeError):
    """Compiled code that is not here was called."""


class Absent:
    """Something of compiled code: it can be named, but not called once its module is imported."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> Absent:
        if name.startswith("__"):
            raise AttributeError(name)
        return Absent(f"{self._name}.{name}")

    def __call__(self, *args: Any, **kwargs: Any) -> Absent:
        if not AbsentModules.importing:
            raise AbsentCodeError(
                f"{self._name} is compiled code that is not here: substitute what calls it"
            )
        return Absent(f"{self._name}()")

    def __instancecheck__(self, value: object) -> bool:
        return False

    def __repr__(self) -> str:
        return f"<absent {self._name}>"


class AbsentModule(ModuleType):
    """Stands for a compiled module; it has any name that is asked for."""

    __path__: list[str] = []  # a package, so that `import cppimport.import_hook` finds one

    def __getattr__(self, name: str) -> Absent:
        if name.startswith("__"):
            raise AttributeError(name)
        return Absent(f"{self.__name__}.{name}")


class AbsentModules:
    """A finder: what modules of `trees` import and nobody else finds is an `AbsentModule`.

    `trees` are names of modules; what lies below them is meant, too. Other modules of the program
    get the ImportError that they expect.
    """

    importing = 0
    """How many modules of the trees are being imported now."""

    def __init__(self, trees: Iterable[str]) -> None:
        self._trees = tuple(trees)

    def find_spec(
        self, name: str, path: object = None, target: object = None
    ) -> importlib.machinery.ModuleSpec | None:
        importer = _importer(sys._getframe(1))
        if not any(importer == tree or importer.startswith(tree + ".") for tree in self._trees):
            return None
        compiler = name.split(".")[0] in COMPILERS
        if not compiler and any(_finds(finder, name, path, target) for finder in self._others()):
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)  # type: ignore[arg-type]

    def _others(self) -> list[Any]:
        return [finder for finder in sys.meta_path if finder is not self]

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        return AbsentModule(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """There is nothing to run."""

    @classmethod
    @contextlib.contextmanager
    def allowed(cls) -> Iterator[None]:
        """While a module of the trees is imported: its compiled libraries may be missing."""
        cls.importing += 1
        kept = ctypes.CDLL
        ctypes.CDLL = ctypes.cdll._dlltype = _library(kept)  # type: ignore
        try:
            yield
        finally:
            ctypes.CDLL = ctypes.cdll._dlltype = kept  # type: ignore
            cls.importing -= 1
            if not cls.importing:  # other modules shall not find them
                for name, module in list(sys.modules.items()):
                    if isinstance(module, AbsentModule):
                        del sys.modules[name]


def _importer(frame: FrameType | None) -> str:
    """The name of the module whose import statement is being run."""
    while frame is not None:
        name = frame.f_globals.get("__name__", "")
        if not name.startswith(("importlib", "_frozen_importlib")) and name != __name__:
            return str(name)
        frame = frame.f_back
    return ""


def _finds(finder: Any, name: str, path: object, target: object) -> bool:
    return hasattr(finder, "find_spec") and finder.find_spec(name, path, target) is not None


def _library(load: Any) -> Any:
    """`ctypes.CDLL`, which gives a placeholder for a file that cannot be loaded."""

    def load_or_stand_in(name: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return load(name, *args, **kwargs)
        except OSError:
            return Absent(str(name))

    return load_or_stand_in

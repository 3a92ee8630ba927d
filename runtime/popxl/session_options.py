"""The options that PopXL programs set to tune an IPU: accepted, without effect."""

from __future__ import annotations

from collections import defaultdict
from typing import Any


class SessionOptions:
    """Takes any option. One that was not set is None; those that are tables start empty."""

    def __init__(self) -> None:
        self.engineOptions: dict[str, str] = {}
        self.convolutionOptions: dict[str, str] = {}
        self.matmulOptions: dict[str, str] = {}
        self.reportOptions: dict[str, str] = {}
        self.gclOptions: dict[str, str] = {}
        self.lstmOptions: dict[str, str] = {}
        self.virtualGraphSettings: dict[str, Any] = defaultdict(dict)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return None


class PartOfPopart:
    """What stands where PopXL keeps PopART's own Ir, which programs ask for the options."""

    def __init__(self) -> None:
        self._options = SessionOptions()

    def getSessionOptions(self) -> SessionOptions:  # noqa: N802 - PopART's name
        """The options, kept and not used."""
        return self._options

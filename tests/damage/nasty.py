"""Values, texts and changes of files that nobody should make, drawn from one generator."""

from __future__ import annotations

import contextlib
import json
import os
import random
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

ESCAPE = "\x1b]0;owned\x07"

CANARY = "code-has-run"
"""A folder of this name is made where code of a file has run."""


class Nasty:
    """Values, texts and changes of files, drawn from one generator."""

    def __init__(self, draw: random.Random):
        self.draw = draw

    def text(self) -> str:
        return self.draw.choice(
            ["", ".", "..", "../x", "/etc/passwd", "a\0b", "a" * 300, "a" * 5000, "\ud800x", ESCAPE]
            + [
                "one\ntwo",
                "\u202eabc",
                "naïve 🐕",
                "__reduce__",
                "NaN",
                "-1",
                "null",
                "h.0",
                "%s{}",
            ]
        )

    def value(self, deep: int = 2) -> Any:
        kinds: list[Callable[[], Any]] = [
            lambda: self.draw.choice([0, 1, -1, 2, 3, 255, 2**31, 2**63, -(2**63), 2**64, 10**30]),
            lambda: self.draw.choice([0.0, -0.5, 1e-5, 1e308, -1e-320, 1.5]),
            lambda: self.draw.choice([None, True, False]),
            lambda: self.draw.choice([10**400, float("inf"), float("nan"), -(10**90)]),
            self.text,
            self.text,
            lambda: {"content": self.value(0)},
            lambda: [self.value(deep - 1) for _ in range(self.draw.randrange(4))],
            lambda: {self.text(): self.value(deep - 1) for _ in range(self.draw.randrange(3))},
        ]
        return self.draw.choice(kinds if deep > 0 else kinds[:6])()

    def json(self, text: str) -> str:
        """A JSON text with some of its values, names or characters changed."""
        try:
            found = json.loads(text)
        except ValueError:
            return self.characters(text)
        for _ in range(self.draw.randint(1, 3)):
            found = self._changed(found)
        return json.dumps(found).replace("Infinity", self.draw.choice(["Infinity", "1e999"]))

    def _changed(self, found: Any) -> Any:
        """One change, at a place that is drawn on the way down."""
        if not isinstance(found, dict | list) or not found or self.draw.random() < 0.04:
            return self.value()
        key = self.draw.choice(list(found) if isinstance(found, dict) else range(len(found)))
        what = self.draw.random()
        if what < 0.1:
            del found[key]
        elif what < 0.2 and isinstance(found, dict):
            found[self.text()] = found.pop(key)
        elif what < 0.3 and isinstance(found, dict):
            found[self.text()] = self.value()
        else:
            found[key] = self._changed(found[key])
        return found

    def characters(self, text: str) -> str:
        at = self.draw.randrange(len(text) + 1)
        put = self.draw.choice(
            ["[", "{", '"', "\0", "\ud800", "&a [*a]", ": ", "\t", "-", self.text()]
        )
        return text[:at] + put * self.draw.choice([1, 1, 3, 200]) + text[at:]

    def bytes(self, data: bytes) -> bytes:
        changed = bytearray(data)
        for _ in range(self.draw.randint(1, 4)):
            at = self.draw.randrange(len(changed) + 1) if changed else 0
            what = self.draw.randrange(5)
            if what == 0 and changed:
                changed[min(at, len(changed) - 1)] ^= 1 << self.draw.randrange(8)
            elif what == 1:
                del changed[at:]
            elif what == 2:
                del changed[at : at + self.draw.choice([1, 8, 100])]
            elif what == 3:
                changed[at:at] = self.draw.randbytes(self.draw.choice([1, 8, 300]))
            else:
                changed[:8] = self.draw.choice(
                    [b"\xff" * 8, bytes(8), (2**40).to_bytes(8, "little")]
                )
        return bytes(changed)

    def kind(self, path: Path) -> str:
        """Put something that is no file in its place, or a bomb; what."""
        path.unlink(missing_ok=True)
        what = self.draw.choice(
            ["pipe", "zero", "folder", "dangling", "loop", "socket", "sparse", "brackets", "empty"]
            + ["numbers", "utf-16", "missing", "quoted"]
        )
        if what == "pipe":
            os.mkfifo(path)
        elif what == "zero":
            path.symlink_to("/dev/zero")
        elif what == "folder":
            path.mkdir()
        elif what == "dangling":
            path.symlink_to(path.with_name("nowhere"))
        elif what == "loop":
            path.symlink_to(path)
        elif what == "socket":
            with socket.socket(socket.AF_UNIX) as listener, contextlib.suppress(OSError):
                listener.bind(str(path))
        elif what == "sparse":
            path.touch()
            os.truncate(path, 1 << 40)
        elif what == "brackets":
            path.write_text("[" * 100_000 if self.draw.random() < 0.5 else '{"a":' * 100_000)
        elif what == "empty":
            path.touch()
        elif what == "numbers":
            path.write_text("9" * self.draw.choice([400, 5000, 100_000]))
        elif what == "utf-16":
            path.write_text('{"a": 1}', encoding="utf-16")
        elif what == "quoted":
            path.write_text(json.dumps("x" * 3_000_000))
        return what

    def file(self, path: Path) -> str:
        """Change a file in one way or another; how."""
        what = self.draw.random()
        if what < 0.2:
            return self.kind(path)
        if what < 0.4 or path.suffix not in (".json", ".yml"):
            path.write_bytes(self.bytes(path.read_bytes()))
            return "bytes"
        change = self.json if what < 0.9 and path.suffix == ".json" else self.characters
        text = path.read_text(encoding="utf-8", errors="replace")
        path.write_text(change(text), encoding="utf-8", errors="surrogatepass")
        return change.__name__

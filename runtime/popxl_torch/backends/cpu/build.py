"""The compiling of the native library, and where it is kept."""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import shutil
import subprocess
import threading
from pathlib import Path

from popxl_torch import cache
from popxl_torch.backends.cpu.instructions import header

SOURCES = Path(__file__).parent
COMPILERS = ("c++", "g++", "clang++")
FLAGS = [
    "-O3",
    "-march=native",
    "-ffp-contract=fast",
    "-fno-math-errno",
    "-std=c++17",
    "-fPIC",
    "-shared",
    "-fopenmp",
]
WIDE = ["-mprefer-vector-width=512", "-mtune=icelake-server"]
"""For processors with AVX-512: vectors that compilers halve by themselves, and the tuning of a
processor that every compiler knows to have them. One that does not know this machine's takes it for
an older one without, and spills registers."""
MAKERS = {"GenuineIntel": "-DPOPXL_INTEL", "AuthenticAMD": "-DPOPXL_AMD"}
"""What the sources are told of who made the processor, by its name in /proc/cpuinfo."""
LIMIT = 300
"""Seconds that the compiler may take."""
TOLD_AFTER = 2.0
"""Seconds after which a person at a terminal wonders what takes so long."""
COMPILING = "compiling kernels for this processor, once; later runs find them"
NAME, HANDLER, HEADER = "kernels.so", "bus_error.cpp", "instructions.hpp"

_log = logging.getLogger(__name__)


class CannotBuildError(Exception):
    """Why there is no library, in one line."""


def built_library() -> Path:
    """The compiled library, from the cache folder where it is there.

    Raises:
        CannotBuildError: where there is no compiler, or it fails.
    """
    program = compiler()
    flags = FLAGS + (WIDE if has_avx512() else [])
    if (made_by := maker()) in MAKERS:
        flags.append(MAKERS[made_by])
    key = {
        "sources": _sources_hash(),
        "compiler": _version(program),
        "flags": " ".join(flags),
        "machine": cache.machine(),
    }

    def make(place: Path) -> None:
        _compile(program, flags, place / NAME)

    return cache.entry("native", key, make) / NAME


def built_handler() -> Path:
    """The compiled handler of SIGBUS, of which the rest of the library is independent.

    Raises:
        CannotBuildError: where there is no compiler, or it fails.
    """
    program, source = compiler(), SOURCES / HANDLER
    key = {
        "source": hashlib.blake2b(source.read_bytes(), digest_size=16).hexdigest(),
        "compiler": _version(program),
        "machine": platform.machine(),
    }

    def make(place: Path) -> None:
        _run(
            [program, "-O1", "-std=c++17", "-fPIC", "-shared", str(source), "-o", str(place / NAME)]
        )

    return cache.entry("handler", key, make) / NAME


def maker() -> str | None:
    """Who made the processor, if it is one that the kernels know to differ."""
    return next((name for name in MAKERS if name in _features()), None)


def has_avx512() -> bool:
    """Whether the processor has the vectors that the kernels are written for."""
    return not {"avx512f", "avx512bw", "avx512vl"} - _features()


def missing_instructions() -> list[str]:
    """What the processor lacks of what the kernels use, each with what is slower for it."""
    if not has_avx512():
        return ["AVX-512 (all kernels)"]
    wanted = {
        "avx512_bf16": "AVX-512 BF16 (bfloat16)",
        "avx512_vnni": "AVX-512 VNNI (weights of 8 and 4 bits)",
    }
    return [text for name, text in wanted.items() if name not in _features()]


def _features() -> set[str]:
    return set(cache.machine().split())


def compiler() -> str:
    """The C++ compiler: `$CXX`, or the first one that is found.

    Raises:
        CannotBuildError: where there is none.
    """
    names = [os.environ["CXX"]] if os.environ.get("CXX") else COMPILERS
    for name in names:
        found = shutil.which(name)
        if found:
            return found
    raise CannotBuildError(f"there is no C++ compiler ({', '.join(names)})")


def _sources_hash() -> str:
    total = hashlib.blake2b(header().encode(), digest_size=16)
    for path in sorted({*SOURCES.glob("*.cpp"), *SOURCES.glob("*.hpp")} - {SOURCES / HANDLER}):
        total.update(path.name.encode() + b"\0" + path.read_bytes())
    return total.hexdigest()


def _version(compiler: str) -> str:
    return _run([compiler, "--version"]).stdout


def _compile(compiler: str, flags: list[str], target: Path) -> None:
    (target.parent / HEADER).write_text(header(), encoding="utf-8")
    sources = [f"-I{target.parent}", str(SOURCES / "library.cpp")]
    command = [compiler, *flags, *sources, "-o", str(target)]
    told = threading.Timer(TOLD_AFTER, _log.warning, [COMPILING])
    told.start()
    try:
        _run(command)
    finally:
        told.cancel()


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CannotBuildError(f"{command[0]} cannot be run: {error}") from None
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "error" in line]
        reason = (lines or done.stderr.splitlines() or [f"exit status {done.returncode}"])[0]
        raise CannotBuildError(f"{command[0]} fails: {reason}")
    return done

"""A virtual environment of its own for public PopXL programs, with the packages of their time."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
RUNTIME = REPOSITORY / "runtime"
SITE = Path(__file__).parent / "site"
DRIVERS = Path(__file__).parent / "drivers"
TORCH = "torch==2.13.0+cpu"
CPU_WHEELS = "https://download.pytorch.org/whl/cpu"
PACKAGES = (
    "torchvision",  # a reference for ROI align, and MNIST
    "onnx",  # a reference for interpolation
    "clip-anytorch",  # MAGMA's image encoder
    "setuptools<81",  # clip's pkg_resources
    "nbformat",
    "nbconvert",
    "transformers==4.31.0",  # what is compared with
    "simple-parsing==0.0.19.post1",
    "numpy>=2.0",
    "ml_dtypes>=0.5",
    "pytest==9.2.0",
    "scipy",
    "pyyaml",
    "tqdm",
    "more-itertools",
    "typing_extensions",
    "sentencepiece",
    "protobuf",
    "datasets==2.21.0",  # the last that has metrics
    "scikit-learn",
    "timm",
    "accelerate",
    "wandb",
)
"""What the programs import. transformers 4.31 needs tokenizers 0.13, which ends at Python 3.11."""


class MissingPython(Exception):
    """The environment cannot be made, in one line."""


def make_environment(folder: Path) -> Path:
    """The Python of an environment in `folder`, which is made where it is not there yet."""
    python = folder / "bin" / "python"
    stamp = folder / "packages.txt"
    wanted = "\n".join((TORCH, *PACKAGES))
    if stamp.is_file() and stamp.read_text() == wanted:
        return python
    subprocess.run([_python311(), "-m", "venv", str(folder)], check=True)
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    if subprocess.run([*pip, TORCH], capture_output=True).returncode:  # no wheel at hand
        subprocess.run([*pip, TORCH, "--index-url", CPU_WHEELS], check=True)
    subprocess.run([*pip, TORCH, *PACKAGES], check=True)
    stamp.write_text(wanted)
    return python


def variables(python: Path, clones: Path, paths: Sequence[Path]) -> dict[str, str]:
    """Environment variables for programs in `paths`, which import this checkout's runtime."""
    places = [SITE, *paths, RUNTIME, DRIVERS, clones / "examples" / "utils"]
    return os.environ | {
        "PATH": os.pathsep.join(
            (f"{SITE / 'bin'}", f"{python.parent}", os.environ.get("PATH", ""))
        ),
        "PYTHONPATH": os.pathsep.join(map(str, places)),
        "PYTHONDONTWRITEBYTECODE": "1",
        "FOREIGN_CLONES": str(clones),
        "TEST_TARGET": "IpuModel",  # what popart's tests take for a device
        "HF_HUB_OFFLINE": "1",  # nothing is fetched: what wants the network says so at once
        "TRANSFORMERS_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "WANDB_MODE": "disabled",
        "TOKENIZERS_PARALLELISM": "false",
    }


def _python311() -> str:
    if sys.version_info[:2] == (3, 11):
        return sys.executable
    found = shutil.which("python3.11")
    if found is None:
        raise MissingPython("Python 3.11 is needed: transformers 4.31 has no later wheels")
    return found

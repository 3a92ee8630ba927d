"""`python -m popxl_torch.run`: programs with compiled ops run as they are, without these."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

RUNTIME = Path(__file__).resolve().parents[1]

PROGRAM = {
    "model/__init__.py": "from .scale import *",
    "model/scale.py": """
        import cppimport.import_hook
        import ctypes
        from . import scale_binding

        library = ctypes.cdll.LoadLibrary("libscale_op.so")
        __all__ = ["scale", "table"]

        def table():
            return [1, 2, 3]

        def scale(x, factor):
            return scale_binding.ScaleOp.createOpInGraph(x, factor)
        """,
    "layer.py": """
        from model.scale import scale  # not by the package

        def layer(x):
            return scale(x, 2.0)
        """,
    "main.py": """
        import sys
        from layer import layer
        from model import scale, table

        print([layer(x) + scale(x, 10.0) for x in table()], sys.argv[1:])
        """,
    "on_popxl.py": """
        import popxl
        from popxl import ops
        from layer import layer
        from model import table

        ir = popxl.Ir()
        with ir.main_graph:
            y = layer(popxl.constant(table(), popxl.float32))
            stream = popxl.d2h_stream(y.shape, y.dtype)
            ops.host_store(stream, y)
        with popxl.Session(ir, "cpu") as session:
            print(session.run()[stream].tolist())
        """,
    "mine.py": """
        def scale(x, factor):
            return x * factor

        def halve(x, factor):
            return x / factor
        """,
}

Run = Callable[..., subprocess.CompletedProcess]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Runs `python -m popxl_torch.run` in a folder with the program and further files."""

    def run(*arguments: str, **files: str) -> subprocess.CompletedProcess:
        named = {f"{name}.py": text for name, text in files.items()}
        for name, text in (PROGRAM | named).items():
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text(textwrap.dedent(text))
        paths = [str(RUNTIME), *filter(None, [os.environ.get("PYTHONPATH")])]
        return subprocess.run(
            [sys.executable, "-m", "popxl_torch.run", *arguments],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
            capture_output=True,
            text=True,
            timeout=100,
        )

    return run


@pytest.mark.parametrize("name", ["model.scale", "model.scale.scale"])
def test_program_runs_without_its_compiled_op(run: Run, name: str) -> None:
    """By the name in the package or in the module that defines it, whoever imported it how."""
    done = run("--substitute", f"{name}=mine.py", "main.py", "--tokens", "8")
    assert done.stdout == "[12.0, 24.0, 36.0] ['--tokens', '8']\n", done.stderr
    assert done.returncode == 0


def test_function_of_another_name_in_popxl_ops(run: Run) -> None:
    done = run("--substitute", "model.scale=mine.py:halve", "on_popxl.py")
    assert done.stdout == "[0.5, 1.0, 1.5]\n", done.stderr


def test_module_that_is_compiled_as_a_whole(run: Run) -> None:
    uses = "from kernels import scale; print(scale(2, 3))"
    done = run("--substitute", "kernels.scale=mine.py", "uses.py", uses=uses)
    assert done.stdout == "6\n", done.stderr


def test_pytest_and_the_programs_it_starts(run: Run) -> None:
    test = """
        import subprocess, sys

        def test_script():
            out = subprocess.run([sys.executable, "main.py"], capture_output=True, text=True)
            assert out.stdout == "[12.0, 24.0, 36.0] []\\n", out.stderr
        """
    done = run(
        "--substitute", "model.scale=mine.py", "-m", "pytest", "-q", "test_it.py", test_it=test
    )
    assert "1 passed" in done.stdout, done.stdout
    assert done.returncode == 0


def test_other_modules_are_told_what_is_missing(run: Run) -> None:
    uses = """
        from model import scale
        try:
            import scale_binding
        except ImportError as error:
            print(error)
        """
    done = run("--substitute", "model.scale=mine.py", "uses.py", uses=uses)
    assert done.stdout == "No module named 'scale_binding'\n", done.stderr


def test_compiled_op_that_is_called_still(run: Run) -> None:
    uses = "from model.scale import scale_binding; scale_binding.ScaleOp.createOpInGraph()"
    done = run("--substitute", "model.scale=mine.py", "uses.py", uses=uses)
    assert done.stderr.endswith(
        "model.scale_binding.ScaleOp.createOpInGraph is compiled code that is not here: "
        "substitute what calls it\n"
    )


@pytest.mark.parametrize(
    ("substitute", "line"),
    [
        (
            "model.scale",
            "'model.scale' is not of the form package.module.function=file.py[:function]",
        ),
        ("scale=mine.py", "'scale=mine.py' is not of the form package.module.function=file.py[:f"),
        ("model.scale=other.py", "there is no file {folder}/other.py"),
        ("model.scale=mine.py:shrink", "{folder}/mine.py has no function shrink"),
        ("model.grow=mine.py:scale", "model.grow cannot be replaced: model has no such name"),
        ("other.f=mine.py:scale", "other.f was not substituted: the program never imported other"),
    ],
)
def test_errors_are_one_line(run: Run, tmp_path: Path, substitute: str, line: str) -> None:
    uses = "import layer" if "grow" in substitute else "print('done')"
    done = run("--substitute", substitute, "uses.py", uses=uses)
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: " + line.format(folder=tmp_path))
    assert done.stderr.count("\n") == 1
    assert done.returncode == 2


def test_exit_status_is_the_programs(run: Run) -> None:
    done = run("--substitute", "model.scale=mine.py", "uses.py", uses="import model; exit(7)")
    assert done.returncode == 7


def test_standins_are_offered_on_demand(run: Run) -> None:
    uses = "import cppimport.import_hook, popart; print(popart.__version__)"
    assert run("uses.py", uses=uses).stderr.endswith("No module named 'cppimport'\n")
    assert run("--standins", "uses.py", uses=uses).stdout == "3.4.0\n"


def test_dataclass_defaults_of_python_38(run: Run) -> None:
    uses = """
        from dataclasses import dataclass

        @dataclass
        class Inner:
            x: int = 3

        @dataclass
        class Outer:
            inner: Inner = Inner()

        print(Outer().inner.x, Inner.__hash__)
        """
    assert "mutable default" in run("uses.py", uses=uses).stderr
    assert run("--python38", "uses.py", uses=uses).stdout == "3 None\n"

"""Standard streams that are closed or full: one line, a status, no traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import warm_python

TESTS = Path(__file__).resolve().parent
ONE_SHOT = ("tests/run_scripted.py", "--prompt", "A cat")
SMALL = "--layers 1 --hidden_size 8 --heads 2 --vocab_size 8 --sequence_length 8"
RUNS = "--prompt_tokens 2 --new_tokens 2 --repeats 1 --prompt_chunks 4"
BENCHMARK = ("inference.py", *SMALL.split(), *RUNS.split())
SCRIPTS = {
    "text": ONE_SHOT,
    "text at once": (*ONE_SHOT, "--no_stream"),
    "json": (*ONE_SHOT, "--json"),
    "help": ("run_inference.py", "--help"),
    "benchmark": BENCHMARK,
    "plan": (*BENCHMARK, "--dry_run", "--json"),
    "settings": ("config/config.py",),
    "maps": ("generate_memmap.py", "--memmap_dir", "{folder}"),
    "page": ("run_inference_gradio.py", "--port", "0"),
}
FULL = "standard output cannot be written: No space left on device"


def run(
    folder: Path, words: tuple[str, ...], closed: tuple[int, ...] = (), full: str = ""
) -> subprocess.CompletedProcess[str]:
    """A script without some standard streams, or where one is full."""
    words = tuple(word.replace("{folder}", str(folder / "maps")) for word in words)
    environment = {"PYTHONPATH": str(TESTS.parent / "runtime"), "SCRIPTED_TEXT": "some words"}
    with open("/dev/full", "w") as device:
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return warm_python.run(
            [sys.executable, *words],
            cwd=TESTS.parent,
            env=os.environ | environment | {"OMP_NUM_THREADS": "1"},
            stdin=subprocess.DEVNULL,
            closed=closed,
            text=True,
            timeout=300,
            **streams | ({full: device} if full else {}),
        )


def one_line(done: subprocess.CompletedProcess[str]) -> str:
    """The only error; logs may stand before it."""
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    return line


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_full_stdout_is_one_line(name: str, tmp_path: Path) -> None:
    done = run(tmp_path, SCRIPTS[name], full="stdout")
    assert one_line(done) == f"error: {FULL}"
    assert done.returncode == 2


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_closed_stdout_is_one_line(name: str, tmp_path: Path) -> None:
    done = run(tmp_path, SCRIPTS[name], closed=(1,))
    assert one_line(done).startswith("error: standard output is closed")
    assert done.returncode == 2
    assert not (tmp_path / "maps").exists()


@pytest.mark.parametrize("how", [{"closed": (2,)}, {"full": "stderr"}, {"closed": (0, 2)}])
@pytest.mark.parametrize("name", ["text", "json", "benchmark", "settings"])
def test_what_cannot_be_said_is_lost_and_stdout_has_the_results_alone(
    name: str, how: dict, tmp_path: Path
) -> None:
    done = run(tmp_path, SCRIPTS[name], **how)
    assert done.returncode == 0
    assert not done.stderr
    assert "ended by" not in done.stdout
    if name == "text":
        assert done.stdout == "some words\n"


@pytest.mark.parametrize("how", [{"closed": (2,)}, {"full": "stderr"}])
def test_an_error_that_cannot_be_said_still_has_its_status(how: dict, tmp_path: Path) -> None:
    done = run(tmp_path, ("run_inference.py", "--layers", "0"), **how)
    assert (done.returncode, done.stdout, done.stderr or "") == (2, "", "")


def test_no_stream_at_all_is_an_error_without_a_word(tmp_path: Path) -> None:
    done = run(tmp_path, SCRIPTS["text"], closed=(0, 1, 2))
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "")

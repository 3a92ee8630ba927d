"""Scripts: how errors end them, where logs go, what a seed fixes."""

import os
import subprocess
from typing import Any

import pytest
from commands import environment, run_python


def run_main(body: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """A script whose `main` is `body`."""
    lines = "\n".join(f"    {line}" for line in body.splitlines())
    code = (
        "import logging, os, signal, sys\n"
        "from config import ConfigError\n"
        "from utils.setup import UserError, run_script, setup_logging\n"
        f"def main():\n{lines}\n"
        "run_script(main)\n"
    )
    return run_python("-c", code, run=subprocess.run, **options)


@pytest.mark.parametrize("kind", ["UserError", "ConfigError", "MemoryError"])
def test_a_users_error_is_one_line_and_status_2(kind):
    run = run_main(f"raise {kind}('layers must be 1 or more, not 0')")
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr == "error: layers must be 1 or more, not 0\n"


def test_a_fault_of_the_program_keeps_its_traceback():
    run = run_main("raise ValueError('a fault')")
    assert run.returncode == 1
    assert "Traceback" in run.stderr
    assert "ValueError: a fault" in run.stderr


@pytest.mark.parametrize(("value", "status"), [("None", 0), ("0", 0), ("3", 3)])
def test_the_exit_status_is_what_main_returns(value, status):
    run = run_main(f"print('done')\nreturn {value}")
    assert (run.returncode, run.stdout, run.stderr) == (status, "done\n", "")


def test_an_interrupt_is_status_130_without_a_traceback():
    run = run_main("os.kill(os.getpid(), signal.SIGINT)\nsignal.pause()")
    assert (run.returncode, run.stderr) == (130, "")


def test_an_interrupt_is_no_exception_while_torch_is_imported(tmp_path):
    """Its C++ ends by an abort where one comes; here that is what its Python does."""
    (tmp_path / "torch.py").write_text(
        "import os, signal\ntry:\n    os.kill(os.getpid(), signal.SIGINT)\n    signal.pause()\n"
        "except BaseException:\n    os.abort()\n"
    )
    path = os.pathsep.join([str(tmp_path), environment()["PYTHONPATH"]])
    run = run_main("import torch", env=environment(PYTHONPATH=path))
    assert (run.returncode, run.stderr) == (130, "")


def test_a_reader_that_goes_away_is_no_traceback():
    run = run_main(
        "reader, writer = os.pipe()\n"
        "os.dup2(writer, 1)\n"
        "os.close(writer), os.close(reader)\n"
        "print('x' * 100000)"
    )
    assert (run.returncode, run.stderr) == (141, "")


def test_logs_go_to_stderr_from_the_level_up():
    run = run_main(
        "setup_logging('warning')\nlogging.info('quiet')\nlogging.warning('loud')\nprint('result')"
    )
    assert run.stdout == "result\n"
    assert "loud" in run.stderr
    assert "quiet" not in run.stderr


HOSTILE = r"\x1b]0;owned\x07 \x9b31m \u202e \ud800"


@pytest.mark.parametrize(
    "way",
    [
        "raise UserError({})",
        "raise RuntimeError({})",
        "setup_logging('info')\nlogging.warning('%s', {})",
        "setup_logging('info')\nlogging.getLogger('popxl_torch.cache').warning({})",
        "setup_logging('info')\ntry:\n    raise ValueError({0})\n"
        "except ValueError:\n    logging.exception('a fault')",
        "import warnings\nwarnings.warn({})",
        "import threading\ndef fail():\n    raise ValueError({})\n"
        "thread = threading.Thread(target=fail)\nthread.start(), thread.join()",
        "from utils.writing import say\nsay({})",
    ],
)
def test_nothing_that_is_printed_controls_the_terminal(way):
    run = run_main(way.format(f"'{HOSTILE}'"))
    assert HOSTILE in run.stderr
    assert not [c for c in run.stderr if not c.isprintable() and c not in "\n\t"]


def test_a_log_message_cannot_look_like_two():
    run = run_main("setup_logging('info')\nlogging.info('quiet\\nERROR: forged')")
    assert run.stderr == "INFO: quiet\\nERROR: forged\n"


def test_a_table_for_a_person_cannot_control_the_terminal():
    run = run_main(f"from utils.writing import show\nshow('{HOSTILE}')")
    assert run.stdout == f"{HOSTILE}\n"


def test_requests_of_libraries_are_not_logged_as_our_own_news():
    run = run_main(
        "setup_logging('info')\n"
        "logging.getLogger('httpx').info('HTTP Request')\n"
        "logging.getLogger('httpx').warning('refused')"
    )
    assert "HTTP Request" not in run.stderr
    assert "refused" in run.stderr

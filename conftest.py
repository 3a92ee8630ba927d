"""What is decided before any test module is imported: kernels, threads, Ctrl-C, time limits."""

from __future__ import annotations

import gc
import os
import signal
import sys

# Beside each other, processes that wait for their threads in a busy loop would stop one another.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# Hundreds of processes import the program: it is compiled once.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# Whatever makes HTTP clients reads all certificates for each; from a folder, only those it needs.
os.environ.pop("SSL_CERT_FILE", None)
os.environ["SSL_CERT_DIR"] = "/etc/ssl/certs"

import pytest
import torch

sys.dont_write_bytecode = False

# How many threads compute does not follow what else runs: what tests see is their own doing.
os.environ.setdefault("POPXL_FIXED_THREADS", "1")

# Triton decides when it is first imported, by whatever library, whether its kernels are
# interpreted. Without a GPU they are.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

# A shell's background job ignores Ctrl-C, and so would each process that a test starts and stops.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config: pytest.Config) -> None:
    """Workers share the process that Python commands are forked from."""
    if config.getoption("numprocesses", None) and "PYTEST_XDIST_WORKER" not in os.environ:
        import warm_python

        warm_python.start()
        config.add_cleanup(warm_python.stop)


def pytest_collection_finish() -> None:
    """What all tests share is no garbage: to search it for cycles takes half a second each time."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    gc.unfreeze()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """No test runs without a time limit.

    Raises:
        UsageError: naming the first test that has none.
    """
    for item in items:
        if time_limit(config, item) <= 0:
            raise pytest.UsageError(
                f"{item.nodeid} has no time limit: install pytest-timeout "
                "(requirements-dev.txt), and give --timeout or a mark more than 0 seconds"
            )


def time_limit(config: pytest.Config, item: pytest.Item) -> float:
    """Seconds that pytest-timeout lets a test run; 0 where it does not."""
    if not config.pluginmanager.hasplugin("timeout"):
        return 0
    mark = item.get_closest_marker("timeout")
    if mark is not None:
        return float(mark.args[0] if mark.args else mark.kwargs["timeout"])
    given = config.getoption("timeout"), os.environ.get("PYTEST_TIMEOUT"), config.getini("timeout")
    return float(next((limit for limit in given if limit not in (None, "")), 0))

"""`Popen` and `run` of Python commands, forked from a process that has imported torch before.

A command runs as in an interpreter of its own, with its arguments, environment, folder, standard
streams and exit; only libraries that take seconds to import are there already, none of them ours,
and are not taken apart at its end.
Where the interpreter or its imports are the subject, a test starts one with `subprocess` instead.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import fcntl
import gc
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import termios
import warnings
from collections.abc import Sequence
from types import CodeType, ModuleType
from typing import Any

ADDRESS = "WARM_PYTHON"
"""Environment variable: where the process to fork from listens, for all workers of a run."""

IMPORTED = (
    *("torch.distributed", "safetensors.torch", "tokenizers", "ml_dtypes", "numpy.random"),
    *("tqdm", "yaml", "prompt_toolkit", "transformers.tokenization_utils_fast", "gradio"),
)

NUMBER = 9
"""Bytes of a number in decimal, as both sides send them."""


class Popen(subprocess.Popen):
    """As `subprocess.Popen` of `[sys.executable, ...]`, without options of how a child starts.

    The process is no child of this one: signals reach it, but its parent is the one it is forked
    from.

    Args:
        closed: numbers of the standard streams that it begins without.
        terminal: whether stdin is a terminal, which becomes that of its session.
    """

    def __init__(
        self,
        command: list[str],
        closed: Sequence[int] = (),
        terminal: bool = False,
        **options: Any,
    ):
        self._how = {"closed": list(closed), "terminal": terminal}
        super().__init__(command, **options)

    def _execute_child(self, args: list[str], *given: Any) -> None:
        assert args[0] == sys.executable
        folder, environment, streams = given[4], given[5], given[9:15]
        ends = enumerate((streams[0], streams[3], streams[5]))
        words = [str(word) for word in args[1:]]
        request = {"words": words, "folder": str(folder or os.getcwd()), **self._how}
        request["environment"] = dict(environment or os.environ)
        sent = json.dumps(request).encode()
        self._line = socket.socket(socket.AF_UNIX)
        self._line.connect("\0" + address())
        number = [b"%*d" % (NUMBER, len(sent))]
        socket.send_fds(self._line, number, [own if end == -1 else end for own, end in ends])
        self._line.sendall(sent)
        self.pid = number_from(self._line)
        self._child_created = True
        self._close_pipe_fds(*streams)

    def _internal_poll(self, *_: Any, **__: Any) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._wait(0)
        return self.returncode

    def _wait(self, timeout: float | None) -> int:
        if self.returncode is None:
            if not select.select([self._line], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
            self.returncode = number_from(self._line)
            self._line.close()
        return self.returncode


def run(
    command: list[str],
    *,
    input: Any = None,
    timeout: float | None = None,
    check: bool = False,
    capture_output: bool = False,
    **options: Any,
) -> subprocess.CompletedProcess:
    """As `subprocess.run`."""
    pipe = subprocess.PIPE
    given = {"stdin": pipe} if input is not None else {}
    captured = {"stdout": pipe, "stderr": pipe} if capture_output else {}
    with Popen(command, **given, **captured, **options) as process:
        try:
            output, errors = process.communicate(input, timeout)
        except BaseException:
            process.kill()
            raise
    done = subprocess.CompletedProcess(command, process.returncode, output, errors)
    if check:
        done.check_returncode()
    return done


def address() -> str:
    """Where the process to fork from listens; it is started where there is none."""
    if ADDRESS not in os.environ:
        start()
    return os.environ[ADDRESS]


def start() -> None:
    """Start the process to fork from; it ends with this one at the latest."""
    os.environ[ADDRESS] = f"warm-python-{os.getpid()}"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}
    environment["HF_HUB_OFFLINE"] = "1"
    environment.pop("PYTHONPATH", None)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("\0" + os.environ[ADDRESS])
        listener.listen(64)  # who connects from now on waits for the imports
        number = listener.fileno()
        command = [sys.executable, __file__, str(number)]
        servers.append(
            subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=[number], env=environment)
        )


servers: list[subprocess.Popen] = []
"""The process to fork from, which ends when the pipe to it is closed."""


def stop() -> None:
    """End the process to fork from, where this one has started it."""
    while servers:
        servers.pop().communicate()


def number_from(line: socket.socket) -> int:
    return int(received(line, NUMBER))


def received(line: socket.socket, size: int) -> bytes:
    """So many bytes.

    Raises:
        EOFError: the other side has ended.
    """
    read = b""
    while len(read) < size:
        if not (more := line.recv(size - len(read))):
            raise EOFError("the process to fork from has ended")
        read += more
    return read


# --- the process to fork from ---


def served(listener: socket.socket) -> tuple[Any, list[int]]:
    """What is asked of a fork and its standard streams, in that fork; the others go on."""
    woken, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    lines: dict[int, socket.socket] = {}
    while True:
        ready = select.select([listener, woken, 0], [], [])[0]
        if 0 in ready:
            sys.exit()
        if woken in ready:
            os.read(woken, 1 << 12)
            tell_ended(lines)
        if listener not in ready:
            continue
        line, _ = listener.accept()
        size, streams, *_ = socket.recv_fds(line, NUMBER, 3)
        request = json.loads(received(line, int(size)))
        if not (number := os.fork()):
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            for other in (listener, line, *lines.values()):
                other.close()
            for end in (woken, wake):
                os.close(end)
            return request, streams
        lines[number] = line
        line.sendall(b"%*d" % (NUMBER, number))
        for stream in streams:
            os.close(stream)


def tell_ended(lines: dict[int, socket.socket]) -> None:
    """Send the statuses of those that have ended to who started them."""
    with contextlib.suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            with lines.pop(ended[0]) as line, contextlib.suppress(OSError):
                line.sendall(b"%*d" % (NUMBER, os.waitstatus_to_exitcode(ended[1])))


def take(streams: list[int], closed: list[int], terminal: bool) -> None:
    """Have other standard streams, but for those that are closed."""
    if terminal:
        os.setsid()
        fcntl.ioctl(streams[0], termios.TIOCSCTTY, 0)
    for own, (stream, name) in enumerate(zip(streams, ("stdin", "stdout", "stderr"), strict=True)):
        os.dup2(stream, own)
        os.close(stream)
        old = getattr(sys, name)
        if own in closed:
            os.close(own)
            setattr(sys, name, None)
            continue
        text = {"encoding": old.encoding, "errors": old.errors, "closefd": False}
        new = open(own, "w" if own else "r", 1 if own == 2 else -1, **text)  # noqa: SIM115
        setattr(sys, name, new)
        setattr(sys, f"__{name}__", new)


def begun(words: list[str], folder: str, environment: dict[str, str]) -> CodeType:
    """The code of a command line, once all is as the interpreter would have made it for it."""
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    while words[0] == "-W":
        warnings.simplefilter(words[1])  # type: ignore[arg-type]
        words = words[2:]
    first, *sys.argv = words
    if first == "-c":
        here, code = "", compile(sys.argv[0], "<string>", "exec")
        sys.argv[0] = "-c"
    elif first == "-m":
        run = (
            f"import runpy; runpy.run_module({sys.argv[0]!r}, run_name='__main__', alter_sys=True)"
        )
        here, code = folder, compile(run, "<string>", "exec")
    else:
        sys.argv = words
        here = os.path.dirname(os.path.realpath(first))
        with open(first, "rb") as script:
            code = compile(script.read(), first, "exec")
    given = environment.get("PYTHONPATH", "")
    sys.path[:1] = [here, *filter(None, given.split(os.pathsep))]
    return code


def import_libraries() -> None:
    """Import what is shared, and have what is forked end without taking it apart.

    That would take a second, and copy the memory of all of it.
    """
    modules: list[Any] = []
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(modules))
    names: list[str] = []
    # First, and so run last
    atexit.register(lambda: modules.extend(sys.modules.pop(name, None) for name in names))
    for name in IMPORTED:
        importlib.import_module(name)
    own = sys.stdlib_module_names | {"__main__"}
    names += [name for name in sys.modules if name.partition(".")[0] not in own]
    gc.collect()
    gc.freeze()
    libc = ctypes.CDLL(None)
    libc.on_exit(libc._exit, None)  # after what a command registers, but before what the libraries
    libc.on_exit(libc.fcloseall, None)  # have: their static variables are left, too


if __name__ == "__main__":
    import_libraries()
    request, streams = served(socket.socket(fileno=int(sys.argv[1])))
    take(streams, request.pop("closed"), request.pop("terminal"))
    code = begun(**request)
    sys.modules["__main__"] = ModuleType("__main__")  # no name of ours, and nothing that is frozen
    sys.modules["__main__"].__file__ = code.co_filename
    exec(code, vars(sys.modules["__main__"]))

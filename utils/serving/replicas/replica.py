"""A replica: one server, or a group of processes that make one, and the way to it."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import Any

import httpx

REPOSITORY = Path(__file__).resolve().parents[3]
START_SECONDS = 3600.0
"""A server may take so long to load its model."""

PR_SET_PDEATHSIG = 1  # Linux: the signal that a process gets when its parent dies


class Replica:
    """Starts a server on a loopback port and waits until it answers.

    Args:
        options: of `run_inference_gradio.py`, for the model and its limits.
        processes: of one program that share its weights, by `popdist.run`.

    Raises:
        RuntimeError: the server has ended before it answered.
    """

    def __init__(self, options: Sequence[str], processes: int):
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        command = [str(REPOSITORY / "run_inference_gradio.py"), *options]
        command += ["--no_page", "--host", "127.0.0.1", "--port", str(port)]
        if processes > 1:
            group = ["--nproc-per-node", str(processes), "--standalone"]
            command = ["-m", "popdist.run", *group, *command]
        self._server = subprocess.Popen(
            [sys.executable, *command], cwd=REPOSITORY, preexec_fn=_end_with_parent
        )
        url, unlimited = f"http://127.0.0.1:{port}", httpx.Limits(max_connections=None)
        self._client = httpx.AsyncClient(base_url=url, timeout=None, limits=unlimited)
        self._wait(f"{url}/health")
        # Ray finds a replica that has ended at once, and starts another one.
        threading.Thread(target=self._end_with_server, daemon=True).start()

    async def relay(
        self, method: str, target: str, headers: list[tuple[bytes, bytes]], body: bytes
    ) -> AsyncGenerator[Any, None]:
        """The server's answer: status and headers, then the body in pieces as they come.

        Args:
            target: path and query.
        """
        request = self._client.build_request(method, target, headers=headers, content=body)
        answer = await self._client.send(request, stream=True)
        try:
            yield answer.status_code, answer.headers.raw
            async for piece in answer.aiter_raw():
                yield piece
        finally:  # also where the one who asked has gone: the server then frees the slot
            await answer.aclose()

    def _wait(self, health: str) -> None:
        until = time.monotonic() + START_SECONDS
        while time.monotonic() < until:
            if (status := self._server.poll()) is not None:
                raise RuntimeError(f"the server ended with status {status} before it answered")
            try:
                httpx.get(health, timeout=1.0).raise_for_status()
                return
            except httpx.HTTPError:
                time.sleep(0.2)
        raise RuntimeError(f"the server did not answer within {START_SECONDS:g} s")

    def _end_with_server(self) -> None:
        self._server.wait()
        os._exit(1)


def _end_with_parent() -> None:
    """In a child: end when the replica's process is gone, however it went."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)

"""The web server: API and page put together behind the gate, and its end.

Gradio's own server is not used: this one waits for no other host, leaves within seconds, and stands
behind a gate (`utils.serving.gate`) and limits (`utils.serving.limits`).
"""

from __future__ import annotations

import logging
import secrets
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import FrameType
from typing import Any
from urllib.parse import urlsplit

import uvicorn
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from utils.serving.api.addresses import ApiAddresses
from utils.serving.api.app import build_api
from utils.serving.api.metrics import Counted, Meter
from utils.serving.connections import BoundedProtocol, Connections
from utils.serving.gate import Gate
from utils.serving.gated_answer import Addresses
from utils.serving.hosts import Hosts
from utils.serving.keys import Keys
from utils.serving.listening import bind, url
from utils.serving.service import Service

logger = logging.getLogger(__name__)

GRACE = 3
"""Seconds that connections have to end in, once the server is told to."""


@dataclass(frozen=True)
class Application:
    """API and page as an ASGI application: `app` is behind the gate.

    Attributes:
        end_page: tells the page's streams to end.
    """

    app: ASGIApp
    hosts: Hosts
    end_page: Callable[[], object] = lambda: None


def build_app(
    service: Service,
    auth: tuple[str, str] | None = None,
    hosts: Hosts | None = None,
    *,
    keys: Sequence[str] = (),
    page: bool = True,
    root_path: str = "",
) -> Application:
    """What is served, as an ASGI application.

    Args:
        auth: user and password that the page asks for, and the API takes for a key.
        hosts: by which names it may be called, besides loopback ones.
        keys: that the API asks for.
        page: whether there is one; without it Gradio is not imported.
        root_path: what a proxy has before each address.
    """
    hosts, meter = hosts or Hosts(), Meter(service.engine)
    service.works.ended = meter.ended
    api = build_api(service, meter)
    parts: list[Addresses] = [ApiAddresses(service.limits)]
    inner: ASGIApp = api
    end_page: Callable[[], object] = lambda: None  # noqa: E731 - as in the dataclass
    if page:
        from utils.serving.page.mounted import mount  # late: Gradio takes seconds

        inner, calls, end_page = mount(api, service, auth, root_path)
        parts.append(calls)
    if hosts.origins:
        inner = CORSMiddleware(
            inner, sorted(hosts.origins), ["GET", "POST"], ["*"], expose_headers=["Retry-After"]
        )
    gate = Gate(inner, parts, hosts, service.limits, Keys(keys, auth), root_path)
    return Application(Counted(gate, meter, root_path), hosts, end_page)


class WebServer(uvicorn.Server):
    """Serves an application on a socket until it is told to end, with `service`'s engine."""

    def __init__(self, application: Application, service: Service, ready: Callable[[], None]):
        limits = service.limits
        book = Connections(limits, application.hosts.is_proxy)
        super().__init__(
            uvicorn.Config(
                application.app,
                http=partial(BoundedProtocol, book, limits),  # type: ignore[arg-type]
                ws="none",
                loop="asyncio",  # whatever else is installed
                lifespan="on",
                log_config=None,  # ours, which does not repeat itself
                log_level="warning",
                access_log=False,
                proxy_headers=False,  # the gate reads those of a proxy that was named
                server_header=False,
                timeout_graceful_shutdown=GRACE,
                timeout_keep_alive=limits.keep_alive_seconds,
                h11_max_incomplete_event_size=limits.header_bytes,
            )
        )
        self._end_page, self._service, self._ready = application.end_page, service, ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Ends generations, and the streams that tell whether a tab is still open, so that
        connections can end."""
        self._service.engine.begin_to_close()
        self._end_page()
        await super().shutdown(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """On SIGINT and SIGTERM; the status of the process is that of `main`."""
        for name in ("uvicorn.error", "asyncio"):  # of each connection that has to be cut
            logging.getLogger(name).setLevel(logging.CRITICAL)
        self.force_exit = self.should_exit and sig == signal.SIGINT  # the second Ctrl-C
        self.should_exit = True


@contextmanager
def serving(
    service: Service,
    auth: tuple[str, str] | None = None,
    hosts: Hosts | None = None,
    **options: Any,
) -> Iterator[str]:
    """Page and API served by a thread of this process, at the address it gives.

    Args:
        options: further ones of `build_app`.
    """
    listener, ready = bind("127.0.0.1", 0), threading.Event()
    server = WebServer(build_app(service, auth, hosts, **options), service, ready.set)
    thread = threading.Thread(target=server.run, args=[[listener]], daemon=True)
    thread.start()
    ready.wait()
    try:
        yield url(listener)
    finally:
        server.should_exit = True
        thread.join()


def share(listener: socket.socket, hosts: Hosts) -> None:
    """Have gradio.live forward a public address to the server; print it, or why there is none."""
    arguments = (*listener.getsockname()[:2], hosts)
    threading.Thread(target=_share, args=arguments, daemon=True).start()


def _share(host: str, port: int, hosts: Hosts) -> None:
    from gradio.networking import setup_tunnel

    try:
        url = setup_tunnel(host, port, secrets.token_urlsafe(32), None, None)
    except Exception as error:
        logger.error("no public link: %s", str(error).strip() or type(error).__name__)
    else:
        name = urlsplit(url).hostname or ""
        hosts.names.add(name)
        hosts.https.add(name)
        print(f"public link: {url}", flush=True)

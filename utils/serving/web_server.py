"""The web server of the page: its parts put together, its health, and its end.

Gradio's own server is not used: this one waits for no other host, leaves within seconds, and stands
behind a gate (`utils.serving.gate`) and limits (`utils.serving.limits`).
"""

from __future__ import annotations

import dataclasses
import logging
import secrets
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import FrameType
from urllib.parse import urlsplit

import fastapi
import gradio as gr
import uvicorn
from fastapi.responses import JSONResponse
from gradio.routes import App as GradioApp
from starlette.routing import Mount
from starlette.types import ASGIApp

from utils.serving.calls import Calls
from utils.serving.connections import BoundedProtocol, Connections
from utils.serving.gate import Gate
from utils.serving.hosts import Hosts
from utils.serving.listening import bind, url
from utils.serving.logins import checker
from utils.serving.page.layout import build_page
from utils.serving.page.snippets import LoginInSnippets
from utils.serving.page.style import CSS, theme
from utils.serving.service import Service

logger = logging.getLogger(__name__)

GRACE = 3
"""Seconds that connections have to end in, once the server is told to."""


@dataclass(frozen=True)
class Application:
    """The page and `/health`: `app` behind the gate, `page` without."""

    app: ASGIApp
    page: GradioApp
    hosts: Hosts


def build_app(
    service: Service, auth: tuple[str, str] | None = None, hosts: Hosts | None = None
) -> Application:
    """What is served, as an ASGI application.

    Args:
        auth: user and password that the page asks for.
        hosts: by which names it may be called, besides loopback ones.
    """
    inner = fastapi.FastAPI(openapi_url=None)

    @inner.get("/health")
    async def health() -> JSONResponse:
        statistics = service.engine.statistics()
        status = {"status": "ok" if statistics.alive else "stopping"}
        code = 200 if statistics.alive else 503
        return JSONResponse(status | dataclasses.asdict(statistics), code)

    page = build_page(service)
    gr.mount_gradio_app(
        inner,
        page,
        path="/",
        auth=checker(*auth) if auth else None,
        allowed_paths=[],
        max_file_size=0,
        show_error=False,
        enable_monitoring=False,
        run_history=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        footer_links=["api"],
        theme=theme(),
        css=CSS,
    )
    hosts = hosts or Hosts()
    mounted = next(route.app for route in inner.routes if isinstance(route, Mount))
    assert isinstance(mounted, GradioApp)
    shown = LoginInSnippets(inner, auth[0]) if auth else inner
    gate = Gate(shown, Calls(page.fns, service.limits), hosts, service.limits)
    return Application(gate, mounted, hosts)


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
        self._page, self._service, self._ready = application.page, service, ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Ends generations, and the streams that tell whether a tab is still open, so that
        connections can end."""
        self._service.engine.begin_to_close()
        self._page.stop_event.set()
        await super().shutdown(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """On SIGINT and SIGTERM; the status of the process is that of `main`."""
        for name in ("uvicorn.error", "asyncio"):  # of each connection that has to be cut
            logging.getLogger(name).setLevel(logging.CRITICAL)
        self.force_exit = self.should_exit and sig == signal.SIGINT  # the second Ctrl-C
        self.should_exit = True


@contextmanager
def serving(
    service: Service, auth: tuple[str, str] | None = None, hosts: Hosts | None = None
) -> Iterator[str]:
    """The page served by a thread of this process, at the address it gives."""
    listener, ready = bind("127.0.0.1", 0), threading.Event()
    server = WebServer(build_app(service, auth, hosts), service, ready.set)
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

"""The web server of the page: what of it can be reached, its health, and its end.

Gradio's own server is not used: this one lets through only what the page needs, waits for no other
host, and leaves within seconds.
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
from types import FrameType

import fastapi
import gradio as gr
import uvicorn
from fastapi.responses import JSONResponse
from gradio.routes import App as GradioApp
from starlette.routing import Mount
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from utils.listening import bind, url
from utils.page.layout import build_page
from utils.page.style import CSS, theme
from utils.service import Service

logger = logging.getLogger(__name__)

GRACE = 3
"""Seconds that connections have to end in, once the server is told to."""

LARGEST_BODY = 1 << 20
"""Bytes of a request: a prompt that fills the context has far fewer."""

REACHABLE = (
    "/",
    "/health",
    "/config",
    "/theme.css",
    "/manifest.json",
    "/favicon.ico",
    "/robots.txt",
    "/login",
    "/logout",
    "/gradio_api/info",
    "/gradio_api/openapi.json",
    "/gradio_api/login_check",
    "/gradio_api/app_id",
    "/gradio_api/token",
    "/gradio_api/user",
    "/gradio_api/startup-events",
    "/gradio_api/queue/join",
    "/gradio_api/queue/data",
    "/gradio_api/queue/status",
    "/gradio_api/cancel",
    "/gradio_api/reset",
)
REACHABLE_BELOW = (
    "/assets/",
    "/static/",
    "/gradio_api/call/",
    "/gradio_api/heartbeat/",
    "/gradio_api/run/",
)
"""Where all that is served lies. Gradio has more, among it uploads and files of the server's."""

POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; object-src 'none'; base-uri 'self'; "
    "form-action 'self'"
)
"""What a browser may fetch for the page: nothing of another host's. gr.HTML needs the eval."""


def build_app(service: Service, auth: tuple[str, str] | None = None) -> fastapi.FastAPI:
    """The page and `/health` as an ASGI application.

    Args:
        auth: user and password that the page asks for.
    """
    app = fastapi.FastAPI(openapi_url=None)

    @app.get("/health")
    def health() -> JSONResponse:
        statistics = service.engine.statistics()
        status = {"status": "ok" if statistics.alive else "stopping"}
        code = 200 if statistics.alive else 503
        return JSONResponse(status | dataclasses.asdict(statistics), code)

    app.add_middleware(_Gate)
    return gr.mount_gradio_app(
        app,
        build_page(service),
        path="/",
        auth=auth,
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


class _Gate:
    """Lets through what is reachable, in bodies of a sane size, and tells browsers the policy."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = scope["path"]
        if path.rstrip("/") not in REACHABLE and path != "/" and not _is_below(path):
            await JSONResponse({"detail": "Not Found"}, 404)(scope, receive, send)
            return
        if not _is_small(scope):
            message = {
                "detail": f"a request may have at most {LARGEST_BODY} bytes, with its length"
            }
            await JSONResponse(message, 413)(scope, receive, send)
            return

        async def send_with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = [
                    (b"content-security-policy", POLICY.encode()),
                    (b"x-content-type-options", b"nosniff"),
                    (b"referrer-policy", b"no-referrer"),
                ]
                message = {**message, "headers": [*message["headers"], *headers]}
            await send(message)

        await self.app(scope, receive, send_with_policy)


def _is_below(path: str) -> bool:
    return path.startswith(REACHABLE_BELOW) and ".." not in path.split("/")


def _is_small(scope: Scope) -> bool:
    """By what its headers say: the server reads no more than that."""
    headers = dict(scope["headers"])
    if b"transfer-encoding" in headers:
        return False
    return int(headers.get(b"content-length", 0)) <= LARGEST_BODY


class WebServer(uvicorn.Server):
    """Serves an application on a socket until it is told to end, with `service`'s engine."""

    def __init__(self, app: fastapi.FastAPI, service: Service, ready: Callable[[], None]):
        super().__init__(
            uvicorn.Config(
                app,
                log_level="warning",
                access_log=False,
                timeout_graceful_shutdown=GRACE,
                timeout_keep_alive=75,
            )
        )
        self._app, self._service, self._ready = app, service, ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Ends generations, and the streams that tell whether a tab is still open, so that
        connections can end."""
        self._service.engine.begin_to_close()
        for mount in self._app.routes:
            if isinstance(mount, Mount) and isinstance(mount.app, GradioApp):
                mount.app.stop_event.set()
        await super().shutdown(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """On SIGINT and SIGTERM; the status of the process is that of `main`."""
        for name in ("uvicorn.error", "asyncio"):  # of each connection that has to be cut
            logging.getLogger(name).setLevel(logging.CRITICAL)
        self.force_exit = self.should_exit and sig == signal.SIGINT  # the second Ctrl-C
        self.should_exit = True


@contextmanager
def serving(service: Service, auth: tuple[str, str] | None = None) -> Iterator[str]:
    """The page served by a thread of this process, at the address it gives."""
    listener, ready = bind("127.0.0.1", 0), threading.Event()
    server = WebServer(build_app(service, auth), service, ready.set)
    thread = threading.Thread(target=server.run, args=[[listener]], daemon=True)
    thread.start()
    ready.wait()
    try:
        yield url(listener)
    finally:
        server.should_exit = True
        thread.join()


def share(listener: socket.socket) -> None:
    """Have gradio.live forward a public address to the server; print it, or why there is none."""
    threading.Thread(target=_share, args=listener.getsockname()[:2], daemon=True).start()


def _share(host: str, port: int) -> None:
    from gradio.networking import setup_tunnel

    try:
        url = setup_tunnel(host, port, secrets.token_urlsafe(32), None, None)
    except Exception as error:
        logger.error("no public link: %s", str(error).strip() or type(error).__name__)
    else:
        print(f"public link: {url}", flush=True)

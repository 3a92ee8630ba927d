"""The page among what is served: Gradio's application under the API's."""

from __future__ import annotations

from collections.abc import Callable

import fastapi
import gradio as gr
from gradio.routes import App as GradioApp
from starlette.routing import Mount
from starlette.types import ASGIApp

from utils.serving.calls import Calls
from utils.serving.logins import checker
from utils.serving.page.layout import build_page
from utils.serving.page.sessions import Sessions
from utils.serving.page.snippets import LoginInSnippets
from utils.serving.page.style import CSS, theme
from utils.serving.service import Service


def mount(
    api: fastapi.FastAPI,
    service: Service,
    auth: tuple[str, str] | None = None,
    root_path: str = "",
) -> tuple[ASGIApp, Calls, Callable[[], object]]:
    """The API with the page at every address that it leaves free.

    Args:
        auth: user and password that the page asks for.
        root_path: what a proxy has before each address.

    Returns:
        The application, what of the page is reached, and what ends the page's streams.
    """
    page = build_page(service)
    gr.mount_gradio_app(
        api,
        page,
        path="/",
        root_path=root_path or None,
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
    mounted = next(route.app for route in api.routes if isinstance(route, Mount))
    assert isinstance(mounted, GradioApp)
    shown = LoginInSnippets(api, auth[0]) if auth else api
    return Sessions(shown, page), Calls(page.fns, service.limits), mounted.stop_event.set

"""The login in the code that the page's API panel shows, where Gradio leaves it out."""

from __future__ import annotations

import json
import re
import shlex
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

INFO = "/gradio_api/info"
PASSWORD = "PASSWORD"


class LoginInSnippets:
    """An application whose description of its API has the login in each snippet.

    Args:
        user: that the page asks for; the password is left to the reader.
    """

    def __init__(self, app: ASGIApp, user: str):
        self._app, self._user = app, user

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "").removeprefix(scope.get("root_path", "")).rstrip("/")
        if scope["type"] != "http" or path != INFO:
            await self._app(scope, receive, send)
            return
        headers = [(name, value) for name, value in scope["headers"] if name != b"accept-encoding"]
        start: Message = {}
        body = b""

        async def changed(message: Message) -> None:
            nonlocal start, body
            if message["type"] == "http.response.start":
                start = message
                return
            body += message.get("body", b"")
            if message.get("more_body"):
                return
            if start["status"] == 200:
                body = json.dumps(with_login(json.loads(body), self._user)).encode()
            length = (b"content-length", str(len(body)).encode())
            others = [h for h in start["headers"] if h[0].lower() != length[0]]
            await send({**start, "headers": [*others, length]})
            await send({"type": "http.response.body", "body": body})

        await self._app({**scope, "headers": headers}, receive, changed)


def with_login(info: dict[str, Any], user: str) -> dict[str, Any]:
    """Gradio's description of an API, with the login in its snippets."""
    for endpoint in info.get("named_endpoints", {}).values():
        snippets = endpoint.get("code_snippets", {})
        for language, add in ADD.items():
            if language in snippets:
                snippets[language] = add(snippets[language], user)
    return info


def _in_python(code: str, user: str) -> str:
    login = f", auth=({json.dumps(user)}, {json.dumps(PASSWORD)}))"
    return re.sub(r'(= Client\("[^"]*")\)', lambda found: found[1] + login, code)


def _in_javascript(code: str, user: str) -> str:
    login = f", {{ auth: [{json.dumps(user)}, {json.dumps(PASSWORD)}] }})"
    return re.sub(r'(Client\.connect\("[^"]*")\)', lambda found: found[1] + login, code)


def _in_bash(code: str, user: str) -> str:
    """curl keeps the login as a cookie."""
    address = re.search(r"(https?://\S*?)/gradio_api/", code)
    if not address:
        return code
    fields = (shlex.quote(f"username={user}"), f"password={PASSWORD}")
    form = " ".join(f"--data-urlencode {field}" for field in fields)
    login = f"curl -s -c cookies {form} {address[1]}/login\n"
    return login + code.replace("curl ", "curl -b cookies ")


ADD = {"python": _in_python, "javascript": _in_javascript, "bash": _in_bash}

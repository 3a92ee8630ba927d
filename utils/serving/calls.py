"""What the body of a request may be: JSON within bounds, for a function that is offered there.

Gradio answers a body that it did not expect with an error of the server's and a traceback, which
has the body in it. Here each body is parsed with bounds and compared with what its address takes;
Gradio gets it anew, with nothing in it but that.
"""

from __future__ import annotations

import inspect
import json
import math
import re
from collections.abc import Callable
from typing import Any

from utils.serving.limits import Limits

API = "/gradio_api"
SESSION = re.compile(r"[A-Za-z0-9_-]{1,64}")
CALL = re.compile(rf"{API}/call/(v2/)?([A-Za-z0-9_]{{1,64}})/?")

REACHABLE = (
    *("/", "/config", "/theme.css", "/manifest.json", "/favicon.ico", "/robots.txt"),
    *("/login", "/logout"),
    *(f"{API}/info", f"{API}/openapi.json", f"{API}/login_check", f"{API}/app_id", f"{API}/token"),
    *(f"{API}/user", f"{API}/startup-events"),
    *(f"{API}/queue/join", f"{API}/queue/data", f"{API}/queue/status"),
    *(f"{API}/cancel", f"{API}/reset"),
)
REACHABLE_BELOW = ("/assets/", "/static/", f"{API}/call/", f"{API}/heartbeat/")
"""Where all of the page that is served lies. Gradio has more, among it uploads, files of the
server's, and the page's own functions under `/run/`."""


class Refusal(Exception):
    """A request that is refused: a status from 400 on and a sentence about it."""

    def __init__(self, status: int, sentence: str, wait: float | None = None):
        super().__init__(sentence)
        self.status, self.sentence, self.wait = status, sentence, wait


class Calls:
    """The addresses of a page that take JSON.

    Args:
        functions: of a `gr.Blocks`: id -> function.
    """

    def __init__(self, functions: dict[int, Any], limits: Limits):
        self._functions, self._limits = functions, limits
        self._public = {f.api_name: f for f in functions.values() if f.api_visibility == "public"}

    def has(self, path: str) -> bool:
        """Whether an address is the page's: what is nobody else's."""
        return True

    def reaches(self, path: str) -> bool:
        """Whether something is served there. Raises a `Refusal` for a tab's that is none."""
        below = path.startswith(REACHABLE_BELOW) and ".." not in path.split("/")
        heartbeat = f"{API}/heartbeat/"
        if path.startswith(heartbeat):
            session(path.removeprefix(heartbeat).rstrip("/"))
        return path == "/" or path.rstrip("/") in REACHABLE or below

    def guards(self, path: str) -> bool:
        """Whether a key is asked for: Gradio asks for the account itself."""
        return False

    def error(self, status: int, sentence: str) -> dict[str, Any]:
        """The body of an answer that is an error."""
        return {"detail": sentence}

    def takes(self, path: str) -> bool:
        """Whether a POST to this path has JSON that is checked here."""
        return self._check_for(path) is not None

    def checked(self, path: str, body: bytes) -> bytes:
        """The body as Gradio may have it.

        Raises:
            Refusal: it is not what this address takes.
        """
        check = self._check_for(path)
        assert check is not None
        value = read_json(body, self._limits)
        if not isinstance(value, dict):
            raise Refusal(422, "the body must be a JSON object")
        return json.dumps(check(value), ensure_ascii=False).encode()

    def _check_for(self, path: str) -> Callable[[dict[str, Any]], dict[str, Any]] | None:
        path = path.rstrip("/")
        if match := CALL.fullmatch(path):
            version, name = match.groups()
            check = self._call_by_names if version else self._call
            return lambda value: check(name, value)
        checks = {"queue/join": self._join, "cancel": self._cancel, "reset": self._reset}
        return checks.get(path.removeprefix(f"{API}/"))

    def _join(self, value: dict[str, Any]) -> dict[str, Any]:
        number = value.get("fn_index")
        function = self._functions.get(number) if type(number) is int else None
        if function is None or function.fn is None:
            raise Refusal(404, "fn_index must be the number of one of the page's functions")
        if value.get("batched"):
            raise Refusal(422, "batched must be false: this server takes one call at a time")
        event = value.get("event_data")
        if function.collects_event_data and not _is_selection(event):
            raise Refusal(422, "event_data must be an object with an index and a value")
        found = {"data": _data(value), "fn_index": number, "event_data": event}
        trigger = value.get("trigger_id")
        found["trigger_id"] = trigger if type(trigger) is int else None
        return {**found, "session_hash": session(value.get("session_hash"))}

    def _call(self, name: str, value: dict[str, Any]) -> dict[str, Any]:
        self._function(name)
        given = value.get("session_hash")
        found = {"data": _data(value)}
        return found if given is None else {**found, "session_hash": session(given)}

    def _call_by_names(self, name: str, value: dict[str, Any]) -> dict[str, Any]:
        parameters = inspect.signature(self._function(name).fn).parameters
        if unknown := [key for key in value if key not in parameters]:
            raise Refusal(422, f"{name} has no parameter {unknown[0][:40]!r}")
        for parameter in parameters.values():
            if parameter.default is parameter.empty and parameter.name not in value:
                raise Refusal(422, f"{name} needs the parameter {parameter.name}")
        return value

    def _function(self, name: str) -> Any:
        if name not in self._public:
            offered = ", ".join(sorted(self._public))
            raise Refusal(404, f"there is no such function; offered are {offered}")
        return self._public[name]

    def _cancel(self, value: dict[str, Any]) -> dict[str, Any]:
        number, event = value.get("fn_index"), value.get("event_id")
        if type(number) is not int or not isinstance(event, str):
            raise Refusal(422, "to cancel takes fn_index, a number, and event_id, a text")
        return {
            "session_hash": session(value.get("session_hash")),
            "fn_index": number,
            "event_id": event[:64],
        }

    def _reset(self, value: dict[str, Any]) -> dict[str, Any]:
        return {"event_id": str(value.get("event_id"))[:64]}


def session(value: Any) -> str:
    """A tab's number itself. Raises a `Refusal` where it is none."""
    if not isinstance(value, str) or not SESSION.fullmatch(value):
        raise Refusal(400, "session_hash must be 1 to 64 letters, digits, - and _")
    return value


def read_json(body: bytes, limits: Limits) -> Any:
    """The value of a JSON text.

    Raises:
        Refusal: it is none, has a number that no computer number is near, a character that is
            none, or lists in lists beyond the limit.
    """
    try:
        value = json.loads(
            body.decode(), parse_constant=_no_number, parse_float=_float, parse_int=_bounded(limits)
        )
        text = json.dumps(value, ensure_ascii=False)
    except UnicodeDecodeError as error:
        raise Refusal(400, f"the body is not UTF-8 at byte {error.start}") from None
    except RecursionError:
        raise _too_deep(limits) from None
    except ValueError:
        raise Refusal(400, "the body is not JSON") from None
    try:
        text.encode()
    except UnicodeEncodeError:
        raise Refusal(422, "the body has half a character (a lone surrogate)") from None
    if _depth(value) > limits.json_depth:
        raise _too_deep(limits)
    return value


def _too_deep(limits: Limits) -> Refusal:
    return Refusal(422, f"the body may have {limits.json_depth} lists and objects in each other")


def _depth(value: Any) -> int:
    """How many lists and objects are in each other."""
    level, depth = [value], 0
    while level := [part for part in level if isinstance(part, dict | list)]:
        depth += 1
        level = [
            inner for part in level for inner in (part.values() if isinstance(part, dict) else part)
        ]
    return depth


def _no_number(name: str) -> Any:
    raise Refusal(422, f"{name} is no number that JSON has")


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise Refusal(422, "a number in the body is beyond 1.8e308")
    return value


def _bounded(limits: Limits) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if len(text) > 20 or abs(int(text)) > limits.largest_integer:
            raise Refusal(422, f"an integer in the body is beyond {limits.largest_integer}")
        return int(text)

    return parse


def _data(value: dict[str, Any]) -> list[Any]:
    data = value.get("data")
    if not isinstance(data, list):
        raise Refusal(422, "data must be a list with the function's values")
    return data


def _is_selection(event: Any) -> bool:
    return isinstance(event, dict) and "index" in event and "value" in event

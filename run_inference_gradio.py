"""Serve BLOOM as a web page and by OpenAI's API, for several people at once.

    python run_inference_gradio.py --config bloom_tiny
    BLOOM_AUTH=user:password python run_inference_gradio.py --host 0.0.0.0
    BLOOM_API_KEY=... python run_inference_gradio.py --no_page --host 0.0.0.0

It listens on this computer alone unless told otherwise, and calls no other host but for --share.
"""

from __future__ import annotations

import atexit
import gc
import logging
import os
import socket
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from config import BloomConfig
from utils import distributed
from utils.checkpoints.arguments import parse_model_arguments, with_defaults
from utils.serving.arguments import ServerArguments
from utils.serving.limits import Limits
from utils.serving.listening import bind, is_public, listen, url, url_for_others
from utils.serving.quiet_log import make_quiet
from utils.setup import run_script, setup_logging
from utils.streams import OutputError

if TYPE_CHECKING:
    from utils.serving.service import Service

FOR_MANY = {
    "batch_size": 8,
    "prompt_chunks": (16, 128),
    "score_tokens": 64,
    "log_level": "info",
}
"""What this script sets where neither command line nor preset do: slots for several people, no
chunk of a prompt that the others wait long for, log-likelihoods, and a log of the requests."""

DESCRIPTION = (
    "Serve BLOOM as a web page and by OpenAI's API, with /health and /metrics. Here --batch_size "
    "is 8 unless it is given, --prompt_chunks 16 128, --score_tokens 64, and --log_level info, "
    "which logs each request."
)


def main(
    argv: Sequence[str] | None = None, load: Callable[[BloomConfig], Any] | None = None
) -> int:
    """Run the command line until SIGINT or SIGTERM; the exit status.

    Args:
        load: gives an object with `passes` and `tokenizer`; that of `utils.generation` if None.

    Raises:
        UserError, ConfigError: for arguments that are not possible, or an address that is taken.
    """
    config, arguments = parse_model_arguments(
        argv,
        extra=ServerArguments,
        title="server",
        prog="run_inference_gradio.py",
        description=DESCRIPTION,
    )
    config = for_many(config, sys.argv[1:] if argv is None else argv)
    setup_logging(config.execution.log_level)
    make_quiet(Limits())
    return serve(config, arguments, arguments.web(), load or load_model)


def for_many(config: BloomConfig, argv: Sequence[str]) -> BloomConfig:
    """The settings with this script's defaults, where nothing else was asked for."""
    return with_defaults(config, FOR_MANY, argv)


def serve(
    config: BloomConfig,
    arguments: ServerArguments,
    web: dict[str, Any],
    load: Callable[[BloomConfig], Any],
) -> int:
    """Load the model and serve it; the exit status.

    Args:
        web: options of `build_app`.
    """
    distributed.join(config)
    if not distributed.leads():
        load(config)  # and follow
    listener = bind(arguments.host, arguments.port)
    warn(arguments, web)
    loaded = load(config)
    from utils.generation import Engine
    from utils.serving.about import About
    from utils.serving.service import Service

    engine = Engine(loaded.passes, max_queue=arguments.max_queue, time_limit=arguments.time_limit)
    engine.start()
    try:
        service = Service(
            engine,
            loaded.tokenizer,
            max_tokens=arguments.max_tokens or None,
            log_prompts=arguments.log_prompts,
            about=About.of(config),
            defaults=loaded.defaults,
        )
        answer(service, listener, arguments, web)
    finally:
        if not engine.close(timeout=1):
            # It is in a pass that takes long, under which Python cannot end in order.
            atexit.register(os._exit, 0)
    gc.freeze()  # or leaving would first search the whole program for cycles, for seconds
    return 0


def answer(
    service: Service,
    listener: socket.socket,
    arguments: ServerArguments,
    web: dict[str, Any],
) -> None:
    """Answer what comes to a port, and say where it is, until a signal ends that.

    Raises:
        OutputError: where it is could not be said.
    """
    from utils.serving.web_server import WebServer, build_app, share

    unwritten: list[OutputError] = []

    def ready() -> None:
        try:
            what = "page" if web["page"] else "API"
            print(f"the {what} is at {url(listener)}{web['root_path']}", flush=True)
            if others := url_for_others(listener):
                print(f"from other computers: {others}", flush=True)
        except OutputError as error:  # within the event loop, which would print its own stack
            unwritten.append(error)
            server.should_exit = True
            return
        if arguments.share:
            share(listener, web["hosts"])

    app = build_app(service, **web)
    listen(listener)
    server = WebServer(app, service, ready)
    server.run([listener])
    if unwritten:
        raise unwritten[0]


def warn(arguments: ServerArguments, web: dict[str, Any]) -> None:
    """Say who may use the server without being asked for anything."""
    public = arguments.share or is_public(arguments.host)
    if web["auth"] is None and web["page"] and (public or web["keys"]):
        logging.warning("anyone who reaches this page can use it: set --auth or BLOOM_AUTH")
    if web["auth"] is None and not web["keys"] and not web["page"] and public:
        logging.warning("anyone who reaches this API can use it: set BLOOM_API_KEY")


def load_model(config: BloomConfig) -> Any:
    """The model's session and tokenizer, warm so that the first user does not wait for that."""
    from utils.generation import load  # late: it takes seconds, which errors should not wait for

    loaded = load(config)
    if config.execution.memmap_dir is None:  # mapped weights may be slow to read
        loaded.passes.warm_up(times=2)
    return loaded


if __name__ == "__main__":
    run_script(main)

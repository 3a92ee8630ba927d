"""What the server's scripts take on their command lines, beside what runs a model."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Any

from config.options import field
from utils.serving.hosts import Hosts
from utils.serving.keys import given_keys
from utils.setup import UserError


@dataclass
class ServerArguments:
    """Where to serve, whom, and how much."""

    host: str = field(
        default="127.0.0.1",
        metavar="ADDRESS",
        help="listen on this address; 0.0.0.0 lets other computers in",
    )
    port: int = field(default=7860, help="listen on this port; 0 takes any that is free")
    share: bool = field(default=False, help="open a public link, which gradio.live forwards")
    auth: str | None = field(
        default=None,
        metavar="USER:PASSWORD",
        help="ask for this login; better set as the environment variable BLOOM_AUTH, which other "
        "users of this computer cannot see",
    )
    allow_host: list[str] = field(
        default_factory=list,
        repeat=True,
        metavar="NAME",
        help="allow this host name, besides localhost and the computer's addresses; may be given "
        "several times",
    )
    proxy: list[str] = field(
        default_factory=list,
        repeat=True,
        metavar="ADDRESS",
        help="believe the X-Forwarded-For, -Host and -Proto headers of a proxy at this address or "
        "in this network; may be given several times",
    )
    max_queue: int = field(
        default=32, help="let so many requests wait for a slot, 0 or more; refuse further ones"
    )
    max_tokens: int = field(
        default=0, help="let a request ask for at most N tokens; as the context has if left out"
    )
    time_limit: float = field(
        default=300.0, metavar="SECONDS", help="end a request that runs for longer, over 0"
    )
    log_prompts: bool = field(
        default=False,
        help="log prompts too, not only their lengths",
    )
    no_page: bool = field(default=False, help="serve the API alone, without the page")
    api_key: str | None = field(
        default=None,
        metavar="KEY",
        help="have the API ask for this key; better set as the environment variable BLOOM_API_KEY, "
        "or in a file",
    )
    api_key_file: str | None = field(
        default=None, metavar="FILE", help="have the API ask for one of the keys in it, one a line"
    )
    cors_origins: list[str] = field(
        default_factory=list,
        repeat=True,
        metavar="ORIGIN",
        help="let web pages of this origin, such as https://app.example, call the API; * is all; "
        "may be given several times",
    )
    root_path: str = field(
        default="", metavar="PATH", help="what a proxy has before each address, such as /bloom"
    )

    def hosts(self) -> Hosts:
        """Names and proxies. Raises a `UserError` for one that is none."""
        return Hosts.given(self.allow_host, self.proxy, bound=self.host, origins=self.cors_origins)

    def web(self) -> dict[str, Any]:
        """Options of `build_app`. Raises a `UserError` for one that is not possible."""
        auth, hosts = self.account(), self.hosts()
        root = self.root_path.rstrip("/")
        if root and not re.fullmatch(r"(/[A-Za-z0-9._~-]+)+", root):
            raise UserError(f"--root_path must be a path such as /bloom, not {root[:80]!r}")
        keys = given_keys(self.api_key, self.api_key_file, os.environ)
        page = not self.no_page
        return {"auth": auth, "hosts": hosts, "keys": keys, "page": page, "root_path": root}

    def account(self) -> tuple[str, str] | None:
        """User and password. Raises a `UserError` where one of them is missing."""
        given = self.auth if self.auth is not None else os.environ.get("BLOOM_AUTH")
        if given is None:
            return None
        user, _, password = given.partition(":")
        if not user.strip() or not password:
            raise UserError("--auth and BLOOM_AUTH must be user:password, with both of them")
        return user.strip(), password

"""What one request, one client and all of them together may cost the server, in one table."""

from __future__ import annotations

import resource
from dataclasses import dataclass

RESERVED_DESCRIPTORS = 128
"""File descriptors kept for weights, logs and sockets of the program's own."""

SPARE_CONNECTIONS = 32
"""Connections over the limit that are still read: they are answered 503, and `/health` as ever."""


@dataclass(frozen=True)
class Limits:
    """Bounds that are checked before the work they bound is done.

    Attributes:
        connections: open at once, of all clients; `fitting` lowers it to what descriptors allow.
        connections_of_client: open at once from one address; a named proxy may have all.
        header_seconds: from the first byte of a request, or a new connection, to its last header.
        body_seconds: from the headers to the last byte of the body.
        write_seconds: that a client may leave an answer unread while the server waits to send more.
        keep_alive_seconds: that a connection without a request stays open.
        header_bytes: of a request's line and headers.
        path_characters, query_characters: of an address, once unquoted.
        body_bytes: of a request.
        bodies_bytes: of all requests whose bodies are being read or checked.
        login_bytes: of the form of a login.
        json_depth: of lists and objects in each other.
        largest_integer: that a body may have.
        stop_strings, stop_characters: how many stop strings a request may have, and their length.
        choices: prompts of a request of the API times the choices of each, with those that
            `best_of` leaves out.
        logprobs: likeliest tokens that may be asked for beside each.
        logprobs_in_all: log-likelihoods that an answer may have.
        grammar_bytes, grammar_seconds: of a schema, expression or list of choices that a text must
            follow, and to make ready for it.
        plain_prompt_bytes: of a prompt that is tokenized without a look at its length before.
        logins: wrong passwords from one address that are answered without a wait in between.
        login_seconds: an answer to a wrong password is delayed by.
        login_wait, login_longest_wait: seconds without a login after the first wrong password too
            many; doubled for each further one, up to the longest.
        login_clients: addresses whose wrong passwords are remembered.
        log_lines: like warnings that are logged within `log_seconds`; the others are counted.
    """

    connections: int = 800
    connections_of_client: int = 200
    header_seconds: float = 10.0
    body_seconds: float = 20.0
    write_seconds: float = 60.0
    keep_alive_seconds: int = 75
    header_bytes: int = 1 << 14
    path_characters: int = 512
    query_characters: int = 1024
    body_bytes: int = 1 << 20
    bodies_bytes: int = 1 << 25
    login_bytes: int = 1 << 12
    json_depth: int = 32
    largest_integer: int = (1 << 63) - 1
    stop_strings: int = 64
    stop_characters: int = 256
    choices: int = 128
    logprobs: int = 20
    logprobs_in_all: int = 1 << 19
    grammar_bytes: int = 1 << 16
    grammar_seconds: float = 10.0
    plain_prompt_bytes: int = 1 << 14
    logins: int = 5
    login_seconds: float = 0.5
    login_wait: float = 2.0
    login_longest_wait: float = 60.0
    login_clients: int = 4096
    log_lines: int = 5
    log_seconds: float = 60.0

    @property
    def fitting(self) -> int:
        """`connections`, or fewer where the process may not have as many descriptors."""
        allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        if allowed == resource.RLIM_INFINITY:
            return self.connections
        room = allowed - RESERVED_DESCRIPTORS - SPARE_CONNECTIONS
        return max(8, min(self.connections, room))

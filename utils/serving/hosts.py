"""By which names a server may be called, and which proxies are believed about their clients.

A browser can be made to call this server by any name (DNS rebinding) and then shows it what it
keeps for that name; a header can claim any host, scheme and client. So names are allowed one by
one, and `X-Forwarded-*` counts only where it comes from an address that was named.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from utils.setup import UserError

LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")
HOST = re.compile(
    r"(?:\[([0-9a-f:.]+)\]|([a-z0-9](?:[a-z0-9_.-]{0,251}[a-z0-9])?)\.?)(?::(\d{1,5}))?"
)
SCHEMES = ("http", "https")

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class BadHeader(ValueError):
    """A header that says who calls whom is malformed; the message says which."""


@dataclass
class Hosts:
    """What the person who runs the server allows.

    Attributes:
        names: that a request may call the server by, besides loopback names and the address that
            its connection came to.
        proxies: networks whose `X-Forwarded-*` headers are believed.
        https: names that are reached by https alone, whatever the connection is.
        origins: of pages that may call the API, such as `https://app.example`; `*` is all.
    """

    names: set[str] = field(default_factory=set)
    proxies: tuple[Network, ...] = ()
    https: set[str] = field(default_factory=set)
    origins: frozenset[str] = frozenset()

    @classmethod
    def given(
        cls,
        names: Iterable[str] = (),
        proxies: Iterable[str] = (),
        bound: str | None = None,
        origins: Iterable[str] = (),
    ) -> Hosts:
        """From options.

        Args:
            bound: the host that the server listens on.

        Raises:
            UserError: a name is no host's, or an address no proxy's.
        """
        return cls(
            {_given_name(name) for name in names} | _names_of(bound),
            tuple(_network(address) for address in proxies),
            origins=frozenset(_given_origin(origin) for origin in origins),
        )

    def is_proxy(self, address: str) -> bool:
        """Whether an address is one of a proxy that was named."""
        try:
            found = ipaddress.ip_address(address)
        except ValueError:
            return False
        if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped:
            found = found.ipv4_mapped
        return any(found in network for network in self.proxies)

    def lets(self, origin: str | None) -> bool:
        """Whether pages of another host may call the API."""
        return "*" in self.origins or (origin or "").lower() in self.origins

    def allows(self, host: str, reached: str | None) -> bool:
        """Whether a request may name this host.

        Args:
            host: of a Host header or an origin, with or without a port.
            reached: the address that its connection came to.
        """
        match = HOST.fullmatch(host.lower())
        name = match and (match[1] or match[2])
        if not name:
            return False
        return name in LOOPBACK_NAMES or name in self.names or name == reached or _is_loopback(name)

    def seen(self, host: str, scheme: str, client: str, headers: Mapping[str, str]) -> Seen:
        """What a request is about, after what a named proxy says of it.

        Args:
            host: the Host header's value.
            scheme, client: of the connection.
            headers: by their names in small letters.

        Raises:
            BadHeader: one of a proxy's headers is malformed.
        """
        if self.is_proxy(client):
            host = _first(headers, "x-forwarded-host") or host
            scheme = (_first(headers, "x-forwarded-proto") or scheme).lower()
            if scheme not in SCHEMES:
                raise BadHeader("X-Forwarded-Proto must be http or https")
            client = self._forwarded_client(headers.get("x-forwarded-for", "")) or client
        if host.lower().partition(":")[0] in self.https:
            scheme = "https"
        return Seen(host, scheme, client)

    def _forwarded_client(self, addresses: str) -> str | None:
        """The last address that is no proxy's: what stands before it anybody may have written."""
        for address in reversed([part.strip() for part in addresses.split(",") if part.strip()]):
            try:
                ipaddress.ip_address(address)
            except ValueError:
                raise BadHeader("X-Forwarded-For must be addresses with commas between") from None
            if not self.is_proxy(address):
                return address
        return None


@dataclass(frozen=True)
class Seen:
    """Host with port, scheme and client of a request."""

    host: str
    scheme: str
    client: str


def origin_host(origin: str) -> str | None:
    """Host and port of an Origin header, or None where it has none."""
    scheme, found, host = origin.partition("://")
    return host if found and scheme.lower() in SCHEMES and HOST.fullmatch(host.lower()) else None


def _first(headers: Mapping[str, str], name: str) -> str:
    return headers.get(name, "").partition(",")[0].strip()


def _is_loopback(name: str) -> bool:
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _names_of(bound: str | None) -> set[str]:
    """That of an address that stands for all there are is none."""
    return {bound.lower()} - {"0.0.0.0", "::", ""} if bound else set()


def _given_name(name: str) -> str:
    match = HOST.fullmatch(name.strip().lower())
    if not match or match[3]:
        raise UserError(
            f"--allow_host must be a host's name without scheme and port, not {name[:80]!r}"
        )
    return match[1] or match[2]


def _given_origin(origin: str) -> str:
    found = origin.strip().lower()
    if found != "*" and origin_host(found) is None:
        raise UserError(
            f"--cors_origins must be origins such as https://app.example, or *, not {origin[:80]!r}"
        )
    return found


def _network(address: str) -> Network:
    try:
        return ipaddress.ip_network(address.strip(), strict=False)
    except ValueError:
        raise UserError(
            f"--proxy must be an address or a network, such as 10.0.0.1 or 10.0.0.0/24, "
            f"not {address[:80]!r}"
        ) from None

"""What may be dialled: a strict reading of URLs, and the table of addresses that are nobody's own.

A name is resolved once; each of its addresses must pass, and one of those very addresses is
dialled, so that a second answer of the name server changes nothing (DNS rebinding). This machine's
own public addresses are refused too, but for one that only a router before it has.
"""

import re
import socket
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import AddressValueError, IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Literal

import idna

from worker.transport.resolver import Lookup, Resolver
from worker.transport.wire import TransportError

PORTS = frozenset({443, 8443})
MAX_URL = 8192  # of a URL that is saved; what an adapter makes of it may be longer

# IANA special-purpose registry, and the metadata and DHCP address of a large cloud.
# https://www.iana.org/assignments/iana-ipv4-special-registry
_REFUSED_V4 = tuple(
    (int(network.network_address), int(network.netmask))
    for network in map(
        IPv4Network,
        (
            "0.0.0.0/8",
            "10.0.0.0/8",
            "100.64.0.0/10",
            "127.0.0.0/8",
            "168.63.129.16/32",
            "169.254.0.0/16",
            "172.16.0.0/12",
            "192.0.0.0/24",
            "192.0.2.0/24",
            "192.88.99.0/24",
            "192.168.0.0/16",
            "198.18.0.0/15",
            "198.51.100.0/24",
            "203.0.113.0/24",
            "224.0.0.0/4",
            "240.0.0.0/4",
        ),
    )
)
# Only global unicast; mapped, compatible, NAT64, site- and link-local ones are all outside of it.
_GLOBAL_V6 = IPv6Network("2000::/3")
_REFUSED_V6 = tuple(map(IPv6Network, ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")))
_INSIDE = (".localhost", ".local", ".internal", ".home.arpa")  # never a public server

_URL = re.compile(r"((?i:https?))://([^/?#\\]+)((?:/[!\"$->@-\[\]-~]*)?)")  # without its query
_QUERY = re.compile(r"[!\"$-\[\]-~]*")
_AUTHORITY = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^:@\[\]%]+)(?::([1-9][0-9]{0,4}))?")
_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")  # what some resolvers read as (part of) an address


class BlockedUrl(ValueError):
    """Nothing may be sent to this URL; the message says why, and quotes no more than the host."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where to connect: `host` is the name for TLS, `authority` what `Host` says."""

    scheme: Literal["http", "https"]
    host: str
    port: int
    authority: str
    key: str
    is_address: bool


def check_url(url: str, *, allow_private: bool) -> None:
    """Do nothing if `url` may be saved as an upstream's; its name is not resolved.

    Raises:
        BlockedUrl: saying what is wrong with it.
    """
    if len(url) > MAX_URL:
        raise BlockedUrl(f"the URL is longer than {MAX_URL} characters")
    parse(url, allow_private=allow_private)


def parse(url: str, *, allow_private: bool) -> tuple[Origin, str]:
    """Return where `url` leads and what to ask for there.

    Raises:
        BlockedUrl: saying what is wrong with it.
    """
    path, mark, query = url.partition("?")
    origin, target = _place(path, allow_private)
    if not mark:
        return origin, target
    if not _QUERY.fullmatch(query):
        raise BlockedUrl(_fault(url))
    return origin, f"{target}?{query}"


@lru_cache(maxsize=8192)
def _place(url: str, allow_private: bool) -> tuple[Origin, str]:
    match = _URL.fullmatch(url)
    if match is None:
        raise BlockedUrl(_fault(url))
    scheme, authority, target = match.groups()
    return _origin(scheme, authority, allow_private), target or "/"


def _fault(url: str) -> str:
    if not url.lower().startswith(("https://", "http://")):
        return "the URL must begin with https://"
    if "#" in url:
        return "the URL must not have a fragment (#)"
    if "\\" in url:
        return "the URL must not have a backslash"
    return "the URL needs a host, and must be printable ASCII without spaces (encode others as %XX)"


def _origin(scheme: str, authority: str, allow_private: bool) -> Origin:
    secure = scheme.lower() == "https"
    if not (secure or allow_private):
        raise BlockedUrl("the URL must begin with https://")
    if "@" in authority:
        raise BlockedUrl("the URL must not have a user name or password")
    match = _AUTHORITY.fullmatch(authority)
    if match is None:
        raise BlockedUrl("the URL's host or port is not valid")
    usual = 443 if secure else 80
    port = int(match[2] or usual)
    if port > 65_535 or not (allow_private or port in PORTS):
        raise BlockedUrl(f"port {port} is not allowed; use 443 or 8443")
    host, is_address = _address(match[1]) if match[1][0] == "[" else _name(match[1])
    if not allow_private:
        _check_host(host, is_address)
    shown = f"[{host}]" if ":" in host else host
    full = shown if port == usual else f"{shown}:{port}"
    name: Literal["http", "https"] = "https" if secure else "http"
    return Origin(name, host, port, full, f"{name}://{shown}:{port}", is_address)


def _address(text: str) -> tuple[str, bool]:
    try:
        return IPv6Address(text[1:-1]).compressed, True
    except AddressValueError:
        raise BlockedUrl("the URL's host is not an IPv6 address") from None


def _name(text: str) -> tuple[str, bool]:
    """Return the host in ASCII, lower case, and whether it is an address."""
    try:
        host = (text if text.isascii() else idna.encode(text.lower(), strict=True).decode()).lower()
        if "xn--" in host:
            idna.decode(host, strict=True)
    except UnicodeError:
        raise BlockedUrl("the URL's host is not a valid international name") from None
    labels = host.split(".")
    if len(host) > 253 or not all(map(_LABEL.fullmatch, labels)):
        raise BlockedUrl("the URL's host is not a valid name")
    if not _NUMBER.fullmatch(labels[-1]):
        return host, False
    try:
        return str(IPv4Address(host)), True
    except AddressValueError:
        raise BlockedUrl("the URL's host is a number; write an address as 192.0.2.1") from None


def _check_host(host: str, is_address: bool) -> None:
    if is_address:
        check_address(host)
    elif "." not in host or host.endswith(_INSIDE):
        raise BlockedUrl(f"{host} is not a public name")


def check_address(text: str) -> None:
    """Do nothing if `text` is a public address.

    Raises:
        BlockedUrl: it is private, reserved, or leads to another one (mapped, NAT64, 6to4, zone).
    """
    try:
        address = IPv6Address(text) if ":" in text else IPv4Address(text)
    except AddressValueError:
        raise BlockedUrl("the name server's answer is not an address") from None
    number = int(address)
    if isinstance(address, IPv4Address):
        public = all(number & mask != network for network, mask in _REFUSED_V4)
    else:
        public = (
            address.scope_id is None
            and address in _GLOBAL_V6
            and not any(address in network for network in _REFUSED_V6)
        )
    if not public:
        raise BlockedUrl(f"{address} is not a public address")


def _check_dialled(address: str) -> None:
    check_address(address)
    if is_ours(address):
        raise BlockedUrl(f"{address} is this machine's own address")


def is_ours(address: str) -> bool:
    """Whether `address` is this machine's own: then the way there begins there. Nothing is sent."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect((address, 9))
        return bool(probe.getsockname()[0] == address)
    return False


class Guard:
    """Says where a URL leads, and which addresses may be dialled for it.

    With `upstream`, all requests lead there: to `<upstream>/<host>/<path>`.
    """

    def __init__(self, upstream: str, allow_private: bool, lookup: Lookup | None) -> None:
        self._open = allow_private or bool(upstream)
        self._upstream: tuple[Origin, str] | None = None
        if upstream:
            origin, base = parse(upstream, allow_private=True)
            self._upstream = origin, base.rstrip("/")
        self._resolver = Resolver(lookup)

    def route(self, url: str) -> tuple[Origin, str]:
        """Return the origin to connect to, and the target to ask it for.

        Raises:
            TransportError: the URL is blocked.
        """
        try:
            origin, target = parse(url, allow_private=self._open)
        except BlockedUrl as error:
            raise TransportError("blocked", str(error), "settings") from None
        if self._upstream:
            instead, base = self._upstream
            return instead, f"{base}/{origin.authority}{target}"
        return origin, target

    async def addresses(self, origin: Origin) -> Sequence[str]:
        """Return the addresses that may be dialled for `origin`, at least one; all were checked.

        Raises:
            TransportError: one of them may not be dialled.
            OSError: the name has none.
        """
        if origin.is_address:
            found: Sequence[str] = (origin.host,)
        else:
            found = await self._resolver.addresses(origin.host)
        try:
            for address in () if self._open else found:
                _check_dialled(address)
        except BlockedUrl as error:
            message = f"{origin.host}: {error}"
            raise TransportError("blocked", message, "settings") from None
        return found

    def close(self) -> None:
        """Forget look-ups under way."""
        self._resolver.close()

"""What both transports promise and share: the error, a request's head, the caps, the answer."""

import asyncio
import re
import socket
import ssl
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from functools import lru_cache
from importlib.metadata import version
from typing import Literal, Protocol, TypeAlias

from providers.kit import KB, Request, Response

CONNECT_SECONDS = 5.0  # name look-up, TCP and TLS together
MAX_BODY = 64 * KB
MAX_HEAD = 32 * KB
MAX_HEADERS = 100
USER_AGENT = f"onward/{version('onward')}"

Fault: TypeAlias = Literal["upstream", "settings"]


class TransportError(Exception):
    """No answer came. `reason` is a metric's label, `message` one line for people, no secret.

    `fault` says who has to move: the upstream (send again later) or the customer (settings).
    Reasons: connect, dns, timeout, reset, tls, blocked, protocol, too_large.
    """

    def __init__(self, reason: str, message: str, fault: Fault = "upstream") -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.fault: Fault = fault


class Transport(Protocol):
    """Sends a request and gives the answer, whatever its status."""

    async def send(self, request: Request, *, pool: str, timeout: float) -> Response:  # noqa: ASYNC109  one total deadline
        """Return the answer within `timeout` seconds.

        Connections are never shared between pools (integration ids).

        Raises:
            TransportError: no whole answer came, or the request may not be sent.
        """

    async def close(self) -> None:
        """Close every connection; requests in flight fail."""


# --- the request's head ------------------------------------------------------------------------

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110, 5.6.2
_OURS = frozenset({"host", "content-length", "accept-encoding"})
_REFUSED = frozenset(
    {"connection", "expect", "keep-alive", "proxy-connection", "te", "trailer", "upgrade"}
) | {"transfer-encoding"}
_WITH_LENGTH = frozenset({"POST", "PUT", "PATCH"})


def head_of(request: Request, authority: str) -> list[tuple[str, str]]:
    """Return the headers to send; `Host`, `Content-Length` and `Accept-Encoding` are ours.

    Raises:
        TransportError: a name or value could break out of its line, or changes the framing.
    """
    if not _is_method(request.method):
        raise TransportError("protocol", "the method is not an HTTP method", "settings")
    head = [("Host", authority), ("Accept-Encoding", "identity")]
    agent = True
    for name, value in request.headers:
        kind = _kind(name)
        if kind == "ours":
            continue
        if kind == "refused" or not _is_value(value):
            raise TransportError("protocol", f"header {name[:64]!a} may not be sent", "settings")
        agent = agent and kind != "agent"
        head.append((name, value))
    if agent:
        head.append(("User-Agent", USER_AGENT))
    if request.body or request.method in _WITH_LENGTH:
        head.append(("Content-Length", str(len(request.body))))
    return head


@lru_cache(maxsize=64)
def _is_method(method: str) -> bool:
    return method.isascii() and method.isalpha() and method.isupper() and method != "CONNECT"


@lru_cache(maxsize=4096)
def _kind(name: str) -> Literal["ours", "agent", "refused", "plain"]:
    lower = name.lower()
    if lower in _OURS:
        return "ours"
    if lower in _REFUSED or not _TOKEN.fullmatch(name):
        return "refused"
    return "agent" if lower == "user-agent" else "plain"


def _is_value(value: str) -> bool:
    """Whether it is printable Latin-1 on one line."""
    return value.isprintable() and (value.isascii() or max(value) <= "\xff")


# --- the answer --------------------------------------------------------------------------------


class HeaderFlood(TransportError):
    """More headers, or longer ones, than an answer may have."""

    def __init__(self) -> None:
        super().__init__("too_large", "the upstream's answer has too many or too long headers")


def add_header(headers: dict[str, str], name: bytes, value: bytes) -> None:
    """Put a raw header into `headers`, joined with one of the same name."""
    key, text = name.decode("latin-1").lower(), value.decode("latin-1").strip()
    headers[key] = f"{headers[key]}, {text}" if key in headers else text


def until_close(status: int, headers: Mapping[str, str]) -> bool:
    """Return whether only the connection's end ends the body.

    Raises:
        TransportError: the status or the framing is none that HTTP/1.1 has.
    """
    if not 200 <= status <= 599:
        raise TransportError("protocol", f"the upstream answered with status {status}")
    coding, length = headers.get("transfer-encoding"), headers.get("content-length")
    if coding is not None and (length is not None or coding.lower() != "chunked"):
        raise TransportError("protocol", "the upstream's answer has no clear length")
    return coding is None and length is None and status not in (204, 304)


def answer(status: int, headers: Mapping[str, str], body: bytes) -> Response:
    """Return the answer, come now."""
    return Response(status, headers, body[:MAX_BODY], datetime.now(UTC))


# --- failures ----------------------------------------------------------------------------------


def timed_out() -> TransportError:
    """Return the error of a deadline that passed."""
    return TransportError("timeout", "the upstream did not answer in time")


def failure_of(error: BaseException, host: str) -> TransportError:
    """Return what a failure to connect to `host` means; TLS is never retried with less."""
    for cause in _causes(error):
        match cause:
            case TransportError():
                return cause
            case ssl.SSLCertVerificationError(verify_message=why):
                return TransportError("tls", f"{host}: certificate refused: {why}", "settings")
            case ssl.SSLEOFError() | ssl.SSLZeroReturnError() | ConnectionResetError():
                return TransportError("reset", f"{host} closed the connection")
            case ssl.SSLError(reason=why):
                return TransportError("tls", f"{host}: no secure connection: {why}", "settings")
            case socket.gaierror():
                return TransportError("dns", f"the name {host} was not found")
            case TimeoutError() | asyncio.CancelledError():
                return TransportError("timeout", f"{host} did not accept a connection in time")
            case OSError(strerror=why):
                return TransportError("connect", f"no connection to {host}: {why or 'refused'}")
    return TransportError("connect", f"no connection to {host}")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__

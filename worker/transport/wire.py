"""What both transports promise and share: the error, a request's head, the caps, the answer."""

import asyncio
import re
import socket
import ssl
from collections.abc import Iterator, Mapping, Sequence
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


def head_of(request: Request, target: str, authority: str) -> str:
    """Return the head to send, with its empty line; all of it is Latin-1.

    `Host`, `Content-Length` and `Accept-Encoding` are ours, whatever the request says.

    Raises:
        TransportError: a name or value could break out of its line, or changes the framing.
    """
    names = tuple([name for name, _ in request.headers])
    values = [value for _, value in request.headers]
    if not _is_value("".join(values)):
        bad = next(name for name, value in request.headers if not _is_value(value))
        raise _refusal(bad)
    size = str(len(request.body)) if request.body or request.method in _WITH_LENGTH else None
    if size:
        values.append(size)
    template = _template(request.method, names, size is not None)
    return template % (target, authority, *values)


@lru_cache(maxsize=1024)
def _template(method: str, names: tuple[str, ...], with_length: bool) -> str:
    """Return the head with %s for target, host and every value; most requests share a few."""
    if not (method.isascii() and method.isalpha() and method.isupper()) or method == "CONNECT":
        raise TransportError("protocol", "the method is not an HTTP method", "settings")
    lines = [f"{method} %s HTTP/1.1", "Host: %s", "Accept-Encoding: identity"]
    if "user-agent" not in map(str.lower, names):
        lines.append(f"User-Agent: {USER_AGENT}")
    head = "\r\n".join(lines) + "\r\n"
    for name in names:
        if name.lower() in _REFUSED or not _TOKEN.fullmatch(name):
            raise _refusal(name)
        ours = name.lower() in _OURS
        head += "%.0s" if ours else f"{name.replace('%', '%%')}: %s\r\n"  # %.0s prints nothing
    return head + ("Content-Length: %s\r\n\r\n" if with_length else "\r\n")


def _is_value(value: str) -> bool:
    """Whether it is printable Latin-1 on one line."""
    return value.isprintable() and (value.isascii() or max(value) <= "\xff")


def _refusal(name: str) -> TransportError:
    return TransportError("protocol", f"header {name[:64]!a} may not be sent", "settings")


# --- the answer --------------------------------------------------------------------------------


class HeaderFlood(TransportError):
    """More headers, or longer ones, than an answer may have."""

    def __init__(self) -> None:
        super().__init__("too_large", "the upstream's answer has too many or too long headers")


def headers_of(raw: Sequence[tuple[bytes, bytes]]) -> dict[str, str]:
    """Return an answer's headers, names in lower case, those of one name joined.

    Raises:
        HeaderFlood: there are more than the caps allow.
    """
    if (
        len(raw) > MAX_HEADERS
        or sum([len(name) + len(value) + 4 for name, value in raw]) > MAX_HEAD
    ):
        raise HeaderFlood
    headers: dict[str, str] = {}
    for name, value in raw:
        key, text = name.decode("latin-1").lower(), value.decode("latin-1").strip()
        headers[key] = f"{headers[key]}, {text}" if key in headers else text
    return headers


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

"""What both transports promise and share: the error, a request's head, the caps, the answer."""

import re
import socket
import ssl
from collections.abc import Awaitable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from importlib.metadata import version
from typing import Literal, Protocol, TypeAlias

from providers.kit import ANSWER_BYTES, KB, Request, Response

CONNECT_SECONDS = 5.0  # name look-up, TCP and TLS together
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

    def send(self, request: Request, *, pool: str, timeout: float) -> Awaitable[Response]:
        """Return the answer to come, within `timeout` seconds; it is to be awaited at once.

        Connections are never shared between pools (integration ids).

        Raises, when awaited:
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
    names, values = zip(*request.headers, strict=True) if request.headers else ((), ())
    if not _is_value("".join(values)):
        raise _refusal(next(n for n, value in request.headers if not _is_value(value)))
    has_length = bool(request.body) or request.method in _WITH_LENGTH
    template = _template(request.method, names, has_length)
    return template % (target, authority, *values, len(request.body))


@lru_cache(maxsize=1024)
def _template(method: str, names: tuple[str, ...], has_length: bool) -> str:
    """Return the head with %s for target, host, values and length: most requests share a few.

    Where the request has no say, or no length, stands %.0s, which prints nothing.
    """
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
        head += "%.0s" if ours else f"{name.replace('%', '%%')}: %s\r\n"
    return head + ("Content-Length: %s\r\n\r\n" if has_length else "%.0s\r\n")


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


class Headers(Mapping[str, str]):
    """An answer's headers: lower-case names, those of one name joined. Read when asked for."""

    __slots__ = ("_raw", "_read")

    def __init__(self, raw: Sequence[tuple[bytes, bytes]]) -> None:
        self._raw = raw
        self._read: dict[str, str] | None = None

    def __getitem__(self, name: str) -> str:
        return self._all()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())

    def _all(self) -> dict[str, str]:
        if self._read is None:
            self._read = {}
            for name, value in self._raw:
                key, text = name.decode("latin-1").lower(), value.decode("latin-1").strip()
                self._read[key] = f"{self._read[key]}, {text}" if key in self._read else text
        return self._read


def check_head(status: int, raw: Sequence[tuple[bytes, bytes]], *, small: bool = False) -> None:
    """Do nothing if the head of an answer keeps to the caps and has a status that means one.

    `small` says that its size is known to be within the cap.

    Raises:
        TransportError: it does not.
    """
    size = 0 if small else sum([len(name) + len(value) + 4 for name, value in raw])
    if len(raw) > MAX_HEADERS or size > MAX_HEAD:
        raise HeaderFlood
    if not 200 <= status <= 599:
        raise TransportError("protocol", f"the upstream answered with status {status}")


def answer(status: int, raw: Sequence[tuple[bytes, bytes]], body: bytes) -> Response:
    """Return the answer, come now."""
    return Response(status, Headers(raw), body[:ANSWER_BYTES], datetime.now(UTC))


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
            case TimeoutError():
                return TransportError("timeout", f"{host} did not accept a connection in time")
            case OSError(strerror=why):
                return TransportError("connect", f"no connection to {host}: {why or 'refused'}")
    return TransportError("connect", f"no connection to {host}")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__

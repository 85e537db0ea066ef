"""A customer's own URL: its syntax, checked when it is typed; addresses are checked at connect."""

import re
from ipaddress import AddressValueError, IPv4Address, IPv6Address
from typing import Annotated
from urllib.parse import SplitResult, quote, urlsplit, urlunsplit

import idna
from pydantic import AfterValidator, ValidationInfo

LENGTH = 2048
PORTS = frozenset({443, 8443})
_NUMERIC = re.compile(r"0x[0-9a-f]*|\d+")  # what a resolver may read as (part of) an address
_SAFE = "!$%&'()*+,/:;=?@[]~-._"


def web_url(value: str, info: ValidationInfo) -> str:
    """Return `value` in ASCII, its host normalised (IDNA, lower case).

    Raises ValueError where it is not https on a usual port, without user, password and fragment.
    Validation context `{"allow_http": True}` lets http and other ports pass.
    """
    lenient = bool((info.context or {}).get("allow_http"))
    if len(value) > LENGTH:
        raise ValueError(f"must be at most {LENGTH} characters")
    if not value.isprintable() or " " in value or "\\" in value:
        raise ValueError("must be a URL without spaces, line breaks and backslashes")
    try:
        parts = urlsplit(value)
        port = parts.port
    except ValueError:
        raise ValueError("is not a URL: check host and port") from None
    if parts.scheme != "https" and not (lenient and parts.scheme == "http"):
        raise ValueError("must begin with https:// (plain http only if the operator allows it)")
    if "@" in parts.netloc:
        raise ValueError("must not hold a user or password; use a header instead")
    if "#" in value:
        raise ValueError("must not have a fragment (#…)")
    if port is not None and port not in PORTS and not lenient:
        raise ValueError("must use port 443 or 8443")
    return _in_ascii(parts, _host(parts), port)


def _host(parts: SplitResult) -> str:
    name = parts.hostname or ""
    try:
        if "[" in parts.netloc and "%" not in name:
            return f"[{IPv6Address(name).compressed}]"
        host = idna.encode(name, uts46=True).decode()
        if _NUMERIC.fullmatch(host.rpartition(".")[2]):
            return str(IPv4Address(host))
    except (AddressValueError, idna.IDNAError):
        raise ValueError("has no valid host name") from None
    if not re.fullmatch(r"[a-z0-9.-]*[a-z0-9]", host):  # no dot at the end: TLS knows none
        raise ValueError("has no valid host name")
    return host


def _in_ascii(parts: SplitResult, host: str, port: int | None) -> str:
    usual = port is None or (parts.scheme, port) in (("https", 443), ("http", 80))
    netloc = host if usual else f"{host}:{port}"
    path, query = quote(parts.path, safe=_SAFE), quote(parts.query, safe=_SAFE)
    return urlunsplit((parts.scheme, netloc, path, query, ""))


WebUrl = Annotated[str, AfterValidator(web_url)]

"""Signatures: pure functions of what is signed, the secret and the time."""

import base64
from binascii import b2a_base64
from functools import lru_cache
from hashlib import sha256
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import hashlib

BLOCK = 64  # bytes, of SHA-256
INNER = bytes(byte ^ 0x36 for byte in range(256))
OUTER = bytes(byte ^ 0x5C for byte in range(256))


def standard_webhook(message_id: str, timestamp: int, body: bytes, secret: str) -> str:
    """Return the `v1,…` signature of one secret (`whsec_` + base64).

    https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
    """
    begun, ended = _keyed(secret)
    inner, outer = begun.copy(), ended.copy()
    inner.update(b"%b.%d.%b" % (message_id.encode(), timestamp, body))
    outer.update(inner.digest())
    return "v1," + b2a_base64(outer.digest(), newline=False).decode()


@lru_cache(1024)
def _keyed(secret: str) -> "tuple[hashlib._Hash, hashlib._Hash]":
    """Return HMAC-SHA256's inner and outer hash, the key taken in: half of what one call costs.

    https://www.rfc-editor.org/rfc/rfc2104#section-4 recommends it.
    """
    key = base64.b64decode(secret.removeprefix("whsec_"))
    key = (key if len(key) <= BLOCK else sha256(key).digest()).ljust(BLOCK, b"\0")
    return sha256(key.translate(INNER)), sha256(key.translate(OUTER))


def basic(user: str, password: str = "") -> str:
    """Return an HTTP Basic `Authorization` value."""
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()

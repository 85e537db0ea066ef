"""Signatures: pure functions of what is signed, the secret and the time."""

import base64
from binascii import b2a_base64
from functools import lru_cache
from hashlib import sha256
from typing import Any

BLOCK = 64  # bytes, of SHA-256


def standard_webhook(message_id: str, timestamp: int, body: bytes, secret: str) -> str:
    """Return the `v1,…` signature of one secret (`whsec_` + base64).

    https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
    """
    begun_inner, begun_outer = _begun(secret)
    inner, outer = begun_inner.copy(), begun_outer.copy()
    inner.update(f"{message_id}.{timestamp}.".encode())
    inner.update(body)
    outer.update(inner.digest())
    return "v1," + b2a_base64(outer.digest(), newline=False).decode()


@lru_cache(1024)
def _begun(secret: str) -> tuple[Any, Any]:
    """Return the two hashes of an HMAC-SHA256, begun with the key; to be copied.

    That is 1.2 µs less a signature than `hmac.digest`, which makes both anew.
    https://www.rfc-editor.org/rfc/rfc2104#section-4
    """
    key = base64.b64decode(secret.removeprefix("whsec_"))
    block = (key if len(key) <= BLOCK else sha256(key).digest()).ljust(BLOCK, b"\0")
    return sha256(bytes(b ^ 0x36 for b in block)), sha256(bytes(b ^ 0x5C for b in block))


def basic(user: str, password: str = "") -> str:
    """Return an HTTP Basic `Authorization` value."""
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()

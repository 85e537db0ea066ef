"""Signatures: pure functions of what is signed, the secret and the time."""

import base64
import hmac
from binascii import b2a_base64
from functools import lru_cache


def standard_webhook(message_id: str, timestamp: int, body: bytes, secret: str) -> str:
    """Return the `v1,…` signature of one secret (`whsec_` + base64).

    https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
    """
    signed = b"%b.%d.%b" % (message_id.encode(), timestamp, body)
    digest = hmac.digest(_key(secret), signed, "sha256")  # in C as a whole, unlike an HMAC object
    return "v1," + b2a_base64(digest, newline=False).decode()


@lru_cache(1024)
def _key(secret: str) -> bytes:
    return base64.b64decode(secret.removeprefix("whsec_"))


def basic(user: str, password: str = "") -> str:
    """Return an HTTP Basic `Authorization` value."""
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()

"""Signatures: pure functions of what is signed, the secret and the time."""

import base64
import hashlib
import hmac


def standard_webhook(message_id: str, timestamp: int, body: bytes, secret: str) -> str:
    """Return the `v1,…` signature of one secret (`whsec_` + base64).

    https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
    """
    key = base64.b64decode(secret.removeprefix("whsec_"))
    signed = f"{message_id}.{timestamp}.".encode() + body
    return "v1," + base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()


def basic(user: str, password: str = "") -> str:
    """Return an HTTP Basic `Authorization` value."""
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()

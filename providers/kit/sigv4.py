"""Requests signed with an AWS or Google HMAC key: pure functions of request, key and time."""

import hashlib
import hmac
from collections.abc import Mapping
from datetime import datetime
from functools import reduce
from typing import Any

from msgspec.structs import replace

from providers.kit.interface import Request

STAMP = "%Y%m%dT%H%M%SZ"


def aws_signed(
    request: Request, keys: Mapping[str, str], service: str, region: str, now: datetime
) -> Request:
    """Return `request` with an AWS Signature V4 of all its headers and its body.

    `keys`: access_key_id, secret_access_key and, for temporary ones, session_token.
    https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv.html
    """
    stamp = now.strftime(STAMP)
    own = {"X-Amz-Date": stamp, "X-Amz-Content-SHA256": hashlib.sha256(request.body).hexdigest()}
    if keys.get("session_token"):
        own["X-Amz-Security-Token"] = keys["session_token"]
    request = replace(request, headers=(*request.headers, *own.items()))
    signer, aws = _signer(request, keys, service, region, stamp)
    text = signer.string_to_sign(aws, signer.canonical_request(aws))
    return _authorized(
        request,
        f"AWS4-HMAC-SHA256 Credential={signer.scope(aws)}",
        signer.signed_headers(signer.headers_to_sign(aws)),
        signer.signature(text, aws),
    )


def google_signed(request: Request, access_id: str, secret: str, now: datetime) -> Request:
    """Return `request` with a Google V4 signature made with an HMAC key.

    https://docs.cloud.google.com/storage/docs/authentication/signatures
    """
    stamp = now.strftime(STAMP)
    content = hashlib.sha256(request.body).hexdigest()
    own = {"x-goog-date": stamp, "x-goog-content-sha256": content}
    request = replace(request, headers=(*request.headers, *own.items()))
    signer, aws = _signer(request, {}, "storage", "auto", stamp)
    canonical = hashlib.sha256(signer.canonical_request(aws).encode()).hexdigest()
    scope = (stamp[:8], "auto", "storage", "goog4_request")
    text = "\n".join(("GOOG4-HMAC-SHA256", stamp, "/".join(scope), canonical))
    key = reduce(_hmac, scope, b"GOOG4" + secret.encode())
    return _authorized(
        request,
        f"GOOG4-HMAC-SHA256 Credential={access_id}/{'/'.join(scope)}",
        signer.signed_headers(signer.headers_to_sign(aws)),
        _hmac(key, text).hex(),
    )


def _hmac(key: bytes, text: str) -> bytes:
    return hmac.digest(key, text.encode(), hashlib.sha256)


def _signer(
    request: Request, keys: Mapping[str, str], service: str, region: str, stamp: str
) -> tuple[Any, Any]:
    """Return botocore's signer and its form of the request, with the time pinned to `stamp`."""
    from botocore.auth import S3SigV4Auth, SigV4Auth  # noqa: PLC0415  half a second, for few
    from botocore.awsrequest import AWSRequest  # noqa: PLC0415
    from botocore.credentials import ReadOnlyCredentials  # noqa: PLC0415

    credentials = ReadOnlyCredentials(
        keys.get("access_key_id", ""), keys.get("secret_access_key", ""), None
    )
    aws = AWSRequest(request.method, request.url, dict(request.headers), request.body)
    aws.context["timestamp"] = stamp
    kind = SigV4Auth if service == "sts" else S3SigV4Auth
    return kind(credentials, service, region), aws


def _authorized(request: Request, credential: str, signed: str, signature: str) -> Request:
    value = f"{credential}, SignedHeaders={signed}, Signature={signature}"
    return replace(request, headers=(*request.headers, ("Authorization", value)))

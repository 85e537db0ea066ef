"""An S3 bucket that verifies signatures and takes objects of NDJSON or CSV."""

import csv
import gzip
import hashlib
import io
import re
import zlib
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import msgspec

from providers.kit import Request, aws_signed
from worker.sandbox.upstream import Call, Reply, Upstream

KEYS = {"access_key_id": "AKIASANDBOXSANDBOX00", "secret_access_key": "s3cr3t/S3cr3t/S3cr3t/S3cr3t"}
BUCKET = "acme-events"
REGION = "eu-west-1"
CREDENTIAL = re.compile(r"AWS4-HMAC-SHA256 Credential=([^/]+)/.*SignedHeaders=([^,]+), Signature=")
SET_BY_SIGNER = {"host", "x-amz-date", "x-amz-content-sha256", "x-amz-security-token"}


def _error(status: int, code: str, message: str) -> Reply:
    xml = f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{code}</Code><Message>{message}'
    return Reply(status, f"{xml}</Message><RequestId>SANDBOX</RequestId></Error>")


def answer(call: Call) -> Reply:
    """Return the answer of PutObject."""
    if call.host != f"{BUCKET}.s3.{REGION}.amazonaws.com":
        return _error(404, "NoSuchBucket", "The specified bucket does not exist")
    if call.method != "PUT":
        return _error(405, "MethodNotAllowed", "The specified method is not allowed.")
    refusal = _refusal(call)
    if refusal:
        return refusal
    if call.headers.get("if-none-match", "*") != "*":
        return _error(501, "NotImplemented", "A header you provided is not implemented.")
    if len(call.path) > 1024:
        return _error(400, "KeyTooLongError", "Your key is too long")
    etag = hashlib.md5(call.body, usedforsecurity=False).hexdigest()
    return Reply(200, b"", {"ETag": f'"{etag}"'}, taken_from(call.path, call.body))


def _refusal(call: Call) -> Reply | None:
    given = call.headers.get("authorization", "")
    match = CREDENTIAL.match(given)
    if not match:
        return _error(403, "AccessDenied", "Access Denied")
    if match[1] != KEYS["access_key_id"]:
        return _error(
            403,
            "InvalidAccessKeyId",
            "The AWS Access Key Id you provided does not exist in our records.",
        )
    if call.headers.get("x-amz-content-sha256") != hashlib.sha256(call.body).hexdigest():
        return _error(400, "XAmzContentSHA256Mismatch", "The provided hash does not match")
    names = [name for name in match[2].split(";") if name not in SET_BY_SIGNER]
    with suppress(KeyError, ValueError):
        now = datetime.strptime(call.headers["x-amz-date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
        headers = tuple((name, call.headers[name]) for name in names)
        request = Request(call.method, f"https://{call.host}{call.target}", headers, call.body)
        if dict(aws_signed(request, KEYS, "s3", REGION, now).headers)["Authorization"] == given:
            return None
    return _error(
        403, "SignatureDoesNotMatch", "The request signature we calculated does not match."
    )


def taken_from(name: str, body: bytes) -> tuple[str, ...]:
    """Return the event ids in an object, by the endings of its name."""
    with suppress(OSError, EOFError, zlib.error, ValueError, msgspec.DecodeError):
        content = gzip.decompress(body) if name.endswith(".gz") else body
        plain = name.removesuffix(".gz")
        if plain.endswith(".ndjson"):
            return tuple(_id(msgspec.json.decode(line)) for line in content.splitlines())
        if plain.endswith(".csv"):
            rows = csv.DictReader(io.StringIO(content.decode(), newline=""))
            return tuple(row["event_id"] for row in rows)
    return ()


def _id(record: Any) -> str:
    return str(record.get("event_id")) if isinstance(record, dict) else ""


upstream = Upstream(
    slug="amazon_s3",
    hosts=(".amazonaws.com",),
    answer=answer,
    settings={
        **KEYS,
        "auth_mode": "access_key",
        "bucket": BUCKET,
        "region": REGION,
        "batch_max_seconds": 1,  # nobody waits five minutes for a demonstration
    },
    secret="access_key_id",  # noqa: S106  the name of the setting
    refusal=_error(
        403,
        "InvalidAccessKeyId",
        "The AWS Access Key Id you provided does not exist in our records.",
    ),
    throttle=_error(503, "SlowDown", "Please reduce your request rate."),
)

"""Google's token endpoint and the JSON API's multipart upload into one bucket."""

import base64
import hashlib
import re
from typing import Any

import msgspec
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from worker.sandbox.upstream import Call, Reply, Upstream
from worker.sandbox.upstreams.amazon_s3 import taken_from

BUCKET = "acme-events"
ACCOUNT = "onward@acme.iam.gserviceaccount.com"
TOKEN = "ya29.example"  # noqa: S105  the sandbox's own
TOKEN_URL = "https://oauth2.googleapis.com/token"  # noqa: S105  no secret
UPLOAD = f"/upload/storage/v1/b/{BUCKET}/o"
PART = re.compile(rb"Content-Type: ([^\r]+)\r\n\r\n(.*)\r\n", re.DOTALL)


def _error(status: int, reason: str, message: str) -> Reply:
    errors = [{"domain": "global", "reason": reason, "message": message}]
    return Reply(status, {"error": {"code": status, "message": message, "errors": errors}})


def answer(call: Call) -> Reply:
    """Return the answer of the token endpoint or of objects.insert."""
    if call.host == "oauth2.googleapis.com":
        return _token(call)
    if call.headers.get("authorization") != f"Bearer {TOKEN}":
        return _error(401, "authError", "Invalid Credentials")
    if call.method != "POST" or call.path != UPLOAD:
        return _error(404, "notFound", "The specified bucket does not exist.")
    if call.query.get("uploadType") != "multipart" or call.query.get("ifGenerationMatch") != "0":
        return _error(400, "invalid", "Invalid upload request")
    parts = _parts(call)
    if len(parts) != 2 or not isinstance(parts[0], dict) or not isinstance(parts[1], bytes):
        return _error(400, "parseError", "Malformed multipart body.")
    resource, content = parts
    name = resource.get("name")
    if not isinstance(name, str) or not 0 < len(name.encode()) <= 1024:
        return _error(400, "required", "Required")
    digest = hashlib.md5(content, usedforsecurity=False).digest()
    if resource.get("md5Hash") != base64.b64encode(digest).decode():
        return _error(400, "invalid", "Provided MD5 hash doesn't match calculated MD5 hash.")
    stored = {"kind": "storage#object", "name": name, "bucket": BUCKET, "generation": "1"}
    return Reply(200, stored, taken=taken_from(name, content))


def _parts(call: Call) -> list[Any]:
    kind, _, boundary = call.headers.get("content-type", "").partition("; boundary=")
    if kind != "multipart/related" or not boundary:
        return []
    read: list[Any] = []
    for part in call.body.split(f"--{boundary}".encode())[1:-1]:
        match = PART.fullmatch(part.removeprefix(b"\r\n"))
        if not match:
            return []
        try:
            read.append(match[2] if read else msgspec.json.decode(match[2]))
        except msgspec.DecodeError:
            return []
    return read


def _token(call: Call) -> Reply:
    """Answer the exchange; the signature is not checked, for the key is another process's."""
    header, claims = _jwt(call.form.get("assertion", ""))
    if header.get("alg") != "RS256" or claims.get("iss") != ACCOUNT:
        words = "Invalid JWT Signature."
        return Reply(400, {"error": "invalid_grant", "error_description": words})
    if claims.get("aud") != TOKEN_URL or not 0 < claims["exp"] - claims["iat"] <= 3600:
        words = "Invalid JWT: Token must be a short-lived token (60 minutes)"
        return Reply(400, {"error": "invalid_grant", "error_description": words})
    return Reply(200, {"access_token": TOKEN, "expires_in": 3599, "token_type": "Bearer"})


def _jwt(text: str) -> tuple[dict[str, Any], dict[str, Any]]:
    try:
        header, claims, _ = (base64.urlsafe_b64decode(part + "==") for part in text.split("."))
        return msgspec.json.decode(header, type=dict), msgspec.json.decode(claims, type=dict)
    except (ValueError, msgspec.DecodeError):
        return {}, {}


def _key_file() -> str:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    members = {
        "type": "service_account",
        "project_id": "acme",
        "private_key_id": "sandbox",
        "private_key": pem.decode(),
        "client_email": ACCOUNT,
        "token_uri": TOKEN_URL,
    }
    return msgspec.json.encode(members).decode()


upstream = Upstream(
    slug="google_cloud_storage",
    hosts=("storage.googleapis.com", "oauth2.googleapis.com"),
    answer=answer,
    settings={"bucket": BUCKET, "service_account_json": _key_file(), "batch_max_seconds": 1},
    secret="bucket",  # noqa: S106  the setting that "wrong" breaks: a key must look like a key
    refusal=_error(
        403,
        "forbidden",
        f"{ACCOUNT} does not have storage.objects.create access to the Google Cloud Storage object",
    ),
)

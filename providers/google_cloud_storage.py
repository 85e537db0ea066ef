"""Google Cloud Storage: an object per batch of events, by the JSON API or, with HMAC keys, XML.

Source: https://docs.cloud.google.com/storage/docs/json_api/v1/objects/insert
Batch:  10,000 events, 32 MiB or five minutes, as the customer likes.
Dedup:  the name is made of the batch, and generation 0 lets only the first copy in.
Errors: JSON with code and reason, else XML or text; an object is written whole or not at all.
"""

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Annotated, Any, Literal
from urllib.parse import quote, urlencode

import msgspec
from msgspec.structs import replace
from pydantic import Field, SecretStr, field_validator, model_validator

from providers.kit import (
    NEW_TOKEN,
    Batch,
    Check,
    Context,
    Delivered,
    Event,
    Misconfigured,
    ObjectSettings,
    Outcome,
    Plan,
    Provider,
    Rejected,
    Request,
    Response,
    Retry,
    Secret,
    SecretText,
    Token,
    TokenSource,
    Verdict,
    at,
    by_status,
    dump,
    dump_text,
    google_signed,
    matching,
    notes_of,
    object_key,
    object_limits,
    objects,
    one_line,
    reason_of,
    seconds,
    text_at,
    thrice_at_most,
)

HOST = "https://storage.googleapis.com"
TOKEN_URL = "https://oauth2.googleapis.com/token"  # noqa: S105  whatever the key file says
SCOPE = "https://www.googleapis.com/auth/devstorage.read_write"
GRANT = "urn:ietf:params:oauth:grant-type:jwt-bearer"
EXISTS = "exists"  # a note too
LIFE = 3600  # seconds a token is asked for
SAFE = "/-._~"
ACCOUNT = re.compile(r"[^@\s]+@[^@\s]+\.gserviceaccount\.com")
PEM = re.compile(r"-----BEGIN PRIVATE KEY-----\s.*\s-----END PRIVATE KEY-----", re.DOTALL)
XML = re.compile(r"<(Code|Message|Details)>([^<]*)<")
DIGEST = re.compile(r"(md5|crc32c|hash|digest).*(match|mismatch)", re.IGNORECASE)

SLOW = {"rateLimitExceeded", "userRateLimitExceeded", "quotaExceeded", "SlowDown"}
REFUSED = {  # whatever the status
    "userProjectMissing": "user_project",
    "UserProjectMissing": "user_project",
    "userProjectAccountProblem": "user_project",
    "UserProjectAccountProblem": "user_project",
    "InvalidBucketName": "bad_bucket",
}
RETRIED = {"RequestTimeTooSkewed": "clock_skew", "BadDigest": "bad_digest"}
STATUSES = {308: "incomplete", 409: "conflict", 410: "gone"}

Bucket = Annotated[
    str,
    matching(
        r"(?!\d+\.\d+\.\d+\.\d+$)(?!goog)(?!.*google)(?!.*[^.]{64})"
        r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]",
        "must be 3 to 63 of a-z, 0-9, -, _ and . (222 with dots), no address, nothing of google",
    ),
]
KmsKey = Annotated[
    str,
    matching(
        r"projects/[^/\s]+/locations/[^/\s]+/keyRings/[^/\s]+/cryptoKeys/[^/\s]+",
        "must be projects/…/locations/…/keyRings/…/cryptoKeys/…",
    ),
]
AccessId = Annotated[str, matching(r"GOOG[A-Z0-9]{8,57}", "must be an HMAC access id, GOOG…")]
HmacSecret = Annotated[
    Secret, matching(r"[A-Za-z0-9+/=]{40}", "must be the 40 characters of an HMAC secret")
]
Project = Annotated[str, matching(r"[a-z0-9.:-]{1,63}", "must be a project id")]


class GoogleCloudStorageSettings(ObjectSettings):
    """A bucket, and a service account or HMAC key that may create objects in it."""

    bucket: Bucket = Field(description="Bucket")
    auth_mode: Literal["service_account", "hmac"] = Field(
        "service_account", description="How we prove who we are"
    )
    service_account_json: SecretText | None = Field(
        None, description="The service account's key file, whole"
    )
    hmac_access_id: AccessId | None = Field(None, description="HMAC key's access id, GOOG…")
    hmac_secret: HmacSecret | None = Field(None, description="HMAC key's secret")
    kms_key_name: KmsKey | None = Field(None, description="KMS key for the objects")
    storage_class: Literal["STANDARD", "NEARLINE", "COLDLINE", "ARCHIVE"] | None = Field(
        None, description="Storage class; absent: the bucket's"
    )
    user_project: Project | None = Field(None, description="Project that pays for the requests")

    @field_validator("prefix")
    @classmethod
    def _not_reserved(cls, prefix: str | None) -> str | None:
        if prefix and prefix.startswith(".well-known/acme-challenge"):
            raise ValueError("must not be under .well-known/acme-challenge/")
        return prefix

    @field_validator("service_account_json", mode="before")
    @classmethod
    def _as_text(cls, value: Any) -> Any:
        return dump_text(value) if isinstance(value, Mapping) else value

    @field_validator("service_account_json")
    @classmethod
    def _is_key_file(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            _check_key_file(_decoded(value))
        return value

    @model_validator(mode="after")
    def _complete(self) -> "GoogleCloudStorageSettings":
        needed = {
            "service_account": ("service_account_json",),
            "hmac": ("hmac_access_id", "hmac_secret"),
        }[self.auth_mode]
        missing = [key for key in needed if getattr(self, key) is None]
        if missing:
            raise ValueError(f"auth_mode {self.auth_mode} needs {' and '.join(missing)}")
        return self


def _decoded(key_file: SecretStr) -> Any:
    try:
        return msgspec.json.decode(key_file.get_secret_value())
    except msgspec.DecodeError:
        return None


def _check_key_file(key_file: Any) -> None:
    if not isinstance(key_file, dict) or key_file.get("type") != "service_account":
        raise ValueError('must be the JSON key file of a service account ("type")')
    members = ("client_email", "private_key", "private_key_id", "token_uri", "project_id")
    missing = [m for m in members if not isinstance(key_file.get(m), str) or not key_file[m]]
    if missing:
        raise ValueError(f"lacks {', '.join(missing)}; paste the key file whole")
    if not ACCOUNT.fullmatch(key_file["client_email"]):
        raise ValueError("client_email must be …@….iam.gserviceaccount.com")
    if not PEM.search(key_file["private_key"]):
        raise ValueError("private_key must be PEM, with its line breaks (\\n)")


def encode(events: Sequence[Event], settings: GoogleCloudStorageSettings, context: Context) -> Plan:
    """Return an upload per object."""
    put = _put if settings.auth_mode == "hmac" else _upload
    refs = notes_of(events, context)  # tells `classify` what was tried and did not help
    return Plan(
        tuple(
            replace(put(batch, settings, context), events=batch.events, refs=refs)
            for batch in objects(events, settings, context)
        )
    )


def _upload(batch: Batch, settings: GoogleCloudStorageSettings, context: Context) -> Request:
    query = {"uploadType": "multipart", "ifGenerationMatch": "0"}
    query |= {"kmsKeyName": settings.kms_key_name} if settings.kms_key_name else {}
    query |= {"userProject": settings.user_project} if settings.user_project else {}
    resource: dict[str, Any] = {
        "name": batch.name,
        "contentType": batch.content_type,
        "metadata": batch.metadata,
        "md5Hash": _md5(batch.body),
    }
    if settings.storage_class:
        resource["storageClass"] = settings.storage_class
    boundary = f"batch{batch.id}"
    parts = (
        f"--{boundary}\r\nContent-Type: application/json; charset=UTF-8\r\n\r\n".encode(),
        dump(resource),
        f"\r\n--{boundary}\r\nContent-Type: {batch.content_type}\r\n\r\n".encode(),
        batch.body,
        f"\r\n--{boundary}--\r\n".encode(),
    )
    return Request(
        "POST",
        f"{HOST}/upload/storage/v1/b/{settings.bucket}/o?{urlencode(query, quote_via=quote)}",
        (_bearer(context), ("Content-Type", f"multipart/related; boundary={boundary}")),
        b"".join(parts),
    )


def _put(batch: Batch, settings: GoogleCloudStorageSettings, context: Context) -> Request:
    headers = {
        "Content-Type": batch.content_type,
        "x-goog-if-generation-match": "0",
        "x-goog-hash": f"md5={_md5(batch.body)}",
        **{f"x-goog-meta-{key}": value for key, value in batch.metadata.items()},
        "x-goog-encryption-kms-key-name": settings.kms_key_name,
        "x-goog-storage-class": settings.storage_class,
        "x-goog-user-project": settings.user_project,
    }
    known = tuple((key, value) for key, value in headers.items() if value)
    url = f"{HOST}/{settings.bucket}/{quote(batch.name, safe=SAFE)}"
    secret = settings.hmac_secret.get_secret_value() if settings.hmac_secret else ""
    request = Request("PUT", url, known, batch.body)
    return google_signed(request, settings.hmac_access_id or "", secret, context.now)


def _md5(body: bytes) -> str:
    return base64.b64encode(hashlib.md5(body, usedforsecurity=False).digest()).decode()


def _bearer(context: Context) -> tuple[str, str]:
    return "Authorization", f"Bearer {context.token.get('access_token', '')}"


def classify(request: Request, response: Response, settings: GoogleCloudStorageSettings) -> Verdict:
    """Return what the answer means for the whole object."""
    renewable = settings.auth_mode == "service_account" and NEW_TOKEN not in request.refs
    if response.status == 401 and renewable:
        return Retry("unauthorized", _error(response)[2], note=NEW_TOKEN)
    outcome = _meaning(response)
    if isinstance(outcome, Retry) and outcome.note in request.refs:
        return Misconfigured("forbidden", outcome.message)
    return thrice_at_most(request, outcome)


def _meaning(response: Response) -> Outcome:
    status, reason, message = _error(response)
    if status == 412:
        return Delivered("an earlier attempt had landed")
    if reason in SLOW:
        return Retry("throttled", message, response.retry_after, throttled=True)
    if reason in REFUSED:
        return Misconfigured(REFUSED[reason], message)
    if reason in RETRIED or status in STATUSES:
        return Retry(RETRIED.get(reason) or STATUSES[status], message, response.retry_after)
    if status == 400 and DIGEST.search(message):
        return Retry("bad_digest", message)
    if status == 403 and "storage.objects.delete" in message:
        return Retry("exists", message, timedelta(0), note=EXISTS)  # an earlier one may have landed
    if 200 <= status < 300 and (reason or at(response.json, "error")):
        return Retry("unexpected_answer", message)
    if status == 404:
        return Misconfigured("bad_bucket", message or "no such bucket")
    if status == 413:
        return Rejected("too_large", message)
    return by_status(replace(response, status=status), message, no_pages=True)


def _error(response: Response) -> tuple[int, str, str]:
    """Return (status, reason, words) of a JSON, XML or other answer; the body's own fault wins."""
    error = at(response.json, "error")
    if isinstance(error, dict):
        code = error.get("code")
        status = code if type(code) is int and 400 <= code < 600 else response.status
        reason = text_at(error, "errors", 0, "reason")
        return status, reason, text_at(error, "message") or reason or response.text
    found = dict(XML.findall(response.body.decode("utf-8", "replace")))
    code, words = found.get("Code", ""), found.get("Details") or found.get("Message", "")
    return response.status, code, one_line(f"{code}: {words}") if code else response.text


def _ask_token(settings: GoogleCloudStorageSettings, now: datetime) -> Request | None:
    """Return the exchange of a signed assertion for a token, or None where none is needed.

    https://developers.google.com/identity/protocols/oauth2/service-account#httprest
    """
    if settings.auth_mode == "hmac" or settings.service_account_json is None:
        return None
    account = _decoded(settings.service_account_json)
    issued = int(now.timestamp())
    claims = {
        "iss": account["client_email"],
        "scope": SCOPE,
        "aud": TOKEN_URL,
        "iat": issued,
        "exp": issued + LIFE,
    }
    assertion = _signed(claims, account["private_key"], account["private_key_id"])
    return Request.form(TOKEN_URL, {"grant_type": GRANT, "assertion": assertion})


def _signed(claims: dict[str, Any], private_key: str, key_id: str) -> str:
    """Return the claims as a JWT; unsigned if the key is no key: Google's refusal says so."""
    import jwt  # noqa: PLC0415  a quarter of a second, for few

    headers = {"kid": key_id}
    try:
        return jwt.encode(claims, private_key, "RS256", headers)
    except (ValueError, TypeError, jwt.PyJWTError):
        return jwt.encode(claims, "", "none", headers)


def _read_token(response: Response) -> Token | Outcome:
    body = response.json
    token = text_at(body, "access_token")
    if 200 <= response.status < 300 and token:
        lives = seconds(at(body, "expires_in")) or timedelta(seconds=LIFE)
        return Token({"access_token": token}, lives)
    reason = reason_of(response.status)
    words = (text_at(body, "error"), text_at(body, "error_description"))
    message = ": ".join(filter(None, words)) or text_at(body, "error", "message") or response.text
    if "short-lived token" in message:
        return Retry("clock_skew", message)
    if response.status in (408, 425, 429) or response.status >= 500 or response.status < 400:
        slow = response.status == 429
        return Retry(reason, message, response.retry_after, throttled=slow)
    return Misconfigured("unauthorized", message)


def _test_request(settings: GoogleCloudStorageSettings, context: Context) -> Request:
    if settings.auth_mode == "hmac":
        name = object_key(settings, f".connection-test-{context.integration_id}")
        return _put(Batch((), "", name, "text/plain", b"", {}), settings, context)
    query = {"permissions": "storage.objects.create"}
    query |= {"userProject": settings.user_project} if settings.user_project else {}
    url = f"{HOST}/storage/v1/b/{settings.bucket}/iam/testPermissions"
    return Request.query("GET", url, query, headers=dict([_bearer(context)]))


def _read_test(response: Response) -> Outcome:
    asked = text_at(response.json, "kind") == "storage#testIamPermissionsResponse"
    if response.status == 200 and asked and not at(response.json, "permissions"):
        return Misconfigured("forbidden", "no storage.objects.create on the bucket")
    return _meaning(response)


provider = Provider(
    slug="google_cloud_storage",
    title="Google Cloud Storage",
    category="Server",
    stores=("iOS", "Android", "Stripe"),
    settings=GoogleCloudStorageSettings,
    encode=encode,
    classify=classify,
    limits=object_limits(ObjectSettings()),
    limits_of=object_limits,
    identifiers=("none: every event is written",),
    notes=(
        "Readers dedupe rows by event_id: an event sent again by hand lands in another object.",
        "The account needs no more than roles/storage.objectCreator on the bucket.",
        "Tokens are asked for at oauth2.googleapis.com, whatever the key file's token_uri says.",
    ),
    token=TokenSource(_ask_token, _read_token, {"access_token": "ya29.example"}),
    check=Check(_test_request, _read_test),
)

"""Google Cloud Storage: uploads, tokens, HMAC signatures, and what each answer means."""

import base64
import gzip
import hashlib
import hmac
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email import message_from_bytes
from email.message import Message
from typing import Any
from urllib.parse import parse_qs, parse_qsl, unquote, urlsplit

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from gcp_storage_emulator.server import create_server

from providers.google_cloud_storage import GoogleCloudStorageSettings, provider
from providers.kit import (
    Delivered,
    InvalidSettings,
    Misconfigured,
    Rejected,
    Request,
    Response,
    Retry,
    Token,
    Verdict,
    read_settings,
)
from tests.providers.samples import NOW, classified, context, event, planned, refund, trial

PRIVATE = rsa.generate_private_key(public_exponent=65537, key_size=2048)
PEM = PRIVATE.private_bytes(
    serialization.Encoding.PEM,
    serialization.PrivateFormat.PKCS8,
    serialization.NoEncryption(),
).decode()
KEY_FILE = {
    "type": "service_account",
    "project_id": "acme",
    "private_key_id": "0f9e8d7c",
    "private_key": PEM,
    "client_email": "evt@demo.iam.gserviceaccount.com",
    "token_uri": "https://evil.example/token",
    "universe_domain": "evil.example",
}
SETTINGS = {
    "bucket": "acme-events",
    "prefix": "events",
    "service_account_json": json.dumps(KEY_FILE),
}
HMAC = {
    "bucket": "acme-events",
    "auth_mode": "hmac",
    "hmac_access_id": "GOOG1EXAMPLEEXAMPLEEXAMP",
    "hmac_secret": "s" * 40,
}
HOUR = "events/prj_acme/c9VdLs3H/dt=2026-01-01/hr=00/20260101T000000Z-"
TOKEN = {"access_token": "ya29.c.b0Aexample"}
OPENED = datetime.fromtimestamp(NOW, UTC)


def upload(settings: dict[str, Any], *events: Any) -> Request:
    (request,) = planned(provider, settings, *(events or (event(),)), token=TOKEN).requests
    return request


def parts(request: Request) -> tuple[dict[str, Any], Message]:
    """Read the upload as any MIME parser does."""
    head = f"Content-Type: {dict(request.headers)['Content-Type']}\r\n\r\n".encode()
    whole = message_from_bytes(head + request.body)
    _, resource, content = whole.walk()
    assert resource["Content-Type"] == "application/json; charset=UTF-8"
    return json.loads(str(resource.get_payload())), content


def read(data: dict[str, Any]) -> GoogleCloudStorageSettings:
    return read_settings(provider.title, GoogleCloudStorageSettings, data)


def test_uploads_renewal_refund_and_trial_as_one_object() -> None:
    request = upload(SETTINGS, event(), refund(), trial())
    assert request.method == "POST"
    assert request.url == (
        "https://storage.googleapis.com/upload/storage/v1/b/acme-events/o"
        "?uploadType=multipart&ifGenerationMatch=0"
    )
    assert dict(request.headers)["Authorization"] == "Bearer ya29.c.b0Aexample"
    resource, content = parts(request)
    body = request.body.split(b"application/x-ndjson\r\n\r\n")[1].rpartition(b"\r\n--")[0]
    batch = resource["metadata"]["batch-id"]
    assert resource == {
        "name": f"{HOUR}{batch}.ndjson.gz",
        "contentType": "application/x-ndjson",
        "metadata": {
            "batch-id": batch,
            "event-count": "3",
            "first-time": "2026-01-01T00:00:00Z",
            "last-time": "2026-01-01T00:00:00Z",
            "schema-version": "1",
        },
        "md5Hash": base64.b64encode(hashlib.md5(body).digest()).decode(),
    }
    assert content["Content-Type"] == "application/x-ndjson"
    rows = [json.loads(line) for line in gzip.decompress(body).splitlines()]
    assert [row["event_name"] for row in rows] == [
        "subscription_renewed",
        "subscription_refunded",
        "trial_started",
    ]
    assert (rows[1]["revenue"]["value"], rows[2]["revenue"]) == (-7.99, None)


def test_options() -> None:
    kms = "projects/p/locations/eu/keyRings/r/cryptoKeys/k"
    request = upload(
        {**SETTINGS, "kms_key_name": kms, "storage_class": "NEARLINE", "user_project": "payer"}
    )
    assert dict(parse_qsl(urlsplit(request.url).query)) == {
        "uploadType": "multipart",
        "ifGenerationMatch": "0",
        "kmsKeyName": kms,
        "userProject": "payer",
    }
    assert parts(request)[0]["storageClass"] == "NEARLINE"


@pytest.mark.parametrize("given", [SETTINGS, {**SETTINGS, "service_account_json": KEY_FILE}])
def test_asks_google_for_a_token_whatever_the_key_file_says(given: dict[str, Any]) -> None:
    assert provider.token
    request = provider.token.request(read(given), OPENED)
    assert request
    assert request.url == "https://oauth2.googleapis.com/token"
    form = parse_qs(request.body.decode())
    assert form["grant_type"] == ["urn:ietf:params:oauth:grant-type:jwt-bearer"]
    (assertion,) = form["assertion"]
    assert jwt.get_unverified_header(assertion) == {
        "alg": "RS256",
        "typ": "JWT",
        "kid": "0f9e8d7c",
    }
    claims = jwt.decode(
        assertion,
        PRIVATE.public_key(),
        ["RS256"],
        audience="https://oauth2.googleapis.com/token",
        options={"verify_exp": False, "verify_iat": False},
    )
    assert claims == {
        "iss": "evt@demo.iam.gserviceaccount.com",
        "scope": "https://www.googleapis.com/auth/devstorage.read_write",
        "aud": "https://oauth2.googleapis.com/token",
        "iat": NOW,
        "exp": NOW + 3600,
    }


def test_a_damaged_key_is_left_to_google_to_refuse() -> None:
    pem = "-----BEGIN PRIVATE KEY-----\nMIIE\n-----END PRIVATE KEY-----\n"
    damaged = {**SETTINGS, "service_account_json": json.dumps({**KEY_FILE, "private_key": pem})}
    assert provider.token
    request = provider.token.request(read(damaged), OPENED)
    assert request
    assert request.body.endswith(b".")  # no signature


@pytest.mark.parametrize(
    ("status", "body", "outcome"),
    [
        (
            200,
            {**TOKEN, "expires_in": 3599, "token_type": "Bearer"},
            Token(TOKEN, timedelta(seconds=3599)),
        ),
        (200, TOKEN, Token(TOKEN, timedelta(hours=1))),
        (200, "<html>", Retry("ok", "<html>")),
        (
            400,
            {"error": "invalid_grant", "error_description": "Invalid JWT Signature."},
            Misconfigured("unauthorized", "invalid_grant: Invalid JWT Signature."),
        ),
        (401, {"error": "invalid_client"}, Misconfigured("unauthorized", "invalid_client")),
        (400, {"error": "invalid_scope"}, Misconfigured("unauthorized", "invalid_scope")),
        (
            400,
            {
                "error": "invalid_grant",
                "error_description": "Token must be a short-lived token (60 minutes) and in a …",
            },
            Retry(
                "clock_skew",
                "invalid_grant: Token must be a short-lived token (60 minutes) and in a …",
            ),
        ),
        (429, "", Retry("throttled", throttled=True)),
        (503, "", Retry("unavailable")),
    ],
)
def test_answers_of_the_token_endpoint(status: int, body: Any, outcome: Any) -> None:
    raw = body if isinstance(body, str) else json.dumps(body)
    assert provider.token
    assert provider.token.read(Response(status, {}, raw.encode())) == outcome


def test_hmac_mode_signs_a_put_as_google_documents() -> None:
    request = upload({**HMAC, "storage_class": "COLDLINE"})
    headers = {name.lower(): value for name, value in request.headers}
    batch = headers["x-goog-meta-batch-id"]
    url = urlsplit(request.url)
    assert (request.method, url.netloc) == ("PUT", "storage.googleapis.com")
    assert unquote(url.path) == f"/acme-events/{HOUR.removeprefix('events/')}{batch}.ndjson.gz"
    assert headers["x-goog-if-generation-match"] == "0"
    assert headers["x-goog-storage-class"] == "COLDLINE"
    given = headers.pop("authorization")
    headers["host"] = url.netloc
    names = sorted(headers)
    content = hashlib.sha256(request.body).hexdigest()
    lines = "\n".join(f"{name}:{headers[name]}" for name in names)
    canonical = f"PUT\n{url.path}\n\n{lines}\n\n{';'.join(names)}\n{content}"
    scope = "20260101/auto/storage/goog4_request"
    text = "\n".join(
        (
            "GOOG4-HMAC-SHA256",
            headers["x-goog-date"],
            scope,
            hashlib.sha256(canonical.encode()).hexdigest(),
        )
    )
    key = b"GOOG4" + HMAC["hmac_secret"].encode()
    for part in (*scope.split("/"), text):
        key = hmac.digest(key, part.encode(), "sha256")
    assert given == (
        f"GOOG4-HMAC-SHA256 Credential={HMAC['hmac_access_id']}/{scope}, "
        f"SignedHeaders={';'.join(names)}, Signature={key.hex()}"
    )
    assert provider.token
    assert provider.token.request(read(HMAC), OPENED) is None


@pytest.fixture(scope="module")
def emulator() -> Iterator[str]:
    server = create_server("127.0.0.1", 0, in_memory=True, default_bucket="acme-events")
    server.start()
    try:
        yield "http://{}:{}".format(*server._api._httpd.server_address)
    finally:
        server.stop()


def test_a_server_stores_the_object(emulator: str) -> None:
    request = upload(SETTINGS, event(), refund())
    url = urlsplit(request.url)
    answer = httpx.post(
        f"{emulator}{url.path}?{url.query}",
        headers=dict(request.headers),
        content=request.body,
        trust_env=False,
    )
    verdict = provider.classify(
        request, Response(answer.status_code, {}, answer.content), read(SETTINGS)
    )
    assert verdict == Delivered()
    resource = answer.json()
    assert resource["name"] == parts(request)[0]["name"]
    assert resource["md5Hash"] == parts(request)[0]["md5Hash"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"bucket": "Acme"}, "3 to 63"),
        ({"bucket": "goog-events"}, "nothing of google"),
        ({"bucket": "my-google-events"}, "nothing of google"),
        ({"bucket": "10.0.0.1"}, "no address"),
        ({"bucket": "a" * 64}, "3 to 63"),
        ({"bucket": None}, "bucket is not set"),
        ({"service_account_json": None}, "needs service_account_json"),
        ({"service_account_json": "{"}, "JSON key file"),
        ({"service_account_json": {**KEY_FILE, "type": "authorized_user"}}, "JSON key file"),
        ({"service_account_json": {**KEY_FILE, "private_key_id": ""}}, "lacks private_key_id"),
        ({"service_account_json": {**KEY_FILE, "client_email": "a@b.example"}}, "client_email"),
        ({"service_account_json": {**KEY_FILE, "private_key": "MIIE"}}, "must be PEM"),
        ({"service_account_json": {**KEY_FILE, "x": "y" * 16_384}}, "16384"),
        ({"auth_mode": "hmac"}, "needs hmac_access_id and hmac_secret"),
        ({**HMAC, "hmac_access_id": "AKIA"}, "GOOG"),
        ({**HMAC, "hmac_secret": "short"}, "40 characters"),
        ({"kms_key_name": "my-key"}, "projects/"),
        ({"storage_class": "GLACIER"}, "NEARLINE"),
        ({"prefix": ".well-known/acme-challenge/x"}, "acme-challenge"),
        ({"prefix": "/x"}, "must not begin with /"),
    ],
)
def test_settings_faults(change: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidSettings, match=words):
        read({**SETTINGS, **change})


NO_DELETE = "x does not have storage.objects.delete access"
DAMAGED = 'Provided MD5 hash "a" doesn\'t match calculated MD5 hash "b".'


def error(code: int, reason: str, message: str = "Words.") -> dict[str, Any]:
    errors = [{"domain": "global", "reason": reason, "message": message}]
    return {"error": {"code": code, "message": message, "errors": errors}}


def xml(code: str) -> str:
    return f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>Words.</Message></Error>"


@pytest.mark.parametrize(
    ("status", "body", "verdict"),
    [
        (200, {"kind": "storage#object", "generation": "1767225600123456"}, Delivered()),
        (200, "", Delivered()),
        (200, "<html>hi", Retry("unexpected_answer", "<html>hi")),
        (412, error(412, "conditionNotMet"), Delivered("an earlier attempt had landed")),
        (412, xml("PreconditionFailed"), Delivered("an earlier attempt had landed")),
        (409, error(409, "conflict"), Retry("conflict", "Words.")),
        (308, "", Retry("incomplete")),
        (408, "", Retry("timeout")),
        (429, error(429, "rateLimitExceeded"), Retry("throttled", "Words.", throttled=True)),
        (429, "slow down", Retry("throttled", "slow down", throttled=True)),
        (500, error(500, "backendError"), Retry("server_error", "Words.")),
        (502, "<html>bad", Retry("bad_gateway", "<html>bad")),
        (503, error(503, "backendError"), Retry("unavailable", "Words.")),
        (504, "", Retry("gateway_timeout")),
        (403, error(403, "userRateLimitExceeded"), Retry("throttled", "Words.", throttled=True)),
        (403, error(403, "quotaExceeded"), Retry("throttled", "Words.", throttled=True)),
        (401, error(401, "authError"), Retry("unauthorized", "Words.", note="new_token")),
        (403, error(403, "forbidden"), Misconfigured("forbidden", "Words.")),
        (403, error(403, "insufficientPermissions"), Misconfigured("forbidden", "Words.")),
        (403, error(403, "accountDisabled"), Misconfigured("forbidden", "Words.")),
        (403, error(403, "userProjectAccountProblem"), Misconfigured("user_project", "Words.")),
        (
            403,
            error(403, "forbidden", NO_DELETE),
            Retry("exists", NO_DELETE, timedelta(0), note="exists"),
        ),
        (404, error(404, "notFound"), Misconfigured("bad_bucket", "Words.")),
        (404, "", Misconfigured("bad_bucket", "no such bucket")),
        (404, xml("NoSuchBucket"), Misconfigured("bad_bucket", "NoSuchBucket: Words.")),
        (410, error(410, "gone"), Retry("gone", "Words.")),
        (400, error(400, "invalid"), Rejected("bad_request", "Words.")),
        (400, error(400, "required"), Rejected("bad_request", "Words.")),
        (400, error(400, "parseError"), Rejected("bad_request", "Words.")),
        (413, error(413, "uploadTooLarge"), Rejected("too_large", "Words.")),
        (
            400,
            error(400, "invalid", DAMAGED),
            Retry("bad_digest", DAMAGED, timedelta(0), note="second_try"),
        ),
        (
            400,
            xml("BadDigest"),
            Retry("bad_digest", "BadDigest: Words.", timedelta(0), note="second_try"),
        ),
        (400, error(400, "userProjectMissing"), Misconfigured("user_project", "Words.")),
        (403, xml("InvalidSecurity"), Misconfigured("forbidden", "InvalidSecurity: Words.")),
        (403, xml("RequestTimeTooSkewed"), Retry("clock_skew", "RequestTimeTooSkewed: Words.")),
        (200, error(503, "backendError"), Retry("unavailable", "Words.")),
        (200, {"error": {"message": "Words."}}, Retry("unexpected_answer", "Words.")),
        (200, {"error": "odd"}, Retry("unexpected_answer", '{"error": "odd"}')),
        (500, {"error": {"code": 200, "message": "Words."}}, Retry("server_error", "Words.")),
        (400, {"error": {"code": True}}, Rejected("bad_request", '{"error": {"code": true}}')),
    ],
)
def test_classify(status: int, body: Any, verdict: Verdict) -> None:
    assert classified(provider, SETTINGS, status, body) == verdict


def after_a_note(note: str, status: int, body: Any, settings: dict[str, Any] = SETTINGS) -> Verdict:
    notes = {event().id: note}
    (request,) = planned(provider, settings, event(), token=TOKEN, notes=notes).requests
    answer = Response(status, {}, json.dumps(body).encode())
    return provider.classify(request, answer, read(settings))


def test_a_new_token_that_is_refused_too_is_the_customers_matter() -> None:
    again = after_a_note("new_token", 401, error(401, "authError"))
    assert again == Misconfigured("unauthorized", "Words.")


@pytest.mark.parametrize("settings", [SETTINGS, HMAC])
def test_an_object_that_may_not_be_replaced_is_tried_once_more(settings: dict[str, Any]) -> None:
    refusal = error(403, "forbidden", NO_DELETE)
    again = after_a_note("exists", 403, refusal, settings)
    assert again == Misconfigured("forbidden", NO_DELETE)
    assert isinstance(after_a_note("exists", 412, ""), Delivered)
    assert after_a_note("new_token", 403, refusal) == Retry(
        "exists", NO_DELETE, timedelta(0), note="exists"
    )


def test_what_arrives_damaged_three_times_is_given_up() -> None:
    again = after_a_note("second_try", 400, error(400, "invalid", DAMAGED))
    assert again == Retry("bad_digest", DAMAGED, timedelta(0), note="third_try")
    again = after_a_note("third_try", 400, error(400, "invalid", DAMAGED))
    assert again == Rejected("bad_digest", DAMAGED)


def test_with_hmac_keys_401_is_the_customers() -> None:
    assert classified(provider, HMAC, 401, xml("AuthenticationRequired")) == Misconfigured(
        "unauthorized", "AuthenticationRequired: Words."
    )


def test_check_asks_for_the_permission_and_writes_nothing() -> None:
    assert provider.check
    request = provider.check.request(read(SETTINGS), context(token=TOKEN))
    assert request.method == "GET"
    assert request.url == (
        "https://storage.googleapis.com/storage/v1/b/acme-events/iam/testPermissions"
        "?permissions=storage.objects.create"
    )
    granted: dict[str, Any] = {"kind": "storage#testIamPermissionsResponse"}
    refused = provider.check.read(Response(200, {}, json.dumps(granted).encode()))
    assert isinstance(refused, Misconfigured)
    granted["permissions"] = ["storage.objects.create"]
    assert provider.check.read(Response(200, {}, json.dumps(granted).encode())) == Delivered()


def test_check_with_hmac_keys_writes_one_marked_object() -> None:
    assert provider.check
    request = provider.check.request(read(HMAC), context())
    assert request.url == "https://storage.googleapis.com/acme-events/.connection-test-c9VdLs3H"
    assert provider.check.read(Response(412)) == Delivered("an earlier attempt had landed")

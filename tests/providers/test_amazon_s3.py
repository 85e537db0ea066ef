"""Amazon S3: objects, signatures, roles, and what each answer means."""

import csv
import gzip
import io
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from importlib import import_module
from typing import Any
from urllib.parse import unquote, urlsplit

import botocore.auth
import httpx
import pytest
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from moto.server import ThreadedMotoServer

from providers.amazon_s3 import AmazonS3Settings, provider
from providers.kit import (
    Context,
    Delivered,
    InvalidSettings,
    Misconfigured,
    Rejected,
    Request,
    Response,
    Retry,
    Skipped,
    Token,
    Verdict,
    aws_signed,
    read_settings,
)
from tests.providers.samples import NOW, classified, context, event, planned, refund, trial

KEYS = {"access_key_id": "AKIAEXAMPLEEXAMPLE", "secret_access_key": "s" * 40}
SETTINGS = {
    **KEYS,
    "auth_mode": "access_key",
    "bucket": "acme-events",
    "region": "eu-west-1",
    "prefix": "events/",
}
ROLE = {
    "auth_mode": "assume_role",
    "role_arn": "arn:aws:iam::123456789012:role/onward",
    "external_id": "c9VdLs3H-x",
    "bucket": "acme-events",
    "region": "eu-west-1",
}
OPENED = datetime.fromtimestamp(NOW, UTC)
NAME = "events/prj_acme/c9VdLs3H/dt=2026-01-01/hr=00/20260101T000000Z-"


def put(settings: dict[str, Any], *events: Any, **changes: Any) -> Request:
    (request,) = planned(provider, settings, *(events or (event(),)), **changes).requests
    return request


def rows(request: Request) -> list[dict[str, Any]]:
    lines = gzip.decompress(request.body).decode().split("\n")
    assert lines.pop() == ""
    return [json.loads(line) for line in lines]


def read(data: dict[str, Any]) -> AmazonS3Settings:
    return read_settings(provider.title, AmazonS3Settings, data)


def test_writes_renewal_refund_and_trial_as_one_object() -> None:
    request = put(SETTINGS, event(), refund(identity_id=None), trial())
    parts = urlsplit(request.url)
    assert request.method == "PUT"
    assert parts.netloc == "acme-events.s3.eu-west-1.amazonaws.com"
    headers = dict(request.headers)
    batch = headers["x-amz-meta-batch-id"]
    assert unquote(parts.path) == f"/{NAME}{batch}.ndjson.gz"
    assert len(batch) == 32
    assert {k: v for k, v in headers.items() if not k.startswith(("X-", "Auth"))} == {
        "Content-Type": "application/x-ndjson",
        "If-None-Match": "*",
        "x-amz-checksum-crc32": headers["x-amz-checksum-crc32"],
        "x-amz-meta-batch-id": batch,
        "x-amz-meta-event-count": "3",
        "x-amz-meta-first-time": "2026-01-01T00:00:00Z",
        "x-amz-meta-last-time": "2026-01-01T00:00:00Z",
        "x-amz-meta-schema-version": "1",
    }
    first, second, third = rows(request)
    assert first == {
        "event_id": event().id,
        "event_name": "subscription_renewed",
        "user_id": "QON_5b1f0c9e7a3d4d22",
        "identity_id": "acct-40001",
        "custom_user_id": None,
        "advertiser_id": "7D0F1C9E-6A3B-4E55-9B1B-0B7E3E6C2A11",
        "device_id": "2C1D0E9F-8A7B-4C6D-9E5F-4A3B2C1D0E9F",
        "time": 1767225600,
        "created_at": 1767225616,
        "product_id": "com.acme.pro.month",
        "old_product_id": None,
        "price": {"value": 7.99, "value_usd": 9.99, "currency": "GBP"},
        "revenue": {
            "value": 7.99,
            "value_usd": 9.99,
            "currency": "GBP",
            "is_proceed": 0,
            "proceeds_rate": 85,
        },
        "transaction": {
            "transaction_id": "2000000812345678",
            "original_transaction_id": "2000000700000001",
            "expires": 1769904000,
            "grace_period_expires": None,
            "transaction_date": 1767225600,
        },
        "platform": "iOS",
        "environment": "production",
        "properties": {},
        "ip": None,
        "asa_attribution": None,
        "country": "GB",
    }
    assert second["revenue"]["value"] == -7.99
    assert second["identity_id"] is None
    assert third["revenue"] is None


def test_the_same_batch_has_the_same_name_and_bytes_on_every_attempt() -> None:
    later = context(batch_at=OPENED - timedelta(hours=1), integration_id="c9VdLs3H")
    first = put(SETTINGS, event(), trial(), batch_at=later.batch_at)
    again = provider.encode(
        [event(), trial()],
        read(SETTINGS),
        Context(OPENED + timedelta(days=2), "prj_acme", "c9VdLs3H", later.batch_at),
    ).requests[0]
    assert (first.url, first.body) == (again.url, again.body)
    assert "dt%3D2025-12-31/hr%3D23/" in first.url
    assert put(SETTINGS, trial(), event()).url != put(SETTINGS, event(), trial()).url


def test_a_renamed_event_keeps_its_name_and_extras_travel_along() -> None:
    settings = {**SETTINGS, "event_names": {"trial_started": "Trial!"}}
    (row,) = rows(put(settings, trial(sdk="6.1", device={"model": "x"}, installed_at=1764579600)))
    assert (row["event_name"], row["custom_event_name"]) == ("trial_started", "Trial!")
    assert (row["sdk"], row["device"], row["installed_at"]) == ("6.1", {"model": "x"}, 1764579600)


def test_amounts_keep_their_digits_and_ids_are_text() -> None:
    money = {"value": 0.1, "value_usd": 1234567.123456, "currency": "KWD"}
    body = gzip.decompress(put(SETTINGS, event(revenue=money)).body)
    assert b'"value":0.1,"value_usd":1234567.123456' in body
    assert b'"transaction_id":"2000000812345678"' in body


def test_csv_quotes_every_field_and_nests_json() -> None:
    settings = {**SETTINGS, "format": "csv", "compression": "none"}
    quoted = event(product_id='a "quoted", one\n', note=[1], device={"model": "x"})
    request = put(settings, quoted, trial())
    assert dict(request.headers)["Content-Type"] == "text/csv; charset=utf-8"
    assert request.url.endswith(".csv")
    assert request.body.startswith(b'"event_id","event_name","custom_event_name"')
    assert request.body.endswith(b'"\r\n')
    first, second = csv.DictReader(io.StringIO(request.body.decode(), newline=""))
    assert first["product_id"] == 'a "quoted", one\n'
    assert json.loads(first["transaction"])["transaction_id"] == "2000000812345678"
    assert json.loads(first["extras"]) == {"note": [1]}
    assert json.loads(first["device"]) == {"model": "x"}
    assert (first["time"], first["country"], second["revenue"]) == ("1767225600", "GB", "")


def test_parquet_holds_the_same_columns() -> None:
    pq = pytest.importorskip("pyarrow.parquet")
    request = put({**SETTINGS, "format": "parquet"}, event(), trial())
    assert request.url.endswith(".parquet")
    assert dict(request.headers)["Content-Type"] == "application/vnd.apache.parquet"
    table = pq.read_table(io.BytesIO(request.body)).to_pylist()
    assert [row["event_name"] for row in table] == ["subscription_renewed", "trial_started"]
    assert (table[0]["time"], table[1]["revenue"]) == (1767225600, None)
    assert json.loads(table[0]["revenue"])["value"] == 7.99


def test_parquet_without_its_library_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(import_module("providers.kit.objects"), "find_spec", lambda _name: None)
    with pytest.raises(InvalidSettings, match=r"onward\[parquet\]"):
        read({**SETTINGS, "format": "parquet"})


def test_batches_keep_to_the_customers_limits() -> None:
    some = [event(id=f"evt-{number}") for number in range(5)]
    plan = planned(provider, {**SETTINGS, "batch_max_events": 2}, *some)
    assert [r.events for r in plan.requests] == [(0, 1), (2, 3), (4,)]
    assert len({r.url for r in plan.requests}) == 3
    small = planned(provider, {**SETTINGS, "batch_max_bytes": 2048}, *some)
    assert [r.events for r in small.requests] == [(0, 1), (2, 3), (4,)]
    assert provider.limits_of
    limits = provider.limits_of(read({**SETTINGS, "batch_max_seconds": 60}))
    assert (limits.linger, limits.whole_batches) == (timedelta(seconds=60), True)
    assert (limits.events, limits.bytes) == (10_000, 32 * 1024**2)


@pytest.mark.parametrize(
    ("change", "start"),
    [
        ({}, "https://acme-events.s3.eu-west-1.amazonaws.com/events/"),
        (
            {"region": "cn-north-1"},
            "https://acme-events.s3.cn-north-1.amazonaws.com.cn/events/",
        ),
        (
            {"addressing_style": "path"},
            "https://s3.eu-west-1.amazonaws.com/acme-events/events/",
        ),
        (
            {"endpoint_url": "https://minio.acme.example/"},
            "https://minio.acme.example/acme-events/events/",
        ),
        (
            {"endpoint_url": "https://minio.acme.example", "addressing_style": "virtual"},
            "https://acme-events.minio.acme.example/events/",
        ),
        ({"bucket": "acme.events"}, "https://s3.eu-west-1.amazonaws.com/acme.events/events/"),
        ({"prefix": "a b/ü"}, "https://acme-events.s3.eu-west-1.amazonaws.com/a%20b/%C3%BC/prj"),
        ({"prefix": None}, "https://acme-events.s3.eu-west-1.amazonaws.com/prj_acme/"),
    ],
)
def test_addresses(change: dict[str, Any], start: str) -> None:
    assert put({**SETTINGS, **change}).url.startswith(start)


def test_options_become_headers() -> None:
    options = {
        "sse": "aws:kms",
        "kms_key_id": "alias/acme",
        "storage_class": "GLACIER_IR",
        "expected_bucket_owner": "123456789012",
        "session_token": "t0k3n",
        "endpoint_url": "https://minio.acme.example",
    }
    headers = dict(put({**SETTINGS, **options}).headers)
    assert headers["x-amz-server-side-encryption"] == "aws:kms"
    assert headers["x-amz-server-side-encryption-aws-kms-key-id"] == "alias/acme"
    assert headers["x-amz-storage-class"] == "GLACIER_IR"
    assert headers["x-amz-expected-bucket-owner"] == "123456789012"
    assert headers["X-Amz-Security-Token"] == "t0k3n"
    assert "x-amz-checksum-crc32" not in headers


def test_the_signature_is_the_librarys_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(botocore.auth, "get_current_datetime", lambda: OPENED)
    request = put({**SETTINGS, "session_token": "t0k3n"})
    theirs = AWSRequest(
        request.method,
        request.url,
        {k: v for k, v in request.headers if not k.startswith(("X-", "Auth"))},
        request.body,
    )
    credentials = Credentials(KEYS["access_key_id"], KEYS["secret_access_key"], "t0k3n")
    S3SigV4Auth(credentials, "s3", "eu-west-1").add_auth(theirs)
    assert dict(request.headers) == dict(theirs.headers)


@pytest.fixture(scope="module")
def moto() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        yield f"http://127.0.0.1:{server.get_host_and_port()[1]}"
    finally:
        server.stop()


def exchange(moto: str, request: Request) -> httpx.Response:
    """Send the very request to moto; the host is the real one's."""
    parts = urlsplit(request.url)
    headers = {**dict(request.headers), "Host": parts.netloc}
    return httpx.request(
        request.method, moto + parts.path, headers=headers, content=request.body, trust_env=False
    )


def test_a_server_takes_the_object_once(moto: str) -> None:
    bucket = Request("PUT", "https://acme-events.s3.us-east-1.amazonaws.com/")
    assert exchange(moto, bucket).status_code == 200
    settings = {**SETTINGS, "region": "us-east-1"}
    request = put(settings, event(), refund())
    for landed in ("", "an earlier attempt had landed"):
        answer = exchange(moto, request)
        verdict = provider.classify(
            request, Response(answer.status_code, {}, answer.content), read(settings)
        )
        assert verdict == Delivered(landed)
    get = aws_signed(Request("GET", request.url), KEYS, "s3", "us-east-1", OPENED)
    stored = exchange(moto, get)
    assert stored.content == request.body
    assert stored.headers["x-amz-meta-event-count"] == "2"


def test_a_role_is_assumed_with_a_signed_call(moto: str) -> None:
    assert provider.token
    assert provider.token.request(read(SETTINGS), OPENED) is None
    request = provider.token.request(read({**ROLE, **KEYS}), OPENED)
    assert request
    assert request.url == "https://sts.eu-west-1.amazonaws.com/"
    assert request.body == (
        b"Action=AssumeRole&Version=2011-06-15&RoleArn=arn%3Aaws%3Aiam%3A%3A123456789012%3A"
        b"role%2Fonward&RoleSessionName=onward&ExternalId=c9VdLs3H-x&DurationSeconds=3600"
    )
    answer = exchange(moto, request)
    token = provider.token.read(Response(answer.status_code, {}, answer.content))
    assert isinstance(token, Token)
    assert token.lives == timedelta(hours=1)
    signed = dict(put(ROLE, token=token.values).headers)
    assert signed["X-Amz-Security-Token"] == token.values["session_token"]
    assert (
        f"Credential={token.values['access_key_id']}/20260101/eu-west-1/s3/"
        in (signed["Authorization"])
    )


@pytest.mark.parametrize(
    ("status", "body", "kind", "reason"),
    [
        (403, "<Code>AccessDenied</Code><Message>no</Message>", Misconfigured, "unauthorized"),
        (403, "<Code>RegionDisabledException</Code>", Misconfigured, "unauthorized"),
        (403, "<Code>MissingAuthenticationToken</Code>", Misconfigured, "unauthorized"),
        (
            403,
            "<Code>SignatureDoesNotMatch</Code><Message>Signature expired: x</Message>",
            Retry,
            "clock_skew",
        ),
        (400, "<Code>Throttling</Code>", Retry, "bad_request"),
        (503, "", Retry, "unavailable"),
        (200, "<html>", Retry, "ok"),
    ],
)
def test_answers_to_the_role_call(status: int, body: str, kind: type[Any], reason: str) -> None:
    assert provider.token
    outcome = provider.token.read(Response(status, {}, body.encode()))
    assert isinstance(outcome, kind)
    assert outcome.reason == reason


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"bucket": "Acme"}, "3 to 63"),
        ({"bucket": "192.168.1.1"}, "3 to 63"),
        ({"bucket": "a..b"}, "3 to 63"),
        ({"bucket": "xn--acme"}, "3 to 63"),
        ({"bucket": None}, "bucket is not set"),
        ({"region": None}, "region is not set"),
        ({"region": "EU West"}, "eu-west-1"),
        ({"auth_mode": None}, "auth mode is not set"),
        ({"secret_access_key": None}, "needs secret_access_key"),
        ({"access_key_id": None, "secret_access_key": None}, "access_key_id and secret_access_key"),
        ({**ROLE, "role_arn": None}, "needs role_arn"),
        ({**ROLE, "external_id": None}, "needs external_id"),
        ({**ROLE, "external_id": "é€"}, "printable ASCII"),
        ({**ROLE, "external_id": "a"}, "2 to 1224"),
        ({**ROLE, "role_arn": "arn:aws:iam::1:role/x"}, "arn:aws:iam::"),
        ({**ROLE, "secret_access_key": None}, "go together"),
        ({"kms_key_id": "k"}, "needs sse aws:kms"),
        ({"expected_bucket_owner": "12"}, "12 digits"),
        ({"prefix": "/events"}, "must not begin with /"),
        ({"prefix": "a/../b"}, "no part of it"),
        ({"prefix": "é" * 426}, "850 bytes"),
        ({"format": "xml"}, "ndjson"),
        ({"endpoint_url": "http://minio.example"}, "https://"),
        ({"endpoint_url": "https://minio.example/?a=b"}, "must not have a query"),
        ({"batch_max_events": 0}, "greater than or equal to 1"),
        ({"storage_class": "COLD"}, "STANDARD_IA"),
    ],
)
def test_settings_faults(change: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidSettings, match=words):
        read({**SETTINGS, **change})


def test_sandbox_events_want_the_switch() -> None:
    sandbox = event(environment="sandbox")
    assert isinstance(planned(provider, SETTINGS, sandbox).unsent[0], Skipped)
    assert len(rows(put({**SETTINGS, "send_sandbox": True}, sandbox))) == 1


def error(code: str, message: str = "Words.") -> str:
    return f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{message}</Message></Error>"


def damaged(code: str, note: str) -> Retry:
    return Retry("bad_digest", f"{code}: Words.", timedelta(0), note=note)


@pytest.mark.parametrize(
    ("status", "body", "verdict"),
    [
        (200, "", Delivered()),
        (200, error("InternalError"), Retry("server_error", "InternalError: Words.")),
        (200, error("Odd"), Retry("unexpected_answer", "Odd: Words.")),
        (200, "<html>hi", Retry("unexpected_answer", "<html>hi")),
        (412, error("PreconditionFailed"), Delivered("an earlier attempt had landed")),
        (
            409,
            error("ConditionalRequestConflict"),
            Retry("conflict", "ConditionalRequestConflict: Words."),
        ),
        (409, error("OperationAborted"), Retry("conflict", "OperationAborted: Words.")),
        (409, "", Retry("conflict")),
        (404, error("NoSuchUpload"), Retry("not_found", "NoSuchUpload: Words.")),
        (
            503,
            error("SlowDown", "Please reduce your request rate."),
            Retry("slow_down", "SlowDown: Please reduce your request rate."),
        ),
        (503, error("ServiceUnavailable"), Retry("unavailable", "ServiceUnavailable: Words.")),
        (500, "", Retry("server_error")),
        (502, "<html>bad", Retry("bad_gateway", "<html>bad")),
        (504, "", Retry("gateway_timeout")),
        (400, error("RequestTimeout"), Retry("timeout", "RequestTimeout: Words.")),
        (400, error("BadDigest"), damaged("BadDigest", "second_try")),
        (400, error("IncompleteBody"), damaged("IncompleteBody", "second_try")),
        (400, error("InvalidDigest"), damaged("InvalidDigest", "second_try")),
        (403, error("RequestTimeTooSkewed"), Retry("clock_skew", "RequestTimeTooSkewed: Words.")),
        *(
            (403, error(code), Misconfigured(reason, f"{code}: Words."))
            for code, reason in [
                ("InvalidAccessKeyId", "unauthorized"),
                ("SignatureDoesNotMatch", "unauthorized"),
                ("AccessDenied", "forbidden"),
                ("AllAccessDisabled", "forbidden"),
                ("AccountProblem", "forbidden"),
                ("NotSignedUp", "forbidden"),
                ("InvalidSecurity", "unauthorized"),
                ("InvalidToken", "unauthorized"),
            ]
        ),
        (403, "", Misconfigured("forbidden")),
        (
            400,
            error("AuthorizationHeaderMalformed"),
            Misconfigured("wrong_region", "AuthorizationHeaderMalformed: Words."),
        ),
        (400, error("ExpiredToken"), Misconfigured("unauthorized", "ExpiredToken: Words.")),
        (
            400,
            error("KMS.DisabledException"),
            Misconfigured("kms", "KMS.DisabledException: Words."),
        ),
        (
            400,
            error("KMS.NotFoundException"),
            Misconfigured("kms", "KMS.NotFoundException: Words."),
        ),
        (
            400,
            error("KMS.ThrottlingException"),
            Retry("slow_down", "KMS.ThrottlingException: Words."),
        ),
        (
            500,
            error("KMS.InternalException"),
            Retry("server_error", "KMS.InternalException: Words."),
        ),
        (
            400,
            error("TokenRefreshRequired"),
            Misconfigured("unauthorized", "TokenRefreshRequired: Words."),
        ),
        (404, error("NoSuchBucket"), Misconfigured("bad_bucket", "NoSuchBucket: Words.")),
        (404, "", Misconfigured("bad_bucket", "no such bucket, or not an S3 server")),
        (400, error("InvalidBucketName"), Misconfigured("bad_bucket", "InvalidBucketName: Words.")),
        (
            301,
            error("PermanentRedirect"),
            Misconfigured("wrong_region", "PermanentRedirect: Words."),
        ),
        (
            400,
            error("IllegalLocationConstraintException"),
            Misconfigured("wrong_region", "IllegalLocationConstraintException: Words."),
        ),
        (307, error("TemporaryRedirect"), Retry("redirect", "TemporaryRedirect: Words.")),
        (307, "", Retry("redirect")),
        (400, error("EntityTooLarge"), Rejected("too_large", "EntityTooLarge: Words.")),
        (400, error("KeyTooLongError"), Rejected("bad_request", "KeyTooLongError: Words.")),
        (400, error("InvalidArgument"), Rejected("bad_request", "InvalidArgument: Words.")),
        (400, error("MetadataTooLarge"), Rejected("bad_request", "MetadataTooLarge: Words.")),
        (400, error("InvalidStorageClass"), Rejected("bad_request", "InvalidStorageClass: Words.")),
        (400, error("InvalidRequest"), Rejected("bad_request", "InvalidRequest: Words.")),
        (400, "<Error><Code>Trunc", Rejected("bad_request", "<Error><Code>Trunc")),
        (
            501,
            error("NotImplemented", "a &lt;header&gt;"),
            Retry(
                "not_implemented",
                "NotImplemented: a <header>",
                timedelta(0),
                note="unconditional",
            ),
        ),
    ],
)
def test_classify(status: int, body: str, verdict: Verdict) -> None:
    assert classified(provider, SETTINGS, status, body) == verdict


def test_retry_after_is_honoured() -> None:
    slow = classified(provider, SETTINGS, 503, error("SlowDown"), headers={"retry-after": "7"})
    assert slow == Retry("slow_down", "SlowDown: Words.", timedelta(seconds=7))


def test_an_expired_role_session_is_renewed() -> None:
    expired = classified(provider, ROLE, 400, error("ExpiredToken"))
    assert expired == Retry("expired_token", "ExpiredToken: Words.", note="new_token")


def test_a_new_role_session_that_is_expired_too_is_the_credentials_fault() -> None:
    request = put(ROLE, notes={event().id: "new_token"})
    answer = Response(400, {}, error("ExpiredToken").encode())
    verdict = provider.classify(request, answer, read(ROLE))
    assert verdict == Misconfigured("unauthorized", "ExpiredToken: Words.")


def test_what_arrives_damaged_three_times_is_given_up() -> None:
    answer = Response(400, {}, error("BadDigest").encode())
    for note, verdict in (
        ("second_try", damaged("BadDigest", "third_try")),
        ("third_try", Rejected("bad_digest", "BadDigest: Words.")),
    ):
        request = put(SETTINGS, notes={event().id: note})
        assert provider.classify(request, answer, read(SETTINGS)) == verdict


def test_without_the_precondition_where_the_server_knows_none() -> None:
    request = put(SETTINGS, notes={event().id: "unconditional"})
    assert "If-None-Match" not in dict(request.headers)
    verdict = provider.classify(request, Response(501, {}, error("X").encode()), read(SETTINGS))
    assert verdict == Rejected("not_implemented", "X: Words.")


def test_check_writes_one_marked_empty_object() -> None:
    assert provider.check
    request = provider.check.request(read(SETTINGS), context())
    assert request.url == (
        "https://acme-events.s3.eu-west-1.amazonaws.com/events/.connection-test-c9VdLs3H"
    )
    assert (request.method, request.body) == ("PUT", b"")
    assert "If-None-Match" not in dict(request.headers)
    assert provider.check.read(Response(200)) == Delivered()

"""Amazon S3 and what speaks its language: an object per batch of events.

Source: https://docs.aws.amazon.com/AmazonS3/latest/API/API_PutObject.html
Batch:  10,000 events, 32 MiB or five minutes, as the customer likes.
Dedup:  the name is made of the batch, and `If-None-Match: *` lets only the first copy in.
Errors: XML with a Code, which decides over the status; an object is written whole or not at all.
"""

import base64
import html
import re
import zlib
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Annotated, Literal
from urllib.parse import quote, urlsplit

from msgspec.structs import replace
from pydantic import Field, model_validator

from providers.kit import (
    NEW_TOKEN,
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
    Token,
    TokenSource,
    Verdict,
    WebUrl,
    aws_signed,
    by_status,
    matching,
    notes_of,
    object_key,
    object_limits,
    objects,
    one_line,
    reason_of,
    thrice_at_most,
)

Bucket = Annotated[
    str,
    matching(
        r"(?!xn--)(?!\d+\.\d+\.\d+\.\d+$)(?!.*\.\.)[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]",
        "must be 3 to 63 of a-z, 0-9, - and ., and not look like an address",
    ),
]
Region = Annotated[str, matching(r"[a-z0-9-]{1,63}", "must be a region such as eu-west-1")]
Role = Annotated[
    str,
    matching(
        r"arn:aws[a-zA-Z-]*:iam::\d{12}:role/[\w+=,.@/-]{1,512}",
        "must be arn:aws:iam::<12 digits>:role/<name>",
    ),
]
ExternalId = Annotated[
    Secret, matching(r"[\w+=,.@:/-]{2,1224}", "must be 2 to 1224 of letters, digits and +=,.@:/-_")
]
Key = Annotated[str, matching(r"[\x21-\x7e]{1,2048}", "must be a key id or ARN")]
Account = Annotated[str, matching(r"\d{12}", "must be the 12 digits of an AWS account")]
SAFE = "/-._~"  # all else in a name is percent-encoded, as the signature wants it
UNCONDITIONAL = "unconditional"  # the note left by a server that knows no preconditions
ROLE_LIVES = timedelta(hours=1)  # as asked for
AT_ONCE = timedelta(0)
ENTITY = re.compile(r"<(Code|Message|AccessKeyId|SecretAccessKey|SessionToken)>([^<]*)<")

RETRIED = {
    "SlowDown": "slow_down",
    "ServiceUnavailable": "unavailable",
    "InternalError": "server_error",
    "ConditionalRequestConflict": "conflict",
    "OperationAborted": "conflict",
    "NoSuchUpload": "not_found",
    "RequestTimeout": "timeout",
    "BadDigest": "bad_digest",
    "IncompleteBody": "bad_digest",
    "InvalidDigest": "bad_digest",
    "XAmzContentSHA256Mismatch": "bad_digest",
    "RequestTimeTooSkewed": "clock_skew",
    "TemporaryRedirect": "redirect",
    "KMS.ThrottlingException": "slow_down",
    "KMS.InternalException": "server_error",
    "KMS.DependencyTimeoutException": "timeout",
}
REFUSED = {
    "InvalidAccessKeyId": "unauthorized",
    "SignatureDoesNotMatch": "unauthorized",
    "AccessDenied": "forbidden",
    "AllAccessDisabled": "forbidden",
    "AccountProblem": "forbidden",
    "NotSignedUp": "forbidden",
    "InvalidSecurity": "unauthorized",
    "InvalidToken": "unauthorized",
    "TokenRefreshRequired": "unauthorized",
    "AuthorizationHeaderMalformed": "wrong_region",
    "IllegalLocationConstraintException": "wrong_region",
    "PermanentRedirect": "wrong_region",
    "NoSuchBucket": "bad_bucket",
    "InvalidBucketName": "bad_bucket",
}
REJECTED = {
    "EntityTooLarge": "too_large",
    "KeyTooLongError": "bad_request",
    "InvalidArgument": "bad_request",
    "MetadataTooLarge": "bad_request",
    "InvalidStorageClass": "bad_request",
    "InvalidRequest": "bad_request",
}


class AmazonS3Settings(ObjectSettings):
    """A bucket, and a key or role that may put objects into it."""

    bucket: Bucket = Field(description="Bucket; better without dots in its name")
    region: Region | None = Field(
        None, description="AWS region; for other vendors usually us-east-1 or auto"
    )
    auth_mode: Literal["access_key", "assume_role"] = Field(description="How we prove who we are")
    access_key_id: Secret | None = Field(
        None, description="Access key; with assume_role: of who may assume the role"
    )
    secret_access_key: Secret | None = Field(None, description="The access key's secret")
    session_token: Secret | None = Field(None, description="Only with temporary keys")
    role_arn: Role | None = Field(None, description="Role that may write to the bucket")
    external_id: ExternalId | None = Field(None, description="As the role's trust policy asks")
    sse: Literal["none", "AES256", "aws:kms"] = Field("none", description="Encryption at rest")
    kms_key_id: Key | None = Field(None, description="KMS key; absent: the AWS-managed one")
    storage_class: Literal[
        "STANDARD",
        "STANDARD_IA",
        "ONEZONE_IA",
        "INTELLIGENT_TIERING",
        "GLACIER",
        "GLACIER_IR",
        "DEEP_ARCHIVE",
        "REDUCED_REDUNDANCY",
        "EXPRESS_ONEZONE",
    ] = Field("STANDARD", description="Storage class of the objects")
    expected_bucket_owner: Account | None = Field(
        None, description="Account that must own the bucket"
    )
    endpoint_url: WebUrl | None = Field(None, description="S3-compatible server; absent: AWS")
    addressing_style: Literal["virtual", "path"] | None = Field(
        None, description="Bucket in host or path; default: path on other servers and with dots"
    )

    @model_validator(mode="after")
    def _complete(self) -> "AmazonS3Settings":
        if self.region is None and self.endpoint_url is None:
            raise ValueError("region is not set (such as eu-west-1)")
        needed = {
            "access_key": ("access_key_id", "secret_access_key"),
            "assume_role": ("role_arn", "external_id"),
        }[self.auth_mode]
        missing = [key for key in needed if getattr(self, key) is None]
        if missing:
            raise ValueError(f"auth_mode {self.auth_mode} needs {' and '.join(missing)}")
        if (self.access_key_id is None) != (self.secret_access_key is None):
            raise ValueError("access_key_id and secret_access_key go together")
        if self.kms_key_id and self.sse != "aws:kms":
            raise ValueError("kms_key_id needs sse aws:kms")
        if self.endpoint_url and "?" in self.endpoint_url:
            raise ValueError("endpoint_url must not have a query")
        return self

    def keys(self) -> dict[str, str]:
        """Return the keys of the settings, as far as they are set."""
        names = ("access_key_id", "secret_access_key", "session_token")
        secrets = {name: getattr(self, name) for name in names}
        return {name: value.get_secret_value() for name, value in secrets.items() if value}


def encode(events: Sequence[Event], settings: AmazonS3Settings, context: Context) -> Plan:
    """Return a signed PUT per object."""
    refs = notes_of(events, context)  # tells `classify` what was tried and did not help
    requests = []
    for batch in objects(events, settings, context):
        headers = {"Content-Type": batch.content_type}
        if UNCONDITIONAL not in refs:
            headers["If-None-Match"] = "*"
        if not settings.endpoint_url:  # other vendors' servers refuse it
            headers["x-amz-checksum-crc32"] = _crc32(batch.body)
        headers |= _options(settings)
        headers |= {f"x-amz-meta-{name}": value for name, value in batch.metadata.items()}
        request = _put(batch.name, headers, batch.body, settings, context)
        requests.append(replace(request, events=batch.events, refs=refs))
    return Plan(tuple(requests))


def _options(settings: AmazonS3Settings) -> dict[str, str]:
    options = {
        "x-amz-server-side-encryption": settings.sse if settings.sse != "none" else None,
        "x-amz-server-side-encryption-aws-kms-key-id": settings.kms_key_id,
        "x-amz-storage-class": (
            settings.storage_class if settings.storage_class != "STANDARD" else None
        ),
        "x-amz-expected-bucket-owner": settings.expected_bucket_owner,
    }
    return {name: value for name, value in options.items() if value}


def _put(
    name: str,
    headers: Mapping[str, str],
    body: bytes,
    settings: AmazonS3Settings,
    context: Context,
) -> Request:
    url = f"{_base(settings)}/{quote(name, safe=SAFE)}"
    request = Request("PUT", url, tuple(headers.items()), body)
    keys = context.token if settings.auth_mode == "assume_role" else settings.keys()
    return aws_signed(request, keys, "s3", settings.region or "us-east-1", context.now)


def _base(settings: AmazonS3Settings) -> str:
    endpoint = (settings.endpoint_url or f"https://s3.{_domain(settings)}").rstrip("/")
    dotted = "." in settings.bucket  # no certificate covers it as a host
    default = "path" if settings.endpoint_url or dotted else "virtual"
    if (settings.addressing_style or default) == "path":
        return f"{endpoint}/{settings.bucket}"
    parts = urlsplit(endpoint)
    return f"{parts.scheme}://{settings.bucket}.{parts.netloc}{parts.path}"


def _domain(settings: AmazonS3Settings) -> str:
    region = settings.region or "us-east-1"
    return f"{region}.amazonaws.com{'.cn' if region.startswith('cn-') else ''}"


def _crc32(body: bytes) -> str:
    return base64.b64encode(zlib.crc32(body).to_bytes(4, "big")).decode()


def classify(request: Request, response: Response, settings: AmazonS3Settings) -> Verdict:
    """Return what the answer means for the whole object."""
    conditional = any(name == "If-None-Match" for name, _ in request.headers)
    code, message = _error(response)
    if response.status == 412 and conditional:
        return Delivered("an earlier attempt had landed")
    if (response.status == 501 or code == "NotImplemented") and conditional:
        return Retry("not_implemented", message, AT_ONCE, note=UNCONDITIONAL)
    renewable = settings.auth_mode == "assume_role" and NEW_TOKEN not in request.refs
    if code == "ExpiredToken" and renewable:
        return Retry("expired_token", message, note=NEW_TOKEN)
    return thrice_at_most(request, _meaning(response))


def _meaning(response: Response) -> Outcome:
    code, message = _error(response)
    status = response.status
    if code in RETRIED:
        return Retry(RETRIED[code], message, response.retry_after)
    if code in REFUSED or code.startswith("KMS."):
        return Misconfigured(REFUSED.get(code, "kms"), message)
    if code in REJECTED:
        return Rejected(REJECTED[code], message)
    if code == "ExpiredToken":
        return Misconfigured("unauthorized", message)
    if 200 <= status < 300 and code:
        return Retry("unexpected_answer", message)
    if status in (307, 409):
        return Retry({307: "redirect", 409: "conflict"}[status], message, response.retry_after)
    if status == 404:
        return Misconfigured("bad_bucket", message or "no such bucket, or not an S3 server")
    if status == 501:
        return Rejected("not_implemented", message)
    return by_status(response, message, no_pages=True)


def _error(response: Response) -> tuple[str, str]:
    """Return the Code of an XML error ("" without one) and the words for people."""
    found = _members(response)
    code, words = found.get("Code", ""), found.get("Message", "")
    return code, one_line(f"{code}: {words}" if code and words else code or response.text)


def _members(response: Response) -> dict[str, str]:
    text = response.body.decode("utf-8", "replace")
    return {name: html.unescape(value) for name, value in ENTITY.findall(text)}


def _assume_role(settings: AmazonS3Settings, now: datetime) -> Request | None:
    """Return the call that gets the role's keys, or None where our own keys do.

    https://docs.aws.amazon.com/STS/latest/APIReference/API_AssumeRole.html
    """
    if settings.auth_mode == "access_key":
        return None
    values = {
        "Action": "AssumeRole",
        "Version": "2011-06-15",
        "RoleArn": settings.role_arn or "",
        "RoleSessionName": "onward",
        "ExternalId": settings.external_id.get_secret_value() if settings.external_id else "",
        "DurationSeconds": "3600",
    }
    request = Request.form(f"https://sts.{_domain(settings)}/", values)
    keys = settings.keys()
    region = settings.region or "us-east-1"
    return aws_signed(request, keys, "sts", region, now) if keys else request


def _read_role(response: Response) -> Token | Outcome:
    found = _members(response)
    keys = {
        "access_key_id": found.get("AccessKeyId", ""),
        "secret_access_key": found.get("SecretAccessKey", ""),
        "session_token": found.get("SessionToken", ""),
    }
    if response.status == 200 and all(keys.values()):
        return Token(keys, ROLE_LIVES)
    code, message = _error(response)
    if code == "MissingAuthenticationToken":
        message += " (set access_key_id and secret_access_key of a user who may assume the role)"
    if code == "SignatureDoesNotMatch" and "Signature expired" in message:
        return Retry("clock_skew", message)
    throttled = code.startswith("Throttling") or response.status in (408, 425, 429)
    if throttled or response.status >= 500 or response.status < 300:
        return Retry(reason_of(response.status), message, response.retry_after, throttled)
    return Misconfigured("unauthorized", message)


def _test_request(settings: AmazonS3Settings, context: Context) -> Request:
    name = object_key(settings, f".connection-test-{context.integration_id}")
    return _put(name, _options(settings), b"", settings, context)


provider = Provider(
    slug="amazon_s3",
    title="Amazon S3",
    category="Server",
    stores=("iOS", "Android", "Stripe"),
    settings=AmazonS3Settings,
    encode=encode,
    classify=classify,
    limits=object_limits(ObjectSettings()),
    limits_of=object_limits,
    identifiers=("none: every event is written",),
    notes=(
        "Readers dedupe rows by event_id: an event sent again by hand lands in another object.",
        "The key needs no more than s3:PutObject on the prefix (and kms:GenerateDataKey).",
        "The settings test leaves an empty object named .connection-test-… under the prefix.",
    ),
    token=TokenSource(
        _assume_role,
        _read_role,
        {
            "access_key_id": "ASIAEXAMPLEEXAMPLE",
            "secret_access_key": "example",
            "session_token": "example",
        },
    ),
    check=Check(_test_request, _meaning),
)

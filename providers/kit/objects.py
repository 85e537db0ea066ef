"""Batches of events as files in a bucket: names, rows and compression, the same for every store."""

import csv
import gzip
import hashlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from importlib.util import find_spec
from typing import Any, Literal

from pydantic import Field, field_validator

from providers.kit.envelope import additions, money_body, revenue_body, transaction_body
from providers.kit.event import Device, Event
from providers.kit.interface import (
    KB,
    MB,
    Context,
    Json,
    Limits,
    Outcome,
    Rejected,
    Request,
    Retry,
    dump,
    dump_text,
)
from providers.kit.money import stated_revenue
from providers.kit.plan import iso, name_of, packed
from providers.kit.settings import RevenueSettings
from providers.kit.sigv4 import STAMP

SCHEMA_VERSION = "1"
SECOND_TRY, THIRD_TRY = "second_try", "third_try"  # notes
PREFIX_BYTES = 850  # what project, integration, date and hash leave of a key's 1,024
TYPES = {
    "ndjson": "application/x-ndjson",
    "csv": "text/csv; charset=utf-8",
    "parquet": "application/vnd.apache.parquet",
}
COLUMNS = (  # of CSV and Parquet; only ever appended to
    "event_id", "event_name", "custom_event_name", "user_id", "identity_id", "custom_user_id",
    "advertiser_id", "device_id", "time", "created_at", "product_id", "old_product_id", "price",
    "revenue", "transaction", "platform", "environment", "properties", "ip", "asa_attribution",
    "country", "device", "installed_at", "extras",
)  # fmt: skip
INTEGERS = frozenset({"time", "created_at", "installed_at"})


class ObjectSettings(RevenueSettings):
    """What the files are called and look like, and when one is full."""

    prefix: str | None = Field(None, description="First part of every object's name, without /")
    format: Literal["ndjson", "csv", "parquet"] = Field("ndjson", description="Of the rows")
    compression: Literal["gzip", "none"] = Field("gzip", description="Of the object")
    batch_max_events: int = Field(10_000, ge=1, le=100_000, description="Events in an object")
    batch_max_bytes: int = Field(
        32 * MB, ge=KB, le=128 * MB, description="Bytes in an object, before compression"
    )
    batch_max_seconds: int = Field(
        300, ge=1, le=86_400, description="How long an object waits to fill"
    )

    @field_validator("prefix")
    @classmethod
    def _names_objects(cls, prefix: str | None) -> str | None:
        if prefix is None:
            return None
        if prefix.startswith("/"):
            raise ValueError("must not begin with /")
        if not prefix.isprintable() or {".", ".."} & set(prefix.split("/")):
            raise ValueError("must be printable, and no part of it . or ..")
        if len(prefix.encode()) > PREFIX_BYTES:
            raise ValueError(f"must be at most {PREFIX_BYTES} bytes, so that whole names fit 1,024")
        return prefix.rstrip("/") or None

    @field_validator("format")
    @classmethod
    def _can_write(cls, value: str) -> str:
        if value == "parquet" and find_spec("pyarrow") is None:
            raise ValueError("parquet needs an extra; the operator installs onward[parquet]")
        return value


@dataclass(frozen=True, slots=True)
class Batch:
    """One object: its name, its bytes, what it holds; `events` are positions."""

    events: tuple[int, ...]
    id: str
    name: str
    content_type: str
    body: bytes
    metadata: dict[str, str]


def object_limits(settings: ObjectSettings) -> Limits:
    """Return the limits the customer chose; a batch is retried whole, under the same name."""
    return Limits(
        events=settings.batch_max_events,
        bytes=settings.batch_max_bytes,
        concurrency=4,
        linger=timedelta(seconds=settings.batch_max_seconds),
        timeout=timedelta(seconds=50),
        whole_batches=True,
    )


def objects(events: Sequence[Event], settings: ObjectSettings, context: Context) -> Iterator[Batch]:
    """Yield the objects for `events`, in order.

    Name and bytes depend on nothing but the events, the settings and when the batch was opened.
    """
    make = _csv_row if settings.format == "csv" else _line
    rows = ((position, make(event, settings)) for position, event in enumerate(events))
    for batch in packed(rows, settings.batch_max_events, settings.batch_max_bytes):
        positions = tuple(position for position, _ in batch)
        members = [events[position] for position in positions]
        content = _content(members, [row for _, row in batch], settings)
        yield _named(positions, members, content, settings, context)


def object_key(settings: ObjectSettings, *parts: str) -> str:
    """Return the name of an object under the customer's prefix."""
    return "/".join((settings.prefix, *parts) if settings.prefix else parts)


def notes_of(events: Sequence[Event], context: Context) -> dict[str, int]:
    """Return what earlier answers left as the `refs` of a request: `classify` sees them there."""
    notes = (context.notes.get(event.id) for event in events)
    return {note: 0 for note in notes if note}


def thrice_at_most(request: Request, outcome: Outcome) -> Outcome:
    """Return `outcome`; of an object that arrives damaged, another try at once, and no fourth."""
    if not isinstance(outcome, Retry) or outcome.reason != "bad_digest":
        return outcome
    if THIRD_TRY in request.refs:
        return Rejected(outcome.reason, outcome.message)
    note = THIRD_TRY if SECOND_TRY in request.refs else SECOND_TRY
    return Retry(outcome.reason, outcome.message, timedelta(0), note=note)


def _named(
    positions: tuple[int, ...],
    members: list[Event],
    content: bytes,
    settings: ObjectSettings,
    context: Context,
) -> Batch:
    batch_id = hashlib.sha256("\n".join(e.id for e in members).encode()).hexdigest()[:32]
    first, last = min(e.time for e in members), max(e.time for e in members)
    opened = (context.batch_at or context.now).astimezone(UTC)
    zipped = settings.compression == "gzip" and settings.format != "parquet"
    name = object_key(
        settings,
        context.project_id,
        context.integration_id,
        f"dt={opened:%Y-%m-%d}",
        f"hr={opened:%H}",
        f"{datetime.fromtimestamp(first, UTC).strftime(STAMP)}-{batch_id}"
        f".{settings.format}{'.gz' if zipped else ''}",
    )
    metadata = {
        "batch-id": batch_id,
        "event-count": str(len(members)),
        "first-time": iso(first),
        "last-time": iso(last),
        "schema-version": SCHEMA_VERSION,
    }
    body = gzip.compress(content, 6, mtime=0) if zipped else content
    return Batch(positions, batch_id, name, TYPES[settings.format], body, metadata)


def _content(members: list[Event], rows: list[bytes], settings: ObjectSettings) -> bytes:
    if settings.format == "parquet":
        return _parquet(members, settings)
    head = [_csv(COLUMNS)] if settings.format == "csv" else []
    return b"".join((*head, *rows))


def _record(event: Event, settings: ObjectSettings) -> dict[str, Json]:
    name = name_of(event, settings, {})
    return {
        "event_id": event.id,
        "event_name": event.name,
        **({"custom_event_name": name} if name != event.name else {}),
        "user_id": event.user_id or None,
        "identity_id": event.identity_id or None,
        "custom_user_id": event.custom_user_id or None,
        "advertiser_id": event.advertiser_id or None,
        "device_id": event.device_id or None,
        "time": event.time,
        "created_at": event.created_at,
        "product_id": event.product_id or None,
        "old_product_id": event.old_product_id or None,
        "price": money_body(event.price),
        "revenue": revenue_body(stated_revenue(event, settings, settings.revenue_basis)),
        "transaction": {k: None if v == "" else v for k, v in transaction_body(event).items()},
        "platform": event.platform,
        "environment": event.environment,
        "properties": event.properties,
        "ip": event.ip or None,
        "asa_attribution": event.asa_attribution,
    }


def _line(event: Event, settings: ObjectSettings) -> bytes:
    record = _record(event, settings)
    return dump(record | additions(event, record)) + b"\n"


def _columns(event: Event, settings: ObjectSettings) -> list[Any]:
    """Return the row's values: text, integers and None; nested data as JSON text."""
    record = _record(event, settings)
    more = additions(event, record)
    known = {key: more.pop(key) for key in ("country", "device", "installed_at") if key in more}
    row = record | known | {"extras": more or None}
    return [
        dump_text(value) if isinstance(value, dict | list | Device) else value
        for value in (row.get(column) for column in COLUMNS)
    ]


def _csv_row(event: Event, settings: ObjectSettings) -> bytes:
    return _csv(_columns(event, settings))


def _csv(row: Sequence[Any]) -> bytes:
    """Return a row as RFC 4180 has it, every field quoted; values are left as they are."""
    text = io.StringIO()
    csv.writer(text, quoting=csv.QUOTE_ALL, lineterminator="\r\n").writerow(row)
    return text.getvalue().encode()


def _parquet(members: list[Event], settings: ObjectSettings) -> bytes:
    import pyarrow as pa  # noqa: PLC0415  an extra
    import pyarrow.parquet as pq  # noqa: PLC0415

    columns = zip(*(_columns(event, settings) for event in members), strict=True)
    arrays = [
        pa.array(values, pa.int64() if name in INTEGERS else pa.string())
        for name, values in zip(COLUMNS, columns, strict=True)
    ]
    sink = io.BytesIO()
    codec = "none" if settings.compression == "none" else "snappy"
    pq.write_table(pa.table(arrays, names=list(COLUMNS)), sink, compression=codec)
    return sink.getvalue()

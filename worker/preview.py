"""Trying an integration out: what would be sent, and what an answer would mean.

The same `plan` and `classify` as in the worker; only what an event lacks is filled in.
"""

from base64 import b64decode, b64encode
from binascii import Error as NotBase64
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import msgspec

from providers.kit import (
    Context,
    Event,
    Outcome,
    Plan,
    Provider,
    Request,
    Response,
    Retry,
    Settings,
    Unsent,
    plan,
    read_settings,
)
from providers.kit.decode import InvalidEvent, event_from, parse
from worker.mask import Mask
from worker.registry import provider_of
from worker.verdict import outcomes_of, pipeline_of, worst

PROJECT_ID = "prj_preview"
INTEGRATION_ID = "preview0"
FIXED_TIME = 1_767_225_600  # 2026-01-01T00:00:00Z: filled in, so that output is repeatable
NO_SECRET = f"whsec_{b64encode(bytes(32)).decode()}"
AGE = 300  # seconds between an event that was filled in and its sending
BODY_BYTES = 65_536  # of an answer are read


class InvalidEvents(ValueError):
    """Some events are refused; `faults` are (which event and member, what is wrong)."""

    def __init__(self, faults: list[tuple[str, str]]) -> None:
        self.faults = faults
        super().__init__("; ".join(f"{where}: {text}" for where, text in faults))


class InvalidResponse(ValueError):
    """The response is not {"status", "headers", "body"}."""


@dataclass(frozen=True)
class Rehearsal:
    """A provider about to send: what, with which settings, and when."""

    provider: Provider[Any]
    settings: Settings
    events: Sequence[Event]
    context: Context

    @property
    def plan(self) -> Plan:
        """What the worker would send."""
        return plan(self.provider, self.events, self.settings, self.context)


def rehearse(
    slug: str,
    settings: Any,
    raw_events: Iterable[bytes],
    platform: str | None = None,
    *,
    allow_http: bool = False,
) -> Rehearsal:
    """Return a rehearsal of `raw_events` with decoded `settings`.

    For a signing secret that is not given, and would be made on saving, zeros stand in.
    `allow_http` lets URLs of plain http pass, as `ONWARD_ALLOW_PRIVATE_UPSTREAMS` does.

    Raises:
        UnknownProvider: no adapter has this slug.
        InvalidSettings: with every fault.
        InvalidEvents: with every fault of every event.
    """
    provider = provider_of(slug)
    generated = provider.settings.generated
    if generated and isinstance(settings, Mapping) and not settings.get(generated.key):
        settings = {**settings, generated.key: NO_SECRET}
    read = read_settings(provider.title, provider.settings, settings, {"allow_http": allow_http})
    store = platform or ("iOS" if "iOS" in provider.stores else provider.stores[0])
    events, now = _events(list(raw_events), store)
    moment = datetime.fromtimestamp(now, UTC)
    context = Context(
        now=moment,
        project_id=events[0].project_id if events else PROJECT_ID,
        integration_id=INTEGRATION_ID,
        batch_at=moment,
        token=dict(provider.token.sample) if provider.token else {},
    )
    return Rehearsal(provider, read, events, context)


def _events(raw_events: list[bytes], store: str) -> tuple[list[Event], int]:
    """Return the events, filled in, and the time of their sending."""
    values: dict[int, dict[str, Any]] = {}
    wrong: dict[int, list[tuple[str, str]]] = {}
    for number, raw in enumerate(raw_events, 1):
        try:
            values[number] = parse(raw)
        except InvalidEvent as error:
            wrong[number] = _named(number, error)
    timed = any(value.get(key) for value in values.values() for key in ("time", "created_at"))
    now = int(datetime.now(UTC).timestamp()) if timed else FIXED_TIME + AGE
    events = []
    for number, value in values.items():
        filled = {
            "id": f"evt-preview-{number}",
            "project_id": PROJECT_ID,
            "platform": store,
            "environment": "production",
            "time": now - AGE,
        }
        lacking = {key: filled[key] for key in filled if value.get(key) in (None, "")}
        try:
            events.append(event_from(value | lacking, now))
        except InvalidEvent as error:
            wrong[number] = _named(number, error)
    if wrong:
        raise InvalidEvents([fault for number in sorted(wrong) for fault in wrong[number]])
    return events, now


def _named(number: int, error: InvalidEvent) -> list[tuple[str, str]]:
    return [
        (f"event {number}{': ' if fault['path'] else ''}{fault['path']}", fault["message"])
        for fault in error.faults
    ]


def preview(rehearsal: Rehearsal, *, show_secrets: bool = False) -> dict[str, Any]:
    """Return the requests and the skips, and under `authorization` the call for a token if any."""
    mask = Mask(()) if show_secrets else Mask(rehearsal.settings.secrets())
    ids = [event.id for event in rehearsal.events]
    planned = rehearsal.plan
    shown = {
        "requests": [_shown(mask.request(request), ids) for request in planned.requests],
        "skipped": [
            {"event": ids[position], "reason": why.message}
            for position, why in sorted(planned.unsent.items())
        ],
    }
    source = rehearsal.provider.token
    request = source.request(rehearsal.settings, rehearsal.context.now) if source else None
    if request is not None and planned.requests:
        shown["authorization"] = [_shown(request if show_secrets else mask.request(request), [])]
    return shown


def _shown(request: Request, ids: Sequence[str]) -> dict[str, Any]:
    return request_shown(request) | {"events": [ids[position] for position in request.events]}


def request_shown(request: Request) -> dict[str, Any]:
    """Return a request as plain values."""
    body, encoding = text_or_base64(request.body)
    return {
        "method": request.method,
        "url": request.url,
        "headers": dict(request.headers),
        "body": body,
        "body_encoding": encoding,
    }


def text_or_base64(body: bytes) -> tuple[str, str]:
    """Return a body fit for JSON, and how it is encoded: "utf-8" or "base64"."""
    try:
        return body.decode(), "utf-8"
    except UnicodeDecodeError:
        return b64encode(body).decode(), "base64"


def read_response(raw: bytes) -> Response:
    """Return the response described by JSON: `status`, `headers`, `body`, `body_encoding`.

    A body that is not a string is the JSON it is written as. The time of the answer is its Date
    header's, else now.
    """
    try:
        given = msgspec.json.decode(raw, type=_Given)
        body = _body(given)
    except (msgspec.DecodeError, NotBase64, UnicodeError) as error:
        raise InvalidResponse(
            f'The response is not {{"status": 200, "headers": {{}}, "body": …}}: {error}'
        ) from None
    headers = {name.lower(): str(value) for name, value in given.headers.items()}
    return Response(given.status, headers, body[:BODY_BYTES], _date(headers))


class _Given(msgspec.Struct):
    status: int
    headers: Mapping[str, str | int | float] = {}
    body: msgspec.Raw = msgspec.Raw(b"null")
    body_encoding: str = "utf-8"


def _body(given: _Given) -> bytes:
    raw = bytes(given.body)
    if raw == b"null":
        return b""
    if not raw.startswith(b'"'):
        return raw
    text = msgspec.json.decode(raw, type=str)
    return b64decode(text, validate=True) if given.body_encoding == "base64" else text.encode()


def _date(headers: Mapping[str, str]) -> datetime:
    with suppress(ValueError, TypeError):
        return parsedate_to_datetime(headers.get("date", "")).astimezone(UTC)
    return datetime.now(UTC)


def explain(rehearsal: Rehearsal, response: Response) -> dict[str, Any]:
    """Return what the worker would make of `response` to every request it would send."""
    provider, settings = rehearsal.provider, rehearsal.settings
    mask = Mask(settings.secrets())
    planned = rehearsal.plan
    parts: dict[int, list[Outcome]] = {}
    pipelines = set()
    for request in planned.requests:
        verdict = provider.classify(request, response, settings)
        outcomes = outcomes_of(request, verdict, mask)
        for position, outcome in zip(request.events, outcomes, strict=True):
            parts.setdefault(position, []).extend([] if request.optional else [outcome])
        if not request.optional:
            pipelines.add(pipeline_of(outcomes, verdict))
    ends: dict[int, Outcome | Unsent] = {
        position: worst(found) for position, found in parts.items()
    }
    ends |= planned.unsent
    told = [
        outcome_shown(rehearsal.events[position].id, ends[position]) for position in sorted(ends)
    ]
    order = ("gone", "misconfigured", "ok", "retry")
    return {"outcomes": told, "pipeline": min(pipelines, key=order.index, default="ok")}


def outcome_shown(event_id: str | None, outcome: Outcome | Unsent) -> dict[str, Any]:
    """Return an outcome as it is shown; `retry_after` is in seconds, None if there is none."""
    after = outcome.after if isinstance(outcome, Retry) else None
    return {
        "event": event_id,
        "outcome": type(outcome).__name__.lower(),
        "reason": getattr(outcome, "reason", "ok"),
        "message": outcome.message,
        "retry_after": None if after is None else _plain_number(after.total_seconds()),
    }


def _plain_number(seconds: float) -> int | float:
    return int(seconds) if seconds.is_integer() else round(seconds, 3)

"""Amplitude, HTTP V2 and Batch event upload.

Source: https://amplitude.com/docs/apis/analytics/http-v2
Batch:  2,000 events; 1 MB a request (Batch API: 20 MB), before compression.
Dedup:  `insert_id`, for 7 days, so a retry counts no event twice.
Errors: a 400 takes nothing, and names bad events by position; the others are sent again.
"""

import re
from collections.abc import Sequence
from datetime import timedelta
from decimal import Decimal
from typing import Annotated, Literal, NamedTuple

from pydantic import Field

from providers.kit import (
    KB,
    MB,
    Check,
    Context,
    Delivered,
    Event,
    Json,
    Limits,
    Members,
    Misconfigured,
    Outcome,
    Partial,
    Plan,
    Provider,
    Rejected,
    Request,
    Response,
    Retry,
    Secret,
    Settings,
    Skipped,
    Split,
    Verdict,
    advertising_id,
    amount_of,
    android_id,
    at,
    by_status,
    dump,
    in_batches,
    name_of,
    one_line,
    public_ip,
    reason_of,
    revenue_of,
    store_of,
    text_at,
    usable,
    user_id,
    vendor_id,
)

HOSTS = {"us": "api2.amplitude.com", "eu": "api.eu.amplitude.com"}
REFUSED = frozenset({"na", "{}", "lmy47d", "0", "-1"})  # ids that Amplitude takes for nobody
REVENUE_TYPES = {
    "subscription_renewed": "renewal",
    "subscription_refunded": "refund",
    "in_app_refunded": "refund",
}
HTTP_V2 = Limits(events=100, bytes=900_000, linger=timedelta(seconds=0.2))
BATCH = Limits(events=2_000, bytes=19 * MB, linger=timedelta(seconds=1))
THROTTLE = timedelta(seconds=30)
DAY = timedelta(hours=24)
BAD_KEY = "Invalid API key"

IdLength = Annotated[int, Field(ge=1, le=256)]


class AmplitudeSettings(Settings):
    """A project's API key; sandbox events need a project of their own."""

    api_key: Secret = Field(description="Project API key")
    region: Literal["us", "eu"] = Field("us", description="The project's data residency")
    use_batch_endpoint: bool = Field(False, description="Slower, more tolerant, larger requests")
    min_id_length: IdLength = Field(5, description="Shortest user id accepted")
    sandbox_api_key: Secret | None = Field(None, description="Project key for sandbox events")
    revenue_basis: Literal["usd", "local"] = Field("usd", description="Currency of `revenue`")
    user_property_for_user_id: str | None = Field(
        None, description="Property with Amplitude's user id"
    )
    user_property_for_device_id: str | None = Field(
        None, description="Property with Amplitude's device id"
    )

    name_pattern = re.compile(r"(?s)(?!\[Amplitude\]|\$identify$|\$groupidentify$).{1,1024}")
    name_rule = "at most 1024 characters, and not a name of Amplitude's own"


def encode(events: Sequence[Event], settings: AmplitudeSettings, context: Context) -> Plan:
    """Return batches of events, sandbox apart from production."""
    return in_batches(
        events,
        limits_of(settings),
        lambda event: _event(event, settings),
        lambda items, sandbox: _upload(items, settings, sandbox=sandbox),
        group=lambda event: event.sandbox and settings.sandbox_api_key is not None,
        overhead=5 * KB,
    )


def _upload(items: bytes, settings: AmplitudeSettings, *, sandbox: bool) -> Request:
    path = "batch" if settings.use_batch_endpoint else "2/httpapi"
    key = (settings.sandbox_api_key if sandbox else None) or settings.api_key
    head = b'{"api_key":%b,"events":' % dump(key.get_secret_value())
    tail = b',"options":{"min_id_length":%d}}' % settings.min_id_length
    url = f"https://{HOSTS[settings.region]}/{path}"
    return Request.json(url, head + items + tail, headers={"Accept": "*/*"})


class _Properties(Members):
    product_id: str = ""
    old_product_id: str = ""
    store: str = ""
    environment: str = ""
    transaction_id: str = ""
    original_transaction_id: str = ""
    source_event_id: str = ""
    revenue_local: Decimal | None = None
    currency_local: str = ""
    revenue_usd: Decimal | None = None
    currency: str = ""


class _Event(Members):
    user_id: str = ""
    device_id: str = ""
    event_type: str | None = None
    time: int | None = None
    insert_id: str = ""
    revenue: Decimal | None = None
    productId: str = ""  # noqa: N815  Amplitude's own
    revenueType: str = ""  # noqa: N815
    currency: str = ""
    platform: str = ""
    os_name: str = ""
    os_version: str = ""
    device_model: str = ""
    app_version: str = ""
    country: str = ""
    language: str = ""
    idfa: str = ""
    idfv: str = ""
    adid: str = ""
    android_id: str = ""
    ip: str = ""
    library: str = ""
    event_properties: _Properties | None = None
    session_id: int | None = None


def _event(event: Event, settings: AmplitudeSettings) -> _Event | Skipped:
    own, shortest = settings.user_property_for_user_id, settings.min_id_length
    user = user_id(event, own, refused=REFUSED, shortest=shortest)
    device = _device_id(event, settings)
    if not user and not device:
        if user_id(event, own, refused=REFUSED):
            return Skipped("no_identity", f"user id shorter than {shortest} characters")
        return Skipped(
            "no_identity", "no Amplitude user_id or device_id (call identify in the app)"
        )
    ios, android = event.platform == "iOS", event.platform == "Android"
    phone, amounts = event.device, _amounts(event, settings)
    stable_id = event.stable_id
    return _Event(  # by position: so many names would take 1 µs more
        user,
        device,
        name_of(event, settings, {}),
        event.time * 1000,  # epoch, ms
        stable_id,
        amounts.revenue,
        event.product_id[:1024] if amounts.currency else "",
        REVENUE_TYPES.get(event.name, "purchase") if amounts.currency else "",
        amounts.currency,
        event.platform if ios or android else "Web",
        event.platform.lower() if ios or android else "",
        phone.os_version,
        phone.model,
        phone.app_version,
        event.country,
        phone.language if phone.locale else "",
        advertising_id(event) if ios else "",
        vendor_id(event),
        advertising_id(event) if android else "",
        android_id(event),
        public_ip(event),
        "onward/1.0",
        _properties(event, stable_id, amounts),
        -1,  # outside any session
    )


def _device_id(event: Event, settings: AmplitudeSettings) -> str:
    key = settings.user_property_for_device_id
    device = usable(event.properties.get(key, ""), REFUSED) if key else ""
    return device if len(device) >= settings.min_id_length else ""


class _Amounts(NamedTuple):
    revenue: Decimal | None = None
    currency: str = ""
    local: Decimal | None = None
    currency_local: str = ""
    usd: Decimal | None = None


def _amounts(event: Event, settings: AmplitudeSettings) -> _Amounts:
    money = revenue_of(event, settings)
    if money is None:
        return _Amounts()
    amount, currency = amount_of(money, settings.revenue_basis)
    return _Amounts(amount, currency, money.value, money.currency, money.value_usd)


def _properties(event: Event, stable_id: str, amounts: _Amounts) -> _Properties:
    made = event.transaction
    return _Properties(
        event.product_id,
        event.old_product_id,
        store_of(event),
        event.environment,
        made.transaction_id,
        made.original_transaction_id,
        stable_id,
        amounts.local,
        amounts.currency_local,
        amounts.usd,
        amounts.currency,
    )


def classify(request: Request, response: Response, settings: AmplitudeSettings) -> Verdict:
    """Return what the answer means; the body's own `code` decides over the status."""
    body = response.json
    code = at(body, "code")
    status = code if type(code) is int else response.status
    error = text_at(body, "error") or response.text
    match status:
        case 400 if isinstance(body, dict):
            return _bad_request(body, request, error)
        case 413:
            return Split("too_large", error)
        case 429:
            return _throttled(body, request, error, response.retry_after or THROTTLE)
        case 401 if isinstance(body, dict):
            return Misconfigured("unauthorized", error)
        case _ if status // 100 == 2:
            return Delivered() if isinstance(body, dict) else Retry("unexpected_answer", error)
        case _ if status // 100 == 3:
            return Retry("redirect", by_status(response).message)
        case _ if status // 100 == 4 and error.startswith(BAD_KEY):
            return Misconfigured("unauthorized", error)
        case _:
            return Retry(reason_of(status), error, response.retry_after)


def _bad_request(body: Json, request: Request, error: str) -> Verdict:
    missing = text_at(body, "missing_field")
    if error.startswith(BAD_KEY) or missing == "api_key":
        return Misconfigured("unauthorized", error)
    bad: dict[int, Outcome] = {}
    for member in (
        "events_with_invalid_fields",
        "events_with_missing_fields",
        "events_missing_required_fields",
        "events_with_invalid_id_lengths",
    ):
        fields = at(body, member)
        for field, positions in fields.items() if isinstance(fields, dict) else ():
            for position in _positions(positions, request):
                words = one_line(f"{error}: {field}")
                bad.setdefault(position, Rejected("invalid_event", words))
    for position in _positions(at(body, "silenced_events"), request):
        bad.setdefault(position, Rejected("silenced", f"{error}: silenced event"))
    if bad:
        return Partial(bad, Retry("batch_refused", error, after=timedelta(0)))
    if missing:
        return Rejected("bad_request", f"{error}: {missing}")
    return Split("bad_request", error)


def _throttled(body: Json, request: Request, error: str, wait: timedelta) -> Verdict:
    """Return who has to wait: those named, a day where a daily quota is used up; else all."""
    named: dict[int, Outcome] = {
        position: Retry("throttled", error, wait, throttled=True)
        for position in _positions(at(body, "throttled_events"), request)
    }
    for position in _over_quota(body, request):
        named[position] = Retry("throttled", error, DAY, throttled=True)
    if not named:
        return Retry("throttled", error, wait, throttled=True)
    return Partial(named, Retry("batch_refused", error, after=timedelta(0)))


def _over_quota(body: Json, request: Request) -> list[int]:
    users, devices = (at(body, f"exceeded_daily_quota_{who}") for who in ("users", "devices"))
    if not users and not devices:
        return []
    events = Response(200, {}, request.body).json["events"]
    return [
        position
        for position, event in enumerate(events)
        if at(users, event.get("user_id", "")) is not None
        or at(devices, event.get("device_id", "")) is not None
    ]


def _positions(value: Json, request: Request) -> list[int]:
    positions = value if isinstance(value, list) else ()
    return [p for p in positions if type(p) is int and 0 <= p < len(request.events)]


def _check(settings: AmplitudeSettings, context: Context) -> Request:
    return _upload(b"[]", settings, sandbox=False)


def _checked(response: Response) -> Outcome:
    """Return whether the key was taken: a good one is told that there are no events."""
    body = response.json
    error = text_at(body, "error") or response.text
    if error.startswith(BAD_KEY) or text_at(body, "missing_field") == "api_key":
        return Misconfigured("unauthorized", error)
    return Delivered() if response.status == 400 and body else by_status(response, error)


def limits_of(settings: AmplitudeSettings) -> Limits:
    """Return the limits of the endpoint chosen."""
    return BATCH if settings.use_batch_endpoint else HTTP_V2


provider = Provider(
    slug="amplitude",
    title="Amplitude",
    category="Analytics & marketing",
    stores=("iOS", "Android", "Stripe"),
    settings=AmplitudeSettings,
    encode=encode,
    classify=classify,
    limits=HTTP_V2,
    limits_of=limits_of,
    identifiers=("a user id of at least 5 characters, or an Amplitude device id",),
    notes=(
        "If the app logs revenue with Amplitude's SDK too, it is counted twice.",
        "The platform's own user id helps only if the app gives it to Amplitude's SDK as well.",
        "US and EU projects are not interchangeable: the region must be the project's.",
    ),
    check=Check(_check, _checked),
)

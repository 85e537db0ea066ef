"""Amplitude, HTTP V2 and Batch event upload.

Source: https://amplitude.com/docs/apis/analytics/http-v2
Batch:  2,000 events; 1 MB a request (Batch API: 20 MB), before compression.
Dedup:  `insert_id`, for 7 days, so a retry counts no event twice.
Errors: a 400 takes nothing, and names bad events by position; the others are sent again.
"""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, Literal

from pydantic import Field

from providers.kit import (
    MB,
    MONEY_OUT,
    Context,
    Event,
    Json,
    Limits,
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
    at,
    by_status,
    in_batches,
    known,
    name_of,
    property_of,
    public_ip,
    reason_of,
    revenue_of,
    text_at,
    user_id,
    vendor_id,
)

HOSTS = {"us": "api2.amplitude.com", "eu": "api.eu.amplitude.com"}
STORES = {"iOS": "app_store", "Android": "play_store", "Stripe": "stripe"}
REFUSED = frozenset({"na", "{}", "lmy47d", "0", "-1"})  # ids that Amplitude takes for nobody
REVENUE_TYPES = {
    "subscription_renewed": "renewal",
    "subscription_refunded": "refund",
    "in_app_refunded": "refund",
}
HTTP_V2 = Limits(events=100, bytes=900_000, linger=timedelta(seconds=0.2))
BATCH = Limits(events=2_000, bytes=19 * MB, linger=timedelta(seconds=1))
DAY = timedelta(hours=24)


class AmplitudeSettings(Settings):
    """A project's API key; sandbox events need a project of their own."""

    api_key: Secret = Field(description="Project API key")
    region: Literal["us", "eu"] = Field("us", description="The project's data residency")
    use_batch_endpoint: bool = Field(False, description="Slower, more tolerant, larger requests")
    min_id_length: int = Field(5, ge=1, le=256, description="Shortest user id accepted")
    sandbox_api_key: Secret | None = Field(None, description="Project key for sandbox events")
    revenue_basis: Literal["usd", "local"] = Field("usd", description="Currency of `revenue`")
    user_property_for_user_id: str | None = Field(
        None, description="Property with Amplitude's user id"
    )
    user_property_for_device_id: str | None = Field(
        None, description="Property with Amplitude's device id"
    )


def encode(events: Sequence[Event], settings: AmplitudeSettings, context: Context) -> Plan:
    """Return batches of events, sandbox apart from production."""
    path = "batch" if settings.use_batch_endpoint else "2/httpapi"
    url = f"https://{HOSTS[settings.region]}/{path}"

    def request(items: bytes, sandbox: bool) -> Request:
        key = (settings.sandbox_api_key if sandbox else None) or settings.api_key
        head = b'{"api_key":"%b","events":' % key.get_secret_value().encode()
        tail = b',"options":{"min_id_length":%d}}' % settings.min_id_length
        return Request.json(url, head + items + tail, headers={"Accept": "*/*"})

    return in_batches(
        events,
        limits_of(settings),
        lambda event: _event(event, settings),
        request,
        group=lambda event: event.sandbox and settings.sandbox_api_key is not None,
    )


def _event(event: Event, settings: AmplitudeSettings) -> Mapping[str, Json] | Skipped:
    user = user_id(event, settings.user_property_for_user_id, refused=REFUSED)
    device = property_of(event, settings.user_property_for_device_id)
    if len(user) < settings.min_id_length and not device:
        if user:
            length = settings.min_id_length
            return Skipped("no_identity", f"user id shorter than {length} characters")
        return Skipped(
            "no_identity", "no Amplitude user_id or device_id (call identify in the app)"
        )
    money = _money(event, settings)
    ios = event.platform == "iOS"
    return known(
        user_id=user if len(user) >= settings.min_id_length else "",
        device_id=device,
        event_type=name_of(event, settings, {}),
        time=event.time * 1000,  # epoch, ms
        insert_id=event.stable_id,
        **money,
        platform="Web" if event.platform == "Stripe" else event.platform,
        os_name={"iOS": "ios", "Android": "android"}.get(event.platform),
        os_version=event.device.os_version,
        device_model=event.device.model,
        app_version=event.device.app_version,
        country=event.country,
        language=event.device.language,
        idfa=advertising_id(event) if ios else "",
        idfv=vendor_id(event),
        adid=advertising_id(event) if event.platform == "Android" else "",
        ip=public_ip(event),
        library="onward/1.0",
        event_properties=_properties(event, settings),
    ) | {"session_id": -1}  # outside any session


def _money(event: Event, settings: AmplitudeSettings) -> dict[str, Any]:
    money = revenue_of(event, settings)
    if money is None:
        return {}
    amount, currency = amount_of(money, settings.revenue_basis)
    kind = "refund" if event.name in MONEY_OUT else REVENUE_TYPES.get(event.name, "purchase")
    return {
        "revenue": amount,
        "productId": event.product_id[:1024],
        "revenueType": kind,
        "currency": currency,
    }


def _properties(event: Event, settings: AmplitudeSettings) -> dict[str, Json]:
    money = revenue_of(event, settings)
    local = (
        known(revenue_local=money.value, currency_local=money.currency, revenue_usd=money.value_usd)
        if money
        else {}
    )
    return known(
        product_id=event.product_id,
        old_product_id=event.old_product_id,
        store=STORES[event.platform],
        environment=event.environment,
        transaction_id=event.transaction.transaction_id,
        original_transaction_id=event.transaction.original_transaction_id,
        source_event_id=event.stable_id,
        **local,
    )


def classify(request: Request, response: Response, settings: AmplitudeSettings) -> Verdict:
    """Return what the answer means; the body's own `code` decides over the status."""
    body = response.json
    code = at(body, "code")
    status = code if isinstance(code, int) and not isinstance(code, bool) else response.status
    error = text_at(body, "error")
    if status == 400:
        return _bad_request(body, error or response.text)
    if status == 429:
        return _throttled(body, request, error or "Too many requests", response.retry_after)
    if status == 403 or (body is None and status // 100 != 2 and status != 413):
        return Retry(reason_of(status), response.text, response.retry_after)
    if status in (200, 413, 401):
        return by_status(Response(status), error)
    return Retry(reason_of(status), error or response.text, response.retry_after)


def _bad_request(body: Json, error: str) -> Verdict:
    missing = text_at(body, "missing_field")
    if error.startswith("Invalid API key") or missing == "api_key":
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
            for position in _positions(positions):
                bad[position] = Rejected("invalid_event", f"{error}: {field}")
    for position in _positions(at(body, "silenced_events")):
        bad.setdefault(position, Rejected("silenced", f"{error}: silenced event"))
    if bad:
        return Partial(bad, Retry("batch_refused", error, after=timedelta(0)))
    if missing:
        return Rejected("bad_request", f"{error}: {missing}")
    return Split("bad_request", error)


def _throttled(body: Json, request: Request, error: str, after: timedelta | None) -> Verdict:
    slow = _positions(at(body, "throttled_events"))
    if not slow:
        return Retry("throttled", error, after or timedelta(seconds=30), throttled=True)
    quota = at(body, "exceeded_daily_quota_users") or at(body, "exceeded_daily_quota_devices")
    wait = DAY if quota else after or timedelta(seconds=30)
    named = {position: Retry("throttled", error, wait, throttled=True) for position in slow}
    return Partial(named, Retry("batch_refused", error, after=timedelta(0)))


def _positions(value: Json) -> list[int]:
    return [p for p in value if type(p) is int and p >= 0] if isinstance(value, list) else []


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
    notes=("If the app logs revenue with Amplitude's SDK too, it is counted twice.",),
)

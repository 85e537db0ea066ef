"""AppMetrica, Post API.

Source: https://appmetrica.yandex.com/docs/en/mobile-api/post/about
Batch:  one event a request; what happens to a file's other rows when one is bad is not documented.
Dedup:  none: what is sent twice counts twice; `event_id` is in `event_json`.
Errors: by status; an event of an unknown device is accepted and never shows.
"""

import csv
import io
import re
from collections.abc import Sequence
from datetime import timedelta
from typing import Annotated, Literal

from pydantic import Field

from providers.kit import (
    MONEY_OUT,
    Check,
    Context,
    Delivered,
    Event,
    Limits,
    Misconfigured,
    Outcome,
    Plan,
    Provider,
    Rejected,
    Request,
    Response,
    Retry,
    RevenueSettings,
    Secret,
    Skipped,
    Verdict,
    advertising_id,
    by_status,
    clipped,
    dump_text,
    known,
    matching,
    name_of,
    one_each,
    plain,
    property_of,
    public_ip,
    revenue_of,
    store_of,
    text_at,
    user_id,
    vendor_id,
)

REVENUE_EVENTS = MONEY_OUT | {
    "trial_converted",
    "subscription_started",
    "subscription_renewed",
    "in_app_purchase",
}
DEVICE = "_q_appmetrica_device_id"
PROFILE = "_q_appmetrica_user_profile_id"
LARGEST_ID = 2**64 - 1
TEXT = 512  # bytes of a value in `event_json`, so that the URL stays short
THROTTLE = timedelta(seconds=60)
LIMITS = Limits(concurrency=10, max_age=timedelta(days=14))

PostKey = Annotated[
    Secret, matching(r"\S{8,128}", "must be the Post API key, 8 to 128 characters without blanks")
]
ApplicationId = Annotated[int, Field(ge=1, le=999_999_999_999)]


class AppMetricaSettings(RevenueSettings):
    """An application's id and its Post API key, both from Settings → Main."""

    application_id: ApplicationId = Field(description="Application ID")
    post_api_key: PostKey = Field(description="Post API key of the application")
    identifier: Literal["device_id", "profile_id"] = Field(
        "device_id", description="What a user is found by"
    )
    session_type: Literal["background", "foreground"] = Field(
        "background", description="Foreground events show in reports grouped by user"
    )
    send_revenue: bool = Field(
        False, description="Also send amounts as revenue, not in the event's JSON alone"
    )
    api_host: Literal["api.appmetrica.yandex.com", "api.appmetrica.yandex.ru"] = Field(
        "api.appmetrica.yandex.com", description="Host of the Post API"
    )
    sandbox_application_id: ApplicationId | None = Field(
        None, description="Application for sandbox events"
    )
    sandbox_post_api_key: PostKey | None = Field(
        None, description="Post API key of that application"
    )

    pairs = (("sandbox_application_id", "sandbox_post_api_key"),)

    def sends_revenue(self, event_name: str) -> bool:
        """Whether the amount of this event is to be sent: in the event's JSON at least."""
        return event_name not in self.no_revenue_events

    def credentials(self, *, sandbox: bool) -> tuple[str, int]:
        """The key and the application for such events."""
        if sandbox and self.sandbox_post_api_key and self.sandbox_application_id:
            return self.sandbox_post_api_key.get_secret_value(), self.sandbox_application_id
        return self.post_api_key.get_secret_value(), self.application_id


def encode(events: Sequence[Event], settings: AppMetricaSettings, context: Context) -> Plan:
    """Return a request per event and, if wanted, a second one for its revenue."""
    return one_each(events, lambda event: _requests(event, settings, context))


def _requests(
    event: Event, settings: AppMetricaSettings, context: Context
) -> list[Request] | Skipped:
    who = _identifier(event, settings)
    if isinstance(who, Skipped):
        return who
    as_file = context.notes.get(event.id) == "csv"
    key, application = settings.credentials(sandbox=event.sandbox)
    now = int(context.now.timestamp())

    def request(name: str, own: dict[str, str], step: int) -> Request:
        url = f"https://{settings.api_host}/logs/v1/import/{name}"
        values = {"application_id": str(application), **who}
        values |= {"event_timestamp": str(min(event.time, now)), **_device(event, settings), **own}
        return _file(url, key, values, step) if as_file else _query(url, key, values, step)

    name = name_of(event, settings, {}) or event.name
    own = {"event_name": name, "event_json": _json(event, settings)}
    requests = [request("events", own, 0)]
    revenue = _revenue(event, settings) if settings.send_revenue else {}
    if revenue:
        requests.append(request("revenue", revenue, 1))
    return requests


def _query(url: str, key: str, values: dict[str, str], step: int) -> Request:
    values = {"post_api_key": key, **values}
    return Request.query("POST", url, values, headers={"Content-Length": "0"}, step=step)


def _file(url: str, key: str, values: dict[str, str], step: int) -> Request:
    """Return the same as a CSV file of one row, for what is too long for a URL."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([values.keys(), values.values()])
    bare = Request.query("POST", f"{url}.csv", {"post_api_key": key})
    headers = (("Content-Type", "text/csv; charset=utf-8"),)
    return Request("POST", bare.url, headers, text.getvalue().encode(), step=step)


def _identifier(event: Event, settings: AppMetricaSettings) -> dict[str, str] | Skipped:
    """Return the one parameter that names the user."""
    device, profile = property_of(event, DEVICE), property_of(event, PROFILE)
    if settings.identifier == "profile_id":
        profile = profile or user_id(event, anonymous=False)
    if profile and (settings.identifier == "profile_id" or not device):
        return {"profile_id": profile}
    if not device:
        missing = "profile id"
        if settings.identifier == "device_id":
            missing = f"device id (user property {DEVICE})"
        return Skipped("no_identity", f"no AppMetrica {missing}")
    if not re.fullmatch(r"[0-9]{1,20}", device) or not 0 < int(device) <= LARGEST_ID:
        return Skipped("no_identity", "AppMetrica device id is not a number")
    return {"appmetrica_device_id": device}


def _device(event: Event, settings: AppMetricaSettings) -> dict[str, str]:
    ios, device = event.platform == "iOS", event.device
    return known(
        session_type=settings.session_type,
        ios_ifa=advertising_id(event) if ios else "",
        ios_ifv=vendor_id(event),
        google_aid=advertising_id(event) if event.platform == "Android" else "",
        os_name={"iOS": "ios", "Android": "android"}.get(event.platform),
        os_version=device.os_version,
        device_manufacturer=device.brand,
        device_model=device.model,
        device_locale=device.locale,
        app_version_name=device.app_version,
        app_package_name=device.app_id,
        device_ipv6=public_ip(event, 6),
    )


def _json(event: Event, settings: AppMetricaSettings) -> str:
    money = revenue_of(event, settings, settings.revenue_basis)
    amounts = (
        {"revenue": money.value, "currency": money.currency, "revenue_usd": money.value_usd}
        if money
        else {}
    )
    values = known(
        event_id=event.stable_id,
        product_id=clipped(event.product_id, TEXT),
        old_product_id=clipped(event.old_product_id, TEXT),
        **amounts,
        environment=event.environment,
        store=store_of(event),
        transaction_id=clipped(event.transaction.transaction_id, TEXT),
        original_transaction_id=clipped(event.transaction.original_transaction_id, TEXT),
    )
    return dump_text(values)


def _revenue(event: Event, settings: AppMetricaSettings) -> dict[str, str]:
    """Return the parameters of the revenue call; nothing where it has no place there."""
    money = revenue_of(event, settings, settings.revenue_basis)
    if money is None or event.name not in REVENUE_EVENTS or not event.product_id:
        return {}
    transaction = event.transaction.transaction_id
    numeric = transaction if re.fullmatch(r"[0-9]{1,19}", transaction) else ""
    payload = known(event_id=event.stable_id, transaction_id="" if numeric else transaction)
    return known(
        revenue_event_type=_kind(event),
        price=plain(money.value),
        currency=money.currency,
        product_id=event.product_id,
        quantity="1",
        payload=dump_text(payload),
        transaction_id=numeric,
    )


def _kind(event: Event) -> str:
    one_off = event.name in ("in_app_purchase", "in_app_refunded")
    return "one_time_purchase" if one_off else event.name


def classify(request: Request, response: Response, settings: AppMetricaSettings) -> Verdict:
    """Return what the status means; a body is read for its message only."""
    message = _message(response)
    match response.status:
        case 413:
            return Rejected("too_large", message or "event too large")
        case 414 if not request.body:
            return Retry("too_large", message or "URL too long", timedelta(0), note="csv")
        case 414:
            return Rejected("too_large", message or "event too large")
        case 420 | 429:
            after = response.retry_after or THROTTLE
            return Retry("throttled", message, after, throttled=True)
        case _:
            return by_status(response, message)


def _message(response: Response) -> str:
    body = response.json
    return text_at(body, "message") or text_at(body, "errors", 0, "message") or response.text[:200]


def _check(settings: AppMetricaSettings, context: Context) -> Request:
    """Return a call without an event name: 400 if the key is right."""
    key, application = settings.credentials(sandbox=False)
    url = f"https://{settings.api_host}/logs/v1/import/events"
    return _query(url, key, {"application_id": str(application)}, 0)


def _checked(response: Response) -> Outcome:
    outcome = by_status(response, _message(response))
    if isinstance(outcome, Misconfigured):
        return outcome
    return Delivered() if response.status == 400 else outcome


provider = Provider(
    slug="appmetrica",
    title="AppMetrica",
    category="Analytics & marketing",
    stores=("iOS", "Android", "Stripe"),
    settings=AppMetricaSettings,
    encode=encode,
    classify=classify,
    limits=LIMITS,
    identifiers=(f"the AppMetrica device id hash, a number ({DEVICE}), or profile id ({PROFILE})",),
    notes=(
        (
            "AppMetrica reads imports about every 4 hours, and accepts events of unknown devices "
            "that then never show."
        ),
        "A profile must have been active within the last 6 months.",
        "AppMetrica knows no idempotency: an event whose answer was lost may count twice.",
        "If the app's SDK reports purchases, leave send_revenue off: they would count twice.",
        (
            "AppMetrica documents only some values of revenue_event_type: compare a first purchase "
            "with its report before trusting send_revenue."
        ),
    ),
    check=Check(_check, _checked),
)

"""Tenjin, server-to-server events and purchases.

Source: https://tenjin.com/docs/ (Server-to-Server)
Batch:  none: one event a request.
Dedup:  none, so a retry after a timeout may count a purchase twice.
Errors: 200 with `code` 200 is success; another `code` or an `error` inside 200 is not.
"""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from providers.kit import (
    MONEY_IN,
    MONEY_OUT,
    ZERO_UUID,
    Context,
    Delivered,
    Event,
    Limits,
    Plan,
    Provider,
    Rejected,
    Request,
    Response,
    Retry,
    Secret,
    Settings,
    Skipped,
    Verdict,
    advertising_id,
    amount_of,
    at,
    basic,
    by_status,
    known,
    matching,
    name_of,
    one_each,
    plain,
    property_of,
    public_ip,
    reason_of,
    revenue_of,
    text_at,
    user_id,
    vendor_id,
)

URL = "https://track.tenjin.com/v0"
API_LEVELS = {  # of Android releases; `os_version` takes the level
    "5": "21",
    "5.1": "22",
    "6": "23",
    "7": "24",
    "7.1": "25",
    "8": "26",
    "8.1": "27",
    "9": "28",
    "10": "29",
    "11": "30",
    "12": "31",
    "13": "33",
    "14": "34",
    "15": "35",
    "16": "36",
}
SdkKey = Annotated[
    Secret,
    matching(r"[A-Za-z0-9]{16,64}", "must be the app's SDK key: 32 letters and digits, as a rule"),
]


class TenjinSettings(Settings):
    """An SDK key for each platform's app."""

    ios_sdk_key: SdkKey | None = Field(None, description="SDK key of the iOS app")
    android_sdk_key: SdkKey | None = Field(None, description="SDK key of the Android app")
    ios_bundle_id: str | None = Field(None, description="Bundle id of the iOS app: com.acme.app")
    android_package: str | None = Field(
        None, description="Package name of the Android app; absent: the event's own"
    )
    revenue_basis: Literal["gross", "proceeds"] = Field(
        "gross", description="Amounts before or after the store's commission"
    )
    currency_basis: Literal["usd", "local"] = Field("usd", description="Currency of `price`")
    refund_mode: Literal["event", "skip"] = Field(
        "event", description="Refunds: an event without money, or nothing"
    )
    zero_ad_id: bool = Field(
        True, description="Send the all-zero id for an unknown advertising id, or skip the event"
    )
    strict_ack: bool = Field(False, description="Retry after a 200 that does not say code 200")

    @model_validator(mode="after")
    def _has_a_key(self) -> Self:
        if self.ios_sdk_key is None and self.android_sdk_key is None:
            raise ValueError("ios_sdk_key or android_sdk_key is needed: the app's SDK key")
        if self.ios_sdk_key is not None and not self.ios_bundle_id:
            raise ValueError("ios_bundle_id is needed with ios_sdk_key: the app's bundle id")
        return self


def encode(events: Sequence[Event], settings: TenjinSettings, context: Context) -> Plan:
    """Return one form request per event, to the purchase path or the event path."""
    return one_each(events, lambda event: _request(event, settings))


def _request(event: Event, settings: TenjinSettings) -> Request | Skipped:
    ios = event.platform == "iOS"
    key = settings.ios_sdk_key if ios else settings.android_sdk_key
    bundle = settings.ios_bundle_id if ios else settings.android_package or event.device.app_id
    installation = property_of(event, "_q_tenjin_aiid")
    advertising = "" if event.device.limit_ad_tracking else advertising_id(event)
    if key is None:
        return Skipped("not_configured", f"no Tenjin SDK key for {event.platform}")
    if not bundle:
        return Skipped("not_configured", "no bundle id configured")
    if event.name in MONEY_OUT and settings.refund_mode == "skip":
        return Skipped("switched_off", "refunds are switched off (refund_mode)")
    if not installation:
        return Skipped("no_identity", "no Tenjin analytics installation id (set _q_tenjin_aiid)")
    if not advertising and not settings.zero_ad_id:
        return Skipped("no_identity", "no advertising id (IDFA or GAID), and zero_ad_id is off")
    purchase = _purchase(event, settings)
    values = {
        "analytics_installation_id": installation,
        "advertising_id": advertising or ZERO_UUID,
        "bundle_id": bundle,
        **_device(event),
        **(purchase or {"event": name_of(event, settings, {}) or ""}),
    }
    return Request.form(
        f"{URL}/{'purchase' if purchase else 'event'}",
        values,
        headers={"Authorization": basic(key.get_secret_value())},
    )


def _device(event: Event) -> dict[str, str]:
    ios = event.platform == "iOS"
    device = event.device
    limited, tracking = device.limit_ad_tracking, device.att_status if ios else None
    return {
        "platform": event.platform.lower(),
        "os_version": device.os_version if ios else _api_level(device.os_version),
        "sdk_version": "server",
        **known(
            developer_device_id=vendor_id(event),
            limit_ad_tracking=None if limited is None else str(int(limited)),
            tracking_status=None if tracking is None else str(tracking),
            app_version=device.app_version,
            country=event.country,
            ip_address=public_ip(event),
            locale=device.locale,
            device_model=device.model,
            customer_user_id=user_id(event, anonymous=False),
        ),
    }


def _api_level(version: str) -> str:
    """Return the API level of an Android release; a level, or what is not known, as it is."""
    major, _, minor = version.partition(".")
    return API_LEVELS.get(f"{major}.{minor[:1]}", API_LEVELS.get(major, version))


def _purchase(event: Event, settings: TenjinSettings) -> Mapping[str, str]:
    """Return the parameters of a purchase, {} where the event is none: Tenjin takes no refund."""
    basis = settings.revenue_basis
    money = revenue_of(event, settings, basis)
    if money is None or event.name not in MONEY_IN:
        return {}
    amount, currency = amount_of(money, settings.currency_basis)
    if amount <= 0:
        return {}
    return known(
        product_id=event.product_id,
        price=plain(amount),
        quantity="1",
        currency=currency,
        postcut="1" if money.is_proceed else "",
    )


def classify(request: Request, response: Response, settings: TenjinSettings) -> Verdict:
    """Return what the answer means: `code` and `error` decide within 200."""
    body = response.json
    words = text_at(body, "error") or text_at(body, "message")
    message = words or response.text[:300]
    match response.status:
        case 200:
            return _acknowledged(response, message, settings)
        case 413 | 414:
            return Rejected(reason_of(response.status), message)
        case status if 200 < status < 300:
            return Delivered()
        case _:
            return by_status(response, message, throttle=timedelta(seconds=60))


def _acknowledged(response: Response, message: str, settings: TenjinSettings) -> Verdict:
    body = response.json
    code, failed = text_at(body, "code"), at(body, "error")
    if code == "200" and not failed:
        return Delivered()
    if at(body, "code") is None and not failed:
        if settings.strict_ack:
            return Retry("unexpected_answer", message)
        return Delivered(message or "empty answer")
    status = int(code) if code.isdecimal() else 0
    if status in (401, 403, 408, 429) or status >= 500:
        inside = Response(status, response.headers, b"", response.at)
        return by_status(inside, message, throttle=timedelta(seconds=60))
    return Rejected("refused", message)


provider = Provider(
    slug="tenjin",
    title="Tenjin",
    category="Attribution",
    stores=("iOS", "Android"),
    settings=TenjinSettings,
    encode=encode,
    classify=classify,
    limits=Limits(concurrency=10, max_age=timedelta(days=7)),
    identifiers=("a Tenjin analytics installation id (`_q_tenjin_aiid`)",),
    notes=(
        "Tenjin counts an event when it arrives: events older than 7 days are skipped.",
        "Purchases share one stream: their names are not sent. Refunds go out without money.",
        "If the app tracks purchases with Tenjin's SDK too, revenue is counted twice.",
        "A retry after a timeout may count a purchase twice: Tenjin knows no event ids.",
    ),
)

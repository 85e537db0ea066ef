"""Adjust, server-to-server events.

Source: https://dev.adjust.com/en/api/s2s-api/events/
Batch:  none: one event a request.
Dedup:  none by id, so a retry after a timeout may count an event twice.
Errors: the words in `error` tell a wrong setting from a wrong event within one status.
"""

import re
from collections.abc import Mapping, Sequence
from datetime import timedelta
from decimal import Decimal
from typing import Annotated, Any, ClassVar, Literal, Self, get_args
from urllib.parse import parse_qs

from pydantic import Field, field_validator, model_validator

from providers.kit import (
    ALIASES,
    Context,
    Delivered,
    Event,
    Limits,
    Misconfigured,
    Plan,
    Provider,
    Rejected,
    Request,
    Response,
    Secret,
    Settings,
    Skipped,
    Verdict,
    advertising_id,
    amount_of,
    android_id,
    at,
    by_status,
    dump_text,
    is_blank,
    known,
    matching,
    one_each,
    plain,
    property_of,
    public_ip,
    reason_of,
    revenue_of,
    store_of,
    text_at,
    user_id,
    vendor_id,
)

URL = "https://s2s.adjust.com/event"
SMALLEST = Decimal("0.001")  # of the revenue Adjust takes
WRONG_SETTINGS = (
    "missing authentication token",
    "wrong authentication token",
    "failed to authorize",
    "invalid app token",
    "app is inactive",
    "app token not found",
)
WRONG_EVENT = {
    "invalid event token": "invalid_event_token",
    "tracking disabled": "tracking_disabled",
    "blocklisted": "blocklisted",
    "device not found": "device_not_found",
    "bad event state": "bad_event_state",
    "opted out": "opted_out",
}
TOKEN = r"[a-z0-9]{4,12}"  # noqa: S105  no secret
TOKEN_RULE = "must be an event token: 4 to 12 of a-z and 0-9, from the app's Events page in Adjust"  # noqa: S105  no secret

EventToken = Annotated[str, matching(TOKEN, TOKEN_RULE)]
CallbackField = Literal[
    "event_id", "product_id", "transaction_id", "original_transaction_id", "user_id", "store"
]


class AdjustSettings(Settings):
    """App tokens by platform, and an event token for each event to send."""

    app_token_ios: str | None = Field(None, description="App token of the iOS app")
    app_token_android: str | None = Field(None, description="App token of the Android app")
    event_tokens: dict[str, EventToken] = Field(
        description="Adjust's event token by canonical event; blank: do not send"
    )
    event_tokens_android: dict[str, EventToken] = Field(
        default_factory=dict,
        description="Event tokens of the Android app, where they differ: used alone for its events",
    )
    s2s_token: Secret | None = Field(
        None, description="S2S Security token with the Events scope, if Adjust enforces it"
    )
    revenue_basis: Literal["usd", "local"] = Field("usd", description="Currency of `revenue`")
    send_sandbox: bool = Field(True, description="Send sandbox events, as environment=sandbox")
    callback_fields: tuple[CallbackField, ...] = Field(
        get_args(CallbackField), description="What callback_params (raw data exports) hold"
    )

    name_pattern: ClassVar = re.compile(TOKEN)
    name_rule: ClassVar = TOKEN_RULE

    @field_validator("event_tokens", "event_tokens_android", mode="before")
    @classmethod
    def _drop_blank_tokens(cls, tokens: Any) -> Any:
        if not isinstance(tokens, Mapping):
            return tokens
        return {
            ALIASES.get(str(name), name): token
            for name, token in tokens.items()
            if not is_blank(token)
        }

    @model_validator(mode="after")
    def _has_an_app(self) -> Self:
        if not self.app_token_ios and not self.app_token_android:
            raise ValueError("app_token_ios or app_token_android is needed: the app's token")
        return self

    def tokens_of(self, platform: str) -> Mapping[str, str]:
        """Return the event tokens of the app on `platform`."""
        android = self.event_tokens_android if platform == "Android" else None
        return android or self.event_tokens


def encode(events: Sequence[Event], settings: AdjustSettings, context: Context) -> Plan:
    """Return one form request per event."""
    return one_each(events, lambda event: _request(event, settings))


def _request(event: Event, settings: AdjustSettings) -> Request | Skipped:
    ios = event.platform == "iOS"
    app = settings.app_token_ios if ios else settings.app_token_android
    token = settings.event_names.get(event.name) or settings.tokens_of(event.platform).get(
        event.name
    )
    ids = _ids(event)
    if not app:
        return Skipped("not_configured", f"no Adjust app token for {event.platform}")
    if not token:
        return Skipped("no_mapping", f"no Adjust event token for {event.name}")
    if not ids:
        return Skipped(
            "no_identity", "no Adjust device id (adid, idfa, idfv, gps_adid, android_id)"
        )
    money, refunded = _money(event, settings)
    values = {
        "s2s": "1",
        "app_token": app,
        "event_token": token,
        "environment": event.environment,
        "created_at_unix": str(event.time),  # epoch, s
        **ids,
        **money,
        **known(
            ip_address=public_ip(event, 4),
            user_agent=event.device.user_agent,
            os_name=event.platform.lower(),
            callback_params=_callback(event, settings, refunded),
        ),
    }
    if ios and event.device.att_status is not None:
        values["att_status"] = str(event.device.att_status)
    bearer = settings.s2s_token and settings.s2s_token.get_secret_value()
    headers = {"Authorization": f"Bearer {bearer}"} if bearer else {}
    return Request.form(URL, values, headers=headers)


def _ids(event: Event) -> dict[str, str]:
    ios = event.platform == "iOS"
    advertising = advertising_id(event)
    return known(
        adid=property_of(event, "_q_adjust_adid"),
        idfa=advertising.upper() if ios else "",
        idfv=vendor_id(event).upper(),
        gps_adid="" if ios else advertising.lower(),
        android_id=android_id(event).lower().replace("-", ""),
    )


def _money(event: Event, settings: AdjustSettings) -> tuple[dict[str, str], dict[str, str]]:
    """Return the revenue parameters, or what was given back: Adjust takes no negative revenue."""
    money = revenue_of(event, settings)
    if money is None:
        return {}, {}
    amount, currency = amount_of(money, settings.revenue_basis)
    if amount < 0:
        return {}, {"refund_amount": plain(-amount), "refund_currency": currency}
    if amount < SMALLEST:
        return {}, {}
    return {"revenue": plain(round(amount, 5).normalize()), "currency": currency}, {}


def _callback(event: Event, settings: AdjustSettings, refunded: Mapping[str, str]) -> str:
    values: dict[str, str] = {
        "event_id": event.stable_id,
        "product_id": event.product_id,
        "transaction_id": event.transaction.transaction_id,
        "original_transaction_id": event.transaction.original_transaction_id,
        "user_id": user_id(event),
        "store": store_of(event),
    }
    chosen = {key: values[key] for key in values if key in settings.callback_fields}
    params = known(**chosen, **refunded)
    return dump_text(params) if params else ""


def classify(request: Request, response: Response, settings: AdjustSettings) -> Verdict:
    """Return what the answer means; words are compared in any letter case."""
    status, failed = response.status, at(response.json, "error")
    message = text_at(response.json, "error") or response.text
    words = message.lower()
    if status in (200, 202, 400, 401, 403, 404) and any(w in words for w in WRONG_SETTINGS):
        return Misconfigured("unauthorized", message)
    if status // 100 == 2 and not (status == 200 and failed):
        return Delivered()
    if status in (200, 400, 403, 404):
        if "earlier unique event tracked" in words:
            return Delivered(message)
        for text, reason in WRONG_EVENT.items():
            if text in words:
                return Rejected(reason, message + _whose(reason, request, settings))
    if status in (200, 413, 451):
        reason = {200: "bad_request", 451: "opted_out"}.get(status, reason_of(status))
        return Rejected(reason, message)
    return by_status(response, message)


def _whose(reason: str, request: Request, settings: AdjustSettings) -> str:
    """Return whose event token is meant, for the operator who mistyped it."""
    if reason != "invalid_event_token":
        return ""
    sent = parse_qs(request.body.decode()).get("event_token", [""])[0]
    maps = (settings.event_names, settings.event_tokens, settings.event_tokens_android)
    names = sorted({name for tokens in maps for name, token in tokens.items() if token == sent})
    return f": the event token of {', '.join(names)}" if names else ""


provider = Provider(
    slug="adjust",
    title="Adjust",
    category="Attribution",
    stores=("iOS", "Android"),
    settings=AdjustSettings,
    encode=encode,
    classify=classify,
    limits=Limits(concurrency=10, max_age=timedelta(days=58)),
    identifiers=("an Adjust id (`_q_adjust_adid`, best on iOS), IDFA or IDFV, AAID or Android id",),
    notes=(
        "Only events with an event token are sent (event_tokens).",
        "If the app tracks revenue with Adjust's SDK too, it is counted twice: use other tokens.",
        "Refunds go out without revenue; the amount is in the callback parameters.",
        "A retry after a timeout may count an event twice: Adjust knows no event ids.",
    ),
)

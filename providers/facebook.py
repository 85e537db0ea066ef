"""Meta (Facebook) Conversions API, app events.

Source: https://developers.facebook.com/docs/marketing-api/conversions-api/app-events
Batch:  1,000 events, 50 here: one bad event refuses the whole request.
Dedup:  `event_id` with the same event name, for 48 hours.
Errors: the error's code decides, then the status; who is to blame is found by halving.
"""

import hashlib
import hmac
import re
import unicodedata
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Annotated, Literal

from pydantic import Field

from providers.kit import (
    KB,
    MB,
    MONEY_OUT,
    Check,
    Context,
    Delivered,
    Event,
    Json,
    Limits,
    Misconfigured,
    Outcome,
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
    dump,
    in_batches,
    known,
    matching,
    name_of,
    one_line,
    property_of,
    public_ip,
    reason_of,
    revenue_of,
    seconds,
    text_at,
    user_id,
    vendor_id,
)

GRAPH = "https://graph.facebook.com"
NAMES: dict[str, str | None] = {
    "trial_started": "StartTrial",
    "trial_converted": "Subscribe",
    "subscription_started": "Subscribe",
    "subscription_renewed": "Subscribe",
    "subscription_upgraded": "Subscribe",
    "in_app_purchase": "Purchase",
    "subscription_refunded": "SubscriptionRefunded",
    "in_app_refunded": "InAppRefunded",
    "trial_canceled": None,
    "trial_billing_retry": None,
    "trial_still_active": None,
    "trial_expired": None,
    "subscription_downgraded": None,
    "subscription_product_changed": None,
    "subscription_canceled": None,
    "subscription_billing_retry": None,
    "subscription_expired": None,
}
LIMITS = Limits(events=50, bytes=1 * MB, linger=timedelta(seconds=0.5), max_age=timedelta(days=7))
THROTTLE = timedelta(minutes=5)
HASHED = re.compile(r"[0-9a-f]{64}")
EMAIL = re.compile(r"[^@\s]+@[^@\s][^@\s.]*\.[^@\s]+")  # linear: no text can be read in two ways
NO_PERMISSION = frozenset({3, 10, 190, *range(200, 300)})
SLOW_DOWN = frozenset({4, 17, 32, 613, *range(80000, 80100)})
INVALID = range(2804000, 2805000)
REASONS = {2804003: "too_old", 2804009: "no_amount"}

Digits = Annotated[str, matching(r"\d{6,20}", "must be the dataset's id, 6 to 20 digits")]
Version = Annotated[str, matching(r"v\d+\.0", "must be a Graph API version, like v25.0")]
TestCode = Annotated[str, matching(r"TEST\d+", "must be a code of Test events, like TEST12345")]


class FacebookSettings(Settings):
    """A dataset that is linked to the app, and a token that may write to it."""

    dataset_id: Digits = Field(description="Dataset (pixel) id, from Events Manager")
    access_token: Secret = Field(description="Conversions API or system user token")
    app_secret: Secret | None = Field(None, description="App secret, to sign the token with")
    api_version: Version = Field("v25.0", description="Graph API version")
    test_event_code: TestCode | None = Field(
        None, description="Code of Test events; with it, nothing counts as real"
    )
    app_package_ios: str | None = Field(None, description="Bundle id, where the event has none")
    app_package_android: str | None = Field(None, description="Package, where the event has none")
    app_version: str | None = Field(None, description="App version, where the event has none")
    default_os_version: str = Field("0", description="OS version, where the event has none")
    send_without_att: bool = Field(
        True, description="Send iOS users without tracking permission, without their IDFA"
    )
    revenue_basis: Literal["local", "usd"] = Field("local", description="Currency of `value`")
    data_processing_options: tuple[Literal["LDU"], ...] = Field(
        (), description='Limited data use: ["LDU"]'
    )
    data_processing_options_country: Literal[0, 1] = Field(
        0, description="Country for limited data use: 0 Meta finds it, 1 United States"
    )
    data_processing_options_state: Literal[0, 1000] = Field(
        0, description="State for limited data use: 0 Meta finds it, 1000 California"
    )
    refunds: Literal["skip", "custom_event"] = Field(
        "skip", description="Skip refunds, or send them as an event without value"
    )
    user_property_for_anon_id: str = Field(
        "_q_fb_anon_id", description="Property with the Meta SDK's anonymous id"
    )
    sandbox_dataset_id: Digits | None = Field(None, description="Dataset for sandbox events")
    sandbox_access_token: Secret | None = Field(None, description="Token of that dataset")

    name_pattern = re.compile(r"(?s).{1,50}")
    name_rule = "at most 50 characters"
    pairs = (("sandbox_dataset_id", "sandbox_access_token"),)

    def takes_sandbox(self) -> bool:
        """Whether sandbox events are sent: a test event code keeps them apart, too."""
        return super().takes_sandbox() or self.test_event_code is not None


def encode(events: Sequence[Event], settings: FacebookSettings, context: Context) -> Plan:
    """Return batches of events, sandbox apart from production."""
    now = int(context.now.timestamp())

    def request(items: bytes, sandbox: bool) -> Request:
        dataset, token = _dataset(settings, sandbox=sandbox)
        members = known(**token, test_event_code=settings.test_event_code)
        body = dump(members)[:-1] + b',"data":' + items + b"}"
        return Request.json(f"{GRAPH}/{settings.api_version}/{dataset}/events", body)

    return in_batches(
        events,
        LIMITS,
        lambda event: _event(event, settings, now),
        request,
        group=lambda event: event.sandbox and settings.sandbox_dataset_id is not None,
        overhead=10 * KB,
    )


def _dataset(settings: FacebookSettings, *, sandbox: bool) -> tuple[str, dict[str, str]]:
    """Return the dataset, and the token with its proof.

    https://developers.facebook.com/docs/graph-api/guides/secure-requests
    """
    own = sandbox and settings.sandbox_dataset_id
    secret = (settings.sandbox_access_token if own else None) or settings.access_token
    token = {"access_token": secret.get_secret_value()}
    if settings.app_secret:
        key = settings.app_secret.get_secret_value().encode()
        proof = hmac.new(key, token["access_token"].encode(), hashlib.sha256).hexdigest()
        token["appsecret_proof"] = proof
    return own or settings.dataset_id, token


def _event(event: Event, settings: FacebookSettings, now: int) -> dict[str, Json] | Skipped:
    if event.name in MONEY_OUT and settings.refunds == "skip":
        return Skipped("refund", "Meta takes no refunds (set refunds to custom_event to send them)")
    tracking = _tracking(event)
    if event.platform == "iOS" and not tracking and not settings.send_without_att:
        return Skipped("no_consent", "no tracking permission (ATT), and send_without_att is off")
    user = _user(event, settings, tracking=tracking)
    if not _usable(event, user):
        return Skipped("no_identity", "no advertising id, anonymous id or e-mail for Meta")
    name = name_of(event, settings, NAMES)
    custom = _custom(event, settings)
    if name == "Purchase" and "value" not in custom:
        return Skipped("no_amount", "Meta's Purchase needs an amount, and the event has none")
    app = event.platform != "Stripe"
    options = {
        "data_processing_options": settings.data_processing_options,
        "data_processing_options_country": settings.data_processing_options_country,
        "data_processing_options_state": settings.data_processing_options_state,
    }
    return known(
        event_name=name,
        event_time=min(event.time, now),  # one event ahead of Meta's clock spoils its batch
        action_source="app" if app else "system_generated",
        event_id=event.stable_id,
        user_data=user,
        custom_data=custom,
        app_data=_app(event, settings, tracking=tracking) if app else None,
        **(options if settings.data_processing_options else {}),
    )


def _tracking(event: Event) -> bool:
    """Return whether the user lets the app track: on iOS the ATT state, else what is known."""
    if event.platform == "iOS" and event.device.att_status is not None:
        return event.device.att_status == 3
    if event.device.limit_ad_tracking:
        return False
    return event.platform != "iOS" or bool(advertising_id(event))


def _user(event: Event, settings: FacebookSettings, *, tracking: bool) -> dict[str, Json]:
    email = property_of(event, "_q_email").lower()
    first, _, last = property_of(event, "_q_name").partition(" ")
    app = event.platform != "Stripe"
    return known(
        em=_hashed(email if EMAIL.fullmatch(email) or HASHED.fullmatch(email) else ""),
        fn=_hashed(_letters(first)),
        ln=_hashed(_letters(last)),
        country=_hashed(event.country.lower()),
        external_id=_hashed(user_id(event)),
        client_ip_address=public_ip(event),
        client_user_agent=event.device.user_agent,
        madid=advertising_id(event) if tracking or event.platform == "Android" else "",
        anon_id=property_of(event, settings.user_property_for_anon_id) if app else "",
    )


def _letters(name: str) -> str:
    return "".join(c for c in name.lower() if unicodedata.category(c)[0] not in "CPZ")


def _hashed(text: str) -> list[str]:
    """Return the SHA-256 of normalised text, or what is one already; nothing of nothing."""
    if not text or HASHED.fullmatch(text):
        return [text] if text else []
    return [hashlib.sha256(text.encode()).hexdigest()]


def _usable(event: Event, user: Mapping[str, Json]) -> bool:
    if event.platform == "Stripe":
        return bool(user.keys() & {"em", "external_id"})
    both = {"external_id", "client_ip_address"}
    return bool(user.keys() & {"madid", "anon_id", "em"}) or both <= user.keys()


def _custom(event: Event, settings: FacebookSettings) -> dict[str, Json]:
    product = {"content_type": "product", "content_ids": [event.product_id]}
    product = product if event.product_id else {}
    money = revenue_of(event, settings)
    if money is None:
        if event.name != "trial_started" or not settings.sends_revenue(event.name):
            return product
        local = event.price.currency if event.price else "USD"
        return {
            "value": 0,
            "currency": "USD" if settings.revenue_basis == "usd" else local,
        } | product
    amount, currency = amount_of(money, settings.revenue_basis)
    order = known(order_id=event.transaction.transaction_id)
    if event.name in MONEY_OUT:
        return {"currency": currency, "refund_amount": abs(amount)} | order
    if amount < 0:  # an upgrade for which the store gave money back
        return product | order
    contents = [{"id": event.product_id, "quantity": 1, "item_price": amount}]
    priced = product | {"contents": contents} if product else {}
    return {"value": amount, "currency": currency} | priced | order


def _app(event: Event, settings: FacebookSettings, *, tracking: bool) -> dict[str, Json]:
    ios = event.platform == "iOS"
    device = event.device
    extinfo = [""] * 16
    extinfo[0] = "i2" if ios else "a2"
    package = settings.app_package_ios if ios else settings.app_package_android
    extinfo[1] = device.app_id or package or ""
    extinfo[2] = device.app_version or settings.app_version or ""
    extinfo[4] = device.os_version or settings.default_os_version
    extinfo[5] = device.model
    extinfo[6] = device.locale.replace("-", "_")
    extinfo[15] = device.timezone
    return known(
        advertiser_tracking_enabled=int(tracking),
        application_tracking_enabled=1,
        extinfo=extinfo,
        vendor_id=vendor_id(event),
    )


def classify(request: Request, response: Response, settings: FacebookSettings) -> Verdict:
    """Return what the answer means; an error object decides over the status."""
    body = response.json
    error = at(body, "error")
    if isinstance(error, dict):
        return _failure(error, response)
    status = response.status
    if status // 100 == 2:
        received = at(body, "events_received")
        if type(received) is int and received >= len(request.events):
            return Delivered(_warnings(body))
        return Retry("unexpected_answer", response.text)
    if status // 100 == 4 and status not in (408, 413, 425, 429):
        kind = Retry if body is None else Rejected
        return kind(reason_of(status), response.text)
    return by_status(response, throttle=_regained(response))


def _failure(error: dict[str, Json], response: Response) -> Outcome:
    code, subcode = error.get("code"), error.get("error_subcode")
    message = _message(error)
    code = code if type(code) is int else 0
    if code in NO_PERMISSION or (code, subcode) == (100, 33) or "appsecret_proof" in message:
        return Misconfigured("unauthorized", message)
    if code in SLOW_DOWN or response.status == 429:
        return Retry("throttled", message, _regained(response), throttled=True)
    if code in (1, 2) or error.get("is_transient") is True:
        return Retry("server_error", message, response.retry_after)
    subcode = subcode if type(subcode) is int else 0
    if code == 100 or subcode in INVALID:
        return Split(REASONS.get(subcode, "invalid_event"), message)
    return Retry("unknown_error", message, response.retry_after)


def _message(error: dict[str, Json]) -> str:
    said = text_at(error, "message"), text_at(error, "error_user_title")
    words = text_at(error, "error_user_msg") or ": ".join(filter(None, said))
    labels = {"code": "code", "error_subcode": "subcode", "fbtrace_id": "trace"}
    marks = [f"{label} {text_at(error, key)}" for key, label in labels.items() if error.get(key)]
    return one_line(f"{words[:400]} ({', '.join(marks)})" if marks else words)


def _warnings(body: Json) -> str:
    messages = at(body, "messages")
    return one_line("; ".join(map(text_at, messages if isinstance(messages, list) else ())))


def _regained(response: Response) -> timedelta:
    """Return how long to wait: Retry-After, the usage header's minutes, or five minutes.

    https://developers.facebook.com/docs/graph-api/overview/rate-limiting
    """
    usage = response.headers.get("x-business-use-case-usage", "")
    cases = Response(200, {}, usage.encode("utf-8", "replace")).json
    waits = [
        wait
        for entries in (cases.values() if isinstance(cases, dict) else ())
        for entry in (entries if isinstance(entries, list) else ())
        if (wait := _minutes(at(entry, "estimated_time_to_regain_access")))
    ]
    return response.retry_after or max(waits, default=THROTTLE)


def _minutes(value: Json) -> timedelta | None:
    return seconds(value * 60) if type(value) in (int, float) else None


def _check(settings: FacebookSettings, context: Context) -> Request:
    dataset, token = _dataset(settings, sandbox=False)
    url = f"{GRAPH}/{settings.api_version}/{dataset}"
    return Request.query("GET", url, {"fields": "id,name", **token})


def _checked(response: Response) -> Outcome:
    error = at(response.json, "error")
    return _failure(error, response) if isinstance(error, dict) else by_status(response)


provider = Provider(
    slug="facebook",
    title="Facebook",
    category="Analytics & marketing",
    stores=("iOS", "Android", "Stripe"),
    settings=FacebookSettings,
    encode=encode,
    classify=classify,
    limits=LIMITS,
    names=NAMES,
    free_names=False,
    identifiers=(
        (
            "an advertising id, the Meta SDK's anonymous id (user property _q_fb_anon_id) or an "
            "e-mail (_q_email)"
        ),
    ),
    notes=(
        "StartTrial and Subscribe count twice if the Meta SDK logs them on the device, too.",
        "Graph API versions expire about two years after their release: api_version must follow.",
        "Refunds never lower Meta's totals: it takes no negative amounts.",
        "With test_event_code, no event counts as real.",
    ),
    check=Check(_check, _checked),
)

"""Firebase: Google Analytics 4 Measurement Protocol, app streams.

Source: https://developers.google.com/analytics/devguides/collection/protocol/ga4
Batch:  one event a request: 25 may share one, but of one app instance only.
Dedup:  purchases by `transaction_id`; anything else counts again when it is sent again.
Errors: none that tell: a readable request is answered 2xx, however wrong. Only the validation
        call, if switched on, names faults; no call proves credentials.
"""

import re
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Annotated, Literal

from pydantic import Field, model_validator

from providers.kit import (
    KB,
    MONEY_OUT,
    Context,
    Delivered,
    Event,
    Json,
    Limits,
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
    at,
    by_status,
    dump,
    known,
    matching,
    name_of,
    one_each,
    one_line,
    reason_of,
    revenue_of,
    text_at,
    user_id,
)

HOSTS = {"default": "www.google-analytics.com", "eu": "region1.google-analytics.com"}
STORES = {"iOS": "App Store", "Android": "Google Play", "Stripe": "Stripe"}
NAMES: dict[str, str | None] = {
    "trial_converted": "purchase",
    "subscription_started": "purchase",
    "subscription_renewed": "purchase",
    "subscription_upgraded": "purchase",
    "in_app_purchase": "purchase",
    "subscription_refunded": "refund",
    "in_app_refunded": "refund",
}
RESERVED = (
    "ad_(activeview|click|exposure|impression|query|reward)|adunit_exposure|"
    "app_(clear_data|exception|install|remove|update|upgrade|store_refund)|"
    "app_store_subscription_(cancel|convert|renew)|"
    "dynamic_link_(app_open|app_update|first_open)|error|firebase_campaign|first_(open|visit)|"
    "in_app_purchase|notification_(dismiss|foreground|open|receive)|os_update|screen_view|"
    "session_start(_with_rollout)?|user_engagement"
)
NAME = re.compile(rf"(?!(?:{RESERVED})$)(?!firebase_|ga_|google_)[A-Za-z][A-Za-z0-9_]{{0,39}}")
INSTANCE = re.compile(r"[0-9A-Fa-f]{32}")
TEXT = 100  # characters of a parameter
LATE = timedelta(hours=72)
THROTTLE = timedelta(seconds=60)

IosApp = Annotated[
    str, matching(r"\d+:\d+:ios:[0-9a-f]+", "must be like 1:1234567890:ios:321abc456def7890")
]
AndroidApp = Annotated[
    str,
    matching(r"\d+:\d+:android:[0-9a-f]+", "must be like 1:1234567890:android:321abc456def7890"),
]
ApiSecret = Annotated[
    Secret,
    matching(
        r"[A-Za-z0-9_-]{10,64}",
        "must be 10 to 64 of letters, digits, _ and -: a Measurement Protocol API secret",
    ),
]


class FirebaseSettings(RevenueSettings):
    """The app streams of a GA4 property, each with its Measurement Protocol secret."""

    ios_firebase_app_id: IosApp | None = Field(None, description="Firebase app id of the iOS app")
    ios_api_secret: ApiSecret | None = Field(None, description="API secret of the iOS stream")
    android_firebase_app_id: AndroidApp | None = Field(
        None, description="Firebase app id of the Android app"
    )
    android_api_secret: ApiSecret | None = Field(
        None, description="API secret of the Android stream"
    )
    region: Literal["default", "eu"] = Field("default", description="Where data is collected")
    stripe_stream: Literal["none", "ios", "android"] = Field(
        "none", description="Stream for Stripe events of users with an app instance id"
    )
    validate_first: bool = Field(
        False, alias="validate", description="Ask the validation endpoint before each event"
    )
    send_late_events: bool = Field(
        False, description="Send events older than 72 hours; Analytics moves their time"
    )
    sandbox_ios_firebase_app_id: IosApp | None = Field(
        None, description="Firebase app id for iOS sandbox events"
    )
    sandbox_ios_api_secret: ApiSecret | None = Field(None, description="API secret of that stream")
    sandbox_android_firebase_app_id: AndroidApp | None = Field(
        None, description="Firebase app id for Android sandbox events"
    )
    sandbox_android_api_secret: ApiSecret | None = Field(
        None, description="API secret of that stream"
    )

    name_pattern = NAME
    name_rule = (
        "a letter, then letters, digits and _, at most 40, not reserved by Google Analytics, "
        "and not beginning with firebase_, ga_ or google_"
    )
    pairs = tuple(
        (f"{name}_firebase_app_id", f"{name}_api_secret")
        for name in ("ios", "android", "sandbox_ios", "sandbox_android")
    )

    @model_validator(mode="after")
    def _has_a_stream(self) -> "FirebaseSettings":
        if not (self.ios_firebase_app_id or self.android_firebase_app_id):
            raise ValueError(
                "set ios_firebase_app_id with ios_api_secret, or android_firebase_app_id with "
                "android_api_secret"
            )
        if self.stripe_stream != "none" and not self.stream(self.stripe_stream, sandbox=False):
            raise ValueError(f"stripe_stream is {self.stripe_stream}, and that stream is not set")
        return self

    def stream(self, app: str, *, sandbox: bool) -> str:
        """The parameters that name the stream of `app` ("ios", "android"), or ""."""
        own = f"sandbox_{app}" if sandbox else app
        if sandbox and self.send_sandbox and not getattr(self, f"{own}_firebase_app_id"):
            own = app
        app_id, secret = getattr(self, f"{own}_firebase_app_id"), getattr(self, f"{own}_api_secret")
        return f"firebase_app_id={app_id}&api_secret={secret.get_secret_value()}" if app_id else ""


def encode(events: Sequence[Event], settings: FirebaseSettings, context: Context) -> Plan:
    """Return a request per event, preceded by its validation if that is switched on."""
    return one_each(events, lambda event: _requests(event, settings, context))


def _requests(
    event: Event, settings: FirebaseSettings, context: Context
) -> list[Request] | Skipped:
    app = settings.stripe_stream if event.platform == "Stripe" else event.platform.lower()
    stream = settings.stream(app, sandbox=event.sandbox) if app != "none" else ""
    if not stream:
        kind = "sandbox stream" if event.sandbox else "stream"
        return Skipped("no_stream", f"no Firebase {kind} for {event.platform}")
    now = int(context.now.timestamp())
    if now - event.time > LATE.total_seconds() and not settings.send_late_events:
        return Skipped("too_old", "older than 72 hours (set send_late_events to send it)")
    instance = event.properties.get("_q_firebase_instance_id", "").strip()
    if not instance or not instance.strip("0"):
        return Skipped("no_identity", "user property _q_firebase_instance_id is missing")
    if not INSTANCE.fullmatch(instance):
        return Skipped(
            "no_identity",
            "user property _q_firebase_instance_id is not a 32-hex app instance id",
        )
    name, params = _event(event, settings)
    if not NAME.fullmatch(name):
        return Skipped(
            "no_mapping", f"event {name} cannot go under its own name (set it in event_names)"
        )
    account = user_id(event, anonymous=False)
    body = dump(
        known(
            app_instance_id=instance,
            user_id="" if "@" in account else account[:256],
            timestamp_micros=min(event.time, now) * 1_000_000,
            events=[{"name": name, "params": params}],
        )
    )
    return list(_steps(f"https://{HOSTS[settings.region]}", stream, body, settings))


def _steps(host: str, stream: str, body: bytes, settings: FirebaseSettings) -> Iterator[Request]:
    if settings.validate_first:
        yield Request.json(f"{host}/debug/mp/collect?{stream}", body)
    step = int(settings.validate_first)
    yield Request.json(f"{host}/mp/collect?{stream}", body, step=step)


def _event(event: Event, settings: FirebaseSettings) -> tuple[str, dict[str, Json]]:
    """Return name and parameters; a purchase or refund without amount goes under its own name."""
    name = name_of(event, settings, NAMES) or event.name
    money = revenue_of(event, settings, settings.revenue_basis)
    product = event.product_id[:TEXT]
    common = {
        "product_id": product,
        "original_transaction_id": event.transaction.original_transaction_id[:TEXT],
        "environment": event.environment,
        "source_event_id": event.stable_id,
        "engagement_time_msec": 1,  # without it the event is missing from user reports
    }
    if money is None or (money.value < 0 and event.name not in MONEY_OUT):
        own = "in_app_purchased" if event.name == "in_app_purchase" else event.name
        return own if name in ("purchase", "refund") else name, known(**common)
    value = abs(money.value)
    item = {
        "item_id": product or event.name,
        "item_name": product or event.name,
        "price": value,
        "quantity": 1,
        "affiliation": STORES[event.platform],
    }
    priced = {
        "currency": money.currency,
        "value": value,
        "transaction_id": event.transaction.transaction_id[:TEXT] or event.stable_id,
        "event_type": event.name,
    }
    return name, known(**priced, **common, items=[item])


def classify(request: Request, response: Response, settings: FirebaseSettings) -> Verdict:
    """Return what the answer means; only the validation call has a body."""
    if "/debug/mp/collect?" in request.url and response.status // 100 == 2:
        return _validated(response)
    if response.status in (401, 403, 413):  # of these none is about the credentials
        return Rejected(reason_of(response.status), response.text)
    outcome = by_status(response, throttle=THROTTLE)
    if response.status // 100 == 3:  # nothing ever speaks against the settings
        return Retry("redirect", outcome.message)
    return outcome


def _validated(response: Response) -> Outcome:
    messages = at(response.json, "validationMessages")
    if not isinstance(response.json, dict):
        return Retry("unexpected_answer", response.text)
    found = messages if isinstance(messages, list) else []
    if not found:
        return Delivered()
    words = one_line(
        "; ".join(
            f"{text_at(m, 'fieldPath')}: {text_at(m, 'description')} "
            f"({text_at(m, 'validationCode')})"
            for m in found
        )
    )
    if all(text_at(m, "validationCode") == "INTERNAL_ERROR" for m in found):
        return Retry("server_error", words)
    return Rejected("invalid_event", words)


provider = Provider(
    slug="firebase",
    title="Firebase",
    category="Analytics & marketing",
    stores=("iOS", "Android", "Stripe"),
    settings=FirebaseSettings,
    encode=encode,
    classify=classify,
    limits=Limits(bytes=130 * KB, timeout=timedelta(seconds=10)),
    names=NAMES,
    identifiers=("the Firebase app instance id, 32 hex digits (_q_firebase_instance_id)",),
    notes=(
        (
            "Google Analytics answers 2xx whatever comes: wrong ids or secrets lose events, "
            "and no test of the settings can tell."
        ),
        (
            "The Firebase SDK logs in_app_purchase by itself: switch that off or filter it, or the "
            "first charge counts twice."
        ),
        "Events older than 72 hours are skipped, or arrive with a time 72 hours ago.",
        "The validation endpoint checks the event alone, neither app id nor secret.",
    ),
)

"""AppsFlyer, server-to-server in-app events for mobile, API 3 and the older API 2.

Source: https://dev.appsflyer.com/hc/reference/s2s-events-api3-post
Batch:  none: one event a request, of at most 1 KB.
Dedup:  none documented, so a retry after a timeout may count an event twice.
Errors: short plain texts; 200 means received, not recorded.
"""

import re
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Annotated, Any, Literal, Self
from urllib.parse import quote

from pydantic import AfterValidator, Field, model_validator

from providers.kit import (
    KB,
    Context,
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
    Unsent,
    Verdict,
    advertising_id,
    amount_of,
    by_status,
    dump,
    dump_text,
    iso,
    known,
    matching,
    name_of,
    one_each,
    plain,
    property_of,
    public_ip,
    reason_of,
    revenue_of,
    store_of,
    user_id,
    vendor_id,
)

UID = re.compile(r"[0-9]+-[0-9]+")
LONG_USER_ID = 100  # characters
DECIMALS = 5  # of af_revenue
# left out of a body of more than 1 KB, in this order
CUSTOM = ("environment", "store", "original_transaction_id", "event_id")
OPTIONAL = (
    "bundleIdentifier",
    "app_version_name",
    "idfv",
    "idfa",
    "advertising_id",
    "customer_user_id",
)
WRONG_KEY = re.compile(
    r"authenti|unauthori[sz]|dev[ _-]?key|(?<!unexpected )(?<!unrecognized )token|app[ _-]?id",
    re.IGNORECASE,
)

IosAppId = Annotated[
    str,
    AfterValidator(lambda value: f"id{value}" if value.isdecimal() else value),
    matching(r"id[0-9]{6,12}", 'must be "id" and the app\'s number in the App Store: id1234509876'),
]
AndroidAppId = Annotated[
    str,
    matching(
        r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)+(-[A-Za-z0-9_]+)?",
        "must be the package name as AppsFlyer's dashboard shows it: com.acme.app",
    ),
]
Partners = Annotated[tuple[str, ...], Field(min_length=1, max_length=50)]


class AppsFlyerSettings(Settings):
    """App ids by platform and a key: the S2S key for API 3, else dev keys for API 2."""

    app_id_ios: IosAppId | None = Field(None, description="id and number of the iOS app")
    app_id_android: AndroidAppId | None = Field(None, description="Package of the Android app")
    dev_key: Secret | None = Field(None, description="Dev Key, unless s2s_token is set")
    dev_key_ios: Secret | None = Field(None, description="Dev Key of the iOS app, if another")
    dev_key_android: Secret | None = Field(
        None, description="Dev Key of the Android app, if another"
    )
    s2s_token: Secret | None = Field(None, description="S2S key: events go to API 3")
    sandbox_dev_key: Secret | None = Field(
        None, description="Dev Key for sandbox events; blank: they are skipped"
    )
    revenue_basis: Literal["usd", "local"] = Field("usd", description="Currency of af_revenue")
    sharing_filter: Literal["all"] | Partners | None = Field(
        None, description="Partners not to share with: all, or up to 50 partner ids"
    )

    @model_validator(mode="after")
    def _has_apps_with_keys(self) -> Self:
        if not self.app_id_ios and not self.app_id_android:
            raise ValueError("app_id_ios or app_id_android is needed")
        for platform, app in (("iOS", self.app_id_ios), ("Android", self.app_id_android)):
            if app and not self.key_of(platform):
                raise ValueError(
                    f"dev_key (or dev_key_{platform.lower()}) or s2s_token is needed for {platform}"
                )
        return self

    def key_of(self, platform: str) -> Secret | None:
        """Return the key of production events."""
        own = self.dev_key_ios if platform == "iOS" else self.dev_key_android
        return self.s2s_token or own or self.dev_key


def encode(events: Sequence[Event], settings: AppsFlyerSettings, context: Context) -> Plan:
    """Return one JSON request per event."""
    return one_each(events, lambda event: _request(event, settings, context))


def _request(event: Event, settings: AppsFlyerSettings, context: Context) -> Request | Unsent:
    app = settings.app_id_ios if event.platform == "iOS" else settings.app_id_android
    if not app:
        return Skipped("not_configured", f"no AppsFlyer app id for {event.platform}")
    uid = property_of(event, "_q_appsflyer_user_id")
    if not UID.fullmatch(uid):
        return Skipped("no_identity", "no AppsFlyer id (set the appsFlyerUserID property)")
    sandbox = settings.sandbox_dev_key if event.sandbox else None
    key = sandbox or settings.key_of(event.platform)
    api = "api3" if settings.s2s_token and not sandbox else "api2"  # a dev key fits API 2 alone
    money = _money(event, settings)
    body = _fitted(_body(event, uid, settings, context, money), _value(event, money))
    if body is None:
        return Rejected("too_large", "more than 1 KB even without its optional members")
    return Request.json(
        f"https://{api}.appsflyer.com/inappevent/{quote(app, safe='')}",
        body,
        headers={"authentication": key.get_secret_value() if key else ""},
    )


def _body(
    event: Event,
    uid: str,
    settings: AppsFlyerSettings,
    context: Context,
    money: Mapping[str, str],
) -> dict[str, Any]:
    ios = event.platform == "iOS"
    advertising = advertising_id(event)
    future = event.time > context.now.timestamp()
    return known(
        appsflyer_id=uid,
        customer_user_id=user_id(event),
        eventName=name_of(event, settings, {}),
        eventTime="" if future else iso(event.time, milliseconds=True)[:-1].replace("T", " "),
        eventCurrency=money.get("af_currency"),
        eventValue=" ",  # its place in the order of members
        af_events_api="true",
        idfa=advertising.upper() if ios else "",
        idfv=vendor_id(event).upper(),
        advertising_id="" if ios else advertising.lower(),
        ip=public_ip(event, 4),
        os=event.device.os_version,
        att=event.device.att_status if ios else None,
        bundleIdentifier=event.device.app_id,
        app_version_name=event.device.app_version,
        sharing_filter=settings.sharing_filter,
    )


def _money(event: Event, settings: AppsFlyerSettings) -> dict[str, str]:
    money = revenue_of(event, settings)
    if money is None:
        return {}
    amount, currency = amount_of(money, settings.revenue_basis)
    amount = round(amount, DECIMALS).normalize()
    return {"af_revenue": plain(amount), "af_currency": currency} if amount else {}


def _value(event: Event, money: Mapping[str, str]) -> dict[str, str]:
    return known(
        **money,
        af_content_id=event.product_id,
        af_order_id=event.transaction.transaction_id,
        event_id=event.stable_id,
        original_transaction_id=event.transaction.original_transaction_id,
        store=store_of(event),
        environment=event.environment,
    )


def _fitted(body: dict[str, Any], value: dict[str, str]) -> bytes | None:
    """Return the body in at most 1 KB, without what matters least; None where that is too long."""
    drops: list[tuple[dict[str, Any], str]] = [(value, key) for key in CUSTOM]
    if len(body.get("customer_user_id", "")) > LONG_USER_ID:
        drops.append((body, "customer_user_id"))
    for part, key in [(value, ""), *drops, *((body, key) for key in OPTIONAL)]:
        part.pop(key, None)
        raw = dump({**body, "eventValue": dump_text(value) if value else ""})
        if len(raw) <= KB:
            return raw
    return None


def classify(request: Request, response: Response, settings: AppsFlyerSettings) -> Verdict:
    """Return what the answer means."""
    status, message = response.status, response.text[:200]
    match status:
        case 400 if WRONG_KEY.search(response.text):
            return Misconfigured("unauthorized", message)
        case 403:
            return Misconfigured(
                "forbidden", f"{message}: the account's plan takes no such events".lstrip(": ")
            )
        case 404:
            return Misconfigured("not_found", message or "app id not found in the account")
        case 413:
            return Rejected(reason_of(status), message)
        case _:
            return by_status(response, message, throttle=timedelta(seconds=60))


provider = Provider(
    slug="appsflyer",
    title="AppsFlyer",
    category="Attribution",
    stores=("iOS", "Android"),
    settings=AppsFlyerSettings,
    encode=encode,
    classify=classify,
    limits=Limits(bytes=KB, concurrency=20),
    identifiers=("an AppsFlyer id (`_q_appsflyer_user_id`)",),
    notes=(
        "AppsFlyer answers 200 before it checks an event: look for the first ones in its raw data.",
        "If the app logs purchases with AppsFlyer's SDK too, revenue is counted twice.",
        "For SKAN revenue modes switch S2S recording on in the Conversion Studio.",
        "Event names of more than 45 characters are missing from the dashboard.",
        "A retry after a timeout may count an event twice: AppsFlyer knows no event ids.",
    ),
)

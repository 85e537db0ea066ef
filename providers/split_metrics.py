"""SplitMetrics Acquire (formerly SearchAdsHQ): events of users who came through Apple Search Ads.

Source: https://help.splitmetrics.com/
Batch:  none: one event a request, all of it in the URL.
Dedup:  not promised; `event_id` is the same on every attempt.
Errors: by status; a 2xx is taken unless its body says otherwise.
"""

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated, Literal
from uuid import NAMESPACE_URL, uuid5

from msgspec.structs import replace
from pydantic import Field

from providers.kit import (
    Context,
    Event,
    Json,
    Limits,
    Misconfigured,
    Plan,
    Provider,
    Rejected,
    Request,
    Response,
    Retry,
    Secret,
    Settings,
    Skipped,
    Unsent,
    Verdict,
    advertising_id,
    amount_of,
    at,
    attributed,
    attribution_of,
    by_status,
    known,
    matching,
    name_of,
    one_each,
    plain,
    reason_of,
    revenue_of,
    text_at,
    usable,
)

STARTS = frozenset({"trial_started", "subscription_started"})  # a user has one of these, once
REQUIRED = ("org_id", "campaign_id", "ad_group_id", "country_or_region")
UNKNOWN = "client id or endpoint unknown"

ClientId = Annotated[
    Secret,
    matching(r"[A-Za-z0-9]{16,40}", "must be the Client ID from Acquire: 16 to 40 letters, digits"),
]
AppId = Annotated[
    str, matching(r"[0-9]{6,12}", 'must be the App Store id, 6 to 12 digits (without "id")')
]
Endpoint = Annotated[
    str,
    matching(
        r"https://([a-z0-9-]+\.)*(searchadshq|splitmetrics)\.com/[!-\"$->@-~]*",
        "must be an address at https://searchadshq.com/ or splitmetrics.com, without a query",
    ),
]


class SplitMetricsSettings(Settings):
    """An app and its Client ID, and in which of the seen shapes it gets its events."""

    client_id: ClientId = Field(description="Client ID from Acquire's settings")
    app_id: AppId = Field(description="App Store id of the app")
    endpoint: Endpoint = Field(
        "https://events.searchadshq.com/api/events/{client_id}/custom",
        description="Where events are sent",
    )
    revenue_basis: Literal["proceeds", "gross"] = Field(
        "proceeds", description="Amounts after or before the store's commission"
    )
    currency_basis: Literal["usd", "local"] = Field("usd", description="Currency of `revenue`")
    refund_revenue: Literal["none", "negative"] = Field(
        "none", description="The amount of a refund; Acquire is said to take no negative ones"
    )
    send_install: bool = Field(
        False, description="Send an install too, with a user's first trial or subscription"
    )
    user_id_source: Literal["user_id", "identity_id"] = Field(
        "user_id", description="Which id names the user"
    )
    time_unit: Literal["s", "ms", "datetime"] = Field("s", description="Form of the times")
    require_keyword: bool = Field(False, description="Skip users without a keyword")


def encode(events: Sequence[Event], settings: SplitMetricsSettings, context: Context) -> Plan:
    """Return one request per event of a user who came through an ad, after that of the install."""
    return one_each(events, lambda event: _requests(event, settings, context))


def _requests(
    event: Event, settings: SplitMetricsSettings, context: Context
) -> Sequence[Request] | Unsent:
    record = attribution_of(event, context)
    if isinstance(record, Skipped | Retry):
        return record
    if not all(attributed(record, key) for key in REQUIRED):
        return Skipped("not_attributed", "incomplete Apple Search Ads attribution")
    if settings.require_keyword and not attributed(record, "keyword_id"):
        return Skipped("not_attributed", "no keyword in the user's Apple Search Ads attribution")
    source = settings.user_id_source
    user = usable(event.user_id if source == "user_id" else event.identity_id)
    if not user:
        return Skipped("no_identity", f"no {source} for this user")
    return tuple(_calls(event, settings, record, user))


def _calls(
    event: Event, settings: SplitMetricsSettings, record: Mapping[str, Json], user: str
) -> Iterator[Request]:
    url = settings.endpoint.replace("{client_id}", settings.client_id.get_secret_value())
    who = _who(event, settings, record, user)

    def call(name: str, kind: str, happened: int, event_id: str, **more: str) -> Request:
        values = known(
            source="Apple Search Ads",
            name=name,
            type=kind,
            **who,
            event_time=_time(happened, settings),
            conversion_type=attributed(record, "conversion_type"),
            event_id=event_id,
            **more,
        )
        return Request.query("GET", url, values)

    step = 0
    if settings.send_install and event.name in STARTS and event.installed_at is not None:
        installation = uuid5(NAMESPACE_URL, f"onward:{event.project_id}/install/{user}")
        yield call("install", "install", event.installed_at, str(installation))
        step = 1
    name = name_of(event, settings, {}) or ""
    kind = name if settings.time_unit == "datetime" else "in-app"
    moment = call(name, kind, event.time, event.stable_id, **_money(event, settings))
    yield replace(moment, step=step)


def _who(
    event: Event, settings: SplitMetricsSettings, record: Mapping[str, Json], user: str
) -> dict[str, str]:
    return known(
        app_id=settings.app_id,
        user_id=user,
        idfa=advertising_id(event),
        adaccount_id=attributed(record, "org_id"),
        campaign_id=attributed(record, "campaign_id"),
        adgroup_id=attributed(record, "ad_group_id"),
        keyword_id=attributed(record, "keyword_id"),
        ad_id=attributed(record, "ad_id"),
        country_or_region=attributed(record, "country_or_region"),
        tap_time=_time(_clicked(record), settings),
        open_time=_time(event.installed_at, settings),
    )


def _clicked(record: Mapping[str, Json]) -> int | None:
    """Return the click's time in Unix seconds; Apple's has minutes: 2025-12-01T08:57Z."""
    try:
        clicked = datetime.fromisoformat(attributed(record, "click_date"))
        return int(clicked.replace(tzinfo=clicked.tzinfo or UTC).timestamp())
    except (ValueError, OverflowError):
        return None


def _time(seconds: int | None, settings: SplitMetricsSettings) -> str:
    if seconds is None:
        return ""
    if settings.time_unit == "datetime":
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")
    return f"{seconds * 1000 if settings.time_unit == 'ms' else seconds}"


def _money(event: Event, settings: SplitMetricsSettings) -> dict[str, str]:
    money = revenue_of(event, settings, settings.revenue_basis)
    if money is None:
        return {}
    amount, currency = amount_of(money, settings.currency_basis)
    if amount == 0 or (amount < 0 and settings.refund_revenue == "none"):
        return {}
    return {"revenue": plain(amount), "currency": currency}


def classify(request: Request, response: Response, settings: SplitMetricsSettings) -> Verdict:
    """Return what the answer means: its status, and a fault told inside a 2xx."""
    body = response.json
    error = at(body, "error") or at(body, "errors")
    said = (text_at(body, key) for key in ("error", "message"))
    message = next(filter(None, said), response.text)
    match response.status:
        case status if 200 <= status < 300:
            failed = at(body, "success") in (False, "false")
            told = error or failed or text_at(body, "status").lower() == "error"
            return Rejected("refused", response.text) if told else by_status(response)
        case status if 300 <= status < 400:
            return Rejected("redirect", "redirects, which is not followed (see endpoint)")
        case 401 | 403 | 404:
            return Misconfigured(reason_of(response.status), message or UNKNOWN)
        case _:
            return by_status(response, message, throttle=timedelta(minutes=1))


provider = Provider(
    slug="split_metrics",
    title="SplitMetrics Acquire",
    category="Attribution",
    stores=("iOS",),
    settings=SplitMetricsSettings,
    encode=encode,
    classify=classify,
    limits=Limits(concurrency=5),
    identifiers=(
        "an Apple Search Ads attribution with account, campaign, ad group and country",
        "a user id",
    ),
    notes=(
        "Acquire shows an event only once a custom conversion lists its exact name.",
        "Revenue tracking in the app must be off, else revenue is counted twice.",
        "Only users who came through Apple Search Ads are sent; others are skipped, not failed.",
        "A repeat after a lost answer may be counted twice.",
    ),
    needs_attribution=True,
)

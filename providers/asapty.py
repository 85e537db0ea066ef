"""Asapty: revenue events of users who came through Apple Search Ads.

Source: https://www.revenuecat.com/docs/integrations/attribution/asapty
Batch:  none: one event a request, all of it in the URL.
Dedup:  none stated; `transaction_id` travels with every event.
Errors: taken means HTTP 200 and `result.status` OK, or no JSON at all unless strict_ack is on.
"""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from decimal import Decimal
from typing import Annotated, Literal

from pydantic import Field

from providers.kit import (
    KB,
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
    Unsent,
    Verdict,
    at,
    attributed,
    attribution_of,
    by_status,
    dump_text,
    known,
    matching,
    name_of,
    one_each,
    plain,
    reason_of,
    revenue_of,
    rounded,
)

URL_BYTES = 4 * KB
UNKNOWN = "unknown Asapty ID or endpoint"
ENDPOINT = r"https://([a-z0-9-]+\.)*asapty\.com/[!-\"$->@-~]*"  # no query, no fragment

AsaptyId = Annotated[
    Secret,
    matching(
        r"[A-Za-z0-9_-]{4,64}", "must be the Asapty ID of Settings → General: 4 to 64 letters"
    ),
]
Endpoint = Annotated[
    str, matching(ENDPOINT, "must be an address at https://asapty.com/, without a query")
]


class AsaptySettings(Settings):
    """An app's Asapty ID, and in which of the seen shapes it gets its events."""

    asapty_id: AsaptyId = Field(description="Asapty ID, one per app")
    endpoint: Endpoint = Field(
        "https://asapty.com/_api/mmpEvents/", description="Where events are sent"
    )
    source: str = Field(
        "qonversion", max_length=64, description="Whose events Asapty takes them for"
    )
    revenue_basis: Literal["proceeds", "gross"] = Field(
        "proceeds", description="Amounts after or before the store's commission"
    )
    revenue_key: Literal["af_revenue", "revenue", "both"] = Field(
        "af_revenue", description="What the amount is called"
    )
    refund_revenue: Literal["negative", "zero"] = Field(
        "negative", description="The amount of a refund"
    )
    install_time_unit: Literal["s", "ms"] = Field("s", description="Unit of install_time")
    strict_ack: bool = Field(False, description="Send again what was answered without JSON")


def encode(events: Sequence[Event], settings: AsaptySettings, context: Context) -> Plan:
    """Return one request per event of a user who came through an ad."""
    return one_each(events, lambda event: _request(event, settings, context))


def _request(event: Event, settings: AsaptySettings, context: Context) -> Request | Unsent:
    record = attribution_of(event, context)
    if isinstance(record, Skipped | Retry):
        return record
    campaign = attributed(record, "campaign_id")
    if not campaign:
        return Skipped("not_attributed", "no campaign in the user's Apple Search Ads attribution")
    installed = event.installed_at
    values = known(
        source=settings.source,
        asaptyid=settings.asapty_id.get_secret_value(),
        event_name=name_of(event, settings, {}),
        conversiondate=f"{event.time * 1000}",  # epoch, ms
        campaignid=campaign,
        adgroupid=attributed(record, "ad_group_id"),
        keywordid=attributed(record, "keyword_id"),
        ad_id=attributed(record, "ad_id"),
        claim_type=attributed(record, "claim_type"),
        install_time=(
            f"{installed * (1000 if settings.install_time_unit == 'ms' else 1)}"
            if installed is not None
            else ""
        ),
        json=dump_text(_details(event, settings)),
    )
    request = Request.query("GET", settings.endpoint, values)
    if len(request.url) > URL_BYTES:
        return Rejected("too_large", f"an address of {len(request.url):,} characters")
    return request


def _details(event: Event, settings: AsaptySettings) -> Mapping[str, Json]:
    transaction = event.transaction
    bought = transaction.transaction_date
    return known(
        **_revenue(event, settings),
        transaction_id=transaction.transaction_id,
        original_transaction_id=transaction.original_transaction_id,
        purchase_date=bought * 1000 if bought else None,  # epoch, ms
        environment=event.environment.upper(),
        vendor_product_id=event.product_id,
        store_country=event.country,
    )


def _revenue(event: Event, settings: AsaptySettings) -> dict[str, str]:
    money = revenue_of(event, settings, settings.revenue_basis)
    if money is None:
        return {}
    amount = rounded(money.value_usd, "USD")
    if amount < 0 and settings.refund_revenue == "zero":
        amount = rounded(Decimal(0), "USD")
    keys = ("af_revenue", "revenue") if settings.revenue_key == "both" else (settings.revenue_key,)
    return {**dict.fromkeys(keys, plain(amount)), "af_currency": "USD"}


def classify(request: Request, response: Response, settings: AsaptySettings) -> Verdict:
    """Return what the answer means; a 200 is judged by its `result.status`."""
    match response.status:
        case 200:
            return _acknowledged(response, settings)
        case status if 300 <= status < 400:
            return Rejected("redirect", "redirects, which is not followed (see endpoint)")
        case 401 | 403 | 404:
            return Misconfigured(reason_of(response.status), response.text or UNKNOWN)
        case _:
            return by_status(response, throttle=timedelta(minutes=1))


def _acknowledged(response: Response, settings: AsaptySettings) -> Outcome:
    body = response.json
    if at(body, "result", "status") == "OK" and not at(body, "error"):
        return Delivered()
    if body is not None:
        return Rejected("refused", response.text[:300])
    if settings.strict_ack:
        return Retry("no_acknowledgement", response.text or "empty answer")
    return Delivered("answered without a result")


provider = Provider(
    slug="asapty",
    title="Asapty",
    category="Attribution",
    stores=("iOS",),
    settings=AsaptySettings,
    encode=encode,
    classify=classify,
    limits=Limits(concurrency=5),
    identifiers=("an Apple Search Ads attribution with a campaign (asa_attribution)",),
    notes=(
        "Only users who came through Apple Search Ads are sent; others are skipped, not failed.",
        "Users known before their attribution was resolved are never sent.",
        "Amounts are in US dollars.",
    ),
    needs_attribution=True,
)

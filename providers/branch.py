"""Branch, Events API v2.

Source: https://help.branch.io/developers-hub/reference/eventsapi
Batch:  none: one event a request.
Dedup:  none documented, so a retry after a timeout may count an event twice.
Errors: a 400's `error` is text, an object by field or nested; about the key it means settings.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Annotated, Any, ClassVar, Literal

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
    Secret,
    Settings,
    Skipped,
    Unsent,
    Verdict,
    advertising_id,
    amount_of,
    android_id,
    at,
    by_status,
    iso,
    known,
    matching,
    name_of,
    one_each,
    one_line,
    plain,
    public_ip,
    reason_of,
    revenue_of,
    store_of,
    usable,
    user_id,
    vendor_id,
)

URL = "https://api2.branch.io/v2/event"
STANDARD = (
    "ADD_TO_CART ADD_TO_WISHLIST VIEW_CART INITIATE_PURCHASE ADD_PAYMENT_INFO CLICK_AD PURCHASE "
    "RESERVE SPEND_CREDITS VIEW_AD SEARCH VIEW_ITEM VIEW_ITEMS RATE SHARE INITIATE_STREAM "
    "COMPLETE_STREAM COMPLETE_REGISTRATION COMPLETE_TUTORIAL ACHIEVE_LEVEL UNLOCK_ACHIEVEMENT "
    "INVITE LOGIN START_TRIAL SUBSCRIBE"
)
NAMES = {
    "trial_started": "START_TRIAL",
    "trial_converted": "SUBSCRIBE",
    "subscription_started": "SUBSCRIBE",
    "in_app_purchase": "PURCHASE",
}
NAME = re.compile(r"(?!(?:open|install|reinstall)$).+", re.IGNORECASE)
WRONG_KEY = re.compile(r"branch[ _-]?key", re.IGNORECASE)


class BranchSettings(Settings):
    """An app's live key; sandbox events need its test key."""

    branch_key: Annotated[
        Secret, matching(r"key_live_[A-Za-z0-9]+", "must be the live key: key_live_…")
    ] = Field(description="Branch key (live)")
    test_branch_key: (
        Annotated[Secret, matching(r"key_test_[A-Za-z0-9]+", "must be the test key: key_test_…")]
        | None
    ) = Field(None, description="Branch key (test) for sandbox events; blank: they are skipped")
    revenue_basis: Literal["usd", "local"] = Field("usd", description="Currency of `revenue`")
    user_id_source: Literal["auto", "identity_id", "custom_user_id", "user_id"] = Field(
        "auto", description="Which id the app gives to Branch's setIdentity; auto: the first known"
    )
    send_start_trial: bool = Field(
        False, description="Send START_TRIAL too where trial_started has a name of its own"
    )
    max_event_age: int | None = Field(
        None,
        ge=1,
        le=3650,
        description="Days after which an event is skipped, as Branch counts it today",
    )

    name_pattern: ClassVar = NAME
    name_rule: ClassVar = "Branch tracks open, install and reinstall itself"

    def takes_sandbox(self) -> bool:
        """Whether sandbox events are sent: by the switch, or because there is a test key."""
        return self.send_sandbox or self.test_branch_key is not None


def encode(events: Sequence[Event], settings: BranchSettings, context: Context) -> Plan:
    """Return one JSON request per event, and a second one for START_TRIAL where asked for."""
    return one_each(events, lambda event: _requests(event, settings, context))


def _requests(event: Event, settings: BranchSettings, context: Context) -> list[Request] | Unsent:
    oldest = settings.max_event_age
    if oldest and context.now.timestamp() - event.time > timedelta(days=oldest).total_seconds():
        return Skipped("too_old", "too old for Branch")
    ids = _ids(event, settings)
    if not ids:
        return Skipped("no_identity", "no Branch identity or device id")
    name = name_of(event, settings, NAMES) or ""
    if not NAME.fullmatch(name):
        return Rejected("bad_name", f"Branch tracks {name} itself (set event_names)")
    names = [name]
    if settings.send_start_trial and event.name == "trial_started" and name != "START_TRIAL":
        names.append("START_TRIAL")
    body = _body(event, ids, settings)
    return [_request(name, body, settings, event, step) for step, name in enumerate(names)]


def _request(
    name: str, body: Mapping[str, Json], settings: BranchSettings, event: Event, step: int
) -> Request:
    key = (settings.test_branch_key if event.sandbox else None) or settings.branch_key
    return Request.json(
        f"{URL}/{'standard' if name in STANDARD.split() else 'custom'}",
        {"branch_key": key.get_secret_value(), "name": name, **body},
        headers={"Accept": "application/json"},
        step=step,
    )


def _ids(event: Event, settings: BranchSettings) -> dict[str, str]:
    advertising = advertising_id(event)
    ios = event.platform == "iOS"
    match settings.user_id_source:
        case "identity_id":
            identity = usable(event.identity_id)
        case "custom_user_id":
            identity = usable(event.custom_user_id) or usable(
                event.properties.get("_q_custom_user_id", "")
            )
        case "user_id":
            identity = usable(event.user_id)
        case _:
            identity = user_id(event)
    return known(
        developer_identity=identity,
        idfa=advertising if ios else "",
        idfv=vendor_id(event),
        aaid="" if ios else advertising,
        android_id=android_id(event),
    )


def _body(event: Event, ids: Mapping[str, str], settings: BranchSettings) -> dict[str, Json]:
    device = event.device
    money, refunded = _money(event, settings)
    return known(
        user_data=known(
            os=event.platform,
            os_version=device.os_version,
            environment="FULL_APP",
            **ids,
            limit_ad_tracking=device.limit_ad_tracking,
            ip=public_ip(event),
            country=event.country,
            language=device.language,
            app_version=device.app_version,
            brand=device.brand,
            model=device.model,
            user_agent=device.user_agent,
        ),
        event_data=known(
            transaction_id=event.transaction.transaction_id,
            **money,
            description=event.product_id,
        ),
        custom_data=known(
            event_id=event.stable_id,
            product_id=event.product_id,
            original_transaction_id=event.transaction.original_transaction_id,
            store=store_of(event),
            event_time=iso(event.time),
            **refunded,
        ),
    )


def _money(event: Event, settings: BranchSettings) -> tuple[dict[str, Any], dict[str, str]]:
    """Return event_data's members, or what was given back: Branch takes no negative revenue."""
    money = revenue_of(event, settings)
    if money is None:
        return {}, {}
    amount, currency = amount_of(money, settings.revenue_basis)
    if amount < 0:
        return {}, {"refund_amount": plain(-amount), "refund_currency": currency}
    return ({"revenue": amount, "currency": currency} if amount else {}), {}


def classify(request: Request, response: Response, settings: BranchSettings) -> Verdict:
    """Return what the answer means."""
    status = response.status
    faults = list(_faults(at(response.json, "error")))
    message = one_line("; ".join(faults)) or response.text
    if status == 400 or (status // 100 == 2 and faults):
        if WRONG_KEY.search(message):
            return Misconfigured("unauthorized", message)
        return Rejected("bad_request", message)
    if status == 404:
        return Misconfigured("not_found", message)
    if status == 413:
        return Rejected(reason_of(status), message)
    return by_status(response, message, throttle=timedelta(seconds=10), no_pages=True)


def _faults(error: Json, path: str = "", deeper: int = 3) -> Iterator[str]:
    """Yield `user_data.os: missing required field` and the like from any form of `error`."""
    if isinstance(at(error, "message"), str):
        error = error["message"]
    if isinstance(error, dict | list):
        named = error.items() if isinstance(error, dict) else (("", part) for part in error)
        for key, part in named if deeper else ():
            yield from _faults(part, f"{path}.{key}".strip("."), deeper - 1)
    elif error:
        yield f"{path}: {error}" if path else str(error)


provider = Provider(
    slug="branch",
    title="Branch",
    category="Attribution",
    stores=("iOS", "Android"),
    settings=BranchSettings,
    encode=encode,
    classify=classify,
    limits=Limits(concurrency=10),
    names=NAMES,
    identifiers=(
        "the user id the app gives to Branch's setIdentity, or IDFA or IDFV, AAID or Android id",
    ),
    notes=(
        "Branch counts an event when it arrives; its own time is in custom_data.event_time.",
        "Branch answers 200 to an unknown user id: look whether the first events are attributed.",
        "If the app logs purchases with Branch's SDK too, revenue is counted twice.",
        "Refunds go out without revenue; the amount is in custom_data.",
    ),
)

"""CleverTap, events through /1/upload.

Source: https://developer.clevertap.com/docs/upload-events-api
Batch:  1,000 records, 100 here: an answer may hold all of them, and 64 KiB of it are read;
        15 uploads at once per account; 4 MB a request here, none is published.
Dedup:  none: what is sent twice counts twice; `event_id` is in `evtData`.
Errors: a 200 may be partial or a failure; refused records come back whole, with a code each.
"""

import re
from collections.abc import Sequence
from datetime import timedelta
from typing import Annotated, Literal

from msgspec.structs import replace
from pydantic import Field

from providers.kit import (
    MB,
    MONEY_IN,
    Check,
    Context,
    Delivered,
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
    amount_of,
    at,
    by_status,
    clipped,
    dump,
    in_batches,
    known,
    matching,
    name_of,
    one_line,
    property_of,
    revenue_of,
    store_of,
    text_at,
    user_id,
)

SYSTEM = (
    "App (Launched|Installed|Uninstalled)|Notification (Sent|Viewed|Clicked)|UTM Visited|"
    "Session Concluded"
)
TEXT = 512  # bytes of a value
RECORDS = 100
LIMITS = Limits(events=RECORDS, bytes=4 * MB, concurrency=15, linger=timedelta(seconds=1))
THROTTLE = timedelta(seconds=60)
SERVER_ERROR = "555"  # of a record; all its other codes are final
OF_REQUEST = range(400, 505)  # codes that are those of HTTP; records' begin at 509

Account = Annotated[str, matching(r"[!-~]+", "must be the Project ID, like ABC-1D2-345Z")]


class ClevertapSettings(Settings):
    """A project's id and passcode, and the region it lives in."""

    account_id: Account = Field(description="Project ID, like ABC-1D2-345Z")
    passcode: Secret = Field(description="Passcode of the project")
    region: Literal["eu1", "in1", "sg1", "us1", "aps3", "mec1"] = Field(
        "eu1",
        description="Europe, India, Singapore, United States, Indonesia or Middle East (UAE)",
    )
    sandbox_account_id: Account | None = Field(None, description="Project ID for sandbox events")
    sandbox_passcode: Secret | None = Field(None, description="Passcode of that project")
    revenue_basis: Literal["usd", "local"] = Field("local", description="Currency of `amount`")
    send_charged: bool = Field(False, description="Also send money in as the system event Charged")
    identify_by: Literal["identity", "objectId"] = Field(
        "identity", description="The app's user id, or CleverTap's own id"
    )
    user_property_for_object_id: str = Field(
        "clevertap_id", description="Property with CleverTap's own id"
    )

    name_pattern = re.compile(rf"(?s)(?!(?:{SYSTEM})$).{{1,120}}")
    name_rule = "at most 120 characters, and none of CleverTap's system events"
    pairs = (("sandbox_account_id", "sandbox_passcode"),)


def encode(events: Sequence[Event], settings: ClevertapSettings, context: Context) -> Plan:
    """Return batches of records, sandbox apart from production."""
    plan = in_batches(
        events,
        limits_of(settings),
        lambda event: _records(event, settings),
        lambda items, sandbox: _upload(b'{"d":' + items + b"}", settings, sandbox=sandbox),
        group=lambda event: event.sandbox and settings.sandbox_account_id is not None,
    )
    return replace(plan, requests=tuple(_named(request, events) for request in plan.requests))


def _named(request: Request, events: Sequence[Event]) -> Request:
    ids = (events[position].stable_id for position in request.events)
    return replace(request, refs={name: index for index, name in enumerate(ids)})


def _upload(body: bytes, settings: ClevertapSettings, *, sandbox: bool, query: str = "") -> Request:
    account, passcode = settings.account_id, settings.passcode
    if sandbox and settings.sandbox_account_id and settings.sandbox_passcode:
        account, passcode = settings.sandbox_account_id, settings.sandbox_passcode
    return Request.json(
        f"https://{settings.region}.api.clevertap.com/1/upload{query}",
        body,
        headers={
            "X-CleverTap-Account-Id": account,
            "X-CleverTap-Passcode": passcode.get_secret_value(),
        },
        content_type="application/json; charset=utf-8",
    )


def _records(event: Event, settings: ClevertapSettings) -> tuple[dict[str, Json], ...] | Skipped:
    """Return the event's record and, if wanted, that of the charge."""
    key = settings.user_property_for_object_id
    by_object = settings.identify_by == "objectId"
    who = property_of(event, key) if by_object else user_id(event)
    if not who:
        remedy = f"user property {key}" if by_object else "call identify in the app"
        return Skipped("no_identity", f"no CleverTap identity ({remedy})")

    def record(name: str | None, data: dict[str, Json]) -> dict[str, Json]:
        head = {"type": "event", settings.identify_by: who}
        return {**head, "evtName": name, "ts": event.time, "evtData": data}

    own = record(name_of(event, settings, {}), _data(event, settings))
    charge = _charge(event, settings) if settings.send_charged else {}
    return (own, record("Charged", charge)) if charge else (own,)


def _data(event: Event, settings: ClevertapSettings) -> dict[str, Json]:
    money = revenue_of(event, settings)
    amounts: dict[str, Json] = {}
    if money is not None:
        amount, currency = amount_of(money, settings.revenue_basis)
        amounts = {"amount": amount, "currency": currency, "amount_usd": money.value_usd}
    return known(
        **amounts,
        product_id=clipped(event.product_id, TEXT),
        old_product_id=clipped(event.old_product_id, TEXT),
        store=store_of(event),
        environment=event.environment,
        transaction_id=clipped(event.transaction.transaction_id, TEXT),
        original_transaction_id=clipped(event.transaction.original_transaction_id, TEXT),
        event_id=event.stable_id,
    )


def _charge(event: Event, settings: ClevertapSettings) -> dict[str, Json]:
    """Return the data of Charged: for money in only, CleverTap takes no negative charge.

    https://developer.clevertap.com/docs/events#recording-customer-purchases
    """
    money = revenue_of(event, settings)
    if money is None or event.name not in MONEY_IN or money.value <= 0:
        return {}
    amount, currency = amount_of(money, settings.revenue_basis)
    item = {"product_id": clipped(event.product_id, TEXT), "amount": amount, "quantity": 1}
    return {
        "Amount": amount,
        "Currency": currency,
        "Charged ID": clipped(event.transaction.transaction_id, TEXT) or event.stable_id,
        "Items": [known(**item)],
        "event_id": event.stable_id,
    }


def classify(request: Request, response: Response, settings: ClevertapSettings) -> Verdict:
    """Return what the answer means; of a 200, its own status decides."""
    body = response.json
    error = text_at(body, "error") or response.text
    code = at(body, "code")
    if response.status == 200 and type(code) is int and code in OF_REQUEST:
        response = replace(response, status=code)
    if response.status in (401, 403):
        hint = f"{error} (or the project is not in region {settings.region})"
        return Misconfigured("unauthorized", hint)
    if response.status == 200:
        if body is None and response.is_cut and not response.is_page:
            return Split("long_answer", "the answer is too long to be read")
        return _uploaded(request, body, error)
    if response.status == 400:
        return Split("bad_request", error)
    return by_status(response, error, throttle=THROTTLE)


def _uploaded(request: Request, body: Json, error: str) -> Verdict:
    named, unknown = _refused(request, at(body, "unprocessed"))
    match text_at(body, "status"):
        case "success" | "partial" if not unknown:
            rest: Outcome = Delivered()
        case "success" | "partial" | "fail":
            rest = Split("bad_request", unknown or error)
        case _:
            rest = Retry("unexpected_answer", error)
    return Partial(named, rest) if named else rest


def _refused(request: Request, unprocessed: Json) -> tuple[dict[int, Outcome], str]:
    """Return the refused events by index, and the words about a record that is none of ours."""
    named: dict[int, Outcome] = {}
    unknown = ""
    entries = unprocessed if isinstance(unprocessed, list) else []
    sent = Response(200, {}, request.body).json["d"] if entries else []
    for entry in entries:
        words = one_line(f"{text_at(entry, 'error')} (code {text_at(entry, 'code')})")
        index = _index(request, at(entry, "record"), sent)
        if index is None:
            unknown = words
            continue
        again = text_at(entry, "code") == SERVER_ERROR
        outcome = Retry("server_error", words) if again else Rejected("invalid_event", words)
        named.setdefault(index, outcome)
    return named, unknown


def _index(request: Request, record: Json, sent: Sequence[Json]) -> int | None:
    """Return whose record it is: by the event's id, else by all that it has in common with one."""
    event_id = text_at(record, "evtData", "event_id")
    if event_id in request.refs or len(request.events) == 1:
        return request.refs.get(event_id, 0)
    keys = ("identity", "objectId", "evtName", "ts")
    alike = {
        request.refs[text_at(own, "evtData", "event_id")]
        for own in sent
        if all(at(record, key) == at(own, key) for key in keys)
    }
    return alike.pop() if len(alike) == 1 else None


def _check(settings: ClevertapSettings, context: Context) -> Request:
    """Return a dry run of one event of a made-up user."""
    now = int(context.now.timestamp())
    head = {"type": "event", settings.identify_by: "settings-check"}
    record = {**head, "evtName": "settings_check", "ts": now, "evtData": {}}
    return _upload(dump({"d": [record]}), settings, sandbox=False, query="?dryRun=1")


def _checked(response: Response) -> Outcome:
    body = response.json
    error = text_at(body, "error") or response.text
    if at(body, "code") in (401, 403):
        return Misconfigured("unauthorized", error)
    return by_status(response, error)


def limits_of(settings: ClevertapSettings) -> Limits:
    """Return the limits: with Charged, an event may be two records."""
    return replace(LIMITS, events=RECORDS // 2) if settings.send_charged else LIMITS


provider = Provider(
    slug="clevertap",
    title="CleverTap",
    category="Email & push",
    stores=("iOS", "Android", "Stripe"),
    settings=ClevertapSettings,
    encode=encode,
    classify=classify,
    limits=LIMITS,
    limits_of=limits_of,
    identifiers=("a user id: the one the app gives to CleverTap's SDK as identity",),
    notes=(
        "In a wrong region the project is unknown, which reads like a wrong passcode.",
        "CleverTap knows no idempotency: an event whose answer was lost is counted twice.",
        "Uploads at once are limited per account: integrations of one account share the 15.",
        "A schema in CleverTap's dashboard may drop events later; that does not show here.",
    ),
    check=Check(_check, _checked),
)

"""Braze, custom events and purchases through /users/track.

Source: https://www.braze.com/docs/api/endpoints/user_data/post_user_track
Batch:  75 events, 75 purchases and 75 attributes a request (monthly active users plans: 50 in
        all); 4 MB, and 100 KB an object.
Dedup:  none: what is sent twice counts twice; `event_id` is among the properties.
Errors: a success may name refused entries by array and index; the others are in. A purchase in a
        currency unknown to Braze goes again in US dollars.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Annotated, Literal, TypeAlias

from msgspec.structs import replace
from pydantic import Field, model_validator

from providers.kit import (
    KB,
    MB,
    MONEY_IN,
    MONEY_OUT,
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
    Unsent,
    Verdict,
    amount_of,
    at,
    by_status,
    dump,
    iso,
    known,
    matching,
    name_of,
    property_of,
    revenue_of,
    seconds,
    store_of,
    text_at,
    user_id,
)

REST = {
    **{f"US-0{number}": f"https://rest.iad-0{number}.braze.com" for number in range(1, 9)},
    "US-09": "https://rest.us-09.braze.com",
    "US-10": "https://rest.us-10.braze.com",
    "EU-01": "https://rest.fra-01.braze.eu",
    "EU-02": "https://rest.fra-02.braze.eu",
    "AU-01": "https://rest.au-01.braze.com",
    "ID-01": "https://rest.id-01.braze.com",
    "JP-01": "https://rest.jp-01.braze.com",
}
PER_ARRAY = 75
COMBINED, COMBINED_MAU = 3 * PER_ARRAY, 50
TEXT = 255  # characters of a name or a property
LARGEST = 100 * KB
LIMITS = Limits(events=PER_ARRAY, bytes=4 * MB, linger=timedelta(seconds=0.5))
NO_DATA = "Valid data must be provided"
DOLLARS = "dollars"  # the note of an event that is in, but for its purchase

Instance: TypeAlias = Literal[
    "US-01", "US-02", "US-03", "US-04", "US-05", "US-06", "US-07", "US-08", "US-09", "US-10",
    "EU-01", "EU-02", "AU-01", "ID-01", "JP-01",
]  # fmt: skip
ApiKey = Annotated[
    Secret,
    matching(
        r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}",
        "must be a REST API key, like 01234567-89ab-cdef-0123-456789abcdef",
    ),
]
Endpoint = Annotated[
    str,
    matching(
        r"https://rest\.[a-z0-9-]+\.braze\.(com|eu)",
        "must be a REST endpoint, like https://rest.iad-01.braze.com",
    ),
]
Member: TypeAlias = tuple[int, Mapping[str, bytes]]  # position, and its object by array


class BrazeSettings(Settings):
    """A workspace's REST API key with the permission users.track, and where Braze runs it."""

    api_key: ApiKey = Field(description="REST API key with the permission users.track")
    instance: Literal[Instance, "custom"] = Field(description="Instance, as in the dashboard")
    rest_endpoint: Endpoint | None = Field(None, description="REST endpoint of a custom instance")
    app_id: str | None = Field(None, description="App identifier")
    app_id_ios: str | None = Field(None, description="App identifier of the iOS app")
    app_id_android: str | None = Field(None, description="App identifier of the Android app")
    send_purchases: bool = Field(True, description="Send amounts as purchases, too")
    revenue_basis: Literal["usd", "local"] = Field("local", description="Currency of `revenue`")
    user_alias_label: str = Field(
        "qonversion_user_id", description="Label of an alias that comes without one"
    )
    use_email: bool = Field(
        False, description="Identify users by e-mail where no other id is known"
    )
    create_users: bool = Field(True, description="Create profiles of users unknown to Braze")
    mau_plan: bool = Field(False, description="Plan by monthly active users: 50 objects a request")
    sandbox_api_key: ApiKey | None = Field(None, description="REST API key for sandbox events")
    sandbox_instance: Instance | None = Field(
        None, description="Instance of that key, if another one"
    )

    name_pattern = re.compile(r"(?s)(?!ecommerce\.).{1,255}")
    name_rule = "at most 255 characters, not beginning with ecommerce., which Braze reserves"

    @model_validator(mode="after")
    def _endpoints_are_known(self) -> "BrazeSettings":
        if (self.instance == "custom") != (self.rest_endpoint is not None):
            raise ValueError("rest_endpoint goes with instance custom, and only with it")
        if self.sandbox_instance and not self.sandbox_api_key:
            raise ValueError("sandbox_instance needs sandbox_api_key")
        return self


def encode(events: Sequence[Event], settings: BrazeSettings, context: Context) -> Plan:
    """Return requests of events and their purchases, sandbox apart from production."""
    unsent: dict[int, Unsent] = {}
    members: dict[bool, list[Member]] = defaultdict(list)
    for position, event in enumerate(events):
        made = _objects(event, settings, dollars=context.notes.get(event.id) == DOLLARS)
        if isinstance(made, Skipped):
            unsent[position] = made
            continue
        items = {array: dump(item) for array, item in made.items()}
        if max(map(len, items.values())) > LARGEST:
            unsent[position] = Rejected("too_large", f"an object of more than {LARGEST:,} bytes")
        else:
            members[event.sandbox and settings.sandbox_api_key is not None].append(
                (position, items)
            )
    combined = COMBINED_MAU if settings.mau_plan else COMBINED
    requests = [
        _request(batch, settings, sandbox=sandbox)
        for sandbox, some in members.items()
        for batch in _batches(some, combined)
    ]
    return Plan(tuple(requests), unsent)


def _batches(members: Iterable[Member], combined: int) -> Iterator[list[Member]]:
    """Yield batches within all caps, in order: per array, combined, and bytes."""
    batch: list[Member] = []
    counts: Counter[str] = Counter()
    size = KB
    for position, items in members:
        more = Counter(items.keys())
        length = sum(map(len, items.values())) + len(items)
        if batch and (
            max((counts + more).values()) > PER_ARRAY
            or counts.total() + more.total() > combined
            or size + length > LIMITS.bytes
        ):
            yield batch
            batch, counts, size = [], Counter(), KB
        batch.append((position, items))
        counts += more
        size += length
    if batch:
        yield batch


def _request(batch: Sequence[Member], settings: BrazeSettings, *, sandbox: bool) -> Request:
    arrays: dict[str, list[bytes]] = defaultdict(list)
    refs: dict[str, int] = {}
    for index, (_, items) in enumerate(batch):
        for array, item in items.items():
            refs[f"{array}.{len(arrays[array])}"] = index
            arrays[array].append(item)
    members = [b'"%b":[%b]' % (name.encode(), b",".join(items)) for name, items in arrays.items()]
    events = tuple(position for position, _ in batch)
    body = b"{" + b",".join(members) + b"}"
    return _track(body, settings, sandbox=sandbox, events=events, refs=refs)


def _track(
    body: bytes,
    settings: BrazeSettings,
    *,
    sandbox: bool,
    events: tuple[int, ...] = (),
    refs: Mapping[str, int] | None = None,
) -> Request:
    endpoint = settings.rest_endpoint or REST[settings.instance]
    if sandbox and settings.sandbox_instance:
        endpoint = REST[settings.sandbox_instance]
    key = (settings.sandbox_api_key if sandbox else None) or settings.api_key
    headers = {"Authorization": f"Bearer {key.get_secret_value()}"}
    url = f"{endpoint}/users/track"
    return Request.json(url, body, headers=headers, events=events, refs=refs or {})


def _objects(
    event: Event, settings: BrazeSettings, *, dollars: bool
) -> dict[str, dict[str, Json]] | Skipped:
    """Return what to put into which array; with `dollars` the purchase alone, in them."""
    who = _identifier(event, settings)
    if not who:
        return Skipped("no_identity", "no Braze identifier (external_id, alias or e-mail)")
    per_store = {"iOS": settings.app_id_ios, "Android": settings.app_id_android}
    head = who | known(app_id=per_store.get(event.platform) or settings.app_id)
    time = iso(event.time)
    objects: dict[str, dict[str, Json]] = {}
    if not dollars:
        objects["events"] = head | {
            "name": name_of(event, settings, {}),
            "time": time,
            "properties": _properties(event, settings),
        }
    money = revenue_of(event, settings)
    if (
        money is not None
        and settings.send_purchases
        and event.product_id
        and event.name in MONEY_IN | MONEY_OUT
    ):
        price, currency = amount_of(money, "usd" if dollars else settings.revenue_basis)
        objects["purchases"] = head | {
            "product_id": event.product_id[:TEXT],
            "currency": currency,
            "price": price,
            "quantity": 1,
            "time": time,
            "properties": {"event_id": event.stable_id},
        }
    return objects or Skipped("switched_off", "the event is in, and purchases are switched off")


def _identifier(event: Event, settings: BrazeSettings) -> dict[str, Json]:
    update_only = {} if settings.create_users else {"_update_existing_only": True}
    if external := user_id(event):
        return {"external_id": external, **update_only}
    if alias := property_of(event, "brazeAliasName"):
        label = property_of(event, "brazeAliasLabel") or settings.user_alias_label
        # an alias is update-only unless that is denied
        return {
            "user_alias": {"alias_name": alias, "alias_label": label},
            "_update_existing_only": not settings.create_users,
        }
    email = property_of(event, "_q_email") if settings.use_email else ""
    return {"email": email, **update_only} if email else {}


def _properties(event: Event, settings: BrazeSettings) -> dict[str, Json]:
    money = revenue_of(event, settings)
    amounts: dict[str, Json] = {}
    if money is not None:
        amount, currency = amount_of(money, settings.revenue_basis)
        amounts = {"revenue": amount, "revenue_usd": money.value_usd}
        amounts |= {"currency": currency, "revenue_currency": currency}
    texts = {
        "product_id": event.product_id,
        "product": event.product_id,
        "old_product_id": event.old_product_id,
        "transaction_id": event.transaction.transaction_id,
        "original_transaction_id": event.transaction.original_transaction_id,
    }
    return known(
        **amounts,
        **{key: text[:TEXT] for key, text in texts.items()},
        store=store_of(event),
        environment=event.environment,
        event_id=event.stable_id,
    )


def classify(request: Request, response: Response, settings: BrazeSettings) -> Verdict:
    """Return what the answer means; a purchase that goes in dollars goes so until it is in."""
    verdict = _meaning(request, response)
    if isinstance(verdict, Retry) and "events.0" not in request.refs:
        return replace(verdict, note=DOLLARS)
    return verdict


def _meaning(request: Request, response: Response) -> Verdict:
    """Return what the answer means: a success may hold errors, its message tells which kind."""
    said = text_at(response.json, "message")
    message = said or response.text
    success = response.status // 100 == 2
    taken = success and said.lower() in ("success", "queued", "")
    named = _named(response.json, request, taken=taken)
    rest: Outcome = Delivered() if taken else Split("bad_request", message)
    match response.status:
        case _ if success:
            if not isinstance(response.json, dict):
                return Retry("unexpected_answer", message)
            return Partial(named, rest) if named else rest
        case 400:
            if named and message.startswith(NO_DATA):  # then nothing was valid
                rest = Rejected("invalid_event", message)
            return Partial(named, rest) if named else rest
        case 404:
            return Misconfigured("not_found", message)
        case 429:
            return Retry("throttled", message, _wait(response), throttled=True)
        case _:
            return by_status(response, message)


def _named(body: Json, request: Request, *, taken: bool) -> dict[int, Outcome]:
    """Return the refused entries, which the answer names by array and index.

    Where the others are `taken`, a purchase refused for its currency alone goes again in dollars.
    """
    named: dict[int, Outcome] = {}
    errors = at(body, "errors")
    first = "events.0" in request.refs  # what goes in dollars has no events
    for error in errors if isinstance(errors, list) else ():
        array, kind = text_at(error, "input_array"), text_at(error, "type")
        index = request.refs.get(f"{array}.{text_at(error, 'index')}")
        if index is None or isinstance(named.get(index), Rejected):
            continue
        named[index] = Rejected("invalid_event", kind)
        if taken and first and array == "purchases" and "currency" in kind.lower():
            named[index] = Retry("bad_currency", kind, timedelta(0), note=DOLLARS)
    return named


def _wait(response: Response) -> timedelta | None:
    """Return how long to wait, from the rate limit's own headers.

    https://www.braze.com/docs/api/api_limits
    """
    after = seconds(response.headers.get("x-ratelimit-retry-after")) or response.retry_after
    reset = response.headers.get("x-ratelimit-reset", "")[:12]  # epoch, s
    if after or not reset.isdecimal():
        return after
    return seconds(int(reset) - response.at.timestamp())


def _check(settings: BrazeSettings, context: Context) -> Request:
    """Return a call whose only event lacks a user, so that a live key changes nothing."""
    lone = {"name": "settings_check", "time": iso(int(context.now.timestamp()))}
    return _track(dump({"events": [lone]}), settings, sandbox=False)


def _checked(response: Response) -> Outcome:
    message = text_at(response.json, "message")
    if response.status == 400 and message.startswith(NO_DATA):
        return Delivered()
    if response.status == 404:
        return Misconfigured("not_found", message or response.text)
    return by_status(response, message)


def limits_of(settings: BrazeSettings) -> Limits:
    """Return the limits of the plan."""
    return replace(LIMITS, events=COMBINED_MAU) if settings.mau_plan else LIMITS


provider = Provider(
    slug="braze",
    title="Braze",
    category="Email & push",
    stores=("iOS", "Android", "Stripe"),
    settings=BrazeSettings,
    encode=encode,
    classify=classify,
    limits=LIMITS,
    limits_of=limits_of,
    identifiers=("a user id: the one the app gives to Braze's SDK as external id",),
    notes=(
        "Braze knows no idempotency: an event whose answer was lost is counted twice.",
        "A refund lowers lifetime revenue, and counts as one purchase more.",
        "Unless create_users is off, an unknown user gets a profile.",
    ),
    check=Check(_check, _checked),
)

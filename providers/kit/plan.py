"""From events to requests: what every provider shares of it."""

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from functools import lru_cache
from typing import Any, TypeAlias, TypeVar

from providers.kit.event import Event
from providers.kit.interface import (
    Context,
    Limits,
    Members,
    Plan,
    Provider,
    Rejected,
    Request,
    Retry,
    Skipped,
    Unsent,
    dump,
)
from providers.kit.settings import Settings

S = TypeVar("S", bound=Settings)
Group = TypeVar("Group", bound=Hashable)
Made: TypeAlias = Request | Iterable[Request] | Unsent
Item: TypeAlias = dict[str, Any] | Members
ITEM = (dict, Members)
UNSENT = (Skipped, Rejected, Retry)
NUMBERS = (int, float, Decimal)  # 0 and False are known


def plan(provider: Provider[S], events: Sequence[Event], settings: S, context: Context) -> Plan:
    """Return what to send for `events`: the one way to a provider, for worker and commands alike.

    Leaves out what the integration does not want or the upstream could not take (store, switched
    off, sandbox, too old); the provider sees the rest.
    """
    kinds = [(event.name, event.platform, event.environment) for event in events]  # few of them
    unwanted = {
        kind: _unwanted(provider, event, settings)
        for kind, event in dict(zip(kinds, events, strict=True)).items()
    }
    unsent: dict[int, Unsent] = {}
    if provider.limits.max_age is not None or any(unwanted.values()):
        for position, (kind, event) in enumerate(zip(kinds, events, strict=True)):
            reason = unwanted[kind] or _too_old(provider, event, context.now)
            if reason:
                unsent[position] = reason
    if not unsent:
        return provider.encode(events, settings, context)
    kept = [position for position in range(len(events)) if position not in unsent]
    if not kept:
        return Plan((), unsent)
    inner = provider.encode([events[position] for position in kept], settings, context)
    unsent.update({kept[index]: why for index, why in inner.unsent.items()})
    requests = tuple(
        request.carrying(tuple(kept[index] for index in request.events))
        for request in inner.requests
    )
    return Plan(requests, unsent)


def screen(provider: Provider[S], event: Event, settings: S, now: datetime) -> Skipped | None:
    """Return why the event is not for this provider or integration, or None."""
    return _unwanted(provider, event, settings) or _too_old(provider, event, now)


def _unwanted(provider: Provider[S], event: Event, settings: S) -> Skipped | None:
    """Return why events of its name, platform and environment are not sent, or None."""
    if event.platform not in provider.stores:
        stores = " and ".join(provider.stores)
        return Skipped("store", f"{provider.title} takes events of {stores} only")
    if settings.events is not None and event.name not in settings.events:
        return Skipped("switched_off", f"event {event.name} is switched off")
    if (
        event.name not in settings.event_names
        and event.name not in provider.names
        and not provider.free_names
    ):
        return Skipped("no_mapping", f"no mapping for event {event.name} (set it in event_names)")
    if name_of(event, settings, provider.names) is None:
        return Skipped(
            "switched_off", f"event {event.name} is switched off (set event_names to send it)"
        )
    if event.sandbox and not settings.takes_sandbox():
        return Skipped("sandbox", "sandbox event, and these settings send production events only")
    return None


def _too_old(provider: Provider[S], event: Event, now: datetime) -> Skipped | None:
    oldest = provider.limits.max_age
    if oldest is not None and now.timestamp() - event.time > oldest.total_seconds():
        return Skipped(
            "too_old",
            f"older than {_span(oldest.total_seconds())}, which {provider.title} does not take",
        )
    return None


def _span(seconds: float) -> str:
    hours = int(seconds // 3600)
    return f"{hours // 24} days" if hours % 24 == 0 and hours > 72 else f"{hours} hours"


def name_of(event: Event, settings: Settings, names: Mapping[str, str | None]) -> str | None:
    """Return the upstream's name of the event; None where it is not to be sent."""
    if event.name in settings.event_names:
        return settings.event_names[event.name]
    return names.get(event.name, event.name)


def one_each(events: Sequence[Event], make: Callable[[Event], Made]) -> Plan:
    """Return a plan of one request (or several steps) per event."""
    requests: list[Request] = []
    unsent: dict[int, Unsent] = {}
    for position, event in enumerate(events):
        made = make(event)
        if isinstance(made, Request):
            requests.append(made.carrying((position,)))
        elif isinstance(made, UNSENT):
            unsent[position] = made
        else:
            requests.extend(request.carrying((position,)) for request in made)
    return Plan(tuple(requests), unsent)


def in_batches(
    events: Sequence[Event],
    limits: Limits,
    make: Callable[[Event], Item | tuple[Item, ...] | Unsent],
    request: Callable[[bytes, Any], Request],
    *,
    group: Callable[[Event], Hashable] = lambda _event: None,
    overhead: int = 512,
    item_bytes: int | None = None,
) -> Plan:
    """Return a plan of JSON batches within `limits`, in order.

    `make` gives an event's JSON item, or a tuple of items that stay together; `request` the
    request for a JSON array (as bytes) of them and their `group` (events of different groups, say
    sandbox and production, never share one).
    `overhead` is what the body holds beside the array, in bytes; an item of more than
    `item_bytes` is rejected here, before it spoils its batch.
    """
    unsent: dict[int, Unsent] = {}
    groups: dict[Hashable, list[tuple[int, bytes]]] = {}
    largest = min(item_bytes or limits.bytes, limits.bytes - overhead)
    for position, event in enumerate(events):
        made = make(event)
        if isinstance(made, ITEM):
            item = dump(made)
        elif isinstance(made, tuple):
            item = b",".join(map(dump, made))
        else:
            unsent[position] = made
            continue
        if len(item) > largest:
            unsent[position] = Rejected("too_large", f"{len(item):,} bytes, at most {largest:,}")
        else:
            key = group(event)
            if key in groups:
                groups[key].append((position, item))
            else:
                groups[key] = [(position, item)]
    requests = [
        request(b"[%b]" % b",".join(items), key).carrying(positions)
        for key, members in groups.items()
        for positions, items in (
            zip(*batch, strict=True)
            for batch in packed(members, limits.events, limits.bytes - overhead)
        )
    ]
    return Plan(tuple(requests), unsent)


def packed(
    items: Iterable[tuple[int, bytes]], most: int, largest: int
) -> Iterator[list[tuple[int, bytes]]]:
    """Yield batches of at most `most` items and `largest` bytes, commas included, in order."""
    batch: list[tuple[int, bytes]] = []
    size = 2
    for position, item in items:
        if batch and (len(batch) == most or size + len(item) + 1 > largest):
            yield batch
            batch, size = [], 2
        batch.append((position, item))
        size += len(item) + 1
    if batch:
        yield batch


def known(**values: Any) -> dict[str, Any]:
    """Return the given members without those that are not known (None, "", {} and [])."""
    return {key: value for key, value in values.items() if value or isinstance(value, NUMBERS)}


def clipped(text: str, most: int) -> str:
    """Return `text` cut to at most `most` UTF-8 bytes, never inside a character."""
    if 4 * len(text) <= most:  # it fits, whatever its characters
        return text
    return text.encode()[:most].decode(errors="ignore")


@lru_cache(1024)  # many events of a batch are of the same few seconds
def iso(seconds: int, *, milliseconds: bool = False) -> str:
    """Return Unix seconds as ISO 8601 in UTC: `2026-01-01T00:00:00Z` (or `…00.000Z`)."""
    text = datetime.fromtimestamp(seconds, UTC).isoformat()[:19]
    return f"{text}.000Z" if milliseconds else f"{text}Z"

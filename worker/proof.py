"""What the demo proves at its end. Pure: each check returns what is off, nothing if all is well."""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence

SHOWN = 3  # ids named of many


def record_faults(slug: str, expected: Sequence[str], recorded: Sequence[str]) -> Iterator[str]:
    """Yield what differs between the events sent to a pipeline and those with a recorded end."""
    sent, ended = Counter(expected), Counter(recorded)
    if missing := sent - ended:
        yield f"{slug}: {missing.total():,} events have no recorded end: {_some(missing)}"
    if surplus := ended - sent:
        yield f"{slug}: {surplus.total():,} ends too many are recorded: {_some(surplus)}"


def _some(ids: Collection[str]) -> str:
    return ", ".join(list(ids)[:SHOWN]) + (" …" if len(ids) > SHOWN else "")


def upstream_faults(
    slug: str,
    expected: Collection[str],
    delivered: Collection[str],
    taken: Mapping[str, int],
    *,
    answered: bool,
) -> Iterator[str]:
    """Yield what differs between the deliveries recorded and what the upstream says it took.

    Compared by event ids if the upstream has them, else by number. One that takes no events at all
    (Apple Search Ads answers questions) must have `answered`, at least.
    """
    if taken.keys() & set(expected):
        if lost := set(delivered) - taken.keys():
            yield f"{slug}: {len(lost):,} delivered that the upstream has not: {_some(lost)}"
        if unknown := taken.keys() - set(delivered):
            yield f"{slug}: the upstream has {len(unknown):,} not so recorded: {_some(unknown)}"
    elif taken:
        if (total := sum(taken.values())) < len(delivered):
            yield f"{slug}: {len(delivered):,} delivered, and {total:,} at the upstream"
    elif delivered and not answered:
        yield f"{slug}: {len(delivered):,} delivered, and the upstream has answered no call"


def users_out_of_order(sent: Sequence[tuple[str, str]], arrived: Sequence[str]) -> list[str]:
    """Return the users whose events, of those that arrived, came in another order than sent.

    `sent` is (user, event id) in order.
    """
    place = {event: number for number, event in enumerate(arrived)}
    places: dict[str, list[int]] = defaultdict(list)
    for user, event in sent:
        if event in place:
            places[user].append(place[event])
    return [user for user, theirs in places.items() if theirs != sorted(theirs)]

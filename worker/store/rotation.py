"""Which keys the settings at rest need, and bringing all of them to the newest.

These are the integrations' settings and the projects' receivers of notices (`project:<id>`).
"""

from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field

from sqlalchemy import Connection, Engine, func, select, update

from worker.store import audit
from worker.store.database import reading
from worker.store.errors import Corrupt, UnknownKey
from worker.store.models import Integration, Project
from worker.store.projects import sealed_as
from worker.store.secrets import KeyRing, key_of

AT_ONCE = 100  # rows a transaction: on SQLite it keeps the recorder out
HEAD_LENGTH = len("v1.01234567.")
_PLACES = [
    (Integration.table(), Integration.table().c.settings),
    (Project.table(), Project.table().c.notify),
]


@dataclass(frozen=True)
class KeysInUse:
    """Key → of how many integrations; which are lost with their key, and which are damaged."""

    newest: str
    known: Counter[str] = field(default_factory=Counter)
    lost: dict[str, list[str]] = field(default_factory=dict)
    damaged: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Rotation:
    """How far it is. The settings of `damaged` integrations open with no key: they stay."""

    done: int
    total: int
    damaged: tuple[str, ...]


def check_keys(connection: Connection, ring: KeyRing) -> None:
    """Raise UnknownKey, naming every integration whose settings no key of the ring opens.

    By the names of the keys alone: nothing is decrypted.
    """
    heads = _sealed(connection, HEAD_LENGTH)
    lost = {id_: key_of(head) or "(none)" for id_, head in heads if not ring.knows(head)}
    if lost:
        raise UnknownKey(", ".join(sorted(set(lost.values()))), list(lost))


def keys_in_use(connection: Connection, ring: KeyRing) -> KeysInUse:
    """Return which keys the settings need, having opened every one of them."""
    known: Counter[str] = Counter()
    lost: dict[str, list[str]] = defaultdict(list)
    damaged = []
    for id_, sealed in _sealed(connection):
        try:
            ring.decrypt(sealed, id_)
            known[key_of(sealed)] += 1
        except UnknownKey:
            lost[key_of(sealed) or "(none)"].append(id_)
        except Corrupt:
            damaged.append(id_)
    return KeysInUse(ring.newest, known, dict(lost), damaged)


def rotate(engine: Engine, ring: KeyRing, actor: str = "cli") -> Iterator[Rotation]:
    """Encrypt all settings with the newest key, some a transaction; yield how far it is.

    What is saved meanwhile is left alone: it has the newest key already.

    Raises:
        UnknownKey: before anything is changed.
    """
    with reading(engine) as connection:
        check_keys(connection, ring)
        old = [row for row in _sealed(connection) if key_of(row[1]) != ring.newest]
    damaged: list[str] = []
    yield Rotation(0, len(old), ())
    for start in range(0, len(old), AT_ONCE):
        batch = old[start : start + AT_ONCE]
        with engine.begin() as connection:
            damaged += [id_ for id_, sealed in batch if not _renew(connection, ring, id_, sealed)]
        yield Rotation(start + len(batch), len(old), tuple(damaged))
    if len(old) > len(damaged):
        with engine.begin() as connection:
            told = {"integrations": len(old) - len(damaged), "key": ring.newest}
            audit.add(connection, actor, "secrets.rotate", after=told)


def _renew(connection: Connection, ring: KeyRing, sealed_for: str, sealed: str) -> bool:
    """Encrypt one value anew, unless it has changed; False where it is damaged."""
    with suppress(Corrupt):
        anew = ring.encrypt(ring.decrypt(sealed, sealed_for), sealed_for)
        for table, column in _PLACES:
            row = table.c.id == sealed_for.removeprefix(sealed_as(""))
            same = update(table).where(row, column == sealed)
            connection.execute(same.values({column: anew}))
        return True
    return False


def _sealed(connection: Connection, length: int | None = None) -> list[tuple[str, str]]:
    """Return for what each value is encrypted, and the value, or its head of that length."""
    found = []
    for table, column in _PLACES:
        value = func.substr(column, 1, length) if length else column
        rows = connection.execute(
            select(table.c.id, value).where(column.is_not(None)).order_by(table.c.id)
        )
        prefix = sealed_as if column.table is Project.table() else str
        found += [(prefix(id_), sealed) for id_, sealed in rows]
    return found

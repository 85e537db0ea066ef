"""What a commit tells the database: one packed page, written with the acknowledgement."""

from typing import Literal, TypeAlias

import msgspec

Outcome: TypeAlias = Literal["delivered", "skipped", "rejected", "expired"]
PAGE = b"p"  # the journal entry's one field


class Row(msgspec.Struct, array_like=True):
    """One event x integration that came to its end, in the order of the table's columns.

    Times are ms of the store's clock.
    """

    integration_id: str
    project_id: str
    event_id: str
    event_name: str
    outcome: str
    reason: str
    message: str
    status: int | None
    attempts: int
    accepted_at: int
    finished_at: int
    entry_id: str


class Letter(msgspec.Struct, array_like=True):
    """A dead letter: the exact bytes, and why. Malformed events have no integration."""

    project_id: str | None
    integration_id: str | None
    event_id: str | None
    event_name: str | None
    reason: str
    message: str
    faults: str | None
    body: bytes
    request: str | None
    response: str | None
    status: int | None
    attempts: int
    created_at: int


class Failure(msgspec.Struct, array_like=True):
    """A failed round of a pipeline: what its operator is shown. `count` is failures in a row."""

    integration_id: str
    at: int
    reason: str
    message: str
    count: int


class Nearing(msgspec.Struct, array_like=True):
    """Half of a threshold is used up: who may be told before a pipeline is suspended."""

    integration_id: str
    at: int
    used: str  # "3 of 5 refused rounds in a row"
    message: str


class Learned(msgspec.Struct, array_like=True):
    """What a provider told about a user."""

    project_id: str
    user_key: str
    record: str
    at: int


class Page(msgspec.Struct, array_like=True):
    """One commit's worth."""

    rows: list[Row] = []
    letters: list[Letter] = []
    failures: list[Failure] = []
    learned: list[Learned] = []
    accepted: dict[str, int] = {}  # integration: events that became its deliveries
    nearing: list[Nearing] = []

    def __bool__(self) -> bool:
        told = self.failures or self.learned or self.accepted or self.nearing
        return bool(self.rows or self.letters or told)


_encode = msgspec.msgpack.Encoder().encode
_decoder = msgspec.msgpack.Decoder(Page)


def pack(page: Page) -> bytes:
    """Return the page's bytes."""
    return _encode(page)


def unpack(raw: bytes) -> Page:
    """Return the page; raise msgspec.DecodeError or UnicodeDecodeError where it is none."""
    return _decoder.decode(raw)

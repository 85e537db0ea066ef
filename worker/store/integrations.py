"""Integrations: their state, their settings, and the one way each of them changes.

Functions work in the caller's transaction; on SQLite it holds the writer's lock from its begin.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from sqlalchemy import Connection, Row, func, insert, select, update

from providers.kit import Settings, is_blank
from worker.registry import provider_of
from worker.store import audit, notifications
from worker.store.checks import (
    check_new,
    check_settings,
    has_shown,
    merge_shown,
    shown_settings,
)
from worker.store.database import note_change, now
from worker.store.errors import Invalid, NotFound, UnreadableSettings
from worker.store.models import Integration
from worker.store.projects import random_text
from worker.store.secrets import KeyRing, signing_secret

ID_LENGTH = 8
MESSAGE_LENGTH = 1000  # characters of last_error_message
_T = Integration.table()


def create_integration(
    connection: Connection,
    project_id: str,
    *,
    title: Any,
    slug: Any,
    platform: Any,
    actor: str,
) -> Integration:
    """Make an integration, paused (`active` 0); raise Invalid naming every faulty field."""
    faults = check_new(title=title, slug=slug, platform=platform)
    if faults:
        raise Invalid(faults)
    moment = now()
    values = {
        "id": _new_id(connection),
        "project_id": project_id,
        "slug": slug,
        "platform": platform,
        "title": title,
        "active": 0,
        "epoch": 0,
        "created_at": moment,
        "updated_at": moment,
        "delivery_error_count": 0,
    }
    connection.execute(insert(_T).values(values))
    audit.add(
        connection,
        actor,
        "integration.create",
        project_id=project_id,
        integration_id=values["id"],
        after={"title": title, "slug": slug, "platform": platform, "active": 0},
    )
    return Integration(**values)


def _new_id(connection: Connection) -> str:
    """Return an id that no integration has or had (deleted rows stay)."""
    while True:
        id_ = random_text(ID_LENGTH)
        if connection.execute(select(_T.c.id).where(_T.c.id == id_)).first() is None:
            return id_


def get(connection: Connection, integration_id: str, project_id: str | None = None) -> Integration:
    """Return the integration; raise NotFound, also for one of another than the given project."""
    return _get(connection, integration_id, project_id, for_update=False)


def _get(
    connection: Connection, integration_id: str, project_id: str | None, *, for_update: bool
) -> Integration:
    query = select(_T).where(_T.c.id == integration_id, _T.c.deleted_at.is_(None))
    if project_id is not None:
        query = query.where(_T.c.project_id == project_id)
    row = connection.execute(query.with_for_update() if for_update else query).first()
    if row is None:
        raise NotFound("No integration with this id")
    return Integration.of(row)


def list_of(connection: Connection, project_id: str | None = None) -> list[Integration]:
    """Return the integrations of a project (None: of all) in order of creation."""
    query = select(_T).where(_T.c.deleted_at.is_(None)).order_by(_T.c.created_at, _T.c.id)
    if project_id is not None:
        query = query.where(_T.c.project_id == project_id)
    return [Integration.of(row) for row in connection.execute(query)]


def check_known(connection: Connection, integration_id: str) -> None:
    """Raise NotFound for an id that no integration has or had (deleted rows stay)."""
    if connection.execute(select(_T.c.id).where(_T.c.id == integration_id)).first() is None:
        raise NotFound(f"No integration {integration_id}: see `onward integrations list`")


def titles(connection: Connection) -> dict[str, Row[str, str, str, datetime | None]]:
    """Return id → (title, slug, deleted_at) of every integration, deleted ones too."""
    rows = connection.execute(select(_T.c.id, _T.c.title, _T.c.slug, _T.c.deleted_at))
    return {row.id: row for row in rows}


def config_rows(connection: Connection) -> Sequence[Row[Any]]:
    """Return what the worker caches of every integration that is not deleted, paused ones too."""
    names = (
        "id", "project_id", "slug", "platform", "active", "epoch", "probation_epoch",
        "updated_at", "settings",
    )  # fmt: skip
    columns = [_T.c[name] for name in names]
    return connection.execute(select(*columns).where(_T.c.deleted_at.is_(None))).all()


def config_version(connection: Connection) -> tuple[Any, ...]:
    """Return what is another once `config_rows` says something new: sums, and not a row is sent.

    Settings that were but encrypted anew are nothing new.
    """
    times: list[Any]
    if connection.dialect.name == "postgresql":
        times = [func.extract("epoch", _T.c.updated_at)]
    else:  # kept as text, with six digits of microseconds
        times = [func.strftime("%s", _T.c.updated_at), func.substr(_T.c.updated_at, 21)]
    numbers = [_T.c.active, _T.c.epoch, _T.c.probation_epoch, *times]
    sums = [func.sum(number) for number in numbers]
    query = select(func.count(), *sums).where(_T.c.deleted_at.is_(None))
    return tuple(connection.execute(query).one())


def set_status(
    connection: Connection,
    integration_id: str,
    status: int,
    actor: str,
    project_id: str | None = None,
) -> Integration:
    """Pause (0) or activate (1); the present state again changes nothing. Raise NotFound.

    From 2 to 1 failures count from zero, under a new epoch that is on probation. What is active and
    fails is tried at once: `updated_at` moves, and the loops see it.
    """
    if status not in (0, 1):
        raise Invalid([("status", "must be 0 or 1")])
    found = _get(connection, integration_id, project_id, for_update=True)
    after = {"active": status}
    if found.active == status:
        if not found.fails:
            return found
        _change(connection, found, actor, "integration.try", {}, after=after)
        return get(connection, integration_id)
    values: dict[str, Any] = {"active": status}
    if found.active == 2 and status == 1:
        values |= {
            "delivery_error_count": 0,
            "first_error_at": None,
            "epoch": found.epoch + 1,
            "probation_epoch": found.epoch + 1,
        }
    before = {"active": found.active}
    _change(connection, found, actor, "integration.status", values, before=before, after=after)
    return get(connection, integration_id)


def _change(
    connection: Connection,
    found: Integration,
    actor: str,
    action: str,
    values: Mapping[str, Any],
    **shown: Mapping[str, Any],
) -> None:
    """Write what an operator changed, tell the loops of it and note it, `shown` before and after.

    `updated_at` moves, too, even where there are no `values`.
    """
    changed = {"updated_at": now()} | dict(values)
    connection.execute(update(_T).where(_T.c.id == found.id).values(changed))
    note_change(connection, found.project_id)
    audit.add(
        connection, actor, action, project_id=found.project_id, integration_id=found.id, **shown
    )


class Saved(NamedTuple):
    """An integration with its new settings; `made` is the only sight of a secret made for them."""

    integration: Integration
    made: dict[str, str]


class _Would(NamedTuple):
    integration: Integration
    settings: Settings
    made: dict[str, str]
    before: Mapping[str, Any]  # as shown


def save_settings(
    connection: Connection,
    integration_id: str,
    data: Mapping[str, Any],
    keyring: KeyRing,
    *,
    actor: str,
    allow_private: bool = False,
    project_id: str | None = None,
) -> Saved:
    """Replace the settings, encrypted; raise Invalid naming every faulty key, or NotFound.

    A secret given as it is shown (`{"set": true, …}`) keeps its value. One that is ours to make and
    is not given keeps its value too, or is made.
    """
    would = with_settings(
        connection,
        integration_id,
        data,
        keyring,
        allow_private=allow_private,
        project_id=project_id,
        for_update=True,
    )
    return _keep(connection, would, actor, "integration.settings")


def _keep(connection: Connection, would: _Would, actor: str, action: str) -> Saved:
    found = would.integration
    values, after = {"settings": found.settings}, shown_settings(would.settings)
    _change(connection, found, actor, action, values, before=would.before, after=after)
    return Saved(get(connection, found.id), would.made)


def roll_secret(
    connection: Connection,
    integration_id: str,
    keyring: KeyRing,
    *,
    keep: timedelta,
    actor: str,
    project_id: str | None = None,
) -> Saved:
    """Make the secret that is ours to make anew; the present one signs too for `keep` from now.

    Raises:
        NotFound: the integration, or there is no such secret or no settings yet.
        UnreadableSettings: no key opens the settings.
    """
    found = _get(connection, integration_id, project_id, for_update=True)
    generated = provider_of(found.slug).settings.generated
    if generated is None or found.settings is None:
        raise NotFound(
            "There is no signing secret to roll: this provider has none, or its settings are not "
            "saved yet."
        )
    data = json.loads(keyring.decrypt(found.settings, integration_id))
    before = _shown_before(found, data)
    old = data.pop(generated.key, None)
    data |= {generated.previous: None, generated.previous_ends: None}
    if old and keep:
        ends = (now() + keep).isoformat(timespec="seconds")
        data |= {generated.previous: old, generated.previous_ends: ends}
    model, made = _made(found, data, {}, allow_private=True)
    found.settings = keyring.encrypt(json.dumps(data), integration_id)
    return _keep(connection, _Would(found, model, made, before), actor, "integration.roll")


def with_settings(
    connection: Connection,
    integration_id: str,
    data: Mapping[str, Any],
    keyring: KeyRing,
    *,
    allow_private: bool = False,
    project_id: str | None = None,
    for_update: bool = False,
) -> _Would:
    """Return the integration as it would be with these settings; raise Invalid or NotFound."""
    found = _get(connection, integration_id, project_id, for_update=for_update)
    old: dict[str, Any] = {}
    try:
        if found.settings:
            old = json.loads(keyring.decrypt(found.settings, integration_id))
    except UnreadableSettings:
        if has_shown(data):
            raise
    merged = merge_shown(data, old)
    before = _shown_before(found, old)
    model, made = _made(found, merged, old, allow_private=allow_private)
    found.settings = keyring.encrypt(json.dumps(merged), integration_id)
    return _Would(found, model, made, before)


def _shown_before(found: Integration, data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the present settings as they are shown; of unreadable ones, that there are any."""
    try:
        return shown_settings(check_settings(found.slug, data, allow_private=True))
    except Invalid:
        return {"set": found.settings is not None}


def _made(
    found: Integration, data: dict[str, Any], old: Mapping[str, Any], *, allow_private: bool
) -> tuple[Settings, dict[str, str]]:
    """Return the model of `data`, completed by the secret that is ours to make, and that if new."""
    generated = provider_of(found.slug).settings.generated
    made = {}
    if generated and is_blank(data.get(generated.key)):
        data[generated.key] = old.get(generated.key)
        if is_blank(data[generated.key]):
            data |= (made := {generated.key: signing_secret()})
    return check_settings(found.slug, data, allow_private=allow_private), made


def delete(
    connection: Connection, integration_id: str, actor: str, project_id: str | None = None
) -> None:
    """Delete for good: the row stays, so that its id is never reused; its settings go.

    Raise NotFound, also the second time.
    """
    found = _get(connection, integration_id, project_id, for_update=True)
    values = {"deleted_at": now(), "settings": None}
    connection.execute(update(_T).where(_T.c.id == integration_id).values(values))
    note_change(connection, found.project_id)
    audit.add(
        connection,
        actor,
        "integration.delete",
        project_id=found.project_id,
        integration_id=integration_id,
        before={"title": found.title, "slug": found.slug, "active": found.active},
    )


def suspend(
    connection: Connection,
    integration_id: str,
    epoch: int,
    *,
    message: str,
    reason: str,
    at: datetime,
) -> bool:
    """Suspend the pipeline if it is still active under `epoch`; True only for who did it.

    One conditional statement, so of many racing workers one wins; the flip moves the epoch, so
    that late failures of the old one can not suspend a pipeline that was activated since. One
    that was paused or suspended meanwhile stays so; its epoch moves too, and failures count anew.
    """
    message = message[:MESSAGE_LENGTH]
    flipped = connection.execute(
        update(_T)
        .where(
            _T.c.id == integration_id,
            _T.c.active == 1,
            _T.c.epoch == epoch,
            _T.c.deleted_at.is_(None),
        )
        .values(
            active=2,
            epoch=_T.c.epoch + 1,
            probation_epoch=_T.c.epoch + 1,
            last_error_message=message,
            last_error_reason=reason,
            last_error_at=at,
            updated_at=now(),
        )
    ).rowcount
    if not flipped:
        same = update(_T).where(_T.c.id == integration_id, _T.c.epoch == epoch)
        connection.execute(same.values(epoch=_T.c.epoch + 1))
        return False
    before, after = {"active": 1}, {"active": 2, "reason": reason, "message": message}
    audit.add(
        connection,
        "worker",
        "integration.suspend",
        integration_id=integration_id,
        before=before,
        after=after,
    )
    notifications.add_of(connection, "integration.suspended", integration_id, after, at=at)
    return True

"""Projects and their keys. A key is shown once; kept is its hash."""

import hmac
import json
import re
import secrets
import string
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from hashlib import sha256
from typing import Literal

from sqlalchemy import Connection, insert, or_, select, update

from worker.store import audit
from worker.store.checks import title_fault
from worker.store.database import now
from worker.store.errors import AlreadyExists, Invalid, NotFound
from worker.store.models import Project, ProjectKey
from worker.store.secrets import KeyRing

ALPHABET = string.ascii_letters + string.digits
KEY_LENGTH = 43  # characters of base 62: 256 bits
SHOWN = 4  # characters of a key's random part by which people recognise it
USED_EVERY = timedelta(minutes=1)  # how exact last_used_at is

Kind = Literal["secret", "sdk"]
Mode = Literal["live", "test"]


@dataclass(frozen=True, slots=True)
class NewProject:
    """A project just made, with the only sight of its keys."""

    project: Project
    secret_key: str
    test_key: str


@dataclass(frozen=True, slots=True)
class Receiver:
    """Where notices go, and what signs them there (`whsec_…`; Slack's own URLs need nothing)."""

    url: str
    secret: str | None = None


def random_text(length: int) -> str:
    """Return random letters and digits."""
    return "".join(secrets.choice(ALPHABET) for _ in range(length))


def create_project(
    connection: Connection, name: str, project_id: str | None = None, actor: str = "cli"
) -> NewProject:
    """Make a project with a live and a test key; raise Invalid or AlreadyExists."""
    id_ = project_id or f"prj_{random_text(12)}"
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", id_):
        raise Invalid([("id", "must be 1 to 64 letters, digits, _ or -")])
    if fault := title_fault(name):
        raise Invalid([("name", fault)])
    if connection.execute(select(Project.id).where(Project.id == id_)).first():
        raise AlreadyExists(f"There is a project {id_} already. Choose another id.")
    project = {"id": id_, "name": name.strip(), "created_at": now()}
    connection.execute(insert(Project).values(project))
    audit.add(connection, actor, "project.create", project_id=id_, after={"name": name.strip()})
    live = add_key(connection, id_, actor=actor)
    test = add_key(connection, id_, mode="test", actor=actor)
    return NewProject(Project(**project), live, test)


def list_projects(connection: Connection) -> list[Project]:
    """Return the projects in order of creation, deleted ones left out."""
    table = Project.table()
    query = select(table).where(table.c.deleted_at.is_(None)).order_by(table.c.created_at)
    return [Project.of(row) for row in connection.execute(query)]


def get_project(connection: Connection, project_id: str) -> Project:
    """Return the project; raise NotFound."""
    table = Project.table()
    row = connection.execute(
        select(table).where(table.c.id == project_id, table.c.deleted_at.is_(None))
    ).first()
    if row is None:
        raise NotFound(f"No project {project_id}: see `onward projects list`")
    return Project.of(row)


def set_receiver(
    connection: Connection,
    project_id: str,
    receiver: Receiver | None,
    keyring: KeyRing,
    actor: str = "cli",
) -> None:
    """Send the project's notices there from now on; None: where the service's go. Raise NotFound.

    Kept encrypted: who has a Slack URL may post there.
    """
    get_project(connection, project_id)
    sealed = None
    if receiver:
        told = json.dumps({"url": receiver.url, "secret": receiver.secret})
        sealed = keyring.encrypt(told, sealed_as(project_id))
    connection.execute(update(Project).where(Project.id == project_id).values(notify=sealed))
    shown = {"set": receiver is not None}
    audit.add(connection, actor, "project.notify", project_id=project_id, after=shown)


def receivers(connection: Connection, keyring: KeyRing) -> Iterator[tuple[str, Receiver]]:
    """Yield the projects with a receiver of their own; raise UnreadableSettings."""
    query = select(Project.id, Project.notify)
    for id_, sealed in connection.execute(query.where(Project.notify.is_not(None))):
        yield id_, Receiver(**json.loads(keyring.decrypt(str(sealed), sealed_as(id_))))


def sealed_as(project_id: str) -> str:
    """Return what a project's receiver is encrypted for; no integration has such an id."""
    return f"project:{project_id}"


def add_key(
    connection: Connection,
    project_id: str,
    kind: Kind = "secret",
    mode: Mode = "live",
    actor: str = "cli",
) -> str:
    """Return a new key of the project, beside those it has; raise NotFound."""
    get_project(connection, project_id)
    head = ("test_" if mode == "test" else "") + ("sk_" if kind == "secret" else "sdk_")
    key = head + random_text(KEY_LENGTH)
    prefix = key[: len(head) + SHOWN]
    connection.execute(
        insert(ProjectKey).values(
            project_id=project_id,
            prefix=prefix,
            digest=_digest(key),
            kind=kind,
            mode=mode,
            created_at=now(),
        )
    )
    shown = {"prefix": prefix, "kind": kind, "mode": mode}
    audit.add(connection, actor, "key.create", project_id=project_id, after=shown)
    return key


def list_keys(connection: Connection, project_id: str) -> list[ProjectKey]:
    """Return the project's keys, revoked ones too, oldest first."""
    table = ProjectKey.table()
    query = select(table).where(table.c.project_id == project_id).order_by(table.c.id)
    return [ProjectKey.of(row) for row in connection.execute(query)]


def revoke_key(connection: Connection, project_id: str, key_id: int, actor: str = "cli") -> None:
    """Make a key useless from now on; raise NotFound for one that is not the project's."""
    table = ProjectKey.table()
    mine = (table.c.id == key_id, table.c.project_id == project_id)
    row = connection.execute(select(table).where(*mine, table.c.revoked_at.is_(None))).first()
    if row is None:
        raise NotFound(
            f"No key {key_id} of project {project_id}: see `onward projects keys list {project_id}`"
        )
    connection.execute(update(table).where(*mine).values(revoked_at=now()))
    shown = {"prefix": row.prefix, "kind": row.kind, "mode": row.mode}
    audit.add(connection, actor, "key.revoke", project_id=project_id, before=shown)


def project_of_key(connection: Connection, key: str) -> ProjectKey | None:
    """Return what is known of a key, None where it is unknown, revoked or its project deleted."""
    digest = _digest(key)
    table = ProjectKey.table()
    row = connection.execute(
        select(table)
        .join(Project.table(), Project.id == table.c.project_id)
        .where(
            table.c.digest == digest,
            table.c.revoked_at.is_(None),
            Project.table().c.deleted_at.is_(None),
        )
    ).first()
    if row is None or not hmac.compare_digest(row.digest, digest):
        return None
    return ProjectKey.of(row)


def touch_key(connection: Connection, key: ProjectKey) -> None:
    """Remember that the key was used, to the minute."""
    used = ProjectKey.table().c.last_used_at
    connection.execute(
        update(ProjectKey.table())
        .where(ProjectKey.id == key.id, or_(used.is_(None), used < now() - USED_EVERY))
        .values(last_used_at=now())
    )


def _digest(key: str) -> str:
    return sha256(key.encode("utf-8", "surrogatepass")).hexdigest()

"""`Idempotency-Key`: the same request has one effect and one answer, for a day."""

from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import Connection, delete, select, update

from worker.store.database import now, upserting
from worker.store.errors import AlreadyExists
from worker.store.models import IdempotencyKey

KEPT = timedelta(hours=24)
_T = IdempotencyKey.table()


@dataclass(frozen=True, slots=True)
class Answer:
    """What the first request with the key was answered."""

    status: int
    body: str


def claim(connection: Connection, project_id: str, key: str, digest: str) -> Answer | None:
    """Return the answer this request had, or None: it is ours to do and to `keep`.

    The claim is undone with the caller's transaction. A second request with the key waits until
    the first is done. Raise AlreadyExists where the key came with another body.
    """
    mine = (_T.c.project_id == project_id, _T.c.key == key)
    connection.execute(delete(_T).where(*mine, _T.c.created_at < now() - KEPT))
    values = {"project_id": project_id, "key": key, "digest": digest}
    new = upserting(connection.dialect.name, _T).values(
        **values, status=0, body="", created_at=now()
    )
    claimed = connection.execute(new.on_conflict_do_nothing().returning(_T.c.key)).first()
    if claimed is not None:
        return None
    row = connection.execute(select(_T).where(*mine)).one()
    if row.digest != digest:
        raise AlreadyExists("This Idempotency-Key was used with another body. Choose a new key.")
    return Answer(row.status, row.body)


def keep(connection: Connection, project_id: str, key: str, answer: Answer) -> None:
    """Keep the answer of a claimed request."""
    connection.execute(
        update(_T)
        .where(_T.c.project_id == project_id, _T.c.key == key)
        .values(status=answer.status, body=answer.body)
    )


def prune(connection: Connection) -> None:
    """Forget the answers that are older than a day."""
    connection.execute(delete(_T).where(_T.c.created_at < now() - KEPT))

"""What `searchads` resolved of users; written by the recorder, read where providers need it."""

from collections.abc import Sequence

from sqlalchemy import Connection, select

from worker.store.models import Attribution

_T = Attribution.table()


def find_attributions(
    connection: Connection, project_id: str, user_keys: Sequence[str]
) -> dict[str, Attribution]:
    """Return what is known of these users, by user key; unknown ones are left out."""
    query = select(_T).where(_T.c.project_id == project_id, _T.c.user_key.in_(user_keys))
    return {row.user_key: Attribution.of(row) for row in connection.execute(query)}

"""Rows of the record, for tests of what reads them."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Engine

from worker.journal import Row
from worker.store.deliveries import record_shards

ABSENT = dict.fromkeys(Row.__struct_fields__) | {"attempts": 0}


def record_rows(
    engine: Engine,
    shard: int,
    before: str | None,
    to: str,
    *,
    deliveries: Sequence[Mapping[str, Any]] = (),
    **more: Any,
) -> bool:
    """Write what one shard's journal holds; of a delivery, what is not given is null."""
    whole = [{**ABSENT, **row} for row in deliveries]
    columns = [[_written(row[name]) for row in whole] for name in ABSENT]
    return record_shards(engine, [(shard, before, to)], deliveries=columns, **more)


def _written(value: Any) -> Any:
    return str(value.astimezone(UTC)) if isinstance(value, datetime) else value

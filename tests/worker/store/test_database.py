"""Engines: what a frozen or slow database may cost."""

import pytest
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from tests.worker.store.databases import postgres_url
from worker.store.database import make_engine

SLOW = text("SELECT pg_sleep(600)")


def test_a_statement_is_cut_in_time() -> None:
    engine = make_engine(postgres_url(), statement_seconds=0.1)
    with engine.connect() as connection, pytest.raises(OperationalError, match="timeout"):
        connection.execute(SLOW)
    with engine.connect() as connection:
        assert connection.execute(text("SELECT 1")).scalar_one() == 1
    engine.dispose()


def test_others_may_take_as_long_as_they_need() -> None:
    engine = make_engine(postgres_url())
    with engine.connect() as connection:
        assert connection.execute(text("SHOW statement_timeout")).scalar_one() == "0"
    engine.dispose()

"""Engines: what a frozen or slow database may cost, and several that open a new one."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

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


def test_several_may_open_a_new_sqlite_file_at_once(tmp_path: Path) -> None:
    together = Barrier(4, timeout=30)

    def use(number: int) -> str:
        engine = make_engine(f"sqlite:///{tmp_path}/{number // 4}.db")
        together.wait()
        with engine.begin() as connection:
            connection.execute(text("CREATE TABLE IF NOT EXISTS t (x)"))
            mode: str = connection.execute(text("PRAGMA journal_mode")).scalar_one()
        engine.dispose()
        return mode

    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(use, range(4 * 50))) == {"wal"}

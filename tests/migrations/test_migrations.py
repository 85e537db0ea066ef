"""The schema's history walks up, down and up again, and ends where the models are."""

import re
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import inspect

from tests.worker.store.databases import KINDS, database
from worker.store.database import make_engine
from worker.store.models import Base
from worker.store.schema import alembic_config, downgrade, upgrade


@pytest.fixture(params=KINDS)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    with database(request.param, tmp_path) as url:
        yield url


def tables(url: str) -> set[str]:
    engine = make_engine(url)
    with engine.connect() as connection:
        names = set(inspect(connection).get_table_names())
    engine.dispose()
    return names - {"alembic_version", "sqlite_sequence"}


def test_up_down_and_up_again(url: str) -> None:
    everything = set(Base.metadata.tables)
    upgrade(url)
    assert tables(url) == everything
    downgrade(url, "base")
    assert tables(url) == set()
    upgrade(url)
    assert tables(url) == everything


def test_each_step_down_and_up(url: str) -> None:
    upgrade(url)
    for step in ScriptDirectory.from_config(alembic_config()).walk_revisions():
        downgrade(url, str(step.down_revision or "base"))
        upgrade(url, step.revision)
    assert tables(url) == set(Base.metadata.tables)


def test_ends_where_the_models_are(url: str) -> None:
    upgrade(url)
    engine = make_engine(url)
    with engine.connect() as connection:
        context = MigrationContext.configure(
            connection, opts={"compare_type": True, "compare_server_default": True}
        )
        assert compare_metadata(context, Base.metadata) == []
    engine.dispose()


@pytest.mark.processes
def test_programs_that_start_at_once_migrate_once(url: str) -> None:
    with ProcessPoolExecutor(3, mp_context=get_context("spawn")) as pool:
        list(pool.map(upgrade, [url] * 3))
    assert tables(url) == set(Base.metadata.tables)


def test_history_is_one_line_of_dated_files() -> None:
    scripts = ScriptDirectory.from_config(alembic_config())
    assert len(scripts.get_heads()) == 1
    for step in scripts.walk_revisions():
        assert re.fullmatch(r"\d{4}_\d\d_\d\d_\d{4}_[a-z0-9_]+\.py", Path(step.path).name)

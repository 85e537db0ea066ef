"""Every test of the store runs on SQLite and on PostgreSQL."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine

from tests.worker.store.databases import KINDS, migrated
from worker.store.integrations import create_integration
from worker.store.projects import create_project


@pytest.fixture(params=KINDS)
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    with migrated(request.param, tmp_path) as engine:
        yield engine


@pytest.fixture
def integration_id(engine: Engine) -> str:
    """An active Amplitude integration of the project prj_a."""
    with engine.begin() as connection:
        create_project(connection, "A", "prj_a")
        made = create_integration(
            connection, "prj_a", title="T", slug="amplitude", platform="iOS", actor="test"
        )
    return made.id

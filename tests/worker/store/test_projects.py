"""Keys are shown once, open their project alone, and can be many."""

import pytest
from sqlalchemy import Engine, text

from worker.store.database import reading
from worker.store.errors import AlreadyExists, Invalid, NotFound
from worker.store.projects import (
    add_key,
    create_project,
    list_keys,
    list_projects,
    project_of_key,
    revoke_key,
    touch_key,
)


def test_a_project_has_two_keys_that_are_not_stored(engine: Engine) -> None:
    with engine.begin() as connection:
        made = create_project(connection, "Lumen", "prj_lumen")
        assert made.secret_key.startswith("sk_")
        assert made.test_key.startswith("test_sk_")
        for key, mode in ((made.secret_key, "live"), (made.test_key, "test")):
            found = project_of_key(connection, key)
            assert found is not None
            assert (found.project_id, found.kind, found.mode) == ("prj_lumen", "secret", mode)
            assert key.startswith(found.prefix)
        everything = connection.execute(text("SELECT * FROM project_keys")).all()
    assert made.secret_key not in str(everything)
    assert made.test_key not in str(everything)


@pytest.mark.parametrize("key", ["", "sk_", "sk_wrong", "ü", "\ud800", "x" * 10_000])
def test_an_unknown_key_opens_nothing(engine: Engine, key: str) -> None:
    with reading(engine) as connection:
        assert project_of_key(connection, key) is None


def test_ids_and_names_are_checked(engine: Engine) -> None:
    with engine.begin() as connection:
        create_project(connection, "A", "prj_a")
        with pytest.raises(AlreadyExists):
            create_project(connection, "Again", "prj_a")
        for name, id_ in (("A", "prj a"), ("A", "x" * 65), (" ", "prj_b"), ("\x1b[31mred", None)):
            with pytest.raises(Invalid):
                create_project(connection, name, id_)
        create_project(connection, "B")
        assert [project.name for project in list_projects(connection)] == ["A", "B"]


def test_keys_rotate(engine: Engine) -> None:
    with engine.begin() as connection:
        made = create_project(connection, "A", "prj_a")
        create_project(connection, "B", "prj_b")
        new = add_key(connection, "prj_a")
        first = list_keys(connection, "prj_a")[0]
        with pytest.raises(NotFound):
            revoke_key(connection, "prj_b", first.id)
        revoke_key(connection, "prj_a", first.id)
        assert project_of_key(connection, made.secret_key) is None
        assert project_of_key(connection, new) is not None
        with pytest.raises(NotFound):
            revoke_key(connection, "prj_a", first.id)


def test_a_deleted_projects_keys_open_nothing(engine: Engine) -> None:
    with engine.begin() as connection:
        made = create_project(connection, "A", "prj_a")
        connection.execute(text("UPDATE projects SET deleted_at = created_at"))
        assert project_of_key(connection, made.secret_key) is None


def test_use_is_remembered(engine: Engine) -> None:
    with engine.begin() as connection:
        key = create_project(connection, "A", "prj_a").secret_key
        found = project_of_key(connection, key)
        assert found is not None
        assert found.last_used_at is None
        touch_key(connection, found)
        again = project_of_key(connection, key)
        assert again is not None
        assert again.last_used_at is not None

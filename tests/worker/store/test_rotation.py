"""All settings come to the newest key; what no key opens is named, and stays."""

import base64
import json
from collections.abc import Callable

import pytest
from sqlalchemy import Engine, text

from worker.store import audit
from worker.store.database import reading
from worker.store.errors import UnknownKey
from worker.store.integrations import create_integration, get, save_settings
from worker.store.rotation import Rotation, check_keys, keys_in_use, rotate
from worker.store.secrets import KeyRing, key_of

OLD, NEW = KeyRing.of("01" * 32), KeyRing.of(base64.b64encode(b"n" * 32).decode())
BOTH = KeyRing.of(base64.b64encode(b"n" * 32).decode() + "," + "01" * 32)
DATA = {"api_key": "k3y"}


@pytest.fixture
def saved(engine: Engine, integration_id: str) -> Callable[[KeyRing], str]:
    """Save settings under a ring, of a new integration each time; return its id."""

    def save(ring: KeyRing) -> str:
        with engine.begin() as connection:
            made = create_integration(
                connection, "prj_a", title="T", slug="amplitude", platform="iOS", actor="t"
            )
            save_settings(connection, made.id, DATA, ring, actor="op")
        return made.id

    return save


def sealed(engine: Engine, integration_id: str) -> str:
    with reading(engine) as connection:
        return get(connection, integration_id).settings or ""


def test_rotation(engine: Engine, saved: Callable[[KeyRing], str]) -> None:
    first, second, third = saved(OLD), saved(OLD), saved(NEW)
    kept = sealed(engine, third)
    with reading(engine) as connection:
        check_keys(connection, BOTH)
        with pytest.raises(UnknownKey, match=first):
            check_keys(connection, NEW)
    assert list(rotate(engine, BOTH)) == [Rotation(0, 2, ()), Rotation(2, 2, ())]
    assert list(rotate(engine, BOTH)) == [Rotation(0, 0, ())]
    for id_ in (first, second, third):
        assert json.loads(NEW.decrypt(sealed(engine, id_), id_)) == DATA
    assert sealed(engine, third) == kept
    with reading(engine) as connection:
        row = audit.list_rows(connection, limit=1)[0]
    assert (row.action, json.loads(row.after or "")["integrations"]) == ("secrets.rotate", 2)


def test_nothing_is_rotated_while_a_key_is_missing(
    engine: Engine, saved: Callable[[KeyRing], str]
) -> None:
    id_ = saved(OLD)
    before = sealed(engine, id_)
    with pytest.raises(UnknownKey, match=id_):
        list(rotate(engine, NEW))
    assert sealed(engine, id_) == before


def test_what_is_saved_meanwhile_is_left_alone(
    engine: Engine, saved: Callable[[KeyRing], str]
) -> None:
    id_ = saved(OLD)
    going = rotate(engine, BOTH)
    next(going)
    with engine.begin() as connection:
        save_settings(connection, id_, {"api_key": "later"}, BOTH, actor="op")
    list(going)
    assert json.loads(NEW.decrypt(sealed(engine, id_), id_)) == {"api_key": "later"}


def test_what_is_damaged_is_named_and_stays(
    engine: Engine, saved: Callable[[KeyRing], str]
) -> None:
    good, bad = saved(OLD), saved(OLD)
    with engine.begin() as connection:
        connection.execute(
            text("UPDATE integrations SET settings = :s WHERE id = :i"),
            {"s": sealed(engine, good), "i": bad},  # copied from another row
        )
    assert list(rotate(engine, BOTH))[-1] == Rotation(2, 2, (bad,))
    assert key_of(sealed(engine, good)) == NEW.newest
    assert key_of(sealed(engine, bad)) == OLD.newest
    with reading(engine) as connection:
        found = keys_in_use(connection, BOTH)
    assert (found.known, found.damaged, found.lost) == ({NEW.newest: 1}, [bad], {})


def test_a_lost_key_names_its_integrations(engine: Engine, saved: Callable[[KeyRing], str]) -> None:
    lost, kept = saved(OLD), saved(NEW)
    with reading(engine) as connection:
        found = keys_in_use(connection, NEW)
        assert found.lost == {OLD.newest: [lost]}
        assert found.known == {NEW.newest: 1}
        with pytest.raises(UnknownKey, match=rf"{OLD.newest} .*{lost}") as error:
            check_keys(connection, NEW)
    assert kept not in str(error.value)

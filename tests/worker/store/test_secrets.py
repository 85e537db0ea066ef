"""Settings at rest open only with their key and for their row; secrets do not show."""

import base64
import stat
from pathlib import Path

import pytest
from pydantic import SecretStr
from sqlalchemy import Engine, text

from worker.settings import InvalidEnvironment, WorkerSettings, write_state
from worker.store.database import reading
from worker.store.errors import Corrupt, UnknownKey
from worker.store.integrations import get
from worker.store.secrets import KeyRing, embedded_admin_key, embedded_key, key_of, keyring_of

OLD, NEW = "01" * 32, base64.b64encode(b"n" * 32).decode()


def test_what_is_sealed_opens_again() -> None:
    ring = KeyRing.of(OLD)
    sealed = ring.encrypt("väl", "i1")
    assert ring.decrypt(sealed, "i1") == "väl"
    assert sealed != ring.encrypt("väl", "i1")  # a new nonce each time


@pytest.mark.parametrize("text_", [OLD, NEW, "correct horse battery staple", "01" * 31])
def test_a_key_may_be_hex_base64_or_words(text_: str) -> None:
    sealed = KeyRing.of(text_).encrypt("x", "i1")
    assert KeyRing.of(f"another one, {text_} ").decrypt(sealed, "i1") == "x"


def test_hex_and_base64_of_the_same_bytes_are_the_same_key() -> None:
    as_hex, as_base64 = KeyRing.of((b"n" * 32).hex()), KeyRing.of(NEW)
    assert as_hex.newest == as_base64.newest


def test_the_newest_encrypts_and_all_decrypt() -> None:
    both = KeyRing.of(f"{NEW},{OLD}")
    assert key_of(both.encrypt("x", "i1")) == KeyRing.of(NEW).newest
    assert both.decrypt(KeyRing.of(OLD).encrypt("x", "i1"), "i1") == "x"


def test_a_lost_key_is_named_with_its_remedy() -> None:
    sealed = KeyRing.of(OLD).encrypt("x", "i1")
    with pytest.raises(UnknownKey, match=r"i1.*ONWARD_SECRET_KEYS"):
        KeyRing.of(NEW).decrypt(sealed, "i1")


def test_an_empty_ring_is_refused() -> None:
    with pytest.raises(ValueError, match="ONWARD_SECRET_KEYS"):
        KeyRing.of(" , ")


@pytest.mark.parametrize("damage", ["cut", "flip", "other row", "no base64"])
def test_what_was_tampered_with_does_not_open(damage: str) -> None:
    ring = KeyRing.of(OLD)
    sealed = ring.encrypt("x", "i1")
    head, _, body = sealed.rpartition(".")
    raw = bytearray(base64.urlsafe_b64decode(body))
    raw[-1] ^= 1
    broken = {
        "cut": head + "." + body[:8],
        "flip": f"{head}.{base64.urlsafe_b64encode(raw).decode()}",
        "other row": ring.encrypt("x", "i2"),
        "no base64": head + ".ü",
    }[damage]
    with pytest.raises(Corrupt):
        ring.decrypt(broken, "i1")


def test_the_embedded_key_is_made_once_and_private(tmp_path: Path) -> None:
    folder = tmp_path / "var"
    first = embedded_key(folder)
    assert embedded_key(folder) == first
    assert stat.S_IMODE((folder / "secret.key").stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert [path.name for path in folder.iterdir()] == ["secret.key"]
    assert keyring_of(WorkerSettings(data_dir=folder)).newest == KeyRing.of(first).newest
    given = WorkerSettings.model_validate({"data_dir": folder, "secret_keys": NEW})
    assert keyring_of(given).newest == KeyRing.of(NEW).newest


@pytest.mark.parametrize("url", ["postgresql://u:p@host/onward", "sqlite:////srv/onward.db"])
def test_no_key_is_made_for_a_database_elsewhere(tmp_path: Path, url: str) -> None:
    """Each worker would make its own, and open nothing that the others saved."""
    elsewhere = WorkerSettings(data_dir=tmp_path, database_url=url)
    with pytest.raises(InvalidEnvironment, match="ONWARD_SECRET_KEYS"):
        keyring_of(elsewhere)
    assert not (tmp_path / "secret.key").exists()
    made = embedded_key(tmp_path)  # by `onward up`
    assert keyring_of(elsewhere).newest == KeyRing.of(made).newest


@pytest.mark.parametrize("given", [",", " ", " , "])
def test_a_ring_without_a_key_is_a_fault_of_the_environment(tmp_path: Path, given: str) -> None:
    empty = WorkerSettings(data_dir=tmp_path, secret_keys=SecretStr(given))
    with pytest.raises(InvalidEnvironment, match="ONWARD_SECRET_KEYS: holds no key"):
        keyring_of(empty)


def test_keys_of_the_service_are_asked_for(tmp_path: Path) -> None:
    """It could not open what is encrypted with a key of ours, and would suspend the pipeline."""
    write_state(tmp_path, own_keys=True)
    with pytest.raises(InvalidEnvironment, match="ONWARD_SECRET_KEYS"):
        keyring_of(WorkerSettings(data_dir=tmp_path))
    assert not (tmp_path / "secret.key").exists()
    given = WorkerSettings(data_dir=tmp_path, secret_keys=SecretStr(OLD))
    assert keyring_of(given).encrypt("x", "i1")
    write_state(tmp_path, own_keys=False)
    assert keyring_of(WorkerSettings(data_dir=tmp_path)).encrypt("x", "i1")


def test_the_admin_key_is_made_once_and_private(tmp_path: Path) -> None:
    first = embedded_admin_key(tmp_path)
    assert embedded_admin_key(tmp_path) == first
    assert len(first) > 40
    assert stat.S_IMODE((tmp_path / "admin.key").stat().st_mode) == 0o600


def test_settings_of_another_row_do_not_open(engine: Engine, integration_id: str) -> None:
    foreign = KeyRing.of(OLD).encrypt("{}", "aaaaaaaa")
    with engine.begin() as connection:
        connection.execute(text("UPDATE integrations SET settings = :s"), {"s": foreign})
    with reading(engine) as connection, pytest.raises(Corrupt, match=integration_id):
        KeyRing.of(OLD).decrypt(get(connection, integration_id).settings or "", integration_id)

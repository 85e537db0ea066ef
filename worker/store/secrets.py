"""Settings at rest, and the keys that a service on embedded defaults makes for itself.

AES-256-GCM with a random nonce: `v1.<key id>.<base64url(nonce, ciphertext, tag)>`. The integration
is authenticated with it, so that a value copied to another row does not open.
"""

import os
import secrets
from base64 import b64decode, b64encode, urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from sqlalchemy import make_url

from worker.settings import InvalidEnvironment, WorkerSettings, has_own_keys
from worker.store.errors import Corrupt, UnknownKey

KEY_BYTES = 32
NONCE_BYTES = 12  # what GCM is made for; random, so at most 2^32 values under one key
KEY_FILE = "secret.key"
ADMIN_FILE = "admin.key"


class KeyRing:
    """Keys for settings at rest, newest first: the first encrypts, all decrypt."""

    def __init__(self, keys: Sequence[bytes]) -> None:
        if not keys:
            raise ValueError("no key: set ONWARD_SECRET_KEYS (newest first)")
        self._keys = {_key_id(key): AESGCM(key) for key in keys}
        self.newest = _key_id(keys[0])

    @classmethod
    def of(cls, text: str) -> "KeyRing":
        """Return the ring of a comma-separated list.

        A part is 32 bytes in hex or base64; any other text is a passphrase, and its SHA-256 is the
        key (so it should be long and random).
        """
        return cls([_key(part.strip()) for part in text.split(",") if part.strip()])

    def encrypt(self, plain: str, integration_id: str) -> str:
        """Return `plain` encrypted with the newest key, for this integration alone."""
        nonce = secrets.token_bytes(NONCE_BYTES)
        cipher = self._keys[self.newest]
        sealed = nonce + cipher.encrypt(nonce, plain.encode(), _bound_to(integration_id))
        return f"v1.{self.newest}.{urlsafe_b64encode(sealed).decode()}"

    def decrypt(self, sealed: str, integration_id: str) -> str:
        """Return the plain text; raise UnknownKey, or Corrupt where they were altered."""
        cipher = self._keys.get(key_of(sealed))
        if cipher is None:
            raise UnknownKey(key_of(sealed) or "(none)", [integration_id])
        try:
            raw = urlsafe_b64decode(sealed.rpartition(".")[2])
            nonce, body = raw[:NONCE_BYTES], raw[NONCE_BYTES:]
            return cipher.decrypt(nonce, body, _bound_to(integration_id)).decode()
        except (InvalidTag, ValueError):
            raise Corrupt(integration_id) from None

    def knows(self, sealed: str) -> bool:
        """Whether the ring has the key of this value."""
        return key_of(sealed) in self._keys


def _key(part: str) -> bytes:
    for decode in (bytes.fromhex, lambda text: b64decode(text, altchars=b"-_", validate=True)):
        try:
            key = decode(part)
        except ValueError:
            continue
        if len(key) == KEY_BYTES:
            return key
    return sha256(part.encode()).digest()


def _key_id(key: bytes) -> str:
    return sha256(b"onward key id" + key).hexdigest()[:8]


def key_of(sealed: str) -> str:
    """Return the id of the key a value was encrypted with; "" where it is no such value."""
    parts = sealed.split(".")
    return parts[1] if len(parts) == 3 and parts[0] == "v1" else ""


def _bound_to(integration_id: str) -> bytes:
    return f"integrations|{integration_id}|settings".encode()


def signing_secret() -> str:
    """Return a new secret as Standard Webhooks writes it."""
    return f"whsec_{b64encode(secrets.token_bytes(KEY_BYTES)).decode()}"


def embedded_key(data_dir: Path) -> str:
    """Return the key in `<data_dir>/secret.key`; the first call makes it, readable by us alone."""
    return _made_once(data_dir / KEY_FILE, secrets.token_bytes(KEY_BYTES).hex())


def embedded_admin_key(data_dir: Path) -> str:
    """Return the admin key in `<data_dir>/admin.key`; made like the key of the settings."""
    return _made_once(data_dir / ADMIN_FILE, f"admin_{secrets.token_urlsafe(KEY_BYTES)}")


def _made_once(path: Path, text: str) -> str:
    """Return what the file holds; where there is none, it is made with `text`, mode 0600."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not path.exists():
        fresh = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
        fresh.touch(mode=0o600)
        fresh.write_text(text)
        try:
            os.link(fresh, path)  # of many programs that start at once, one wins
        except FileExistsError:
            pass
        finally:
            fresh.unlink()
    return path.read_text().strip()


def keyring_of(settings: WorkerSettings) -> KeyRing:
    """Return the ring of `ONWARD_SECRET_KEYS`; without it, of the key in the data folder.

    Raises:
        InvalidEnvironment: the service of that folder has keys, and could not open what we save;
            or what is given holds none; or the folder has no key, and the database is elsewhere:
            whoever else uses it could not open that either.
    """
    if settings.secret_keys is not None:
        given = settings.secret_keys.get_secret_value()
        if not given.strip(" ,"):
            raise InvalidEnvironment("ONWARD_SECRET_KEYS: holds no key; give one, or unset it")
        return KeyRing.of(given)
    if has_own_keys(settings.data_dir):
        raise InvalidEnvironment(
            "ONWARD_SECRET_KEYS: the service that runs here has it; set it too"
        )
    if not (_is_inside(settings) or (settings.data_dir / KEY_FILE).exists()):
        raise InvalidEnvironment(
            "ONWARD_SECRET_KEYS: must be set, the same for all who use the database; a key is made "
            "only for one in the data folder"
        )
    return KeyRing.of(embedded_key(settings.data_dir))


def _is_inside(settings: WorkerSettings) -> bool:
    """Whether the database is in the data folder."""
    url = make_url(settings.database_url)
    if url.get_backend_name() != "sqlite":
        return False
    return Path(url.database or "").absolute().is_relative_to(settings.data_dir.absolute())

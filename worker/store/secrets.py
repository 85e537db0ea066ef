"""Settings at rest, and secrets kept out of what people see.

AES-256-GCM with a random nonce: `v1.<key id>.<base64url(nonce, ciphertext, tag)>`. The integration
is authenticated with it, so that a value copied to another row does not open.
"""

import json
import os
import re
import secrets
from base64 import b64decode, b64encode, urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Iterable, Iterator, Sequence
from hashlib import sha256
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from sqlalchemy import Connection, func, select, update

from worker.mask import HIDDEN, Mask
from worker.settings import WorkerSettings
from worker.store.errors import Corrupt, UnknownKey
from worker.store.models import Integration

KEY_BYTES = 32
NONCE_BYTES = 12  # what GCM is made for; random, so at most 2^32 values under one key
KEY_FILE = "secret.key"
HEAD_LENGTH = len("v1.01234567.")

_GENERIC = re.compile(
    r"(?P<scheme>\b(?:Bearer|Basic)\s+)[A-Za-z0-9._~+/=-]{6,}"
    r"|\bwhsec_[A-Za-z0-9+/=_-]+|\b(?:test_)?sk_[A-Za-z0-9_-]{8,}",
    re.IGNORECASE,
)


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


def embedded_key(data_dir: Path) -> str:
    """Return the key in `<data_dir>/secret.key`; the first call makes it, readable by us alone."""
    path = data_dir / KEY_FILE
    data_dir.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{KEY_FILE}.{os.getpid()}.{secrets.token_hex(4)}")
    if not path.exists():
        fresh.touch(mode=0o600)
        fresh.write_text(secrets.token_bytes(KEY_BYTES).hex())
        try:
            os.link(fresh, path)  # of many programs that start at once, one wins
        except FileExistsError:
            pass
        finally:
            fresh.unlink()
    return path.read_text().strip()


def keyring_of(settings: WorkerSettings) -> KeyRing:
    """Return the ring of `ONWARD_SECRET_KEYS`; without it, of the key in the data folder."""
    if settings.secret_keys is not None:
        return KeyRing.of(settings.secret_keys.get_secret_value())
    return KeyRing.of(embedded_key(settings.data_dir))


def _sealed(connection: Connection) -> list[tuple[str, str]]:
    column = Integration.settings
    rows = connection.execute(
        select(Integration.id, column).where(column.is_not(None)).order_by(Integration.id)
    )
    return [(id_, sealed) for id_, sealed in rows if sealed is not None]


def check_keys(connection: Connection, ring: KeyRing) -> None:
    """Raise UnknownKey, naming every integration whose settings no key of the ring opens."""
    head = func.substr(Integration.settings, 1, HEAD_LENGTH)
    rows = connection.execute(
        select(Integration.id, head).where(head.is_not(None)).order_by(Integration.id)
    )
    lost = [(id_, key_of(sealed)) for id_, sealed in rows if not ring.knows(sealed)]
    if lost:
        raise UnknownKey(lost[0][1] or "(none)", [id_ for id_, _ in lost])


def rotate(connection: Connection, ring: KeyRing) -> Iterator[tuple[int, int]]:
    """Encrypt all settings with the newest key; yield (done, of how many).

    Raises UnknownKey before anything is changed.
    """
    check_keys(connection, ring)
    old = [row for row in _sealed(connection) if key_of(row[1]) != ring.newest]
    for done, (id_, sealed) in enumerate(old, start=1):
        anew = ring.encrypt(ring.decrypt(sealed, id_), id_)
        connection.execute(
            update(Integration)
            .where(Integration.id == id_, Integration.settings == sealed)
            .values(settings=anew)
        )
        yield done, len(old)


def masker(hidden: Iterable[str]) -> Callable[[str], str]:
    """Return a function that takes these secrets, and what looks like one, out of a text.

    Found are: the value itself, in base64 (alone, and as the user of a Basic credential),
    percent-encoded and inside JSON text; and any Bearer or Basic credential, `whsec_` or `sk_` key.
    """
    forms = [form for value in hidden if value for form in _forms(value)]
    mask = Mask(forms)
    return lambda text: _GENERIC.sub(lambda hit: (hit["scheme"] or "") + HIDDEN, mask(text))


def _forms(value: str) -> Iterator[str]:
    yield value
    yield json.dumps(value)[1:-1]  # as JSON in ASCII; Mask knows the other
    for text in (value, value + ":"):
        raw = text.encode("utf-8", "replace")
        yield b64encode(raw).decode().rstrip("=")
        yield urlsafe_b64encode(raw).decode().rstrip("=")

"""Who is signed in: a cookie signed with a key made of the admin key, and a token for each form.

Nothing is kept, so that any API process serves any operator; a new admin key ends every session.
"""

import hmac
import re
import secrets
import time
from hashlib import sha256

SECONDS = 4 * 3600  # from signing in
COOKIE = "onward_console"
FIRST = "onward_sign_in"  # what the form of a sign-in must repeat
_HOME = "/console"
_NEXT = re.compile(r"/console(?:[/?][\w/?=&.,:%~+-]{0,512})?", re.ASCII)


class SignedOut(Exception):
    """Nobody is signed in, or no longer."""


class Forged(Exception):
    """A form came without the token of its session."""


class Sessions:
    """Makes and reads what the cookie holds: when it ends, its nonce, a signature."""

    def __init__(self, admin_key: str) -> None:
        self._admin = _digest(admin_key)
        self._key = hmac.digest(self._admin, b"onward console session", "sha256")

    def opens(self, key: str) -> bool:
        """Return whether this is the admin key, in constant time."""
        return hmac.compare_digest(_digest(key), self._admin)

    def new(self) -> str:
        """Return the cookie of a session that begins now."""
        told = f"{int(time.time()) + SECONDS}.{secrets.token_hex(16)}"
        return f"{told}.{self._signed(told)}"

    def check(self, cookie: str) -> str:
        """Return the token of the session's forms; raise SignedOut."""
        told, _, signature = cookie.rpartition(".")
        end = told.partition(".")[0]
        if not hmac.compare_digest(self._signed(told).encode(), signature.encode()):
            raise SignedOut
        if not end.isdigit() or int(end) < time.time():
            raise SignedOut
        return self._signed(f"form {told}")

    def _signed(self, text: str) -> str:
        return hmac.new(self._key, text.encode(), sha256).hexdigest()


def same(given: str, wanted: str) -> bool:
    """Return whether two tokens are the same one, in constant time; an empty one is none."""
    return bool(wanted) and hmac.compare_digest(given.encode(), wanted.encode())


def safe_next(path: str) -> str:
    """Return the page of the console to go on to; for anything else its first."""
    return path if _NEXT.fullmatch(path) else _HOME


def _digest(key: str) -> bytes:
    return sha256(key.encode("utf-8", "surrogatepass")).digest()

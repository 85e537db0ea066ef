"""Taking secrets out of what people see: messages, and requests that are shown."""

import re
from base64 import b64decode
from binascii import Error as NotBase64
from collections.abc import Callable, Iterable
from dataclasses import replace
from urllib.parse import quote, quote_plus, urlsplit

from providers.kit import Request, dump_text

HIDDEN = "***"
SHORT = 8  # characters; a shorter secret is hidden only where it stands alone
_BASIC = re.compile(r"(Basic )(\S+)", re.IGNORECASE)
_ASSERTION = re.compile(r"\b((?:assertion|client_assertion|client_secret|code)=)[^&]+")


class Mask:
    """Hides the given secrets: `mask(text)`, `mask.request(request)`.

    They are found as they are, percent-encoded, inside JSON text and inside a Basic credential. Of
    a secret that is a URL, scheme and host stay.
    """

    def __init__(self, secrets: Iterable[str]) -> None:
        forms: dict[str, str] = {}
        for secret in filter(None, secrets):
            for form in (secret, quote(secret, safe=""), quote_plus(secret), quote(secret)):
                forms[form] = _shown(secret)
            forms[dump_text(secret)[1:-1]] = _shown(secret)
        self._forms = forms
        longest_first = sorted(forms, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(_expression, longest_first))) if forms else None

    def __call__(self, text: str) -> str:
        """Return `text` without the secrets."""
        if self._pattern is None:
            return text
        return self._pattern.sub(lambda found: self._forms[found[0]], text)

    def request(self, request: Request) -> Request:
        """Return the request as it may be shown; a body that is not text stays as it is."""
        headers = tuple((name, self._header(value)) for name, value in request.headers)
        return replace(
            request, url=self(request.url), headers=headers, body=self._body(request, self)
        )

    def _header(self, value: str) -> str:
        credential = _BASIC.fullmatch(value)
        if credential:
            decoded = _decoded(credential[2])
            if self(decoded) != decoded:
                return credential[1] + HIDDEN
        return self(value)

    @staticmethod
    def _body(request: Request, hide: Callable[[str], str]) -> bytes:
        try:
            text = hide(request.body.decode())
        except UnicodeDecodeError:
            return request.body
        form = dict(request.headers).get("Content-Type", "").startswith("application/x-www-form")
        return (_ASSERTION.sub(rf"\1{HIDDEN}", text) if form else text).encode()


def _shown(secret: str) -> str:
    parts = urlsplit(secret) if secret.startswith(("https://", "http://")) else None
    return f"{parts.scheme}://{parts.hostname}/{HIDDEN}" if parts else HIDDEN


def _expression(form: str) -> str:
    alone = rf"(?<![A-Za-z0-9]){re.escape(form)}(?![A-Za-z0-9])"
    return alone if len(form) < SHORT else re.escape(form)


def _decoded(credential: str) -> str:
    try:
        return b64decode(credential, validate=True).decode()
    except (NotBase64, UnicodeDecodeError, ValueError):
        return ""

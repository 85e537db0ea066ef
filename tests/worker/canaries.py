"""A canary in every secret of every provider's settings, in a form that its model takes."""

import json
import random
import re
import string
from base64 import b64encode, urlsafe_b64encode
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from typing import Any
from urllib.parse import quote

from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from pydantic import SecretStr

from worker.registry import provider_of

OTHER_NAMES = ("sandbox_", "test_", "previous_", "_ios", "_android")
COMPANIONS = {  # what a secret may not be without
    "appmetrica": {"sandbox_application_id": "4012346"},
    "facebook": {"sandbox_dataset_id": "1234567890123457"},
    "firebase": {
        f"{prefix}{store}_firebase_app_id": f"1:1234567890:{store}:321abc456def7890"
        for prefix in ("", "sandbox_")
        for store in ("ios", "android")
    },
    "mixpanel": {"service_account_username": "acme.a1b2c3.mp-service-account", "project_id": "1"},
    "clevertap": {"sandbox_account_id": "ABC-1D2-346Z"},
    "onesignal": {"sandbox_app_id": "0b1f3c52-8a4d-4f0e-9d11-5d2c7a6e9f11"},
    "pushwoosh": {"sandbox_application_code": "A1B2C-3D4E6"},
}
FORMS = {"hmac_secret": "x" * 40, "webhook_url": "https://hooks.slack.com/services/T01AB/B02CD/"}


def secrets_of(slug: str) -> list[str]:
    """Return the names of a provider's settings that are secret."""
    fields = provider_of(slug).settings.model_fields
    return [name for name, field in fields.items() if SecretStr.__name__ in str(field.annotation)]


def planted(slug: str) -> dict[str, Any]:
    """Return settings of the slug with a canary in each secret."""
    usual = dict(import_module(f"worker.sandbox.upstreams.{slug}").upstream.settings)
    usual |= COMPANIONS.get(slug, {})
    return usual | {name: _canary(slug, name, usual) for name in secrets_of(slug)}


def _canary(slug: str, name: str, usual: dict[str, Any]) -> Any:
    chance = random.Random(f"{slug}.{name}")
    match name:
        case "private_key":
            return _pem("ec")
        case "service_account_json":
            return json.dumps(json.loads(usual[name]) | {"private_key": _pem("rsa")})
        case "custom_headers":
            return {"X-Canary": _like("canary0000000000000000", chance)}
        case "webhook_url":
            return FORMS[name] + _like("a0" * 12, chance)
        case "signing_secret" | "previous_signing_secret":
            return "whsec_" + b64encode(chance.randbytes(32)).decode()
    return _like(_template(name, usual), chance)


def _template(name: str, usual: dict[str, Any]) -> str:
    for known in (name, *(name.replace(other, "") for other in OTHER_NAMES), f"ios_{name}"):
        if isinstance(usual.get(known), str):
            return str(usual[known])
    alike = [value for key, value in usual.items() if key.endswith(name.rpartition("_")[2])]
    return str(alike[0]) if alike else FORMS.get(name, "a0" * 16)


def _like(text: str, chance: random.Random) -> str:
    """Return other characters of the same kinds; words that begin a key of its kind stay."""
    head = re.match(r"(?:phc_|xoxb-|os_v2_app_|EAA|key_live_|key_test_|AKIA|id)?", text)
    kept = head[0] if head else ""

    def other(found: re.Match[str]) -> str:
        if re.fullmatch(r"[0-9a-f]+", text.replace("-", "").removesuffix("us21")):
            return chance.choice("0123456789abcdef")
        for kind in (string.digits, string.ascii_lowercase, string.ascii_uppercase):
            if found[0] in kind:
                return chance.choice(kind)
        return found[0]

    tail = "-us21" if text.endswith("-us21") else ""
    body = text[len(kept) : len(text) - len(tail)]
    return kept + re.sub(r"[A-Za-z0-9]", other, body) + tail


@cache
def _pem(kind: str) -> str:
    key: Any = (
        ec.generate_private_key(ec.SECP256R1()) if kind == "ec"
        else rsa.generate_private_key(65537, 2048)
    )  # fmt: skip
    raw: bytes = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return raw.decode()


def values(settings: dict[str, Any], slug: str) -> Iterator[str]:
    """Yield every canary in settings."""
    for name in secrets_of(slug):
        value = settings[name]
        yield from value.values() if isinstance(value, dict) else [value]


def forms(value: str) -> list[str]:
    """Return a secret in the forms in which an upstream may say it."""
    raw = value.encode()
    coded = [
        b64encode(raw),
        b64encode(b"user:" + raw),
        b64encode(raw + b":"),
        urlsafe_b64encode(raw),
    ]
    return [value, quote(value, safe=""), json.dumps(value)[1:-1], *(c.decode() for c in coded)]


def needles(value: str) -> Iterator[str]:
    """Yield what must be found nowhere: the forms of a secret, and its beginning and its end."""
    lines = re.findall(r"[A-Za-z0-9+/]{40,}", value) if "BEGIN" in value else [value]
    for line in (line.removeprefix("https://hooks.slack.com/services/") for line in lines):
        yield line
        yield quote(line, safe="")
        if len(line) > 16:
            yield line[-12:]
            if "BEGIN" not in value:  # each key's begins with what kind it is
                yield line[:12]
        if len(line) >= 8:
            yield b64encode(line.encode()).decode().rstrip("=")[:-1]
            for before in (b"1", b"12"):
                yield b64encode(before + line.encode()).decode().rstrip("=")[4:-1]

"""Apple's attribution service, token endpoint and Campaign Management API.

A token that begins "organic" has no ad, "young" no record yet, "dev" Apple's test payload.
"""

import re

import jwt
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from worker.sandbox.upstream import Call, Reply, Upstream

_KEY = ec.derive_private_key(0x5EA2C4AD5, ec.SECP256R1())  # the same in every process
PEM = _KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
CLIENT = "SEARCHADS.27478e71-3bb0-4588-998c-182e2b405577"
KEY_ID = "bacaebda-e219-41ee-a907-e2c25b24d1b2"
ACCESS = ("sandbox-access-token", "access-token")  # the second is the previews'
ATTRIBUTED = {
    "attribution": True,
    "orgId": 40669111,
    "campaignId": 542370111,
    "conversionType": "Download",
    "claimType": "Click",
    "adGroupId": 542317222,
    "countryOrRegion": "GB",
    "keywordId": 87675333,
    "adId": 542319444,
    "supplyPlacement": "APPSTORE_SEARCH_RESULTS",
}
TEST = {**ATTRIBUTED, "orgId": 1234567890, "campaignId": 1234567890, "adGroupId": 1234567890}
NAME = re.compile(r"/api/v5/campaigns/\d+(/adgroups/\d+(/targetingkeywords/\d+)?)?")
INVALID_CLIENT = Reply(400, {"error": "invalid_client"})


def answer(call: Call) -> Reply:
    """Return the answer of one of the three hosts."""
    if call.host == "appleid.apple.com":
        return _access_token(call)
    if call.host == "api.searchads.apple.com":
        return _name(call)
    if call.path != "/api/v1/":
        return Reply(404)
    if call.method != "POST" or call.headers.get("content-type") != "text/plain":
        return Reply(400)
    return _attribution(call.body)


def _attribution(token: bytes) -> Reply:
    if not re.fullmatch(rb"[A-Za-z0-9+/]{8,}={0,2}", token):
        return Reply(400)
    if token.startswith(b"young"):
        return Reply(404)
    if token.startswith(b"organic"):
        return Reply(200, {"attribution": False})
    return Reply(200, TEST if token.startswith(b"dev") else ATTRIBUTED)


def _access_token(call: Call) -> Reply:
    form = call.form
    if call.path != "/auth/oauth2/token" or form.get("grant_type") != "client_credentials":
        return Reply(400, {"error": "invalid_request"})
    if form.get("scope") != "searchadsorg":
        return Reply(400, {"error": "invalid_scope"})
    try:
        claims = jwt.decode(
            form.get("client_secret", ""),
            _KEY.public_key(),
            algorithms=["ES256"],
            audience="https://appleid.apple.com",
        )
    except jwt.InvalidTokenError:
        return INVALID_CLIENT
    if claims.get("sub") != CLIENT or form.get("client_id") != CLIENT:
        return INVALID_CLIENT
    return Reply(200, {"access_token": ACCESS[0], "token_type": "Bearer", "expires_in": 3600})


def _error(status: int, code: str, message: str) -> Reply:
    error = {"messageCode": code, "message": message, "field": ""}
    return Reply(status, {"data": None, "error": {"errors": [error]}})


def _name(call: Call) -> Reply:
    if call.headers.get("authorization") not in [f"Bearer {token}" for token in ACCESS]:
        return _error(401, "UNAUTHORIZED", "No valid access token")
    if call.path == "/api/v5/acls":
        return Reply(200, {"data": [{"orgId": 40669111, "orgName": "Acme"}]})
    if call.headers.get("x-ap-context") != "orgId=40669111":
        return _error(403, "FORBIDDEN", "No right for this org")
    if not NAME.fullmatch(call.path):
        return _error(404, "NOT_FOUND", "Not found")
    name = {"text": "premium app"} if "/targetingkeywords/" in call.path else {"name": "Brand"}
    return Reply(200, {"data": name, "error": None})


upstream = Upstream(
    slug="searchads",
    hosts=("api-adservices.apple.com", "appleid.apple.com", "api.searchads.apple.com"),
    answer=answer,
    settings={
        "client_id": CLIENT,
        "team_id": CLIENT,
        "key_id": KEY_ID,
        "private_key": PEM,
        "resolve_names": True,
    },
    secret="private_key",  # noqa: S106  the name of the setting
    refusal=INVALID_CLIENT,
    throttle=Reply(429, "", {"Retry-After": "2"}),
)

"""A receiver of webhooks that checks them as the Standard Webhooks specification asks.

It knows the credentials of one customer, who has every host under customer.example; at the hosts
of others any will do.
"""

import hmac

from providers.kit import standard_webhook
from worker.sandbox.upstream import Call, Reply, Upstream

CUSTOMER = "customer.example"
HOST = f"hooks.{CUSTOMER}"
TOKEN = "s3cr3tT0ken"  # noqa: S105  the sandbox's own
SECRET = "whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="  # noqa: S105  idem
FIELDS = {
    "event_name": str,
    "user_id": str,
    "custom_user_id": str,
    "identity_id": str,
    "advertiser_id": str,
    "device_id": str,
    "time": int,
    "created_at": int,
    "product_id": str,
    "revenue": dict | None,
    "price": dict,
    "transaction": dict,
    "properties": dict,
    "environment": str,
    "platform": str,
    "event_id": str,
}


def answer(call: Call) -> Reply:
    """Return 204 for a good webhook, else what is wrong with it."""
    if call.method != "POST":
        return Reply(405, "method not allowed", {"Allow": "POST"})
    if not call.headers.get("content-type", "").startswith("application/json"):
        return Reply(415, "unsupported media type")
    own = call.host.partition(":")[0].endswith(f".{CUSTOMER}")
    if own and call.headers.get("authorization") != f"Basic {TOKEN}":
        return Reply(401, "unauthorized")
    if own and not _signed(call):
        return Reply(400, "invalid signature")
    body = call.json
    if not isinstance(body, dict):
        return Reply(400, "invalid JSON")
    wrong = [n for n, kind in FIELDS.items() if n not in body or not isinstance(body[n], kind)]
    if wrong or body["event_id"] != call.headers["webhook-id"]:
        return Reply(422, f"invalid fields: {', '.join(wrong) or 'event_id'}")
    return Reply(204, taken=(call.headers["webhook-id"],))


def _signed(call: Call) -> bool:
    message_id = call.headers.get("webhook-id", "")
    timestamp = call.headers.get("webhook-timestamp", "")
    if not message_id or "." in message_id or not (timestamp.isascii() and timestamp.isdigit()):
        return False
    expected = standard_webhook(message_id, int(timestamp), call.body, SECRET)
    given = call.headers.get("webhook-signature", "").split(" ")
    return any(hmac.compare_digest(expected.encode(), one.encode()) for one in given)


upstream = Upstream(
    slug="webhooks",
    hosts=(HOST,),
    answer=answer,
    settings={
        "url": f"https://{HOST}/onward",
        "auth_token": TOKEN,
        "signing_secret": SECRET,
    },
    secret="auth_token",  # noqa: S106  the name of the setting
    refusal=Reply(401, "unauthorized"),
)

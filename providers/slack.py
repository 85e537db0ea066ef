"""Slack: a message for each event, by incoming webhook or as a bot.

Source: https://docs.slack.dev/messaging/sending-messages-using-incoming-webhooks
Batch:  none; with `digest` up to 10 events share a message.
Dedup:  none; a retry after a lost answer can post twice.
Errors: a webhook answers with a word of plain text, the Web API with 200 and `ok` false.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Annotated, Literal

from msgspec.structs import replace
from pydantic import Field, model_validator

from providers.kit import (
    EVENTS,
    KB,
    MONEY_IN,
    MONEY_OUT,
    Check,
    Context,
    Delivered,
    Event,
    Json,
    Limits,
    Misconfigured,
    Outcome,
    Plan,
    Provider,
    Rejected,
    Request,
    Response,
    Retry,
    RevenueSettings,
    Secret,
    Verdict,
    WebUrl,
    at,
    by_status,
    known,
    matching,
    name_of,
    notes_of,
    plain,
    revenue_of,
    rounded,
    seconds,
    text_at,
    user_id,
)

API = "https://slack.com/api"
CONTENT_TYPE = "application/json; charset=utf-8"
TITLE = 150  # characters of a header block
VALUE = 1_980  # characters of a field, which takes 2,000 with its label
DIGEST = 10  # events: 30 of 50 blocks, 10 of 20 sensible attachments
SYMBOLS = {"USD": "$", "EUR": "€", "GBP": "£", "JPY": "¥", "INR": "₹", "KRW": "₩", "BRL": "R$"}
GREEN, RED, AMBER, BLUE, GREY = "#30B296", "#D64545", "#E8A33D", "#3B82C4", "#8A94A6"
COLOURS = {
    **dict.fromkeys(MONEY_IN, GREEN),
    **dict.fromkeys(MONEY_OUT, RED),
    "trial_billing_retry": AMBER,
    "subscription_billing_retry": AMBER,
    "trial_started": BLUE,
    "trial_still_active": BLUE,
}

WebhookUrl = Annotated[
    Secret,
    matching(
        r"https://hooks\.slack(-gov)?\.com/services/T[A-Z0-9]+/B[A-Z0-9]+/[A-Za-z0-9]{20,}",
        "must be https://hooks.slack.com/services/T…/B…/… (a workflow's URL will not do)",
    ),
]
BotToken = Annotated[Secret, matching(r"xoxb-[A-Za-z0-9-]+", "must be a bot token, xoxb-…")]
Channel = Annotated[
    str, matching(r"[CGD][A-Z0-9]{8,}", "must be a channel's id such as C0123456789, not its name")
]
Emoji = Annotated[str, matching(r":[^:\s]+:", "must be an emoji such as :moneybag:")]
Mention = Annotated[
    str,
    matching(r"<[!@][^<>]+>(\s+<[!@][^<>]+>)*", "must be <!channel>, <!here>, <@U…> or the like"),
]

REFUSED = {  # only the customer can mend it: what the webhook or the Web API says
    "action_prohibited", "posting_to_general_channel_denied", "team_disabled", "invalid_token",
    "no_service", "no_active_hooks", "no_team", "no_service_id", "channel_not_found",
    "channel_is_archived", "not_authed", "invalid_auth", "account_inactive", "token_revoked",
    "token_expired", "no_permission", "missing_scope", "not_allowed_token_type",
    "ekm_access_denied", "access_denied", "not_in_channel", "is_archived",
    "team_access_not_granted", "two_factor_setup_required", "enterprise_is_restricted",
}  # fmt: skip
REJECTED = {
    "invalid_payload", "no_text", "invalid_blocks", "invalid_blocks_format", "msg_too_long",
    "too_many_attachments", "missing_text_or_fallback_or_attachments", "user_not_found",
    "invalid_arguments", "invalid_charset", "invalid_post_type", "invalid_json",
    "invalid_form_data", "json_not_object",
}  # fmt: skip
FATAL = "fatal_error"  # the message may be there in part; as a note: this was said once
RETRIED = {
    "internal_error", FATAL, "service_unavailable", "request_timeout", "rollup_error",
    "team_added_to_org", "org_login_required", "message_limit_exceeded",
}  # fmt: skip
SLOW = {"ratelimited", "rate_limited"}
ARCHIVED = {"channel_is_archived", "is_archived"}


class SlackSettings(RevenueSettings):
    """Where the messages go, and how they look."""

    mode: Literal["incoming_webhook", "bot"] = Field("incoming_webhook", description="How to post")
    webhook_url: WebhookUrl | None = Field(None, description="Incoming webhook; fixes the channel")
    bot_token: BotToken | None = Field(None, description="Bot token with the scope chat:write")
    channel: Channel | None = Field(
        None, description="Channel's id; for bots (a webhook's channel is fixed by its URL)"
    )
    username: str | None = Field(None, max_length=80, description="Shown name, where allowed")
    icon_emoji: Emoji | None = Field(None, description="Shown icon, where allowed")
    icon_url: WebUrl | None = Field(None, description="Shown icon, where allowed")
    include_sandbox: bool = Field(False, description="Announce sandbox events too")
    mention: Mention | None = Field(None, description="Put before each message: <!channel>, …")
    digest: bool = Field(False, description="Let up to 10 events share a message")

    @model_validator(mode="after")
    def _complete(self) -> "SlackSettings":
        needed = {"incoming_webhook": ("webhook_url",), "bot": ("bot_token", "channel")}[self.mode]
        missing = [key for key in needed if getattr(self, key) is None]
        if missing:
            raise ValueError(f"mode {self.mode} needs {' and '.join(missing)}")
        return self

    def takes_sandbox(self) -> bool:
        """Whether sandbox events are announced."""
        return self.include_sandbox or self.send_sandbox


def encode(events: Sequence[Event], settings: SlackSettings, context: Context) -> Plan:
    """Return a message per event, or per digest."""
    size = DIGEST if settings.digest else 1
    groups = [range(len(events))[n : n + size] for n in range(0, len(events), size)]
    requests = []
    for group in groups:
        members = [events[n] for n in group]
        request = _request(_message(members, settings), settings)
        requests.append(replace(request, events=tuple(group), refs=notes_of(members, context)))
    return Plan(tuple(requests))


def _request(message: Json, settings: SlackSettings) -> Request:
    if settings.mode == "bot":
        return Request.json(
            f"{API}/chat.postMessage",
            {"channel": settings.channel, **message},
            headers=_bearer(settings),
            content_type=CONTENT_TYPE,
        )
    url = settings.webhook_url.get_secret_value() if settings.webhook_url else ""
    return Request.json(url, message, content_type=CONTENT_TYPE)


def _bearer(settings: SlackSettings) -> dict[str, str]:
    token = settings.bot_token.get_secret_value() if settings.bot_token else ""
    return {"Authorization": f"Bearer {token}"}


def _message(events: Sequence[Event], settings: SlackSettings) -> dict[str, Json]:
    lines = "\n".join(_line(event, settings) for event in events)
    text = f"{settings.mention} {lines}" if settings.mention else lines
    looks = known(
        username=settings.username, icon_emoji=settings.icon_emoji, icon_url=settings.icon_url
    )
    return {
        "text": text,
        **looks,
        "unfurl_links": False,
        "unfurl_media": False,
        "attachments": [_attachment(event, settings) for event in events],
    }


def _line(event: Event, settings: SlackSettings) -> str:
    details = ", ".join(filter(None, (_escaped(event.product_id), _amount(event, settings))))
    return ": ".join(filter(None, (_title(event, settings), details)))


def _attachment(event: Event, settings: SlackSettings) -> dict[str, Json]:
    title = _title(event, settings)
    moment = datetime.fromtimestamp(event.time, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
    date = f"<!date^{event.time}^{{date_num}} {{time_secs}}|{moment}>"
    blocks = [
        {"type": "header", "text": {"type": "plain_text", "text": title}},
        {"type": "section", "fields": list(_fields(event, settings))},
        {
            "type": "context",
            "block_id": event.id,  # unseen; finds an event's message
            "elements": [{"type": "mrkdwn", "text": date}],
        },
    ]
    return {"color": COLOURS.get(event.name, GREY), "fallback": title, "blocks": blocks}


def _fields(event: Event, settings: SlackSettings) -> Iterator[Mapping[str, str]]:
    values = {
        "Product": _escaped(event.product_id),
        "Revenue": _amount(event, settings),
        "Platform": event.platform,
        "User": _escaped(user_id(event)),
        "Environment": event.environment,
        "Transaction": _escaped(event.transaction.transaction_id),
    }
    for label, value in values.items():
        if value:
            yield {"type": "mrkdwn", "text": f"*{label}*\n{value}"}


def _title(event: Event, settings: SlackSettings) -> str:
    name = name_of(event, settings, EVENTS) or event.name
    uncatalogued = name == event.name and event.name not in settings.event_names
    return _escaped(name.replace("_", " ").title() if uncatalogued else name, TITLE)


def _escaped(text: str, most: int = VALUE) -> str:
    """Return `text` with `&`, `<` and `>` as entities, at most `most` characters, none cut."""
    escaped = [{"&": "&amp;", "<": "&lt;", ">": "&gt;"}.get(c, c) for c in text[:most]]
    while sum(map(len, escaped)) > most:
        escaped.pop()
    return "".join(escaped)


def _amount(event: Event, settings: SlackSettings) -> str:
    money = revenue_of(event, settings, settings.revenue_basis)
    if money is None:
        return ""
    local = _priced(money.value, money.currency)
    return local if money.currency == "USD" else f"{local} (≈ {_priced(money.value_usd, 'USD')})"


def _priced(amount: Decimal, currency: str) -> str:
    """Return the amount as people write it, in the currency's own decimals: £7.99, ¥1200."""
    sign = "−" if amount < 0 else ""  # noqa: RUF001  a minus sign, as typography has it
    shown = plain(rounded(abs(amount), currency))
    return f"{sign}{SYMBOLS.get(currency, f'{currency} ')}{shown}"


def classify(request: Request, response: Response, settings: SlackSettings) -> Verdict:
    """Return what the answer means; a page with status 200 is no delivery."""
    outcome = _by_api(response) if settings.mode == "bot" else _by_webhook(response)
    if not isinstance(outcome, Retry):
        return outcome
    fatal, before = _word(response) == FATAL, FATAL in request.refs
    if fatal and before:
        return Rejected(outcome.reason, f"{outcome.message}: may have been posted in part")
    return replace(outcome, note=FATAL) if fatal or before else outcome


def _by_webhook(response: Response) -> Outcome:
    word = _word(response)
    if _successful(response):
        delivered = response.text == "ok"
        return Delivered() if delivered else Retry("unexpected_answer", response.text)
    return _by_word(word, word, response) or _by_status(response)


def _word(response: Response) -> str:
    """Return the word for what is wrong: in the API's JSON, or a webhook's whole answer."""
    return text_at(response.json, "error") or response.text


def _successful(response: Response) -> bool:
    return 200 <= response.status < 300


def _by_api(response: Response) -> Outcome:
    body = response.json
    error = text_at(body, "error")
    if _successful(response) and at(body, "ok") is True:
        return Delivered()
    if error == "duplicate_message_not_allowed":
        return Delivered(error)
    details = text_at(body, "needed") or text_at(body, "response_metadata", "messages", 0)
    known_word = _by_word(error, f"{error}: {details}" if details else error, response)
    if known_word:
        return known_word
    if _successful(response):
        unknown = at(body, "ok") is False
        return Rejected("refused", error) if unknown else Retry("unexpected_answer", response.text)
    return _by_status(response)


def _by_word(word: str, message: str, response: Response) -> Outcome | None:
    if response.status == 429 or word in SLOW:
        after = response.retry_after or seconds(at(response.json, "retry_after"))
        return Retry("throttled", message, after, throttled=True)
    if word in RETRIED:
        return Retry("server_error", message, response.retry_after)
    if word in ARCHIVED:
        return Misconfigured("refused", f"channel archived ({message})")
    if word in REFUSED or word.startswith("restricted_action"):
        return Misconfigured("refused", message)
    if word in REJECTED or word.startswith("invalid_blocks"):
        return Rejected("bad_message", message)
    return None


def _by_status(response: Response) -> Outcome:
    if response.status in (404, 410):
        return Misconfigured("not_found", response.text or "no such webhook")
    return by_status(response)


def limits_of(settings: SlackSettings) -> Limits:
    """Return the limits: one message at a time, digests of up to ten events."""
    if settings.digest:
        return Limits(DIGEST, 100 * KB, concurrency=1, linger=timedelta(seconds=5))
    return ONE_MESSAGE


def _test_request(settings: SlackSettings, context: Context) -> Request:
    if settings.mode == "bot":
        return Request.json(
            f"{API}/auth.test", {}, headers=_bearer(settings), content_type=CONTENT_TYPE
        )
    return _request({}, settings)  # posts nothing


def _read_test(response: Response) -> Outcome:
    if re.fullmatch(r"no_text|missing_text_or_fallback_or_attachments", response.text):
        return Delivered("the webhook is alive")
    return _by_api(response) if isinstance(response.json, dict) else _by_webhook(response)


ONE_MESSAGE = Limits(bytes=100 * KB, concurrency=1)

provider = Provider(
    slug="slack",
    title="Slack",
    category="Server",
    stores=("iOS", "Android", "Stripe"),
    settings=SlackSettings,
    encode=encode,
    classify=classify,
    limits=ONE_MESSAGE,
    limits_of=limits_of,
    names=EVENTS,
    identifiers=("none: every event is announced",),
    notes=(
        "Slack knows no idempotency: a message whose answer was lost can be posted twice.",
        "A webhook posts to the channel it was made for; channel, username and icon are ignored.",
        "About one message a second is taken; choose `events`, or `digest`, for busy apps.",
    ),
    check=Check(_test_request, _read_test),
)

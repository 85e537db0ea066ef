"""Trials: whatever the adapter does, there is something to say of it."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from providers.kit import Check, Misconfigured, Settings, TokenSource
from tests.worker.bare import bare_provider
from tests.worker.looped import classify, encode
from worker.mask import Mask
from worker.trial import send_check, send_test

NOTHING: Any = None


def fails(*_: Any) -> Any:
    raise ValueError("this curve is not supported")


async def test_a_token_that_cannot_be_asked_for_is_told_of() -> None:
    provider = replace(
        bare_provider(encode, classify),
        token=TokenSource(fails, fails, {}),
        check=Check(fails, fails),
    )
    integration: Any = SimpleNamespace(
        id="c9VdLs3H", slug="webhooks", project_id="p", platform="iOS", provider=provider,
        settings=Settings(), mask=Mask(()), version=(), timeout=5.0,
    )  # fmt: skip
    told = Misconfigured("adapter_error", "no token: ValueError in the adapter; see the log")
    assert (await send_test(integration, NOTHING)).outcome == told
    checked = await send_check(integration, NOTHING)
    assert checked
    assert checked.outcome == told

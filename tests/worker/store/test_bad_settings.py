"""Bad settings, by the numbers of the design's list: each is named, none is shown."""

import json
from importlib import import_module
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.registry import all_providers
from worker.store.checks import check_settings, shown_settings
from worker.store.errors import Invalid

SECRET = "s3cr3t-that-nobody-may-see"
SETTINGS: dict[str, dict[str, Any]] = {
    slug: dict(import_module(f"worker.sandbox.upstreams.{slug}").upstream.settings)
    for slug in all_providers()
}
KEPT_BY_US = ("Host", "host", "Content-Length", "Transfer-Encoding", "Connection", "webhook-id")


def faults(slug: str, **changes: Any) -> dict[str, str]:
    """Return what is said of a provider's good settings, changed; empty where they will do."""
    data = {key: value for key, value in {**SETTINGS[slug], **changes}.items() if value is not ...}
    try:
        check_settings(slug, data, allow_private=False)
    except Invalid as error:
        said = dict(error.faults)
        assert SECRET not in str(said)
        return said
    return {}


@pytest.mark.parametrize(
    ("slug", "change", "key"),
    [
        ("amplitude", {"api_key": ...}, "api_key"),  # 41
        ("amplitude", {"api_kye": "x"}, "api_kye"),  # 42
        ("amplitude", {"api_key": 17}, "api_key"),  # 43
        ("amplitude", {"api_key": [SECRET]}, "api_key"),
        ("amplitude", {"send_revenue": {}}, "send_revenue"),
        ("amplitude", {"api_key": "  "}, "api_key"),  # 44
        ("webhooks", {"auth_token": f"{SECRET}\r\nX: y"}, "auth_token"),  # 45
        ("webhooks", {"auth_token": f"{SECRET}\x00"}, "auth_token"),
        ("webhooks", {"auth_token": f"{SECRET}\u00fc"}, "auth_token"),
        ("webhooks", {"auth_token": SECRET * 400}, "auth_token"),  # 46
        ("amplitude", {"region": "evil.com#"}, "region"),  # 48
        ("amplitude", {"region": "@"}, "region"),
        ("mailchimp", {"server": "a.b/.."}, "server"),
        ("mailchimp", {"server": "evil.com#"}, "server"),
        ("amazon_s3", {"region": "@evil.com/"}, "region"),
        ("pushwoosh", {"api_host": "evil.com#"}, "api_host"),
        ("braze", {"rest_endpoint": "evil.com#"}, "rest_endpoint"),
        ("posthog", {"region": "custom", "host": "https://a@127.0.0.1"}, "host"),
        ("mailchimp", {"list_id": "../admin"}, "list_id"),  # 49
        ("mailchimp", {"list_id": "?x=1"}, "list_id"),
        ("facebook", {"dataset_id": "1/../2"}, "dataset_id"),
        ("onesignal", {"app_id": "../admin"}, "app_id"),
        *(("webhooks", {"custom_headers": {n: "x"}}, "custom_headers") for n in KEPT_BY_US),  # 50
        ("webhooks", {"custom_headers": {"a": "x", "A": "y"}}, "custom_headers"),
        ("webhooks", {"custom_headers": {"X-A": f"{SECRET}\r\nB: c"}}, "custom_headers"),  # 51
        ("webhooks", {"custom_headers": {"X A": "b"}}, "custom_headers"),
        ("webhooks", {"custom_headers": {f"X-{n}": "b" for n in range(200)}}, "custom_headers"),
        *(
            ("webhooks", {"delivery": {"retry_threshold": value}}, "delivery.retry_threshold")
            for value in (0, -1, 10**9, "abc")  # 54
        ),
    ],
)
def test_what_will_not_do_is_named(slug: str, change: dict[str, Any], key: str) -> None:
    said = faults(slug, **change)
    assert [name for name in said if name == key or name.startswith(f"{key}.")], said


@pytest.mark.parametrize("name", ["[[", "(a+)+$" * 50, "{{7*7}}", "${jndi:x}", "%s%s%n", "a" * 40])
def test_a_mapping_is_text_and_no_expression(name: str) -> None:
    """56: nothing in settings is evaluated, so nothing can loop."""
    said = faults("amplitude", event_names={"trial_started": name})
    assert not said or next(iter(said)).startswith("event_names")


def test_spaces_around_a_secret_are_no_part_of_it() -> None:
    """44: pasted with a line's end, it is the same key."""
    data = {**SETTINGS["amplitude"], "api_key": f"  {SETTINGS['amplitude']['api_key']}\n"}
    model: Any = check_settings("amplitude", data, allow_private=False)
    assert model.api_key.get_secret_value() == SETTINGS["amplitude"]["api_key"]


ODD = ("", " ", "../x", "evil.com#", "https://127.0.0.1/", "a\r\nb", "\x00", SECRET)
VALUES = st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(ODD) | st.text()
JSON = VALUES | st.lists(VALUES, max_size=2) | st.dictionaries(st.sampled_from(ODD), VALUES)


@given(st.sampled_from(sorted(SETTINGS)), st.lists(st.tuples(st.integers(0, 40), JSON), max_size=4))
def test_any_settings_are_taken_or_refused_by_name(
    slug: str, changes: list[tuple[int, Any]]
) -> None:
    known = [*all_providers()[slug].settings.model_fields, "unknown"]
    changed = {known[number % len(known)]: value for number, value in changes}
    said, model = [], None
    try:
        model = check_settings(slug, {**SETTINGS[slug], **changed}, allow_private=False)
    except Invalid as error:
        said = error.faults
    assert (model is None) == bool(said)
    assert [text for _, text in said if SECRET in text] == []
    assert model is None or json.dumps(shown_settings(model))

"""Who gets in: the admin key alone, by our own form, for a while; and nobody acts for them."""

import re
import time
from dataclasses import replace
from typing import Any

import pytest
from anyio.from_thread import BlockingPortal
from fastapi import FastAPI

from tests.worker.console.conftest import ADMIN_KEY, Browser
from worker.console import session
from worker.console.session import COOKIE, Sessions, SignedOut, safe_next
from worker.settings import WorkerSettings

PAGES = (
    "/console", "/console/", "/console/integrations", "/console/integrations/abcdefgh",
    "/console/integrations/abcdefgh/settings",
    "/console/events?q=e1", "/console/deadletters", "/console/deadletters/1", "/console/replay",
    "/console/anything",
)  # fmt: skip
POSTS = (
    "/console/integrations/abcdefgh/status", "/console/integrations/abcdefgh/test",
    "/console/integrations/abcdefgh/settings", "/console/replay", "/console/sign-out",
)  # fmt: skip


def test_a_stranger_is_asked_for_the_key_and_sees_nothing(stranger: Browser) -> None:
    for path in PAGES:
        answer = stranger("GET", path)
        assert answer.status_code == 401, path
        assert 'type="password"' in answer.text
        assert "Sign out" not in answer.text


def test_a_stranger_can_do_nothing(stranger: Browser) -> None:
    for path in POSTS:
        answer = stranger("POST", path, data={"token": "", "status": "0"})
        assert answer.status_code == 401, path


def test_the_admin_key_opens_the_page_that_was_asked_for(stranger: Browser) -> None:
    form = stranger.get("/console/integrations", state="suspended").text
    asked = re.search(r'name="next" value="([^"]+)"', form)
    assert asked
    answer = stranger.sign_in(next=asked[1])
    assert answer.status_code == 303
    assert answer.headers["location"] == "/console/integrations?state=suspended"
    assert stranger.get("/console").status_code == 200


def test_the_cookie_is_for_the_console_alone(stranger: Browser) -> None:
    cookie = stranger.sign_in().headers["set-cookie"].lower()
    assert {"httponly", "samesite=strict", "path=/console", "max-age=14400"} <= set(
        cookie.replace(" ", "").split(";")
    )
    assert ADMIN_KEY not in cookie


def test_over_tls_the_cookie_is_secure(portal: BlockingPortal, app: FastAPI) -> None:
    browser = Browser(portal, app, "https://o.test")
    assert "; Secure" in browser.sign_in().headers["set-cookie"]


@pytest.mark.parametrize("key", ["", "wrong", ADMIN_KEY + " ", "é\ud800"])
def test_another_key_does_not(stranger: Browser, key: str) -> None:
    encoded = key.encode("utf-8", "surrogatepass")
    answer = stranger.sign_in(encoded)  # type: ignore[arg-type]
    assert answer.status_code == 403
    assert COOKIE not in stranger.http.cookies
    assert stranger.get("/console").status_code == 401


def test_sign_ins_are_slowed_down_also_with_the_right_key(stranger: Browser) -> None:
    tried = [stranger.sign_in("wrong").status_code for _ in range(12)]
    assert tried[:10] == [403] * 10
    assert tried[10:] == [429, 429]
    assert stranger.sign_in().status_code == 429


def test_signing_in_needs_our_own_form(stranger: Browser) -> None:
    for token in ("", "0" * 32):
        answer = stranger("POST", "/console/sign-in", data={"token": token, "key": ADMIN_KEY})
        assert answer.status_code == 403
    assert COOKIE not in stranger.http.cookies


def test_two_tabs_may_both_sign_in(stranger: Browser) -> None:
    first = stranger.token()
    assert stranger.token() == first


def test_signing_out_ends_it(operator: Browser) -> None:
    assert operator.post("/console/sign-out").status_code == 303
    assert operator.get("/console").status_code == 401


@pytest.mark.parametrize("token", ["", "0" * 64, "é"])
def test_no_form_without_the_sessions_token(operator: Browser, token: str) -> None:
    for path in POSTS:
        answer = operator("POST", path, data={"token": token, "status": "0"})
        assert answer.status_code == 403, path


def test_nor_with_the_token_of_another_session(portal: BlockingPortal, app: FastAPI) -> None:
    mine, other = Browser(portal, app), Browser(portal, app)
    assert mine.sign_in().status_code == other.sign_in().status_code == 303
    answer = mine("POST", "/console/sign-out", data={"token": other.token()})
    assert answer.status_code == 403


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b'{"token":"x"}', "application/json"),
        (b"token=x", "text/plain"),
        (b"a=1&" * 40, "application/x-www-form-urlencoded"),
        (b"token=" + b"x" * 70_000, "application/x-www-form-urlencoded"),
        ("token=é".encode(), "application/x-www-form-urlencoded"),
    ],
)
def test_what_is_no_form_is_refused(operator: Browser, content: bytes, kind: str) -> None:
    headers = {"content-type": kind}
    answer = operator("POST", "/console/sign-out", content=content, headers=headers)
    assert answer.status_code in (400, 413, 415)


def test_a_session_ends_by_time_and_with_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    sessions = Sessions("key")
    cookie = sessions.new()
    assert len(sessions.check(cookie)) == 64
    with pytest.raises(SignedOut):
        Sessions("another key").check(cookie)
    later = time.time() + session.SECONDS + 1
    monkeypatch.setattr(time, "time", lambda: later)
    with pytest.raises(SignedOut):
        sessions.check(cookie)


@pytest.mark.parametrize("place", [0, 12, -1])
def test_an_altered_cookie_opens_nothing(place: int) -> None:
    sessions = Sessions("key")
    letters = list(sessions.new())
    letters[place] = "0" if letters[place] != "0" else "1"
    with pytest.raises(SignedOut):
        sessions.check("".join(letters))


@pytest.mark.parametrize("cookie", ["", ".", "..", "9999999999..", "é.é.é", "x" * 9000])
def test_nor_does_a_made_up_one(cookie: str) -> None:
    with pytest.raises(SignedOut):
        Sessions("key").check(cookie)


@pytest.mark.parametrize(
    "path",
    ["//evil.test", "https://evil.test", "/console@evil", "/consoles", "/console\n", "", "/"],
)
def test_signing_in_leads_nowhere_else(path: str) -> None:
    assert safe_next(path) == "/console"


def test_the_root_leads_to_the_console(stranger: Browser) -> None:
    answer = stranger.get("/")
    assert (answer.status_code, answer.headers["location"]) == (307, "/console")


def test_without_an_admin_key_there_is_no_way_in(stranger: Browser, app: FastAPI) -> None:
    services = app.state.services
    open_to_nobody = WorkerSettings.model_validate({"data_dir": services.settings.data_dir})
    app.state.services = replace(services, settings=open_to_nobody)
    for path in ("/console", "/console/sign-in"):
        answer = stranger.get(path)
        assert answer.status_code == 503
        assert "ONWARD_ADMIN_KEY" in answer.text


def test_every_page_allows_its_own_assets_only(operator: Browser, stranger: Browser) -> None:
    answers: list[Any] = [operator.get("/console"), stranger.get("/console")]
    answers.append(operator.get("/console/nothing"))
    for answer in answers:
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'")
        assert "unsafe" not in policy
        assert not re.search(
            r"<script(?! src=\"/console/static)|<style| style=| on\w+=", answer.text
        )
        for url in re.findall(r'(?:src|href)="([^"]+)"', answer.text):
            assert url.startswith(("/console", "#")), url


@pytest.mark.parametrize("name", ["console.css", "console.js", "icon.svg"])
def test_assets_are_there_and_may_be_kept(stranger: Browser, name: str) -> None:
    answer = stranger.get(f"/console/static/{name}")
    assert answer.status_code == 200
    assert "max-age" in answer.headers["cache-control"]
    assert "http" not in answer.text.replace('xmlns="http://www.w3.org/2000/svg"', "")


def test_nothing_else_is_served(stranger: Browser) -> None:
    for name in ("routes.py", "..%2froutes.py", "../session.py"):
        assert stranger.get(f"/console/static/{name}").status_code in (401, 404)

"""The console in a real browser, on a real service: what an operator does at night.

Debian's Chromium, driven by Playwright; set TEST_PICTURES to a folder to get pictures.
"""

import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from tests.stack import PROJECT, Stack, eventually, free_port
from tests.worker.store.rows import record_rows
from worker.sample import events
from worker.store.database import now
from worker.supervisor import Part, onward

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
ADMIN_KEY = "admin-key-of-the-browser-tests"
LETTERS = 600
PHONE = {"width": 360, "height": 760}
pytestmark = [
    pytest.mark.processes,
    pytest.mark.skipif(not CHROMIUM, reason="no chromium on the path: apt-get install chromium"),
]


@dataclass(frozen=True)
class Scene:
    """A service with a suspended webhook that holds 40 events, and an Amplitude in good health."""

    stack: Stack
    url: str
    hook: str
    amplitude: str
    event: dict[str, Any]  # one that waits behind the webhook


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    port = free_port()
    environment = {"ONWARD_CREDENTIAL_THRESHOLD": "2", "ONWARD_ADMIN_KEY": ADMIN_KEY}
    with Stack(tmp_path_factory.mktemp("console") / "stack", environment) as stack:
        stack.start(Part("api", onward("api", "--port", str(port)), stack.environment))
        hook = stack.integration("webhooks", url="https://hooks.example.com/onward")
        amplitude = stack.integration("amplitude")
        stack.fault("refuse", slug="webhooks")
        stack.worker()
        first, *_ = sent = list(events(40, project=PROJECT))
        stack.publish(sent)
        eventually(lambda: stack.state(hook).active == 2, 60, "suspended")
        eventually(lambda: stack.recorded(amplitude) == {"delivered": 40}, 60)
        url = f"http://127.0.0.1:{port}"
        eventually(lambda: _answers(f"{url}/healthz"), 60, "the API answers")
        yield Scene(stack, url, hook, amplitude, first)


def _answers(url: str) -> bool:
    try:
        return httpx.get(url).status_code == 200
    except httpx.TransportError:
        return False


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        arguments = ["--no-sandbox"] if os.getuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def session(chromium: Browser, scene: Scene) -> Any:
    """The cookies of somebody who has signed in."""
    with chromium.new_context() as context:
        page = context.new_page()
        sign_in(page, scene)
        return context.storage_state()


def sign_in(page: Page, scene: Scene, key: str = ADMIN_KEY) -> None:
    page.goto(f"{scene.url}/console")
    page.get_by_label("Admin key").fill(key)
    page.get_by_role("button", name="Sign in").click()


class Watched:
    """Contexts whose pages say nothing on the browser's console and ask nobody else."""

    def __init__(self, browser: Browser, scene: Scene, session: Any) -> None:
        self._browser, self._scene, self._session = browser, scene, session
        self.contexts: list[BrowserContext] = []
        self.faults: list[str] = []

    def __call__(self, **more: Any) -> Page:
        context = self._browser.new_context(storage_state=self._session, **more)
        self.contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: self.faults.append(str(error)))
        page.on("console", self._said)
        page.on("request", lambda request: self._asked(request.url))
        return page

    def _said(self, message: Any) -> None:
        if message.type in {"error", "warning"}:
            self.faults.append(message.text)

    def _asked(self, url: str) -> None:
        if not url.startswith(self._scene.url):
            self.faults.append(f"asks {url}")


@pytest.fixture
def visit(chromium: Browser, scene: Scene, session: Any) -> Iterator[Watched]:
    watched = Watched(chromium, scene, session)
    yield watched
    for context in watched.contexts:
        context.close()
    assert watched.faults == []


@pytest.fixture
def page(visit: Watched) -> Page:
    return visit(viewport={"width": 1280, "height": 800})


def picture(page: Page, name: str) -> None:
    if folder := os.environ.get("TEST_PICTURES"):
        page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)


def pages(scene: Scene) -> dict[str, str]:
    return {
        "overview": "",
        "integrations": "/integrations",
        "integration": f"/integrations/{scene.hook}",
        "settings": f"/integrations/{scene.hook}/settings",
        "events": "/events",
        "event": f"/events?q={scene.event['id']}",
        "user": f"/events?q={scene.event['user_id']}",
        "deadletters": "/deadletters",
        "replay": f"/replay?integration={scene.amplitude}",
    }


# --- looking ------------------------------------------------------------------------------------


def test_only_the_admin_key_opens_it(chromium: Browser, scene: Scene) -> None:
    with chromium.new_context() as context:
        page = context.new_page()
        sign_in(page, scene, "wrong")
        expect(page.get_by_role("alert")).to_contain_text("not the admin key")
        sign_in(page, scene)
        expect(page).to_have_title(re.compile("Overview"))
        page.get_by_role("button", name="Sign out").click()
        expect(page.get_by_label("Admin key")).to_be_visible()


def test_the_overview_says_first_what_needs_somebody(page: Page, scene: Scene) -> None:
    page.goto(f"{scene.url}/console")
    panel = page.locator("main .panel").first
    expect(panel.get_by_role("heading")).to_contain_text("1 suspended")
    expect(panel).to_contain_text("401 from Webhook")
    picture(page, "console-overview")
    panel.get_by_role("link", name="Test webhooks").click()
    expect(page.locator(".panel").first).to_contain_text("What to do")
    expect(page.locator("#figures")).to_contain_text("Held40")
    picture(page, "console-integration")


def test_an_event_is_found_by_its_id_and_by_its_user(page: Page, scene: Scene) -> None:
    page.goto(f"{scene.url}/console")
    find = page.get_by_role("search").get_by_label("Event or user id")
    find.fill(scene.event["id"])
    find.press("Enter")
    life = page.locator("#life")
    expect(life.get_by_role("row").filter(has_text="Test amplitude")).to_contain_text("delivered")
    waits = life.get_by_role("row").filter(has_text="Test webhooks")
    expect(waits).to_contain_text("held: its pipeline is suspended")
    picture(page, "console-event")

    find.fill(scene.event["user_id"])
    find.press("Enter")
    expect(page.get_by_role("link", name=scene.event["id"])).to_be_visible()


def test_at_phone_width_nothing_is_cut_off(visit: Watched, scene: Scene) -> None:
    page = visit(viewport=PHONE)
    for name, path in pages(scene).items():
        page.goto(f"{scene.url}/console{path}")
        width = page.evaluate("document.documentElement.scrollWidth")
        assert width <= PHONE["width"], f"{name} is {width} wide"
        picture(page, f"phone-{name}")


FOCUSED = """() => {
  const one = document.activeElement, style = getComputedStyle(one);
  const name = one === document.body ? "" : one.id || one.textContent || one.name;
  return [name, style.outlineStyle, style.outlineWidth];
}"""


def test_tab_reaches_every_control_and_shows_where_it_is(page: Page, scene: Scene) -> None:
    page.goto(f"{scene.url}/console/integrations/{scene.hook}")
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    reached = set()
    for _ in range(80):
        name, style, width = page.evaluate(FOCUSED)
        if not name:
            break  # out of the page
        reached.add(name)
        assert style != "none", f"{name} is not seen to have the focus"
        assert width != "0px", f"{name} is not seen to have the focus"
        page.keyboard.press("Tab")
    assert reached >= {"activate", "test", "settings", "pause-ask", "Find", "Sign out"}
    page.locator("#pause-ask").focus()
    page.keyboard.press("Enter")
    expect(page.locator("#pause-yes")).to_be_visible()


CONTRAST = """() => {
  const parts = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((c) => c / 255)
    .map((c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = (one) => {
    for (; one; one = one.parentElement) {
      const colour = parts(getComputedStyle(one).backgroundColor);
      if (colour.length === 3 || colour[3] === 1) return colour;
    }
    return [255, 255, 255];
  };
  return [...document.querySelectorAll("main *, header *")]
    .filter((one) => [...one.childNodes].some((n) => n.nodeType === 3 && n.data.trim())
      && one.checkVisibility())
    .map((one) => {
      const pair = [light(parts(getComputedStyle(one).color)), light(ground(one))].sort();
      return [(Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05), one.outerHTML.slice(0, 120)];
    })
    .filter(([ratio]) => ratio < 4.5);
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_readable_in_both_schemes(visit: Watched, scene: Scene, scheme: str) -> None:
    page = visit(color_scheme=scheme, viewport={"width": 1280, "height": 800})
    for name, path in pages(scene).items():
        page.goto(f"{scene.url}/console{path}")
        assert page.evaluate(CONTRAST) == [], name
        if scheme == "dark":
            picture(page, f"dark-{name}")
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (ground == "rgb(246, 247, 249)") == (scheme == "light")


# --- acting -------------------------------------------------------------------------------------


def test_a_test_event_shows_request_and_answer(page: Page, scene: Scene) -> None:
    page.goto(f"{scene.url}/console/integrations/{scene.amplitude}")
    page.get_by_role("button", name="Send a test event").click()
    expect(page.locator("main")).to_contain_text("api2.amplitude.com")
    expect(page.locator("main")).to_contain_text("Delivered")
    expect(page.locator("main")).not_to_contain_text("a" * 32)
    picture(page, "console-test-event")


def test_the_page_follows_what_happens_without_a_reload(page: Page, scene: Scene) -> None:
    page.goto(f"{scene.url}/console/integrations/{scene.amplitude}")
    page.evaluate("window.still = true")
    expect(page.locator("#figures")).to_contain_text("Delivered40")
    (event,) = events(1, seed=2, project=PROJECT)
    scene.stack.publish([event])
    expect(page.locator("#deliveries")).to_contain_text(event["id"], timeout=20_000)
    expect(page.locator("#figures")).to_contain_text("Delivered41")
    assert page.evaluate("window.still")


def test_dead_letters_are_sent_again_after_a_look(page: Page, scene: Scene) -> None:
    """So many that it takes steps: the page goes on by itself, and says how far it is."""
    moment = now()
    some = list(events(LETTERS, seed=3, project=PROJECT))
    assert record_rows(
        scene.stack.engine, 99, None, "1",
        dead_letters=[
            {
                "project_id": PROJECT, "integration_id": scene.amplitude, "event_id": one["id"],
                "event_name": one["event_name"], "reason": "bad_request", "message": "no",
                "body": json.dumps(one).encode(), "created_at": moment,
            }
            for one in some
        ],
    )  # fmt: skip
    page.goto(f"{scene.url}/console/integrations/{scene.amplitude}")
    page.get_by_role("link", name=f"Replay {LETTERS} dead letters").click()
    expect(page.get_by_role("heading", level=2)).to_contain_text(f"{LETTERS} would be sent again")
    expect(page.get_by_role("row").filter(has_text="Test amplitude")).to_contain_text("bad_request")
    picture(page, "console-replay")
    page.get_by_role("button", name=f"Send {LETTERS} again").click()
    done = page.get_by_role("status").filter(has_text="Done.")
    expect(done).to_contain_text(f"{LETTERS} of {LETTERS} sent again", timeout=60_000)
    expect(page.get_by_role("progressbar")).to_have_attribute("value", str(LETTERS))
    arrived = {one["id"] for one in some}
    eventually(lambda: arrived <= set(scene.stack.taken("amplitude")), 60, "all have arrived")


def test_reactivated_the_held_events_are_seen_to_leave(page: Page, scene: Scene) -> None:
    stack = scene.stack
    page.goto(f"{scene.url}/console/integrations/{scene.hook}")
    expect(page.locator(".badge").first).to_have_text("suspended")
    stack.no_faults()
    page.get_by_role("button", name="Re-activate").click()
    expect(page.get_by_role("status").filter(has_text="It is active")).to_be_visible()
    page.evaluate("window.still = true")
    expect(page.locator("#figures")).to_contain_text("Waiting0", timeout=30_000)
    expect(page.locator("#figures")).to_contain_text("Delivered41", timeout=30_000)
    expect(page.locator(".badge").first).to_have_text("active", timeout=30_000)
    assert page.evaluate("window.still")
    page.goto(f"{scene.url}/console")
    expect(page.locator("main .panel").first).to_contain_text("No pipeline is in trouble")
    eventually(stack.settled, 60, "nothing is lost")

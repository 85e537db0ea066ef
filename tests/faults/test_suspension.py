"""Suspended, paused, changed, deleted while events are under way; a provider's incident."""

import pytest

from tests.faults.proxy import Proxy
from tests.faults.scene import PROJECT, WINDOW, Make, ids_of
from tests.stack import eventually
from worker.sandbox.upstreams import webhooks
from worker.state import Keys, shard_of

pytestmark = pytest.mark.processes
STRICT = {"ONWARD_CREDENTIAL_THRESHOLD": "2"}


@pytest.mark.row(31, "refused until suspended, activated by plain SQL, late failures")
def test_late_failures_do_not_suspend_again(scene: Make) -> None:
    with scene(STRICT) as s, Proxy(s.sandbox_port) as link:
        hook = s.hook("a")
        link.delay = 0.5  # answers are late: hundreds are under way at any time
        s.worker(ONWARD_UPSTREAM=f"http://127.0.0.1:{link.port}")
        s.fault("refuse", slug="webhooks")
        s.send(500)
        eventually(lambda: s.state(hook).active == 2, 60, "suspended")
        s.no_faults()
        assert s.sql("UPDATE integrations SET active = 1 WHERE id = :id", id=hook) == 1
        s.check(ordered=True, flips=1)
        assert s.state(hook).active == 1


@pytest.mark.row(31, "mended while it backs off for an hour, and activated: tried at once")
def test_what_backs_off_is_tried_now(scene: Make) -> None:
    with scene({"ONWARD_RETRY_SCHEDULE": "3600"}) as s:
        hook = s.hook("a")
        s.worker()
        s.fault("fail", slug="webhooks")
        s.send(20)
        eventually(lambda: s.state(hook).delivery_error_count, 60, "it backs off")
        s.no_faults()
        s.activate(hook)
        s.check(ordered=True)


@pytest.mark.slow
@pytest.mark.row(31, "8 processes fail at once, shards stolen: one flip, one notice")
def test_eight_processes_fail_at_once(scene: Make) -> None:
    with scene({"ONWARD_CREDENTIAL_THRESHOLD": "5", "ONWARD_CONCURRENCY": "4"}) as s:
        hook = s.hook("a")
        s.worker(), s.worker()
        s.fault("refuse", slug="webhooks")
        s.send(2_000)
        shard, holders = shard_of(PROJECT, s.settings.shards), set()
        for _ in range(8):  # each has failures of its own in hand when another takes over
            before = s.last_calls("webhooks")[-1:]
            holders.add(eventually(lambda: s.redis.get(Keys(shard).lease), 60, "somebody drains"))
            eventually(
                lambda: s.last_calls("webhooks")[-1:] != before or s.state(hook).active == 2,  # noqa: B023
                60,
                "and is refused, if five others have not been by then",
            )
            s.take_away(shard)
        eventually(lambda: s.state(hook).active == 2, 60, "suspended")
        assert len(holders) > 1
        s.no_faults()
        s.activate(hook)
        s.check(duplicates=8 * WINDOW, flips=1)
        assert s.state(hook).active == 1


@pytest.mark.slow
@pytest.mark.row(31, "activated again unmended: back to 2 at the first refusal")
def test_probation(scene: Make) -> None:
    with scene({"ONWARD_CREDENTIAL_THRESHOLD": "3"}) as s:
        hook = s.hook("a", auth_token="wrong")
        s.worker()
        s.send(100)
        eventually(lambda: s.state(hook).active == 2, 60, "suspended")
        calls = s.calls(401)
        s.activate(hook)
        eventually(lambda: s.state(hook).active == 2, 60, "suspended again")
        assert s.calls(401) == calls + 1, "one probe"
        name = s.receivers[hook][1]
        s.settings_of(hook, {**webhooks.upstream.settings, "url": f"https://{name}/onward"})
        s.activate(hook)
        s.check(ordered=True, flips=2)


@pytest.mark.slow
@pytest.mark.row(32, "active toggled 0, 1, 2 every 200 ms under load")
def test_toggled(scene: Make) -> None:
    with scene() as s:
        hook = s.hook("a")
        s.worker()
        s.fault("half", slug="webhooks", status=503)
        with s.load():
            for number in range(40):
                s.sql("UPDATE integrations SET active = :to WHERE id = :id", to=number % 3, id=hook)
                s.published(8)
        s.no_faults()
        s.sql("UPDATE integrations SET active = 1 WHERE id = :id", id=hook)
        s.send(50)
        eventually(s.settled, 90)
        (accounts,) = s.check(absent=s.balance().dropped.get("unrouted", 0)).values()
        assert accounts.taken.keys() >= {event["id"] for event in s.sent[PROJECT][-10:]}


@pytest.mark.slow
@pytest.mark.row(32, "paused at the moment of its suspension, then activated: not wedged")
def test_paused_while_it_is_suspended(scene: Make) -> None:
    with scene(STRICT) as s:
        hook = s.hook("a")
        worker = s.worker()
        s.fault("refuse", slug="webhooks")
        s.send(50)
        eventually(lambda: s.state(hook).delivery_error_count >= 1, 60, "rounds fail")
        s.activate(hook, 0)
        eventually(s.settled, 60, "what waited is skipped")
        s.no_faults()
        s.activate(hook, 1)
        s.stop(worker)
        s.again(worker)
        before = s.arrived()
        s.send(50)
        s.reached(before + 50)
        s.check(flips=s.flips(), absent=s.balance().dropped.get("unrouted", 0))


@pytest.mark.slow
@pytest.mark.row(33, "paused while no worker runs: nothing of its lane is sent")
def test_paused_behind_our_back(scene: Make) -> None:
    with scene() as s:
        hook = s.hook("a")
        worker = s.worker()
        s.fault("fail", slug="webhooks")
        s.send(80)
        eventually(lambda: s.state(hook).delivery_error_count >= 1, 60, "rounds fail")
        s.stop(worker)
        s.no_faults()
        s.activate(hook, 0)
        s.again(worker)
        (accounts,) = s.check().values()
        assert accounts.taken == {}
        assert accounts.count("skipped") == 80


@pytest.mark.slow
@pytest.mark.row(33, "settings changed while events wait: the new ones apply")
def test_settings_change(scene: Make) -> None:
    with scene() as s:
        hook = s.hook("old.moved")
        s.worker()
        s.fault("fail", slug="webhooks", host="old.moved.customer.example")
        s.send(300)
        eventually(lambda: s.state(hook).delivery_error_count >= 1, 60, "rounds fail")
        url = "https://new.moved.customer.example/onward"
        s.receivers[hook] = ("webhooks", "new.moved.customer.example", PROJECT)
        s.settings_of(hook, {**webhooks.upstream.settings, "url": url})
        s.check(ordered=True)


@pytest.mark.slow
@pytest.mark.row(33, "deleted while events wait and are under way")
def test_deleted(scene: Make) -> None:
    with scene() as s:
        waiting, flying = s.hook("waiting"), s.hook("flying")
        worker = s.worker()
        s.fault("fail", slug="webhooks", host="waiting.customer.example")
        s.fault("slow", slug="webhooks", host="flying.customer.example", seconds=0.3)
        s.send(1_500)
        s.moving(50)
        for hook in (waiting, flying):
            s.delete(hook)
        found = s.check(absent=0)
        assert found[waiting].taken == {}
        for accounts in found.values():
            reasons = {name for name in accounts.reasons if not name.startswith("delivered")}
            assert reasons <= {"expired/deleted", "skipped/deleted"}
        s.stop(worker)


@pytest.mark.slow
@pytest.mark.row("P", "provider down for 40 pipelines: none suspended, one alert")
def test_a_providers_incident(scene: Make) -> None:
    with scene({"ONWARD_RETRY_THRESHOLD": "4", **STRICT, "ONWARD_RETRY_SCHEDULE": "0.3,0.5"}) as s:
        for number in range(40):
            s.hook(f"h{number}", s.project(f"prj_{number}"))
        s.worker()
        alone = next(iter(s.receivers))
        s.fault("fail", slug="webhooks", status=503)
        s.fault("refuse", slug="webhooks", host="h0.customer.example")
        for _, _, project in s.receivers.values():
            s.send(5, project)
        others = [hook for hook in s.receivers if hook != alone]
        eventually(
            lambda: all(s.state(hook).delivery_error_count >= 8 for hook in others), 90, "all fail"
        )
        assert [hook for hook in others if s.state(hook).active != 1] == []
        assert s.state(alone).active == 2, "refused alone among them"
        eventually(lambda: s.notices("provider.incident"), 60, "told")
        s.no_faults()
        eventually(lambda: s.arrived() == 39 * 5, 60, "they recover by themselves")
        assert s.notices("provider.incident") == 1
        s.activate(alone)
        s.check(ordered=True, flips=1)


@pytest.mark.slow
@pytest.mark.row("H", "more held than are kept: the oldest expire, counted; the rest is released")
def test_held_events_expire_by_count(scene: Make) -> None:
    with scene({**STRICT, "ONWARD_HOLD_EVENTS": "200"}) as s:
        hook = s.hook("a", auth_token="wrong")
        s.worker()
        sent = s.send(1_000)
        eventually(lambda: s.recorded(hook).get("expired") == 800, 60, "what is too much expires")
        assert s.state(hook).active == 2
        name = s.receivers[hook][1]
        s.settings_of(hook, {**webhooks.upstream.settings, "url": f"https://{name}/onward"})
        s.activate(hook)
        (accounts,) = s.check(ordered=True, flips=1).values()
        assert accounts.taken.keys() == {event["id"] for event in sent[800:]}
        assert accounts.reasons["expired/hold_events"] == 800


@pytest.mark.slow
@pytest.mark.row("H", "105,050 for a held pipeline: 100,000 stay, in order")
def test_a_hundred_thousand_held(scene: Make) -> None:
    with scene(STRICT) as s:
        amplitude = s.other("amplitude")
        s.fault("refuse", slug="amplitude")
        s.worker()
        s.send(50)
        eventually(lambda: s.state(amplitude).active == 2, 60, "suspended")
        for _ in range(21):
            s.send(5_000, users=1_000)
        lane = Keys(shard_of(PROJECT, s.settings.shards)).lane(amplitude)
        eventually(lambda: s.redis.xlen(lane) == 100_000, 120, "as many as are held")
        used = s.redis.info("memory")["used_memory"]
        assert used < 400 * 2**20, f"{used / 2**20:.0f} MiB"
        eventually(lambda: s.recorded(amplitude).get("expired") == 5_050, 120, "the oldest")
        s.no_faults()
        before = len(s.last_calls("amplitude"))
        s.activate(amplitude)
        fresh = s.send(100, users=1_000)
        (accounts,) = s.check(ordered=True, flips=1, seconds=180).values()
        assert ids_of(fresh) <= accounts.taken.keys()
        assert len(s.last_calls("amplitude")) - before >= 100_000 // 2_000, "in full batches"


@pytest.mark.slow
@pytest.mark.row("H", "held for too long: expired, counted")
def test_held_events_expire_by_age(scene: Make) -> None:
    with scene({**STRICT, "ONWARD_HOLD_SECONDS": "3"}) as s:
        s.hook("a", auth_token="wrong")
        s.worker()
        s.send(300)
        (accounts,) = s.check(flips=1).values()
        eventually(lambda: s.balance().lines[0].waiting == 0, 60)
        (accounts,) = s.check(flips=1).values()
        assert accounts.count("expired") == 300


@pytest.mark.slow
@pytest.mark.row("W", "a bucket's batch across a kill: the same object again, not another")
def test_a_whole_batch_across_a_kill(scene: Make) -> None:
    with scene() as s:
        s.other("amazon_s3")
        worker = s.worker()
        s.fault("cut", slug="amazon_s3")  # taken, and no answer
        s.send(200)
        s.reached(200)
        s.kill_all(worker)
        s.send(50)
        s.no_faults()
        s.again(worker)
        s.check(duplicates=WINDOW)
        first = {call["target"] for call in s.last_calls("amazon_s3") if call["status"] == "cut"}
        objects = [call["target"] for call in s.last_calls("amazon_s3")]
        assert len(set(objects)) == 2, "one object for what was cut, one for the rest"
        assert first <= set(objects)

"""The main job, end to end, with real processes: deliver, survive a kill, suspend, resume."""

import signal
from pathlib import Path

import httpx
import pytest

from tests.stack import Stack, end, eventually, free_port
from worker.sample import events
from worker.sandbox.upstreams import webhooks
from worker.supervisor import Part, onward

pytestmark = pytest.mark.processes

EVENTS = 3_000


def test_every_event_arrives_once_though_a_worker_is_killed(tmp_path: Path) -> None:
    with Stack(tmp_path / "s") as stack:
        hook = stack.integration()
        worker = stack.worker()
        sent = list(events(EVENTS, project="prj_test"))
        stack.publish(sent)
        eventually(lambda: len(stack.taken()) > EVENTS // 10, why="deliveries begin")
        for child in stack.children(worker):
            end(child, signal.SIGKILL)
        eventually(lambda: len(stack.taken()) == EVENTS, why="all arrive")
        eventually(stack.settled, why="all recorded")
        counts = stack.taken()
        assert set(counts) == {event["id"] for event in sent}
        repeated = sum(count - 1 for count in counts.values())
        assert repeated <= 2 * stack.settings.window + 100, "more than was in flight"
        assert stack.recorded(hook) == {"delivered": EVENTS}
        (line,) = stack.balance().lines
        assert (line.accepted, line.ended) == (EVENTS, {"delivered": EVENTS})


def test_refused_credentials_suspend_hold_and_resume_in_order(tmp_path: Path) -> None:
    with Stack(tmp_path / "s") as stack:
        hook = stack.integration(auth_token="wrong")
        stack.worker()
        sent = list(events(300, project="prj_test"))
        stack.publish(sent)
        eventually(lambda: stack.state(hook).active == 2, why="suspended")
        state = stack.state(hook)
        assert state.last_error_message is not None
        assert state.last_error_message.startswith("401 from Webhooks: ")
        assert state.last_error_at is not None
        assert stack.taken() == {}
        more = list(events(50, seed=2, project="prj_test"))
        stack.publish(more)
        eventually(lambda: stack.balance().intake == 0, why="new events are held")
        stack.settings_of(hook, dict(webhooks.upstream.settings))
        stack.activate(hook)
        everything = [*sent, *more]
        eventually(lambda: len(stack.taken()) == len(everything), why="held events arrive")
        eventually(stack.settled, why="all recorded")
        assert set(stack.taken().values()) == {1}
        assert stack.recorded(hook) == {"delivered": len(everything)}
        arrived = list(stack.taken())
        for user in {event["user_id"] for event in everything}:
            theirs = [event["id"] for event in everything if event["user_id"] == user]
            assert [i for i in arrived if i in set(theirs)] == theirs, "order within a user"


def test_server_errors_back_off_and_recover_without_loss(tmp_path: Path) -> None:
    with Stack(tmp_path / "s") as stack:
        hook = stack.integration()
        stack.worker()
        stack.fault("fail", slug="webhooks", status=500)
        stack.publish(events(200, project="prj_test"))
        eventually(lambda: stack.state(hook).delivery_error_count >= 2, why="rounds fail")
        assert stack.state(hook).active == 1
        stack.no_faults()
        eventually(lambda: len(stack.taken()) == 200, why="all arrive")
        eventually(stack.settled, why="all recorded")
        assert stack.recorded(hook) == {"delivered": 200}


def test_a_worker_that_is_given_no_folder_shows_its_metrics(tmp_path: Path) -> None:
    with Stack(tmp_path / "s") as stack:
        port = free_port()
        environment = {**stack.environment, "ONWARD_METRICS_PORT": str(port)}
        part = Part("plain", onward("worker"), {**environment, "TMPDIR": str(tmp_path)})
        hook = stack.integration()
        stack.start(part)
        stack.publish(events(10, project="prj_test"))
        eventually(lambda: stack.recorded(hook) == {"delivered": 10}, why="all recorded")
        answer = httpx.get(f"http://127.0.0.1:{port}/metrics").text
        assert 'onward_events_total{kind="accepted"} 10.0' in answer
        assert [*tmp_path.glob("onward-metrics-*")]
        assert part.process is not None
        part.process.terminate()
        part.process.wait(60)
        assert not [*tmp_path.glob("onward-metrics-*")], "it leaves nothing"

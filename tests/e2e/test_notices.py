"""An operator's night, as it is told: nearing, suspended, delivering again; in order, each once."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from standardwebhooks import Webhook

from tests.stack import PROJECT, Stack, eventually
from worker.sample import events
from worker.sandbox.upstreams import webhooks

pytestmark = pytest.mark.processes
SECRET = "whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="


class Receiver(ThreadingHTTPServer):
    """Takes notices; it fails the first call of all, as receivers do."""

    def __init__(self) -> None:
        self.got: list[tuple[str, dict[str, Any]]] = []
        self.calls = 0
        super().__init__(("127.0.0.1", 0), _Handler)

    def kinds(self) -> list[str]:
        return [body["type"].partition(".")[2] for _, body in self.got]


class _Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.calls += 1
        if self.server.calls > 1:
            Webhook(SECRET).verify(body, dict(self.headers))
            self.server.got.append((self.headers["webhook-id"], json.loads(body)))
        self.send_response(503 if self.server.calls == 1 else 204)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def test_what_is_mended_in_time_goes_on_at_once(tmp_path: Path, receiver: Receiver) -> None:
    """New settings are tried now, and not when the present wait is over."""
    environment = {
        "ONWARD_NOTIFY_URL": f"http://127.0.0.1:{receiver.server_port}/",
        "ONWARD_NOTIFY_SECRET": SECRET,
        "ONWARD_RETRY_SCHEDULE": "0.2,0.2,3600",
    }
    with Stack(tmp_path / "stack", environment) as stack:
        hook = stack.integration("webhooks", auth_token="wrong")
        stack.worker()
        stack.publish(events(20, project=PROJECT))
        eventually(lambda: receiver.kinds() == ["nearing"], 60, "it is told")
        assert stack.state(hook).active == 1

        stack.settings_of(hook, dict(webhooks.upstream.settings))
        eventually(lambda: receiver.kinds() == ["nearing", "recovered"], 60, "it is told")
        eventually(stack.settled, 60)
        assert stack.recorded(hook) == {"delivered": 20}


def test_a_broken_pipeline_is_told_of_from_begin_to_end(tmp_path: Path, receiver: Receiver) -> None:
    environment = {
        "ONWARD_NOTIFY_URL": f"http://127.0.0.1:{receiver.server_port}/",
        "ONWARD_NOTIFY_SECRET": SECRET,
        "ONWARD_CREDENTIAL_THRESHOLD": "4",
    }
    with Stack(tmp_path / "stack", environment) as stack:
        hook = stack.integration("webhooks")
        stack.worker()
        stack.fault("refuse", slug="webhooks")
        stack.publish(events(20, project=PROJECT))
        eventually(lambda: stack.state(hook).active == 2, 60, "suspended")
        eventually(lambda: receiver.kinds() == ["nearing", "suspended"], 60, "both are told")

        stack.no_faults()
        stack.activate(hook)
        eventually(stack.settled, 60)
        eventually(lambda: len(receiver.got) == 3, 60, "the recovery is told")

        assert receiver.kinds() == ["nearing", "suspended", "recovered"]
        assert len({id_ for id_, _ in receiver.got}) == 3
        assert stack.recorded(hook) == {"delivered": 20}

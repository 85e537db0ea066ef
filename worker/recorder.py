"""The recorder of every worker's parent: of all workers, one at a time moves the journals.

In a thread of its own: a database that hangs delays neither a hint nor a delivery.
"""

import os
import sys
import threading
from concurrent.futures import Future
from contextlib import suppress
from typing import Any

from worker.record import record
from worker.repeating import Repeating
from worker.settings import WorkerSettings
from worker.state import RECORDING, RECORDING_MS, Keys
from worker.store.database import make_engine
from worker.turn import Turn

SECONDS = 0.5
STATEMENT_SECONDS = 60.0  # PostgreSQL
HUNG_SECONDS = 300.0  # then another thread tries
NICENESS = 5  # a third of what others get where all cores are taken


class Recorder(Repeating):
    """Records what is journalled."""

    def __init__(self, settings: WorkerSettings, redis: Any) -> None:
        super().__init__("recorder", SECONDS, first=SECONDS)
        self.settings = settings
        self.redis = redis
        self.engine = make_engine(settings.database_url, statement_seconds=STATEMENT_SECONDS)
        self._turn = Turn(redis, RECORDING, RECORDING_MS)

    def step(self) -> None:
        """Record what there is, if no other worker does or has just done."""
        if not self._turn.take():
            return
        try:
            if self._has_journal():
                self._record_aside()
        finally:
            self._turn.end(int(SECONDS * 900))

    def _has_journal(self) -> bool:
        pipe = self.redis.pipeline(transaction=False)
        for number in range(self.settings.shards):
            pipe.xlen(Keys(number).journal)
            pipe.hlen(Keys(number).wanted)
        counts = pipe.execute(raise_on_error=False)  # a spoilt key must not keep the others
        return any(count for count in counts if isinstance(count, int))

    def _record_aside(self) -> None:
        """Record in a thread that ends with it: the niceness it may take cannot be taken back."""
        done: Future[int] = Future()

        def work() -> None:
            try:
                shards = self.settings.shards
                done.set_result(record(self.redis, self.engine, shards, self._goes_on))
            except Exception as error:  # noqa: BLE001  told by who waits
                done.set_exception(error)

        threading.Thread(target=work, name="record", daemon=True).start()
        done.result(HUNG_SECONDS)

    def _goes_on(self, is_last: bool) -> None:
        self._turn.keep()
        if is_last:
            _stand_back()


def _stand_back() -> None:
    """Let delivery go before this thread until it ends.

    On Linux alone niceness is a thread's own; where a sandbox forbids the call, it records as any
    other.
    """
    if sys.platform == "linux":
        thread = os.PRIO_PROCESS, threading.get_native_id()
        with suppress(PermissionError):
            os.setpriority(*thread, max(os.getpriority(*thread), NICENESS))

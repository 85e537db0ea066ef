"""OpenTelemetry traces of events, for who asks for them: intake → attempt → record.

Off unless `ONWARD_OTLP_URL` is set, which needs `pip install onward[otel]`; then each place costs a
look at `on`, and nothing of the library is loaded by us. An event's trace id follows from its
project and id: so all processes agree on it, and on which events are traced, with no word of it in
Redis, and who knows an event finds its trace.
"""

import logging
import sys
import time
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from providers.kit import Delivered, Event
from worker import OTEL_METRICS
from worker.journal import Row
from worker.settings import WorkerSettings

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor

    from worker.directory import Integration
    from worker.pipeline import Landed

log = logging.getLogger(__name__)

LOW = 2**64 - 1
on: "Traces | None" = None  # of this process


class Traces:
    """Makes spans of what is over, for the events that are sampled."""

    def __init__(self, processor: "SpanProcessor", ratio: float) -> None:
        from opentelemetry import trace  # noqa: PLC0415  an extra
        from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.id_generator import RandomIdGenerator  # noqa: PLC0415

        class Ids(RandomIdGenerator):
            """Random, but of a trace's first span: its ids follow from the event."""

            first = 0  # the trace whose first span is being made

            def generate_trace_id(self) -> int:
                return self.first

            def generate_span_id(self) -> int:
                return _span_id(self.first) if self.first else super().generate_span_id()

        self._ids = Ids()
        resource = Resource.create({"service.name": "onward"})
        self._provider = TracerProvider(resource=resource, id_generator=self._ids)
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("onward")
        self._trace = trace
        self._sampled_below = int(ratio * LOW)

    def intake(self, event: Event, accepted: int, now: float) -> None:
        """Tell of an event that was read: `accepted` and `now` are ms of the store's clock."""
        if trace := self._traced(event.project_id, event.id):
            self._ids.first = trace
            try:
                self._span("intake", None, accepted * 1_000_000, int(now) * 1_000_000, {
                    "onward.event_id": event.id, "onward.project_id": event.project_id,
                    "onward.event_name": event.name,
                })  # fmt: skip
            finally:
                self._ids.first = 0

    def attempt(
        self,
        integration: "Integration",
        events: Iterable[Event],
        landed: "Sequence[Landed]",
        began: int,
    ) -> None:
        """Tell of a request that was answered, in the trace of each event it carried."""
        ended = time.time_ns()
        for event, one in zip(events, landed, strict=True):
            trace = self._traced(integration.project_id, event.id)
            if not trace:
                continue
            outcome = one.outcome
            told: dict[str, Any] = {
                "onward.integration_id": integration.id, "onward.provider": integration.slug,
                "onward.outcome": type(outcome).__name__.lower(), "onward.batch": len(landed),
            }  # fmt: skip
            if not isinstance(outcome, Delivered):
                told["onward.reason"] = outcome.reason
            if one.status:
                told["http.response.status_code"] = one.status
            self._span("attempt", trace, began, ended, told, ok="onward.reason" not in told)

    def recorded(self, rows: Iterable[Row]) -> None:
        """Tell of outcomes that are in the database now."""
        now = time.time_ns()
        for row in rows:
            if trace := self._traced(row.project_id, row.event_id):
                self._span("record", trace, row.finished_at * 1_000_000, now, {
                    "onward.integration_id": row.integration_id, "onward.outcome": row.outcome,
                    "onward.attempts": row.attempts,
                })  # fmt: skip

    def close(self) -> None:
        """Send what is left."""
        self._provider.shutdown()

    def _traced(self, project_id: str, event_id: str) -> int:
        """Return the trace of an event, 0 where it is not sampled."""
        trace = trace_id(project_id, event_id)
        return trace if trace & LOW <= self._sampled_below else 0

    def _span(
        self, name: str, trace: int | None, began: int, ended: int, told: dict[str, Any],
        *, ok: bool = True,
    ) -> None:  # fmt: skip
        """Make a span of what is over: a child of the trace's first, which None makes."""
        api = self._trace
        context = None
        if trace:
            flags = api.TraceFlags(api.TraceFlags.SAMPLED)
            first = api.SpanContext(trace, _span_id(trace), is_remote=True, trace_flags=flags)
            context = api.set_span_in_context(api.NonRecordingSpan(first))
        span = self._tracer.start_span(name, context, attributes=told, start_time=began)
        if not ok:
            span.set_status(api.StatusCode.ERROR)
        span.end(max(began, ended))


def trace_id(project_id: str, event_id: str) -> int:
    """Return the id of an event's trace."""
    digest = blake2b(f"{project_id}/{event_id}".encode(), digest_size=16).digest()
    return int.from_bytes(digest, "big")


def _span_id(trace: int) -> int:
    return trace >> 64 or 1


def start(settings: WorkerSettings) -> None:
    """Begin to trace in this process, if it is asked for; without the extra only say so."""
    global on  # noqa: PLW0603  one a process, as a logger
    if not settings.otlp_url:
        return
    if sys.modules.get(OTEL_METRICS, sys) is None:
        del sys.modules[OTEL_METRICS]
    try:
        from opentelemetry.exporter.otlp.proto.http import trace_exporter  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
    except ImportError:
        log.error("ONWARD_OTLP_URL is set, and nothing is traced: pip install 'onward[otel]'")  # noqa: TRY400  no bug
        return
    exporter = trace_exporter.OTLPSpanExporter(endpoint=settings.otlp_url, timeout=5)
    on = Traces(BatchSpanProcessor(exporter), settings.trace_ratio)


def stop() -> None:
    """Send what is left, and trace no more."""
    global on  # noqa: PLW0603  as above
    if on is not None:
        on.close()
        on = None

"""Everything that does I/O: the pipeline, the store, the control plane and the commands."""

import sys

OTEL_METRICS = "opentelemetry.sdk.metrics"
# "Not installed": redis-py loads them wherever they are, for metrics nobody reads, 3 MB of each
# process. `traces` takes the word back, for tracing needs them. Not so the API beside the SDK,
# `opentelemetry.metrics` (0.6 MB): FastAPI does not start without it.
sys.modules.setdefault(OTEL_METRICS, None)  # type: ignore[arg-type]

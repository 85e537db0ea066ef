"""Everything that does I/O: the pipeline, the store, the control plane and the commands."""

import sys

OTEL_METRICS = "opentelemetry.metrics"
# "Not installed": redis-py loads them wherever they are, for metrics nobody reads, 3 MB of each
# process. `traces` takes the word back, for tracing needs them.
sys.modules.setdefault(OTEL_METRICS, None)  # type: ignore[arg-type]

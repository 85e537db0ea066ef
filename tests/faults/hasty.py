"""A worker whose slices are short, so that they often change; for tests alone."""

import sys

from celery.signals import task_prerun

from worker import settings

settings.SLICE_SECONDS, settings.OVERTIME_SECONDS = 0.2, 2  # type: ignore[assignment]

from worker import ticker  # noqa: E402  it and what it imports take the above
from worker.cli import main  # noqa: E402


@task_prerun.connect  # type: ignore[untyped-decorator]
def _begins(**_: object) -> None:
    sys.stdout.write("A slice begins\n")
    sys.stdout.flush()


ticker.SECONDS = 0.05
main(["worker"])

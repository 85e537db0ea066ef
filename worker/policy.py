"""How patient a pipeline is: the service's defaults, and what its integration says otherwise."""

from dataclasses import dataclass

from providers.kit import Settings
from worker.settings import WorkerSettings
from worker.suspension import Thresholds


@dataclass(frozen=True, slots=True)
class Policy:
    """Times are seconds."""

    schedule: tuple[float, ...]
    thresholds: Thresholds
    event_attempts: int
    hold_seconds: int
    hold_events: int


def policy_of(worker: WorkerSettings, settings: Settings | None) -> Policy:
    """Return the policy of an integration; None stands for settings that will not do."""
    own = settings.delivery.model_dump(exclude_none=True) if settings else {}

    def value(name: str) -> int:
        number: int = own.get(name, getattr(worker, name))
        return number

    return Policy(
        schedule=own.get("retry_schedule", worker.retry_schedule),
        thresholds=Thresholds(
            value("retry_threshold"), value("credential_threshold"), value("reject_threshold")
        ),
        event_attempts=value("event_attempts"),
        hold_seconds=value("hold_seconds"),
        hold_events=value("hold_events"),
    )

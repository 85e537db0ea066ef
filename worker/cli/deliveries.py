"""`onward deliveries`: how events ended."""

from typing import Annotated

import typer

from worker.cli.output import AsJson, print_json, print_table
from worker.cli.store import LARGEST, looking
from worker.journal import Outcome

app = typer.Typer(no_args_is_help=True, help="How events ended.")


@app.command("list", epilog="onward deliveries list --integration c9VdLs3H --outcome rejected")
def list_deliveries(
    *,
    integration: Annotated[str | None, typer.Option(help="Of this integration.")] = None,
    event: Annotated[str | None, typer.Option(help="Of the event with this id.")] = None,
    outcome: Annotated[Outcome | None, typer.Option(help="With this end.")] = None,
    project: Annotated[str | None, typer.Option(help="Of this project.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="At most so many.")] = 100,
    before: Annotated[
        int | None, typer.Option(min=1, max=LARGEST, help="Older than the one with this id.")
    ] = None,
    json: AsJson = False,
) -> None:
    """List the record, newest first: one line per event and integration."""
    from worker.api.records import DeliveryObject  # noqa: PLC0415  quick --help
    from worker.store.deliveries import list_deliveries as listed  # noqa: PLC0415
    from worker.store.integrations import check_known  # noqa: PLC0415
    from worker.store.projects import get_project  # noqa: PLC0415

    with looking() as connection:
        if integration is not None:
            check_known(connection, integration)
        rows = listed(
            connection,
            project_id=project,
            integration_id=integration,
            event_id=event,
            outcome=outcome,
            before_id=before,
            limit=limit,
        )
        if project is not None and not rows:
            get_project(connection, project)
    found = [DeliveryObject.of(row) for row in rows]
    if json:
        print_json([one.model_dump() for one in found])
        return
    print_table(
        ("at", "integration", "event", "name", "outcome", "attempts", "why"),
        [
            (
                one.finished_at,
                one.integration_id,
                one.event_id,
                one.event_name,
                one.outcome,
                one.attempts,
                one.message or one.reason,
            )
            for one in found
        ],
        empty="No deliveries recorded.",
    )

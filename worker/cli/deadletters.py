"""`onward deadletters`: what was given up, with its reason and its exact bytes."""

from typing import Annotated

import typer

from worker.cli.output import AsJson, print_fields, print_json, print_table
from worker.cli.store import LARGEST, looking

app = typer.Typer(no_args_is_help=True, help="What was given up, and why.")


@app.command("list", epilog="onward deadletters list --integration c9VdLs3H")
def list_dead_letters(
    *,
    integration: Annotated[str | None, typer.Option(help="Of this integration.")] = None,
    event: Annotated[str | None, typer.Option(help="Of the event with this id.")] = None,
    project: Annotated[str | None, typer.Option(help="Of this project.")] = None,
    reason: Annotated[str | None, typer.Option(help="With this reason.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="At most so many.")] = 100,
    before: Annotated[
        int | None, typer.Option(min=1, max=LARGEST, help="Older than the one with this id.")
    ] = None,
    json: AsJson = False,
) -> None:
    """List dead letters, newest first."""
    from worker.api.records import DeadLetterObject  # noqa: PLC0415  quick --help
    from worker.store.dead_letters import list_dead_letters as listed  # noqa: PLC0415
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
            reason=reason,
            before_id=before,
            limit=limit,
        )
        if project is not None and not rows:
            get_project(connection, project)
    found = [DeadLetterObject.of(row) for row in rows]
    if json:
        print_json([one.model_dump() for one in found])
        return
    print_table(
        ("id", "at", "integration", "event", "reason", "why", "replayed"),
        [
            (
                one.id,
                one.created_at,
                one.integration_id,
                one.event_id,
                one.reason,
                one.message,
                one.replayed_at,
            )
            for one in found
        ],
        empty="No dead letters.",
    )


@app.command(epilog="onward deadletters show 17")
def show(
    letter_id: Annotated[
        int, typer.Argument(metavar="ID", min=1, max=LARGEST, help="As in the list.")
    ],
    *,
    json: AsJson = False,
) -> None:
    """Print a dead letter: the faults, the event, the request and the answer."""
    from providers.kit.reader import fault_text  # noqa: PLC0415  quick --help
    from worker.api.records import DeadLetterWhole  # noqa: PLC0415
    from worker.store.dead_letters import get_dead_letter  # noqa: PLC0415

    with looking() as connection:
        told = DeadLetterWhole.of(get_dead_letter(connection, letter_id)).model_dump()
    if json:
        print_json(told)
        return
    faults = "\n".join(map(fault_text, told["faults"] or ()))
    encoding = told["body_encoding"]
    print_fields(
        {**told, "faults": faults, "body_encoding": "" if encoding == "utf-8" else encoding}
    )

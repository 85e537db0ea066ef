"""`onward projects`: customers' apps and their keys."""

from typing import Annotated

import typer

from worker.cli.output import AsJson, print_json, print_table
from worker.cli.store import changing, looking

app = typer.Typer(no_args_is_help=True, help="Customers' apps and their keys.")


@app.command(epilog="onward projects create Lumen --id prj_lumen")
def create(
    name: Annotated[str, typer.Argument(help="For people.")],
    *,
    project_id: Annotated[
        str | None, typer.Option("--id", help="As in the events' project_id; default: made up.")
    ] = None,
    json: AsJson = False,
) -> None:
    """Make a project; its keys are shown this once."""
    from worker.store.projects import create_project  # noqa: PLC0415  quick --help

    with changing() as connection:
        made = create_project(connection, name, project_id)
    project = made.project
    if json:
        print_json(
            {
                "id": project.id,
                "name": project.name,
                "secret_key": made.secret_key,
                "test_key": made.test_key,
            }
        )
        return
    typer.echo(f"Project {project.id} ({project.name})")
    typer.echo(f"  secret key  {made.secret_key}")
    typer.echo(f"  test key    {made.test_key}")
    typer.echo("The keys are shown this once: keep them. They open /v4 as a Bearer token.")


@app.command("list", epilog="onward projects list --json")
def list_projects(*, json: AsJson = False) -> None:
    """List the projects."""
    from worker.api.schemas import moment  # noqa: PLC0415  quick --help
    from worker.store.projects import list_projects as listed  # noqa: PLC0415

    with looking() as connection:
        rows = [(p.id, p.name, moment(p.created_at)) for p in listed(connection)]
    if json:
        print_json([dict(zip(("id", "name", "created_at"), row, strict=True)) for row in rows])
    else:
        empty = "No projects. `onward projects create NAME` makes one."
        print_table(("id", "name", "created"), rows, empty=empty)

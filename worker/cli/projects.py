"""`onward projects`: customers' apps and their keys."""

from typing import Annotated

import typer

from worker.cli.output import AsJson, Failure, note, print_json, print_table
from worker.cli.store import ACTOR, LARGEST, changing, looking, settings_here

app = typer.Typer(no_args_is_help=True, help="Customers' apps and their keys.")
keys = typer.Typer(no_args_is_help=True, help="The keys that open /v4 for a project.")
app.add_typer(keys, name="keys")
Project = Annotated[str, typer.Argument(metavar="PROJECT", help="As in `onward projects list`.")]


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


@app.command(epilog="onward projects notify prj_lumen --url https://ops.example.com/hooks")
def notify(
    project_id: Project,
    *,
    url: Annotated[
        str | None, typer.Option(help="A Slack URL, or a webhook: signed as Standard Webhooks.")
    ] = None,
    off: Annotated[bool, typer.Option("--off", help="Where the service's go, again.")] = False,
    json: AsJson = False,
) -> None:
    """Tell or choose who is told of this project: suspensions, recoveries, what soon expires.

    A new receiver gets a test at once. Its signing secret is shown this once.
    """
    if url and off:
        raise Failure("--url or --off, not both", code=2)
    host, secret, taken = _choose(project_id, url) if url else _shown(project_id, off=off)
    if json:
        told = {"project_id": project_id, "host": host, "secret": secret, "test_taken": taken}
        print_json(told)
        return
    if host is None:
        typer.echo(f"Notices of {project_id} go where the service's go: ONWARD_NOTIFY_URL")
        return
    typer.echo(f"Notices of {project_id} go to {host}")
    if secret:
        typer.echo(f"  signing secret  {secret}")
        typer.echo("It is shown this once: keep it where the receiver checks signatures.")
    if taken is False:
        note("The test was not taken. Notices are tried again for a day; is the URL right?")


def _choose(project_id: str, url: str) -> tuple[str | None, str | None, bool]:
    """Keep a receiver and send it a test; return its host, its secret, and how that went."""
    from urllib.parse import urlsplit  # noqa: PLC0415  quick --help

    from worker.notify import is_slack, send  # noqa: PLC0415
    from worker.store.database import now  # noqa: PLC0415
    from worker.store.models import Notification  # noqa: PLC0415
    from worker.store.projects import Receiver, set_receiver  # noqa: PLC0415
    from worker.store.secrets import keyring_of, signing_secret  # noqa: PLC0415
    from worker.transport.guard import BlockedUrl, check_url  # noqa: PLC0415

    try:
        check_url(url, allow_private=True)  # who may type commands here says where notices go
    except BlockedUrl as error:
        raise Failure(f"--url will not do: {error}", code=2) from None
    secret = None if is_slack(url) else signing_secret()
    receiver, settings = Receiver(url, secret), settings_here()
    with changing(settings) as connection:
        set_receiver(connection, project_id, receiver, keyring_of(settings), ACTOR)
    test = Notification(id=0, at=now(), kind="test", project_id=project_id, payload="{}")
    return urlsplit(url).hostname, secret, send(test, receiver)


def _shown(project_id: str, *, off: bool) -> tuple[str | None, None, None]:
    """Return the host of the present receiver, if there is one; `off` takes it away first."""
    from urllib.parse import urlsplit  # noqa: PLC0415  quick --help

    from worker.store.projects import get_project, receivers, set_receiver  # noqa: PLC0415
    from worker.store.secrets import keyring_of  # noqa: PLC0415

    settings = settings_here()
    if off:
        with changing(settings) as connection:
            set_receiver(connection, project_id, None, keyring_of(settings), ACTOR)
    with looking(settings) as connection:
        get_project(connection, project_id)
        own = dict(receivers(connection, keyring_of(settings)))
    found = own.get(project_id)
    return (urlsplit(found.url).hostname if found else None), None, None


@keys.command(epilog="onward projects keys add prj_lumen")
def add(
    project_id: Project,
    *,
    test: Annotated[bool, typer.Option("--test", help="One for the sandbox.")] = False,
    sdk: Annotated[
        bool, typer.Option("--sdk", help="One for apps; it opens nothing here.")
    ] = False,
    json: AsJson = False,
) -> None:
    """Make one more key, beside those there are; it is shown this once.

    To replace a key: add one, put it where the old one is used, then revoke the old one.
    """
    from worker.store.projects import add_key, list_keys  # noqa: PLC0415  quick --help

    with changing() as connection:
        key = add_key(
            connection, project_id, "sdk" if sdk else "secret", "test" if test else "live"
        )
        made = list_keys(connection, project_id)[-1]
    if json:
        print_json(
            {"id": made.id, "project_id": project_id, "kind": made.kind, "mode": made.mode}
            | {"key": key}
        )
        return
    typer.echo(f"Key {made.id} of {project_id}:  {key}")
    typer.echo("It is shown this once: keep it.")


@keys.command("list", epilog="onward projects keys list prj_lumen")
def list_keys_of(project_id: Project, *, json: AsJson = False) -> None:
    """List a project's keys by how they begin; what they are is known to nobody here."""
    from worker.api.schemas import moment  # noqa: PLC0415  quick --help
    from worker.store.projects import get_project, list_keys  # noqa: PLC0415

    with looking() as connection:
        get_project(connection, project_id)
        found = list_keys(connection, project_id)
    columns = ("id", "begins", "kind", "mode", "created_at", "last_used_at", "revoked_at")
    rows = [
        (
            key.id,
            f"{key.prefix}…",
            key.kind,
            key.mode,
            moment(key.created_at),
            moment(key.last_used_at),
            moment(key.revoked_at),
        )
        for key in found
    ]
    if json:
        print_json([dict(zip(columns, row, strict=True)) for row in rows])
    else:
        names = [column.removesuffix("_at").replace("_", " ") for column in columns]
        print_table(names, rows, empty="No keys. `onward projects keys add` makes one.")


@keys.command(epilog="onward projects keys revoke prj_lumen 3")
def revoke(
    project_id: Project,
    key_id: Annotated[
        int,
        typer.Argument(metavar="ID", min=1, max=LARGEST, help="As in `onward projects keys list`."),
    ],
    *,
    json: AsJson = False,
) -> None:
    """Make a key useless from now on, for good."""
    from worker.store.projects import revoke_key  # noqa: PLC0415  quick --help

    with changing() as connection:
        revoke_key(connection, project_id, key_id)
    if json:
        print_json({"id": key_id, "project_id": project_id, "revoked": True})
    else:
        typer.echo(f"Key {key_id} of {project_id} is revoked")

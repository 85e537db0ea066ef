"""`onward integrations`: what the v4 API does, the settings, and a test event."""

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from worker.cli.inputs import read_object
from worker.cli.output import AsJson, Failure, note, print_fields, print_json, print_table
from worker.cli.store import ACTOR, changing, looking, redis_of, settings_here
from worker.cli.tryout import Store

if TYPE_CHECKING:
    from worker.store.models import Integration
    from worker.trial import Send

app = typer.Typer(no_args_is_help=True, help="A project's pipelines to providers.")
STATES = {0: "paused", 1: "active", 2: "suspended"}
Id = Annotated[str, typer.Argument(metavar="ID", help="As in `onward integrations list`.")]


@app.command("list", epilog="onward integrations list --project prj_lumen")
def list_integrations(
    *,
    project: Annotated[str | None, typer.Option(help="Of this project only.")] = None,
    json: AsJson = False,
) -> None:
    """List the integrations and how they stand."""
    from worker.api.schemas import IntegrationObject, moment  # noqa: PLC0415  quick --help
    from worker.store.integrations import list_of  # noqa: PLC0415
    from worker.store.projects import get_project  # noqa: PLC0415

    with looking() as connection:
        if project is not None:
            get_project(connection, project)
        found = list_of(connection, project)
    if json:
        print_json(
            [
                {**IntegrationObject.of(one).model_dump(), "project_id": one.project_id}
                for one in found
            ]
        )
        return
    print_table(
        ("id", "project", "title", "provider", "store", "state", "last delivery", "why"),
        [
            (
                one.id,
                one.project_id,
                one.title,
                one.slug,
                one.platform,
                "failing" if one.fails else STATES[one.active],
                moment(one.last_delivery_at) or "never",
                one.last_error_message if one.active == 2 or one.fails else "",
            )
            for one in found
        ],
        empty="No integrations. `onward integrations create` makes one.",
    )


@app.command(epilog="onward integrations show c9VdLs3H")
def show(integration_id: Id, *, json: AsJson = False) -> None:
    """Print how an integration stands: state, last error, what waits, and what to do."""
    told = _dossier(integration_id)
    shown = told.pop("integration")
    if json:
        print_json({**shown, "dossier": told})
        return
    error = told["error"] or {}
    waiting = told["waiting"]
    print_fields(
        {
            "id": shown["id"],
            "title": shown["title"],
            "provider": f"{shown['integration']} ({told['slug']})",
            "project": f"{told['project_id']}, {shown['target_platform']}",
            "state": STATES[shown["active"]] + (" on probation" if told["on_probation"] else ""),
            "settings": _settings_told(told),
            "last delivery": shown["last_delivery_at"] or "never",
            "last error": error.get("message"),
            "last error at": error.get("last_at"),
            "failing since": error.get("first_at"),
            "failures": _failures(shown["delivery_error_count"]),
            "dead letters": error.get("dead_letters") or "",
            "remedy": error.get("remedy") if shown["delivery_error_count"] else "",
            "waiting": f"{waiting['events']:,} events" if waiting else "(Redis does not answer)",
            "oldest waits since": waiting and waiting["oldest_since"],
            "next": told["next"],
        }
    )
    if shown["active"] == 2:
        note(f"onward integrations settings {integration_id} --set FILE")
        note(f"onward integrations activate {integration_id}")


def _settings_told(told: dict[str, Any]) -> str:
    if not told["settings_saved"]:
        return "not set"
    return f"set, and of no use: {told['settings_fault']}" if told["settings_fault"] else "set"


def _failures(count: int) -> str:
    words = "rejected events and failed rounds since the last delivery"
    return f"{count:,} {words}" if count else ""


def _dossier(integration_id: str) -> dict[str, Any]:
    from worker.api.auth import Services  # noqa: PLC0415  quick --help
    from worker.api.dossier import dossier_of  # noqa: PLC0415
    from worker.store.integrations import get  # noqa: PLC0415
    from worker.store.secrets import keyring_of  # noqa: PLC0415

    settings = settings_here()
    with looking(settings) as connection, redis_of(settings) as redis:
        here = Services(settings, connection.engine, keyring_of(settings), redis)
        return dossier_of(connection, here, get(connection, integration_id))


@app.command(
    epilog="onward integrations create --project prj_lumen --slug amplitude --platform iOS "
    "--title Analytics --settings amplitude.json --activate"
)
def create(
    *,
    project: Annotated[str, typer.Option(help="The project's id.")],
    slug: Annotated[str, typer.Option(help="The provider, as in `onward providers list`.")],
    platform: Annotated[Store, typer.Option(help="The store whose events it gets.")],
    title: Annotated[str, typer.Option(help="For people; 1 to 255 characters.")],
    settings: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="JSON object of the slug's settings; - is stdin."),
    ] = None,
    activate: Annotated[bool, typer.Option("--activate", help="Start it at once.")] = False,
    json: AsJson = False,
) -> None:
    """Make an integration; it is paused until it is activated."""
    from worker.store.integrations import create_integration, save_settings  # noqa: PLC0415
    from worker.store.integrations import set_status as set_to  # noqa: PLC0415  quick --help
    from worker.store.projects import get_project  # noqa: PLC0415
    from worker.store.secrets import keyring_of  # noqa: PLC0415

    here = settings_here()
    data = read_object(settings) if settings else None
    secrets: dict[str, str] = {}
    with changing(here) as connection:
        get_project(connection, project)
        made = create_integration(
            connection, project, title=title, slug=slug, platform=platform, actor=ACTOR
        )
        if data is not None:
            made, secrets = save_settings(
                connection,
                made.id,
                data,
                keyring_of(here),
                actor=ACTOR,
                allow_private=here.allow_private_upstreams,
            )
        if activate:
            made = set_to(connection, made.id, 1, ACTOR)
    _print(made, json=json)
    _note_once(secrets)


@app.command(
    "settings",
    epilog="onward integrations settings c9VdLs3H --set amplitude.json",
)
def change_settings(
    integration_id: Id,
    *,
    file: Annotated[
        str | None,
        typer.Option("--set", metavar="FILE", help="JSON object of all settings; - is stdin."),
    ] = None,
    json: AsJson = False,
) -> None:
    """Print the settings, secrets only as set; or replace them all by those of a file.

    What is printed may be edited and set again: a secret left as printed keeps its value.
    """
    from worker.store.integrations import save_settings  # noqa: PLC0415  quick --help
    from worker.store.secrets import keyring_of  # noqa: PLC0415

    here = settings_here()
    if file is None:
        print_json(_shown_settings(integration_id))
        return
    with changing(here) as connection:
        changed, secrets = save_settings(
            connection,
            integration_id,
            read_object(file),
            keyring_of(here),
            actor=ACTOR,
            allow_private=here.allow_private_upstreams,
        )
    _print(changed, json=json)
    _note_once(secrets)


def _note_once(secrets: dict[str, str]) -> None:
    for name, value in secrets.items():
        note(f"{name}  {value}")
        note("It is shown this once: keep it where the receiver checks signatures.")


@app.command(epilog="onward integrations roll c9VdLs3H --keep-hours 48")
def roll(
    integration_id: Id,
    *,
    keep_hours: Annotated[
        int, typer.Option(min=0, max=720, help="How long the one before signs too.")
    ] = 24,
    json: AsJson = False,
) -> None:
    """Make a webhook's signing secret anew, and print it this once."""
    from datetime import timedelta  # noqa: PLC0415  quick --help

    from worker.store.integrations import roll_secret  # noqa: PLC0415
    from worker.store.secrets import keyring_of  # noqa: PLC0415

    keep, keyring = timedelta(hours=keep_hours), keyring_of(settings_here())
    with changing() as connection:
        rolled = roll_secret(connection, integration_id, keyring, keep=keep, actor=ACTOR)
    if json:
        print_json({"id": integration_id, **rolled.made})
    else:
        _print(rolled.integration, json=False)
        _note_once(rolled.made)


def _shown_settings(integration_id: str) -> dict[str, Any]:
    from worker.store.checks import shown_settings  # noqa: PLC0415  quick --help

    compiled = _compiled(integration_id)
    if compiled.settings is None:
        raise Failure(compiled.fault)
    return shown_settings(compiled.settings)


def _compiled(integration_id: str) -> Any:
    from worker.directory import compile_integration  # noqa: PLC0415  quick --help
    from worker.store.integrations import get  # noqa: PLC0415
    from worker.store.secrets import keyring_of  # noqa: PLC0415

    here = settings_here()
    with looking(here) as connection:
        return compile_integration(get(connection, integration_id), keyring_of(here), here)


@app.command(epilog="onward integrations activate c9VdLs3H")
def activate(integration_id: Id, *, json: AsJson = False) -> None:
    """Start it, or start it again after it was suspended: what waited follows in order.

    One that is active and fails is tried now, whenever its next attempt would be.
    """
    from worker.store.integrations import get  # noqa: PLC0415  quick --help

    with looking() as connection:
        failed = get(connection, integration_id).fails
    _set_status(integration_id, 1, json=json)
    if failed:
        note("It fails, and is tried now: one event first, what waits follows in order.")


@app.command(epilog="onward integrations pause c9VdLs3H")
def pause(
    integration_id: Id,
    *,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    json: AsJson = False,
) -> None:
    """Stop it: events are neither forwarded nor held, and those that wait are skipped."""
    if not yes and sys.stdin.isatty() and (waiting := _waiting(integration_id)):
        note(f"{waiting:,} events wait for it, and are skipped for good once it is paused.")
        typer.confirm(f"Pause {integration_id}?", abort=True, err=True)
    _set_status(integration_id, 0, json=json)


def _waiting(integration_id: str) -> int:
    """Return how many events wait in its lane."""
    from worker.state import Keys, shard_of  # noqa: PLC0415  quick --help
    from worker.store.integrations import get  # noqa: PLC0415

    settings = settings_here()
    with looking(settings) as connection:
        project = get(connection, integration_id).project_id
    with redis_of(settings) as redis:
        waiting: int = redis.xlen(Keys(shard_of(project, settings.shards)).lane(integration_id))
    return waiting


def _set_status(integration_id: str, status: int, *, json: bool) -> None:
    from worker.store.integrations import set_status  # noqa: PLC0415  quick --help

    with changing() as connection:
        changed = set_status(connection, integration_id, status, ACTOR)
    _print(changed, json=json)


def _print(integration: "Integration", *, json: bool) -> None:
    from worker.api.schemas import IntegrationObject  # noqa: PLC0415  quick --help

    if json:
        print_json(IntegrationObject.of(integration).model_dump())
        return
    typer.echo(f"{integration.id}  {integration.title}: {STATES[integration.active]}")
    if integration.settings is None:
        note(f"Its settings are not set: onward integrations settings {integration.id} --set FILE")


@app.command(epilog="onward integrations delete c9VdLs3H --yes")
def delete(
    integration_id: Id,
    *,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    json: AsJson = False,
) -> None:
    """Delete it for good; what waits for it is counted as expired."""
    from worker.store.integrations import delete as delete_it  # noqa: PLC0415  quick --help

    if not yes and sys.stdin.isatty():
        typer.confirm(f"Delete {integration_id} for good?", abort=True, err=True)
    with changing() as connection:
        delete_it(connection, integration_id, ACTOR)
    if json:
        print_json({"id": integration_id, "deleted": True})
    else:
        typer.echo(f"{integration_id} is deleted")


@app.command("test", epilog="onward integrations test c9VdLs3H")
def send_test(integration_id: Id, *, json: AsJson = False) -> None:
    """Send a marked test event, and print request, answer and what it means."""
    from worker import trial  # noqa: PLC0415  quick --help

    _try(trial.send_test, integration_id, json=json)


@app.command(epilog="onward integrations check c9VdLs3H")
def check(integration_id: Id, *, json: AsJson = False) -> None:
    """Prove the settings by a call that leaves nothing at the provider, where it has one."""
    from worker import trial  # noqa: PLC0415  quick --help

    _try(trial.send_check, integration_id, json=json)


def _try(send: "Send", integration_id: str, *, json: bool) -> None:
    from worker.cli.trial import print_trial  # noqa: PLC0415  quick --help
    from worker.trial import trial_shown, tried  # noqa: PLC0415

    integration, here = _compiled(integration_id), settings_here()
    done = tried(send, integration, here)
    if done is None:
        raise Failure(
            f"{integration.provider.title} has no harmless call to check settings by; send a test "
            f"event: onward integrations test {integration_id}"
        )
    told = trial_shown(done)
    if json:
        print_json(told)
    else:
        print_trial(told)
    if here.upstream and done.exchanges:
        note(f"Sent to {here.upstream}, which plays all upstreams, and not to the real one")
    if told["outcome"] != "delivered":
        raise typer.Exit(1)

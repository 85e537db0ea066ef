"""The command line: `onward`, one module per noun. Modules import late, so that help is quick."""

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from io import TextIOWrapper
from typing import Annotated

import typer

from worker.cli import (
    deadletters,
    deliveries,
    integrations,
    plan,
    projects,
    providers,
    publish,
    sandbox,
    secrets,
    tryout,
)
from worker.cli.output import failure_of, print_failure

app = typer.Typer(
    name="onward",
    help="Delivers mobile-subscription events from Redis to 25 kinds of upstream, and loses none.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"onward {version('onward')}")
        raise typer.Exit


@app.callback()
def _root(
    _version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    pass


for _name in ("service", "operate"):
    if find_spec(f"worker.cli.{_name}"):
        import_module(f"worker.cli.{_name}").register(app)

MANAGE = "Set up and look"
app.add_typer(projects.app, name="projects", rich_help_panel=MANAGE)
app.add_typer(integrations.app, name="integrations", rich_help_panel=MANAGE)
app.command(rich_help_panel=MANAGE, epilog="onward publish events.ndjson")(publish.publish)
app.add_typer(deliveries.app, name="deliveries", rich_help_panel=MANAGE)
app.add_typer(deadletters.app, name="deadletters", rich_help_panel=MANAGE)
app.add_typer(secrets.app, name="secrets", rich_help_panel=MANAGE)

app.command(
    rich_help_panel=MANAGE,
    epilog="onward plan --events-per-second 5000 --integrations-per-project 5 --hold 72h",
)(plan.plan)

TRY = "Try out"
app.add_typer(providers.app, name="providers", rich_help_panel=TRY)
app.command(
    rich_help_panel=TRY,
    epilog="onward preview amplitude --settings settings.json --events events.ndjson",
)(tryout.preview)
app.command(
    rich_help_panel=TRY,
    epilog="onward explain adjust --settings s.json --events e.json --response answer.json",
)(tryout.explain)
app.command(rich_help_panel=TRY, epilog="onward sandbox --port 9000")(sandbox.sandbox)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; a failure is one clear line on stderr and exit status 1 or 2."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    _mend_streams()
    try:
        app(given)
    except Exception as error:
        failure = failure_of(error)
        if failure is None:
            raise
        print_failure(failure, as_json="--json" in given)
        _let_go_of_stdout()
        sys.exit(failure.code)


def _mend_streams() -> None:
    """Open what was closed, as `<&-` and some supervisors do; let no letter stop the output."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115, PTH123  to the end
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # of a terminal that is not UTF-8


def _let_go_of_stdout() -> None:
    """Drop what stdout does not take: at its end Python would try again, and exit with 120."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

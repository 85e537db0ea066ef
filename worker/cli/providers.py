"""`onward providers`: what can be sent to, as the adapters declare it."""

from pathlib import Path
from typing import Annotated

import typer

from worker.cli.output import AsJson, Failure, note, print_json, print_markdown, print_table

app = typer.Typer(no_args_is_help=True, help="What can be sent to.")


@app.command("list", epilog="onward providers list --json")
def list_providers(*, json: AsJson = False) -> None:
    """List the providers with their stores and the identifiers they need."""
    from worker.registry import all_providers  # noqa: PLC0415  quick --help

    found = all_providers().values()
    if json:
        print_json(
            [
                {
                    "slug": provider.slug,
                    "title": provider.title,
                    "category": provider.category,
                    "stores": provider.stores,
                    "identifiers": provider.identifiers,
                }
                for provider in found
            ]
        )
        return
    print_table(
        ("slug", "title", "category", "stores", "needs"),
        [
            (p.slug, p.title, p.category, ", ".join(p.stores), "; ".join(p.identifiers))
            for p in found
        ],
    )


@app.command(epilog="onward providers show amplitude")
def show(
    slug: Annotated[str, typer.Argument(help="As in `onward providers list`.")],
    *,
    json: AsJson = False,
) -> None:
    """Print settings, identifiers, limits, names, and what is skipped and why."""
    from worker.providers_doc import describe, page  # noqa: PLC0415  quick --help
    from worker.registry import provider_of  # noqa: PLC0415

    provider = provider_of(slug)
    if json:
        print_json(describe(provider))
    else:
        print_markdown(page(provider))


@app.command(epilog="onward providers docs --check")
def docs(
    *,
    check: Annotated[
        bool, typer.Option("--check", help="Change nothing; fail if anything is out of date.")
    ] = False,
    root: Annotated[Path, typer.Option(help="Folder with README.md and docs/.")] = Path(),
) -> None:
    """Write docs/providers/ and the README's table from the adapters' declarations."""
    from worker.providers_doc import NoMarkers, stale, write  # noqa: PLC0415  quick --help

    try:
        changes = stale(root)
    except (NoMarkers, FileNotFoundError) as error:
        raise Failure(str(error)) from None
    for path in changes:
        note(f"{'out of date: ' if check else ''}{path}")
    if check and changes:
        raise Failure("Run `onward providers docs`.")
    if not check:
        write(changes)

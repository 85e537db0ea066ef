"""`onward preview` and `onward explain`: what would be sent, and what an answer would mean."""

from typing import Annotated, Any, Literal

import typer

from worker.cli.inputs import read_bytes, read_events, read_object
from worker.cli.output import AsJson, Failure, print_json
from worker.cli.store import settings_here

Store = Literal["iOS", "Android", "Stripe"]
Slug = Annotated[str, typer.Argument(help="The provider, as in `onward providers list`.")]
SettingsFile = Annotated[
    str, typer.Option("--settings", metavar="FILE", help="JSON object of the slug's settings.")
]
EventsFile = Annotated[
    str, typer.Option("--events", metavar="FILE", help="Events: a JSON array or NDJSON; - stdin.")
]
Platform = Annotated[Store | None, typer.Option(help="Store of events that name none.")]


def preview(
    slug: Slug,
    *,
    settings: SettingsFile,
    events: EventsFile,
    platform: Platform = None,
    show_secrets: Annotated[
        bool, typer.Option("--show-secrets", help="Do not mask credentials.")
    ] = False,
    _json: AsJson = False,
) -> None:
    """Print the HTTP requests that would be sent for some events, without sending."""
    from worker.preview import preview as shown  # noqa: PLC0415  quick --help

    print_json(shown(_rehearsal(slug, settings, events, platform), show_secrets=show_secrets))


def explain(
    slug: Slug,
    *,
    settings: SettingsFile,
    events: EventsFile,
    response: Annotated[
        str,
        typer.Option(
            "--response", metavar="FILE", help='The answer: {"status", "headers", "body"}.'
        ),
    ],
    platform: Platform = None,
    _json: AsJson = False,
) -> None:
    """Print what the worker would make of an upstream's answer to some events."""
    from worker.preview import InvalidResponse, read_response  # noqa: PLC0415  quick --help
    from worker.preview import explain as explained  # noqa: PLC0415

    rehearsal = _rehearsal(slug, settings, events, platform)
    try:
        answer = read_response(read_bytes(response))
    except InvalidResponse as error:
        raise Failure(str(error)) from None
    print_json(explained(rehearsal, answer))


def _rehearsal(slug: str, settings: str, events: str, platform: Store | None) -> Any:
    from worker.preview import rehearse  # noqa: PLC0415  quick --help
    from worker.registry import provider_of  # noqa: PLC0415

    provider_of(slug)
    lenient = settings_here().allow_private_upstreams
    given = read_object(settings), read_events(events)
    return rehearse(slug, *given, platform, allow_http=lenient)

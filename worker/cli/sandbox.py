"""`onward sandbox`: the fake upstreams alone."""

import os
from typing import TYPE_CHECKING, Annotated

import typer

from worker.cli.output import Failure

if TYPE_CHECKING:
    from worker.sandbox.app import Sandbox


def sandbox(
    port: Annotated[int, typer.Option(min=0, max=65_535, help="Port; 0: any free one.")] = 9000,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
) -> None:
    """Play the upstreams on this machine: strict, and told to fail at will."""
    from worker.sandbox.app import serve  # noqa: PLC0415  quick --help

    try:
        serve(port, _say, host)
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        raise Failure(f"Cannot listen on {host}:{port}: {reason}. Choose another --port.") from None


def _say(port: int, started: "Sandbox") -> None:
    base = f"http://127.0.0.1:{port}"
    typer.echo(
        f"""Sandbox on {base}, playing {", ".join(started.upstreams)}.

Send Onward's traffic here:  ONWARD_UPSTREAM={base} onward up
Let one fail:  curl {base}/_sandbox/faults -d '{{"slug": "amplitude", "mode": "refuse"}}'
  modes: ok refuse throttle fail hang reset half slow cut; "match" singles out one integration
End all faults:  curl -X DELETE {base}/_sandbox/faults
What arrived:    curl '{base}/_sandbox/taken?slug=amplitude'
The last calls:  curl '{base}/_sandbox/calls?slug=amplitude&last=3'
Ctrl-C stops it."""
    )

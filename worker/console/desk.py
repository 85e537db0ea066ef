"""The console as a part of an application, and what it remembers there."""

from dataclasses import dataclass, field
from functools import partial

from fastapi import FastAPI
from fastapi.responses import RedirectResponse

from worker.api.auth import RateLimit
from worker.console import actions, routes
from worker.console.look import Meter


@dataclass
class Desk:
    """One process's memory: what was counted, and how often a sign-in was tried."""

    meter: Meter = field(default_factory=Meter)
    every: RateLimit = field(default_factory=partial(RateLimit, 1, burst=60))
    each: RateLimit = field(default_factory=partial(RateLimit, 0.1, burst=10))  # from one address


def install_console(app: FastAPI) -> None:
    """Add the console to an application; `/` leads there, if there is a key to sign in with."""
    app.state.console = Desk()
    if app.state.services.settings.admin_key is not None:
        app.add_api_route("/", lambda: RedirectResponse("/console"), include_in_schema=False)
    app.include_router(routes.router)
    app.include_router(actions.router)

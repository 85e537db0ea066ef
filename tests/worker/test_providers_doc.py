"""Pages of the providers say what the declarations say, and are known to be out of date."""

from datetime import timedelta
from pathlib import Path
from typing import Literal

import pytest
from pydantic import BaseModel, Field

from providers.kit import KB, Limits, Plan, Provider, Secret, Settings, by_status
from worker import providers_doc
from worker.providers_doc import (
    NoMarkers,
    describe,
    names_of,
    page,
    settings_of,
    skips_of,
    with_table,
)


class Window(BaseModel):
    """When to send."""

    opens: int = 0
    closes: int = 24


class AcmeSettings(Settings):
    """Made up."""

    region: Literal["us", "eu"] = Field("us", description="Where | the account lives")
    api_key: Secret = Field(description="Key of the account")
    rate: int = Field(5, ge=1, le=9, description="Calls a second")
    places: dict[str, str] = Field(default_factory=dict, description="By event")
    window: Window | None = Field(None, description="Hours of sending")
    sandbox_api_key: Secret | None = Field(None, description="Key for sandbox events")


PROVIDER: Provider[AcmeSettings] = Provider(
    slug="amplitude",  # whose docstring gives the facts
    title="Acme",
    category="Server",
    stores=("iOS",),
    settings=AcmeSettings,
    encode=lambda _events, _settings, _context: Plan(),
    classify=lambda _request, response, _settings: by_status(response),
    limits=Limits(events=10, bytes=64 * KB, max_age=timedelta(days=5), linger=timedelta(seconds=1)),
    names={"trial_started": "start", "trial_expired": None},
    free_names=False,
    identifiers=("an Acme id",),
    notes=("Counts twice.",),
)


def test_settings_say_type_default_and_secrecy_required_ones_first() -> None:
    rows = {row["key"]: row for row in settings_of(AcmeSettings, own=True)}
    assert list(rows) == ["api_key", "region", "rate", "places", "window", "sandbox_api_key"]
    assert (rows["api_key"]["required"], rows["api_key"]["secret"]) == (True, True)
    assert (rows["region"]["type"], rows["region"]["default"]) == ("`us`, `eu`", "us")
    assert rows["rate"]["type"] == "number, 1 to 9"
    assert rows["places"]["type"] == "object of text"
    assert rows["window"]["type"] == "object of `opens`, `closes`"
    assert (rows["sandbox_api_key"]["type"], rows["sandbox_api_key"]["secret"]) == ("text", True)
    assert "send_revenue" in {row["key"] for row in settings_of(AcmeSettings)}


def test_says_what_is_skipped_and_why() -> None:
    assert list(skips_of(PROVIDER)) == [
        "events of other stores than iOS",
        "events of a user without any identifier: an Acme id",
        "events switched off by `events`, or whose name in `event_names` is null",
        "events without a default name, until `event_names` gives them one",
        "sandbox events, unless the settings let them through (`send_sandbox`, `sandbox_api_key`)",
        "events older than 5 days",
    ]


def test_names_every_event_of_the_catalogue() -> None:
    names = names_of(PROVIDER)
    assert (names["trial_started"], names["trial_expired"]) == ("start", None)
    assert names["in_app_purchase"] is None
    assert len(names) == 17


def test_the_page_and_the_description_hold_all_of_it() -> None:
    text = page(PROVIDER)
    assert text.startswith(
        "# Acme\n\n`amplitude` · Server · iOS · [upstream's documentation](<https"
    )
    assert "| `api_key` (required) | text, secret |  | Key of the account |" in text
    assert "| `region` | `us`, `eu` | `us` | Where \\| the account lives |" in text
    assert "| `trial_started` | `start` |" in text
    assert "- A request has at most 10 events and 64 KB; 16 at once." in text
    assert "- A batch waits up to 1 second to fill." in text
    assert "- Counts twice." in text
    told = describe(PROVIDER)
    assert told["source"].startswith("https://")
    assert told["limits"]["max_age_seconds"] == 432_000


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(providers_doc, "all_providers", lambda: {"amplitude": PROVIDER})
    (tmp_path / "README.md").write_text("# X\n<!-- providers -->\nold\n<!-- /providers -->\nend\n")
    return tmp_path


def test_writes_what_is_out_of_date_and_takes_away_what_is_left_over(root: Path) -> None:
    folder = root / "docs/providers"
    folder.mkdir(parents=True)
    (folder / "gone.md").write_text("of a provider that was taken out")
    changes = providers_doc.stale(root)
    names = {path.relative_to(root).as_posix() for path in changes}
    assert names == {
        "README.md",
        "docs/providers/README.md",
        "docs/providers/amplitude.md",
        "docs/providers/gone.md",
    }
    providers_doc.write(changes)
    assert providers_doc.stale(root) == {}
    readme = (root / "README.md").read_text()
    assert readme.startswith("# X\n<!-- providers -->\n| provider |")
    assert "| [Acme](docs/providers/amplitude.md) | `amplitude` |" in readme
    assert readme.endswith("|\n<!-- /providers -->\nend\n")
    (folder / "amplitude.md").write_text("by hand")
    assert set(providers_doc.stale(root)) == {folder / "amplitude.md"}


def test_a_readme_without_markers_is_told() -> None:
    with pytest.raises(NoMarkers, match="<!-- providers -->"):
        with_table("# X\n<!-- providers -->\n")

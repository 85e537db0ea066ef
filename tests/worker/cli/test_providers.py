"""`onward providers`."""

from pathlib import Path

import pytest

from tests.worker.cli.run import run
from worker import providers_doc
from worker.registry import provider_of


@pytest.fixture(autouse=True)
def _one(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"amplitude": provider_of("amplitude")}
    monkeypatch.setattr("worker.registry.all_providers", lambda: found)
    monkeypatch.setattr(providers_doc, "all_providers", lambda: found)


def test_lists_them(capsys: pytest.CaptureFixture[str]) -> None:
    (listed,) = run(capsys, "providers", "list", "--json").json
    assert (listed["slug"], listed["stores"]) == ("amplitude", ["iOS", "Android", "Stripe"])
    assert "Amplitude" in run(capsys, "providers", "list").out


def test_shows_one(capsys: pytest.CaptureFixture[str]) -> None:
    shown = run(capsys, "providers", "show", "amplitude", "--json").json
    assert {"settings", "identifiers", "limits", "names", "skipped"} <= shown.keys()
    ran = run(capsys, "providers", "show", "amplitude")
    assert "api_key" in ran.out
    assert "\x1b[" not in ran.out
    assert run(capsys, "providers", "show", "amplitud").code == 2


def test_docs_are_written_and_checked(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    docs = ("providers", "docs", "--root", tmp_path)
    assert run(capsys, *docs, "--check").code == 1
    (tmp_path / "README.md").write_text("<!-- providers -->\n<!-- /providers -->\n")
    ran = run(capsys, *docs, "--check")
    assert ran.code == 1
    assert "out of date: " in ran.err
    assert not (tmp_path / "docs").exists()
    assert run(capsys, *docs).code == 0
    assert (tmp_path / "docs/providers/amplitude.md").exists()
    assert run(capsys, *docs, "--check").code == 0

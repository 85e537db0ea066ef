"""A new provider starts as one that keeps every promise."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from worker.cli.output import Failure
from worker.cli.scaffold import PLACES, make_provider


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for place in PLACES.values():
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
    return tmp_path


def test_writes_three_files_as_the_linter_wants_them(root: Path) -> None:
    paths = make_provider("acme_ads", root)
    assert [path.relative_to(root).as_posix() for path in paths] == [
        "providers/acme_ads.py",
        "tests/providers/test_acme_ads.py",
        "worker/sandbox/upstreams/acme_ads.py",
    ]
    assert "class AcmeAdsSettings(RevenueSettings)" in paths[0].read_text()
    ruff = Path(sys.executable).with_name("ruff")
    config = ["--config", str(Path(__file__).parents[3] / "pyproject.toml")]
    for command in (["format", "--check", *config], ["check", *config, "--select", "E,F,D"]):
        made = subprocess.run([ruff, *command, *paths], capture_output=True, text=True, check=False)
        assert made.returncode == 0, made.stdout


def test_adapter_and_upstream_name_themselves_as_their_modules(root: Path) -> None:
    provider, test, upstream = make_provider("acme", root)
    assert "from providers.acme import provider" in test.read_text()
    space: dict[str, Any] = {}
    exec(provider.read_text(), space)
    exec(upstream.read_text(), space)
    assert (space["provider"].slug, space["upstream"].slug) == ("acme", "acme")


@pytest.mark.parametrize("name", ["", "Acme", "acme-ads", "../acme", "kit", "1st", "acme__x"])
def test_refuses_names_that_cannot_be_slugs(root: Path, name: str) -> None:
    with pytest.raises(Failure, match="NAME must be"):
        make_provider(name, root)


def test_overwrites_nothing(root: Path) -> None:
    make_provider("acme", root)
    with pytest.raises(Failure, match="already"):
        make_provider("acme", root)

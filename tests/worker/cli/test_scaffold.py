"""A new provider starts as one that keeps every promise."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.ops.files import ROOT
from worker.cli.output import Failure
from worker.cli.scaffold import PLACES, make_provider


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for place in PLACES.values():
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
    return tmp_path


def test_writes_three_files_that_compile(root: Path) -> None:
    paths = make_provider("acme_ads", root)
    assert [path.relative_to(root).as_posix() for path in paths] == [
        "providers/acme_ads.py",
        "tests/providers/test_acme_ads.py",
        "worker/sandbox/upstreams/acme_ads.py",
    ]
    assert "class AcmeAdsSettings(RevenueSettings)" in paths[0].read_text()
    for path in paths:
        compile(path.read_text(), path, "exec")
        assert max(map(len, path.read_text().splitlines())) <= 100


@pytest.mark.processes
def test_passes_the_checks_as_it_is(tmp_path: Path) -> None:
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for folder in ("providers", "worker", "tests/providers"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    (tmp_path / "tests/__init__.py").touch()
    paths = [path.relative_to(tmp_path) for path in make_provider("zeta_ads", tmp_path)]
    for check in (["ruff", "check"], ["ruff", "format", "--check"], ["mypy"]):
        done = subprocess.run(
            [sys.executable, "-m", *check, *paths],
            cwd=tmp_path, env={}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr


def test_adapter_and_upstream_name_themselves_as_their_modules(root: Path) -> None:
    provider, test, upstream = make_provider("acme", root)
    assert "from providers import acme\n" in test.read_text()
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

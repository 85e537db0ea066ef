"""What `onward up` says once it is up."""

from pathlib import Path

import pytest

from worker.cli.service import _announce
from worker.settings import load_settings


@pytest.mark.parametrize("upstream", ["", "http://127.0.0.1:9000"])
def test_the_banner_says_who_plays_the_upstreams(
    upstream: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = load_settings({}, data_dir=str(tmp_path), upstream=upstream)
    _announce(settings, 8080, 0, tmp_path, "")
    played = f"Upstreams all played by the sandbox at {upstream}: your own receivers get"
    assert (played in capsys.readouterr().out) == bool(upstream)

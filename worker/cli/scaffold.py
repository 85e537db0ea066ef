"""`make new-provider NAME=acme`: an adapter, its tests and its fake upstream, ready to fill in."""

import re
import sys
from pathlib import Path
from string import Template

from worker.cli.output import Failure, note

TEMPLATES = Path(__file__).parent / "templates"
PLACES = {
    "provider.txt": "providers/{slug}.py",
    "test.txt": "tests/providers/test_{slug}.py",
    "upstream.txt": "worker/sandbox/upstreams/{slug}.py",
}
STEPS = """
1. Fill in the two tables of {test}
   from the upstream's documentation, and the docstring of {provider}.
2. Fill in settings, limits and `encode`; `classify` only where the upstream says more than its
   status. Closest in kind: JSON batch → amplitude, form → adjust, signed → webhooks,
   files → amazon_s3. Make {upstream} as strict as the real one.
3. `make check test`, then `onward preview {slug} --settings FILE --events FILE`, and
   `onward providers docs`. There is nothing to register.
"""


def make_provider(slug: str, root: Path) -> list[Path]:
    """Write the three files of a new provider under `root` and return them.

    Raises:
        Failure: the name will not do, or one of the files is there already.
    """
    if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", slug) or slug == "kit":
        raise Failure(f'NAME must be like "acme" or "acme_ads", not "{slug}"', code=2)
    paths = {name: root / place.format(slug=slug) for name, place in PLACES.items()}
    present = [str(path) for path in paths.values() if path.exists()]
    if present:
        raise Failure(f"There is {', '.join(present)} already")
    words = [word.capitalize() for word in slug.split("_")]
    host = slug.replace("_", "-")
    values = {"slug": slug, "host": host, "name": "".join(words), "title": " ".join(words)}
    for name, path in paths.items():
        text = (TEMPLATES / name).read_text(encoding="utf-8")
        path.write_text(Template(text).substitute(values), encoding="utf-8")
    return list(paths.values())


def main() -> None:
    """Make the provider named on the command line, in the current folder."""
    slug = sys.argv[1] if len(sys.argv) > 1 else ""
    try:
        provider, test, upstream = make_provider(slug, Path())
    except Failure as failure:
        note(failure.message)
        sys.exit(failure.code)
    print(STEPS.format(slug=slug, provider=provider, test=test, upstream=upstream))  # noqa: T201


if __name__ == "__main__":
    main()

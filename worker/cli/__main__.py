"""`python -m worker.cli` is `onward`."""

from worker.cli import main

main()

"""Print the interpreter to run Onward with: `python3`, or the system's where that is far faster.

How CPython was built counts more than its version: without profile-guided optimisation, as version
managers often build it, a delivery takes a third longer.
"""

# ruff: noqa: INP001  a script, before anything is installed

import subprocess
import sys

SYSTEM = "/usr/bin/python3"
FASTER = 0.85  # of the other's time, at most
TRIAL = """
import ensurepip, sys, timeit, venv
assert sys.version_info >= (3, 11)
print(min(timeit.repeat("sum(i * i for i in range(50_000))", number=1, repeat=9)))
"""


def seconds(python: str) -> float:
    """Return what a small loop takes, infinity where this interpreter cannot serve."""
    try:
        done = subprocess.run(  # noqa: S603  the two above
            [python, "-c", TRIAL], capture_output=True, check=True, text=True
        )
    except (OSError, subprocess.CalledProcessError):
        return float("inf")
    return float(done.stdout)


if __name__ == "__main__":
    chosen = SYSTEM if seconds(SYSTEM) < FASTER * seconds(sys.executable) else sys.executable
    sys.stdout.write(chosen + "\n")

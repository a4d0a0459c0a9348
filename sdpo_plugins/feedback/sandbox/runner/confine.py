"""What a process gives up before it runs a program: rights, limits, open files."""

from __future__ import annotations

import ctypes
import fcntl
import math
import os
import resource
import signal
import threading
from collections.abc import Sequence
from typing import Any

from sdpo_plugins.feedback.sandbox.runner import seccomp

__all__ = ["close_inherited", "confine", "die_with", "give_up_rights", "limit", "place"]

_SET_PDEATHSIG, _SET_DUMPABLE, _SET_NO_NEW_PRIVS = 1, 4, 38
_CAPABILITY_VERSION = 0x20080522

# Enough for programs that recurse in C; far below what would fill the address space.
_STACK = 64 << 20
_OPEN_FILES = 64

# The runner's own files have lower numbers.
_OURS = 256


# Found before anything is forked.
_LIBC = ctypes.CDLL(None, use_errno=True)


def give_up_rights(user: int | None) -> None:
    """Become a user without any capability, whose memory and files in /proc are closed to others of that user.

    Args:
        user: User and group to become; None: stay who we are.

    Raises:
        OSError: The kernel refuses it.
    """
    if user is not None:
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
    # Two sets of 32: effective, permitted, inheritable. Root without them cannot raise a limit.
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION, 0)
    _check(_LIBC.capset(header, (ctypes.c_uint32 * 6)()), "capset")
    _check(_LIBC.prctl(_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
    _check(_LIBC.prctl(_SET_DUMPABLE, 0, 0, 0, 0), "dumpable")


def die_with(parent: int) -> None:
    """Have the kernel kill this process when its parent ends.

    Args:
        parent: Its id, against a parent that has ended already.
    """
    _check(_LIBC.prctl(_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "pdeathsig")
    if os.getppid() != parent:
        os._exit(1)


def confine(limits: dict[str, Any], parent: int) -> None:
    """Take limits, a session of one's own, and, where there is one, the filter of system calls.

    Args:
        limits: See `limit`.
        parent: The process that forked this one.
    """
    os.setsid()
    die_with(parent)
    limit(limits)
    if seccomp.supported():
        seccomp.install(_LIBC)


def limit(limits: dict[str, Any]) -> None:
    """Set the kernel's limits of this process, none of them above what it has.

    Args:
        limits: `seconds`, `memory_mb`, `file_mb`, and `tasks`: how many threads its user may have, None: any number.
    """
    wanted = {
        resource.RLIMIT_AS: limits["memory_mb"] << 20,
        resource.RLIMIT_FSIZE: limits["file_mb"] << 20,
        resource.RLIMIT_NOFILE: _OPEN_FILES,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_MEMLOCK: 0,
        # Behind the wall clock, which is stricter, for when nobody watches it.
        resource.RLIMIT_CPU: math.ceil(limits["seconds"] * (os.cpu_count() or 1)) + 5,
    }
    for name, value in (("RLIMIT_MSGQUEUE", 0), ("RLIMIT_SIGPENDING", _OPEN_FILES), ("RLIMIT_RTPRIO", 0)):
        if hasattr(resource, name):
            wanted[getattr(resource, name)] = value
    if limits["tasks"] is not None:
        wanted[resource.RLIMIT_NPROC] = limits["tasks"]
    for which, value in wanted.items():
        value = _at_most(value, resource.getrlimit(which)[1])
        resource.setrlimit(which, (value, value))
    soft, hard = resource.getrlimit(resource.RLIMIT_STACK)
    if soft == resource.RLIM_INFINITY or soft > _STACK:
        # Threads would take a stack of this size each.
        threading.stack_size(8 << 20)
    stack = _at_most(_STACK, hard)
    resource.setrlimit(resource.RLIMIT_STACK, (stack, stack))


def place(files: Sequence[int]) -> None:
    """Make the given files the open ones, numbered from 0 in this order, and close all others.

    Args:
        files: Open files; one may occur twice.
    """
    # Away from the numbers that are about to be used, first.
    high = [fcntl.fcntl(file, fcntl.F_DUPFD, 16) for file in files]
    for number, file in enumerate(high):
        os.dup2(file, number, inheritable=True)
    os.closerange(len(files), _OURS)


def close_inherited() -> None:
    """Close all files but the standard ones, which costs a system call for each number on old systems."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    os.closerange(3, most if 0 < most < 1 << 20 else 1 << 20)


def _at_most(value: int, hard: int) -> int:
    return value if hard == resource.RLIM_INFINITY else min(value, hard)


def _check(result: int, what: str) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")

"""A filter of system calls: one process, with threads, that reaches no other and makes none.

Source: https://docs.kernel.org/userspace-api/seccomp_filter.html
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct

__all__ = ["install", "instructions", "supported"]

# Classic BPF: load a word of the call's description, jump if it is equal, not below, or shares a bit, return.
_LOAD, _EQUAL, _NOT_BELOW, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16

_CLONE_THREAD = 0x00010000
_AF_UNIX = 1

_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}

# Calls above it are newer than this list; they do not exist, as far as a program can tell.
_NEWEST = 456

# Name: number on x86_64, number on aarch64 (None where there is none).
_FORBIDDEN: dict[str, tuple[int | None, int | None]] = {
    # new processes and programs
    "fork": (57, None),
    "vfork": (58, None),
    "execve": (59, 221),
    "execveat": (322, 281),
    # other processes
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "process_mrelease": (448, 448),
    "pidfd_send_signal": (424, 424),
    "pidfd_open": (434, 434),
    "pidfd_getfd": (438, 438),
    "kcmp": (312, 272),
    "tkill": (200, 130),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "setpriority": (141, 140),
    "ioprio_set": (251, 30),
    "migrate_pages": (256, 238),
    "move_pages": (279, 239),
    # namespaces, mounts, the system
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "open_by_handle_at": (304, 265),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "acct": (163, 89),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "reboot": (169, 142),
    "syslog": (103, 116),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "personality": (135, 92),
    "uselib": (134, None),
    "modify_ldt": (154, None),
    "iopl": (172, None),
    "ioperm": (173, None),
    # parts of the kernel with a history, and ways around this filter
    "bpf": (321, 280),
    "seccomp": (317, 277),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "fanotify_init": (300, 262),
    "io_setup": (206, 0),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    # the network; memory that no limit counts
    "socket": (41, 198),
    "setsockopt": (54, 208),  # how much a pair of sockets holds
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "shmget": (29, 194),
    "semget": (64, 190),
    "msgget": (68, 186),
    "mq_open": (240, 180),
}
# Allowed for the process itself alone: the argument that names a process, and the values that mean this one. A
# process group is none of them: the process leads a session of its own.
_ONLY_ITSELF: dict[str, tuple[int, int, bool]] = {
    "kill": (62, 129, False),
    "tgkill": (234, 131, False),
    "prlimit64": (302, 261, True),
    "sched_setparam": (142, 118, True),
    "sched_setscheduler": (144, 119, True),
    "sched_setattr": (314, 274, True),
    "sched_setaffinity": (203, 122, True),
}
# Allowed but for some values of an argument.
_BUT_FOR: dict[str, tuple[int, int, int, tuple[int, ...]]] = {
    # F_SETOWN, F_SETSIG and F_SETOWN_EX make the kernel send any signal to any process of this user; F_NOTIFY goes
    # with them; F_SETPIPE_SZ makes of a pipe memory that no limit counts.
    "fcntl": (72, 25, 1, (8, 10, 15, 1026, 1031)),
    "ioctl": (16, 29, 1, (0x8901, 0x8902, 0x5412)),  # FIOSETOWN and SIOCSPGRP, the same; TIOCSTI types for others
    "prctl": (157, 167, 0, (1, 4, 22)),  # PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP
}
_CLONE, _CLONE3, _SOCKETPAIR = (56, 220), (435, 435), (53, 199)


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def supported() -> bool:
    """Whether there is a filter for this architecture."""
    return os.uname().machine in _ARCHITECTURES


def instructions(machine: str, pid: int) -> list[tuple[int, int, int, int]]:
    """Return the filter's program: (code, jump if true, jump if false, constant) for each instruction.

    Args:
        machine: "x86_64" or "aarch64".
        pid: The one process that signals may go to.

    Example:
        >>> instructions("x86_64", 7)[0]
        (32, 0, 0, 4)
    """
    column = list(_ARCHITECTURES).index(machine)
    refuse = _ERRNO | errno.EPERM
    unknown = _ERRNO | errno.ENOSYS
    program = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_EQUAL, 1, 0, _ARCHITECTURES[machine]),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER),
        # Also the calls of the x32 interface, which have a high bit set.
        (_NOT_BELOW, 0, 1, _NEWEST + 1),
        (_RETURN, 0, 0, unknown),
    ]

    def on(number: int | None, block: list[tuple[int, int, int, int]]) -> None:
        if number is not None:
            program.append((_EQUAL, 0, len(block), number))
            program.extend(block)

    for numbers in _FORBIDDEN.values():
        on(numbers[column], [(_RETURN, 0, 0, refuse)])
    # The flags of clone3 lie in memory, where a filter cannot look; without it, the C library calls clone.
    on(_CLONE3[column], [(_RETURN, 0, 0, unknown)])
    on(
        _CLONE[column],
        [_argument(0), (_ANY_BIT, 1, 0, _CLONE_THREAD), (_RETURN, 0, 0, refuse), (_RETURN, 0, 0, _ALLOW)],
    )
    on(_SOCKETPAIR[column], _allowing(0, [_AF_UNIX], refuse))
    for first, second, also_zero in _ONLY_ITSELF.values():
        on((first, second)[column], _allowing(0, [pid, 0] if also_zero else [pid], refuse))
    for first, second, index, values in _BUT_FOR.values():
        block = [_argument(index)]
        for value in values:
            block += [(_EQUAL, 0, 1, value), (_RETURN, 0, 0, refuse)]
        on((first, second)[column], [*block, (_RETURN, 0, 0, _ALLOW)])
    return [*program, (_RETURN, 0, 0, _ALLOW)]


def install(libc: ctypes.CDLL) -> None:
    """Put this process, and threads it starts from now on, under the filter; there is no way back.

    Args:
        libc: The C library. `no_new_privs` must have been set.

    Raises:
        OSError: The kernel refuses it.
    """
    found = instructions(os.uname().machine, os.getpid())
    text = b"".join(struct.pack("=HBBI", *instruction) for instruction in found)
    buffer = ctypes.create_string_buffer(text, len(text))
    program = _Program(len(found), ctypes.addressof(buffer))
    set_seccomp, mode_filter = 22, 2
    if libc.prctl(set_seccomp, mode_filter, ctypes.byref(program), 0, 0):
        number = ctypes.get_errno()
        raise OSError(number, "seccomp: " + os.strerror(number))


def _argument(index: int) -> tuple[int, int, int, int]:
    # Its lower half; all the arguments looked at here are C ints, or flags in the lower half.
    return (_LOAD, 0, 0, _ARGUMENTS + 8 * index)


def _allowing(index: int, values: list[int], otherwise: int) -> list[tuple[int, int, int, int]]:
    block = [_argument(index)]
    for value in values:
        block += [(_EQUAL, 0, 1, value), (_RETURN, 0, 0, _ALLOW)]
    return [*block, (_RETURN, 0, 0, otherwise)]

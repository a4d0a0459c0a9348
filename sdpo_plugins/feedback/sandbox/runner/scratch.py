"""The folder that a program may write to: whether it is as it was given, and taking away what was left in it."""

from __future__ import annotations

import os
import stat
from itertools import islice

__all__ = ["State", "files", "is_untouched", "remove", "state"]


# Rights of a folder, when they or its entries last changed, and its entries.
State = tuple[int, int, list[str]]


def state() -> State:
    """Return the state of the current directory, as it is given to a program."""
    found = os.stat(".")
    return found.st_mode, found.st_ctime_ns, sorted(os.listdir("."))


def is_untouched(before: State) -> bool:
    """Whether the current directory is as it was.

    Args:
        before: Its `state` then.
    """
    mode, changed, names = before
    try:
        # No more of it than needed: a program may have left a million files.
        found = [entry.name for entry in islice(os.scandir("."), len(names) + 1)]
        now = os.stat(".")
        return (now.st_mode, now.st_ctime_ns, sorted(found)) == (mode, changed, names)
    except OSError:  # the program has taken its rights away, or removed it
        return False


def files() -> int:
    """Return how many files the current directory's file system holds."""
    found = os.statvfs(".")
    return found.f_files - found.f_ffree


def remove(folder: str) -> None:
    """Remove a folder that a hostile program has filled; a folder that is gone is fine.

    Folders without rights and folders nested a hundred thousand deep are no hindrance; links are removed, not followed.
    Nobody may be writing there any more.

    Args:
        folder: Its path.

    Raises:
        OSError: It cannot be removed.
    """
    try:
        if not stat.S_ISDIR(os.lstat(folder).st_mode):
            os.unlink(folder)
            return
        os.chmod(folder, 0o700)
        top = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return
    try:
        _empty(top)
    finally:
        os.close(top)
    os.rmdir(folder)


def _empty(top: int) -> None:
    here = os.dup(top)
    # The folders from the top down to here, each with its name and what is still in it.
    above = [("", os.listdir(here))]
    try:
        while above:
            name, entries = above[-1]
            if entries:
                entry = entries.pop()
                if not _is_folder(entry, here):
                    os.unlink(entry, dir_fd=here)
                    continue
                os.chmod(entry, 0o700, dir_fd=here)
                here = _moved(here, entry)
                above.append((entry, os.listdir(here)))
                continue
            above.pop()
            if above:
                here = _moved(here, "..")
                os.rmdir(name, dir_fd=here)
    finally:
        os.close(here)


def _moved(here: int, to: str) -> int:
    # A few open files do for any depth.
    there = os.open(to, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=here)
    os.close(here)
    return there


def _is_folder(name: str, parent: int) -> bool:
    return stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode)

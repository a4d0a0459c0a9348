"""The Python that runs programs: the one under any virtual environment, and the files it cannot do without."""

from __future__ import annotations

import glob
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import cache

from sdpo_plugins.feedback.sandbox.types import SandboxError

__all__ = ["FLAGS", "Interpreter", "environment", "find_interpreter"]

# Neither the current directory nor any site-packages on the path, UTF-8 whatever the locale, no bytecode written.
FLAGS = ("-P", "-s", "-S", "-B", "-X", "utf8")

# Modules of windows, terminals and directory services, whose libraries are as many as all others.
_NEEDLESS = ("_tkinter", "_curses", "nis", "readline")

_SECONDS = 60


@dataclass(frozen=True)
class Interpreter:
    """A Python and what it is made of.

    Args:
        program: The executable.
        folders: Of the standard library.
        libraries: Shared libraries, the loader among them, as the loader looks for them.
        hidden: Folders within `folders` that are no part of the standard library.
    """

    program: str
    folders: tuple[str, ...]
    libraries: tuple[str, ...]
    hidden: tuple[str, ...]


def environment(home: str) -> dict[str, str]:
    """Return all that programs find in their environment.

    Args:
        home: The folder they may write to.
    """
    found = {
        "HOME": home,
        "TMPDIR": home,
        "LANG": "C.UTF-8",
        "PATH": "/nowhere",
        # Sets of texts have the same order in every run, so that a program's score does not change by itself.
        "PYTHONHASHSEED": "0",
        # Otherwise every thread reserves 64 MiB of the address space that the limit counts.
        "MALLOC_ARENA_MAX": "2",
    }
    if "LD_LIBRARY_PATH" in os.environ:
        found["LD_LIBRARY_PATH"] = os.environ["LD_LIBRARY_PATH"]
    return found


@cache
def find_interpreter() -> Interpreter:
    """Return the interpreter, with its files.

    Raises:
        SandboxError: It or its libraries cannot be found.
    """
    program = os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)
    text = _output([program, *FLAGS, "-c", "import json, sys; print(json.dumps(sys.path))"])
    folders = [folder for folder in json.loads(text) if os.path.isdir(folder)]
    # The extension modules' folder lies within that of the others, or has a path of its own.
    outer = [one for one in folders if not any(one != other and one.startswith(other + "/") for other in folders)]
    hidden = [path for folder in outer for path in glob.glob(f"{folder}/*-packages") if os.path.isdir(path)]
    ldd = shutil.which("ldd")
    if ldd is None:
        raise SandboxError("the program `ldd`, which tells what libraries Python needs, is not on the PATH; install it")
    modules = [
        path
        for folder in folders
        for path in glob.glob(f"{folder}/*.so")
        if not os.path.basename(path).startswith(_NEEDLESS)
    ]
    # Its exit status says only that some module, such as that of a window system, lacks a library.
    listing = _output([ldd, program, *modules], check=False)
    libraries = sorted({path for path in re.findall(r"(?:=> )?(/\S+) \(0x", listing) if os.path.exists(path)})
    if not libraries and "statically linked" not in listing and "not a dynamic executable" not in listing:
        raise SandboxError(f"`ldd {program}` names no library: {listing[:300]!r}")
    return Interpreter(program, tuple(outer), tuple(libraries), tuple(hidden))


def _output(command: list[str], check: bool = True) -> str:
    try:
        # Without PYTHONPATH and its like: what lies there is no part of the interpreter.
        clean = {**environment("/"), "PATH": os.environ.get("PATH", os.defpath)}
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False, env=clean)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SandboxError(f"{command[0]} cannot be run: {error}") from error
    if check and done.returncode:
        raise SandboxError(f"{command[0]} ended with code {done.returncode}: {done.stderr[:300]!r}")
    return done.stdout

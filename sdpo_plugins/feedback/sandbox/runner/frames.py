"""Messages on a pipe: the length in bytes as a decimal number, a line end, JSON in ASCII."""

from __future__ import annotations

import json
import os
from typing import Any

__all__ = ["Closed", "TooLong", "pack", "read_frame", "write_all", "write_frame"]

# No length has more digits; what is longer is no frame of ours.
_DIGITS = 12


class Closed(Exception):
    """The other end is gone."""


class TooLong(Exception):
    """The frame is longer than its reader takes."""


def pack(message: Any) -> bytes:
    """Return the message as a frame.

    Example:
        >>> pack({"a": 1})
        b'8\\n{"a": 1}'
    """
    body = json.dumps(message).encode("ascii")
    return b"%d\n%s" % (len(body), body)


def write_frame(fd: int, message: Any) -> None:
    """Write a message whole."""
    write_all(fd, pack(message))


def write_all(fd: int, data: bytes) -> None:
    """Write every byte."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(fd, rest) :]


def read_frame(fd: int, longest: int) -> Any:
    """Read one message and not a byte more, so that another process may read the next one.

    Args:
        fd: Where from.
        longest: Bytes it may have.

    Raises:
        Closed: There is none.
        TooLong: It is longer.
        ValueError: It is no frame.
    """
    head = b""
    while not head.endswith(b"\n"):
        head += _read(fd, 1)
        if len(head) > _DIGITS:
            raise ValueError(f"no frame begins like this: {head!r}")
    if not head[:-1].isdigit():
        raise ValueError(f"no frame begins like this: {head!r}")
    length = int(head)
    if length > longest:
        raise TooLong(f"a message of {length} bytes, of at most {longest}")
    parts = []
    while length:
        part = _read(fd, min(length, 1 << 20))
        parts.append(part)
        length -= len(part)
    return json.loads(b"".join(parts))


def _read(fd: int, size: int) -> bytes:
    found = os.read(fd, size)
    if not found:
        raise Closed("the other process is gone")
    return found

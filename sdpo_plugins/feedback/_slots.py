"""At most so many at once, over all processes of this user on this machine: a worker that dies gives its place back."""

from __future__ import annotations

import hashlib
import os
import random
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sdpo_plugins.errors import SDPOError

__all__ = ["Slots"]

_LOOK_AGAIN = 0.05


class Slots:
    """Places of which each is held by one thread of one process.

    Each is a locked file; the system unlocks the files of a process that ends, however it ends.

    Args:
        purpose: Those with the same purpose share places, e.g. a server's address.
        count: Number of places.

    Raises:
        SDPOError: The folder of the files belongs to someone else.
    """

    def __init__(self, purpose: str, count: int) -> None:
        user = os.getuid() if hasattr(os, "getuid") else 0
        name = f"sdpo-slots-{user}-{hashlib.sha256(purpose.encode()).hexdigest()[:16]}"
        self._folder = Path(tempfile.gettempdir()) / name
        self._folder.mkdir(mode=0o700, exist_ok=True)
        if self._folder.is_symlink() or (hasattr(os, "getuid") and self._folder.stat().st_uid != user):
            raise SDPOError(
                f"{self._folder} belongs to someone else. Remove it, or set TMPDIR to a folder of your own."
            )
        self._places = [self._folder / f"{number}.lock" for number in range(count)]

    @contextmanager
    def one(self) -> Iterator[None]:
        """Hold a place, waiting for one if all are taken."""
        from filelock import FileLock, Timeout

        while True:
            for place in random.sample(self._places, len(self._places)):
                lock = FileLock(place)
                try:
                    lock.acquire(blocking=False)
                except Timeout:
                    continue
                try:
                    yield
                finally:
                    lock.release()
                return
            time.sleep(_LOOK_AGAIN)

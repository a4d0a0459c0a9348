"""The process that compares answers with math-verify, for `_math_process`: one JSON line in, one JSON line out.

A simplification that never ends, or a power tower, is stuck inside of C code, where no exception reaches it. So the
process sets itself an alarm, in time of the processor so that a busy machine changes no score, which the kernel answers
by ending it. It is started as a file, by path: neither the user's
`__main__` nor this package is imported.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import sys
from typing import Any, BinaryIO

# What sympy may take for numbers of a million digits.
_MEMORY = 2 << 30


def main() -> None:
    """Answer requests until there are no more."""
    # Libraries that print must not write between the answers.
    replies = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    _prepare_signals()
    sys.path[:] = json.loads(sys.stdin.readline())
    try:
        works = _equal(r"\frac{1}{2}", r"\boxed{0.5}")
    except Exception as error:
        _reply(replies, {"error": f"{type(error).__name__}: {error}"})
        return
    _reply(replies, {"ready": True} if works else {"error": "it does not find 1/2 and 0.5 to be equal"})
    _limit_memory()
    for line in sys.stdin:
        task = json.loads(line)
        _alarm(task["seconds"])
        # Whatever goes wrong with an answer, it is not equal to the right one.
        equal = False
        with contextlib.suppress(Exception):
            equal = _equal(task["truth"], task["answer"])
        _alarm(0)
        _reply(replies, {"equal": equal})


def _equal(truth: str, answer: str) -> bool:
    """Return whether an answer, in a box or to be looked for in a text, equals the truth."""
    from math_verify import parse, verify

    # The library's own limits work by exceptions in the main thread, and not inside of C code.
    logging.disable(logging.CRITICAL)
    right = parse(f"\\boxed{{{truth}}}", parsing_timeout=None)
    given = parse(answer, parsing_timeout=None)
    return bool(verify(right, given, timeout_seconds=None))


def _prepare_signals() -> None:
    # The parent, which got the same Ctrl-C, closes our input.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "SIGPROF"):
        signal.signal(signal.SIGPROF, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGPROF})


def _alarm(seconds: float) -> None:
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_PROF, seconds)


def _limit_memory() -> None:
    if sys.platform == "linux":
        import resource

        _, most = resource.getrlimit(resource.RLIMIT_AS)
        limit = _MEMORY if most == resource.RLIM_INFINITY else min(_MEMORY, most)
        resource.setrlimit(resource.RLIMIT_AS, (limit, most))


def _reply(replies: BinaryIO, answer: dict[str, Any]) -> None:
    replies.write(json.dumps(answer).encode() + b"\n")


if __name__ == "__main__":
    main()

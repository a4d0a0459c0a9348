"""Programs in a SandboxFusion server: the same runner, sent there with its job; outcomes are what it prints.

Source: https://github.com/bytedance/SandboxFusion
"""

from __future__ import annotations

import json
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sdpo_plugins.errors import ConfigError
from sdpo_plugins.feedback.sandbox.bundle import bundle
from sdpo_plugins.feedback.sandbox.processes import Died, OutOfTime
from sdpo_plugins.feedback.sandbox.runner.frames import pack
from sdpo_plugins.feedback.sandbox.session import run_tests
from sdpo_plugins.feedback.sandbox.types import DEFAULT_LIMITS, Limits, Outcome, Program, SandboxError

__all__ = ["SandboxFusion"]

# Seconds that the server may need besides the tests: to start a Python, and to answer.
_START, _ANSWER = 20.0, 30.0

# MiB that the runner may take above a program's, so that the program's own limit is the one that is felt.
_MORE_MEMORY = 256

# Servers pass on so much of what is printed and drop the rest without a word.
_PASSED_ON = 1 << 20


class SandboxFusion:
    """Runs programs in a server; see `Sandbox`. One request runs all tests of a program.

    Args:
        url: Address of the server's `/run_code`.
        max_concurrent: Requests under way at once, from all threads of this process.
        attempts: How often a request is made before the server counts as failed.

    Raises:
        ConfigError: No address of that form, or a number below 1.
    """

    def __init__(self, url: str, max_concurrent: int = 16, attempts: int = 4) -> None:
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise ConfigError(f"a SandboxFusion address is like http://localhost:8080/run_code; got {url!r}")
        if max_concurrent < 1 or attempts < 1:
            raise ConfigError(f"max_concurrent and attempts must be at least 1; got {max_concurrent} and {attempts}")
        self.url = url
        self.attempts = attempts
        self._free = threading.BoundedSemaphore(max_concurrent)

    def run(
        self, program: Program, inputs: Sequence[str], limits: Limits = DEFAULT_LIMITS, *, stop_after: int | None = None
    ) -> list[Outcome]:
        """See `Sandbox.run`."""
        job = {
            "limits": {**vars(limits), "tasks": None, "files": None},
            "ends_with": "parent",
            "own_scratch": True,
            "try_out": True,
            "user": None,
        }
        return run_tests(self._launch, program, inputs, limits, stop_after, job)

    def _launch(
        self, job: Mapping[str, Any], inputs: Sequence[str], limits: Limits, deadline: float | None
    ) -> Iterator[Mapping[str, Any]]:
        seconds = _START + (limits.seconds + 0.1) * len(inputs)
        if deadline is not None:
            left = deadline - time.monotonic()
            if left <= 0:
                raise OutOfTime
            seconds = min(seconds, left)
        body = {
            "code": bundle(),
            "stdin": b"".join(pack(message) for message in (job, *inputs)).decode("ascii"),
            "language": "python",
            "compile_timeout": seconds,
            "run_timeout": seconds,
            "memory_limit_MB": limits.memory_mb + _MORE_MEMORY,
            "files": {},
            "fetch_files": [],
        }
        with self._free:
            answer = self._ask(json.dumps(body).encode(), seconds + _ANSWER, 8 * limits.output_bytes * len(inputs))
        run = answer["run_result"]
        printed = str(run.get("stdout") or "")
        first, *outcomes = _frames(printed) or [None]
        if first != {"ready": True}:
            complaint = str(run.get("stderr") or "").strip()[-1000:]
            raise SandboxError(f"the runner does not start in the sandbox at {self.url}: {complaint or run!r}")
        yield from outcomes
        if len(outcomes) == len(inputs) or (outcomes and outcomes[-1]["last"]):
            return
        if run.get("status") == "TimeLimitExceeded":
            raise OutOfTime
        if len(printed) >= _PASSED_ON and not outcomes:
            report = f"The output is longer than the sandbox passes on, {_PASSED_ON} bytes."
            yield {"kind": "output", "output": "", "report": report, "seconds": 0.0, "last": True}
        elif len(printed) < _PASSED_ON:
            raise Died

    def _ask(self, body: bytes, seconds: float, longest: int) -> Mapping[str, Any]:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        problem = ""
        for attempt in range(self.attempts):
            if attempt:
                time.sleep(min(8.0, 0.5 * 2**attempt))
            request = urllib.request.Request(self.url, body, headers)
            try:
                with urllib.request.urlopen(request, timeout=seconds) as response:
                    answer = json.loads(response.read(longest + (1 << 24)))
            except urllib.error.HTTPError as error:
                problem = f"it answered with code {error.code}: {error.read(300)!r}"
                if error.code < 500 and error.code != 429:
                    break
                continue
            except (OSError, ValueError) as error:
                problem = repr(error)
                continue
            found = answer if isinstance(answer, dict) else {}
            if found.get("status") in ("Success", "Failed") and isinstance(found.get("run_result"), dict):
                return found
            problem = f"it answered with status {found.get('status')!r}, message {str(found.get('message'))[:500]!r}"
        raise SandboxError(
            f"the sandbox at {self.url} did not run a program ({problem}). Is SandboxFusion running, and does the "
            "address end in /run_code? If it is busy, ask for less at once with max_concurrent."
        )


def _frames(text: str) -> list[Any]:
    """The whole messages in a text; a last one that is cut off is left out."""
    found: list[Any] = []
    while True:
        head, line, rest = text.partition("\n")
        if not line or not head.isdigit() or len(rest) < int(head):
            return found
        found.append(json.loads(rest[: int(head)]))
        text = rest[int(head) :]

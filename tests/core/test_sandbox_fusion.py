"""A SandboxFusion server runs the programs: here one that speaks its interface and runs what it is sent."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from sandbox_leftovers import descendants_gone
from sdpo_plugins.feedback.sandbox import Limits, Outcome, Program, SandboxError, open_sandbox

ROOMY = Limits(seconds=10.0)

# What a server passes on of the output; the rest is dropped.
PASSED_ON = 1 << 20


class Server:
    """Answers `/run_code`: runs the code in a process of its own, with the time and memory that were asked for."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.failures: list[Any] = []
        self.busy = self.most = 0
        self.most_seconds = 60.0
        lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    server.requests.append({"path": self.path, **body})
                    failure = server.failures.pop(0) if server.failures else 200
                    server.busy += 1
                    server.most = max(server.most, server.busy)
                status = failure if isinstance(failure, int) else 200
                answer = {"detail": "no"} if status != 200 else server.run(body) if failure == 200 else failure
                with lock:
                    server.busy -= 1
                text = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/run_code"

    def run(self, body: dict[str, Any]) -> dict[str, Any]:
        limit = body["memory_limit_MB"] << 20

        def limits() -> None:
            for which in (resource.RLIMIT_AS, resource.RLIMIT_DATA, resource.RLIMIT_STACK):
                resource.setrlimit(which, (limit, resource.getrlimit(which)[1]))

        seconds = min(body["run_timeout"], self.most_seconds)
        command = [getattr(sys, "_base_executable", sys.executable), "-c", body["code"]]
        process = subprocess.Popen(command, stdin=-1, stdout=-1, stderr=-1, start_new_session=True, preexec_fn=limits)
        try:
            out, err = process.communicate(body["stdin"].encode(), seconds)
            run = {"status": "Finished", "return_code": process.returncode}
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
            run = {"status": "TimeLimitExceeded", "return_code": None}
        run |= {"stdout": out[:PASSED_ON].decode(), "stderr": err.decode(), "execution_time": 0.1}
        status = "Success" if run["return_code"] == 0 else "Failed"
        return {"status": status, "message": "", "compile_result": None, "run_result": run, "files": {}}


@pytest.fixture
def server() -> Iterator[Server]:
    found = Server()
    thread = threading.Thread(target=found.server.serve_forever, daemon=True)
    thread.start()
    with descendants_gone():
        yield found
    found.server.shutdown()
    found.server.server_close()
    thread.join(10)


def ran(server: Server, program: Program, *inputs: str, limits: Limits = ROOMY, **options: Any) -> list[Outcome]:
    return open_sandbox("sandbox_fusion", url=server.url, **options).run(program, inputs, limits)


DOUBLE = Program("def f(n):\n    print('noise')\n    return n * 2", "functional", "f")


def test_one_request_runs_all_tests(server: Server) -> None:
    found = ran(server, Program("print(int(input()) * 2)", "stdin"), "21", "x", "4")
    assert [(one.kind, one.output) for one in found] == [("ok", "42\n"), ("error", ""), ("ok", "8\n")]
    assert found[1].report.startswith("ValueError: invalid literal") and found[1].report.endswith("(Solution.py)")
    (request,) = server.requests
    assert (request["path"], request["language"]) == ("/run_code", "python")
    assert request["run_timeout"] >= 3 * ROOMY.seconds and request["memory_limit_MB"] > ROOMY.memory_mb


def test_functions_and_code(server: Server) -> None:
    assert [one.output for one in ran(server, DOUBLE, "2", '"a"')] == ["4", '"aa"']
    program = Program("class E:\n    def __eq__(self, other): return True\ndef f(n): return E() if n else 1", "code")
    assert [one.kind for one in ran(server, program, "assert f(0) == 1", "assert f(1) == 1")] == ["ok", "error"]
    program = Program("import os\ndef f(n): os._exit(0)", "code")
    assert [one.kind for one in ran(server, program, "assert f(0) == 1")] == ["error"]


@pytest.mark.slow
def test_limits_are_felt_there(server: Server) -> None:
    program = Program(
        "def f(n):\n    while n == 1: pass\n    if n == 2: return len(bytearray(600 << 20))\n    return 'x' * n * 1000",
        "functional",
        "f",
    )
    limits = Limits(seconds=2.0, memory_mb=512, output_bytes=10_000)
    found = ran(server, program, "1", "2", "20", "0", limits=limits)
    assert [one.kind for one in found] == ["timeout", "memory", "output", "ok"]


def test_threads_have_room_for_their_stacks(server: Server) -> None:
    code = "import threading\nfor _ in range(4): threading.Thread(target=int).start()\nprint('started')"
    (outcome,) = ran(server, Program(code, "stdin"), "")
    assert (outcome.kind, outcome.output) == ("ok", "started\n")


def test_what_a_test_leaves_is_gone_for_the_next(server: Server) -> None:
    code = "import os\nprint(os.listdir('.'))\nopen('left', 'w').write('x')"
    found = ran(server, Program(code, "stdin"), "", "")
    assert [one.output for one in found] == ["[]\n", "[]\n"]
    assert len(server.requests) == 2


def test_output_that_the_server_does_not_pass_on(server: Server) -> None:
    long, short = ran(server, Program("print(input() * 300_000)", "stdin"), "é", "\n", limits=ROOMY)
    assert long.kind == "output" and "than the sandbox passes on" in long.report
    assert (short.kind, short.output) == ("ok", "\n")
    many = ran(server, Program("print('x' * 400_000)", "stdin"), *[""] * 6)
    assert [one.kind for one in many] == ["ok"] * 6


@pytest.mark.slow
def test_a_server_that_gives_less_time(server: Server) -> None:
    server.most_seconds = 3.0
    program = Program("import time\ntime.sleep(float(input()))\nprint('ok')", "stdin")
    found = ran(server, program, "0", "20", "0", limits=Limits(seconds=30.0))
    assert [one.kind for one in found] == ["ok", "timeout", "ok"]


@pytest.mark.slow
def test_all_tests_together_have_a_time(server: Server) -> None:
    program = Program("import time\ntime.sleep(float(input()))", "stdin")
    started = time.monotonic()
    found = ran(server, program, "0", "30", "0", limits=Limits(seconds=30.0, total_seconds=3.0))
    assert [one.kind for one in found] == ["ok", "timeout", "not run"] and time.monotonic() - started < 10


@pytest.mark.slow
def test_a_server_that_stumbles_is_asked_again(server: Server) -> None:
    server.failures = [503, {"status": "SandboxError", "message": "no room", "run_result": None}]
    assert ran(server, DOUBLE, "2", attempts=3)[0].output == "4"
    assert len(server.requests) == 3


@pytest.mark.parametrize(
    ("failures", "piece", "requests"),
    [
        ([500, 500], "code 500", 2),
        ([404, 404], "code 404", 1),
        ([{"status": "SandboxError", "message": "no room", "run_result": None}] * 2, "no room", 2),
        ([{"status": "Failed", "message": "odd", "run_result": None}] * 2, "odd", 2),
        ([[]] * 2, "status None", 2),
        ([{"status": "Failed", "run_result": {"status": "Finished", "stdout": "", "stderr": "no ctypes"}}],
         "no ctypes", 1),
    ],
)  # fmt: skip
def test_a_server_that_fails_is_no_failure_of_the_program(
    server: Server, failures: list[Any], piece: str, requests: int
) -> None:
    server.failures = list(failures)
    with pytest.raises(SandboxError, match=piece):
        ran(server, DOUBLE, "2", attempts=2)
    assert len(server.requests) == requests


def test_a_server_that_is_not_there() -> None:
    sandbox = open_sandbox("sandbox_fusion", url="http://127.0.0.1:9/run_code", attempts=1)
    with pytest.raises(SandboxError, match=r"Is SandboxFusion running, and does the address end in /run_code"):
        sandbox.run(DOUBLE, ["1"])


def test_no_more_requests_at_once_than_allowed(server: Server) -> None:
    sandbox = open_sandbox("sandbox_fusion", url=server.url, max_concurrent=2)
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda number: sandbox.run(DOUBLE, [str(number)], ROOMY)[0].output, range(6)))
    assert found == [str(2 * number) for number in range(6)]
    assert server.most == 2

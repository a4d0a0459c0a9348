"""A server on loopback that speaks as much of the Hugging Face hub's interface as reading a data set takes."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def local_hub(repository: str, branches: Mapping[str, Mapping[str, bytes]]) -> Iterator[tuple[str, list[str]]]:
    """Serve a data set.

    Args:
        repository: Its name.
        branches: Files by path, for each branch; the commit `COMMIT` has those of the first.

    Yields:
        The address, and the requests so far.
    """
    asked: list[str] = []
    trees = {**branches, COMMIT: next(iter(branches.values()))}

    class Hub(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def do_HEAD(self) -> None:
            self.answer()

        def do_GET(self) -> None:
            self.answer()

        def do_POST(self) -> None:
            self.body = self.rfile.read(int(self.headers["Content-Length"] or 0))
            self.answer()

        def answer(self) -> None:
            path = unquote(urlsplit(self.path).path)
            asked.append(f"{self.command} {path}")
            api, files = f"/api/datasets/{repository}", f"/datasets/{repository}/resolve/"
            if path == api:
                self.send(self.told("main"))
            elif path.startswith(f"{api}/revision/"):
                self.send(self.told(path.removeprefix(f"{api}/revision/")))
            elif path.startswith(f"{api}/tree/"):
                revision, place = self.parted(path.removeprefix(f"{api}/tree/"))
                self.send(
                    None if revision is None else self.listed(revision, place, "recursive=true" in self.path.lower())
                )
            elif path.startswith(f"{api}/paths-info/"):
                revision, _ = self.parted(path.removeprefix(f"{api}/paths-info/"))
                wanted = json.loads(self.body)["paths"]
                self.send([self.entry(revision, each) for each in wanted if each in trees[revision]])
            elif path.startswith(files):
                revision, place = self.parted(path.removeprefix(files))
                self.send(trees[revision].get(place) if revision else None)
            else:
                self.send(None)

        def parted(self, rest: str) -> tuple[Any, str]:
            found = next((name for name in trees if rest == name or rest.startswith(f"{name}/")), None)
            return found, rest.removeprefix(str(found)).strip("/")

        def told(self, revision: str) -> Any:
            if revision not in trees:
                return None
            siblings = [{"rfilename": name} for name in trees[revision]]
            return {"id": repository, "sha": COMMIT, "private": False, "gated": False, "siblings": siblings, "tags": []}

        def entry(self, revision: str, name: str) -> dict[str, Any]:
            content = trees[revision][name]
            return {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}

        def listed(self, revision: str, place: str, recursive: bool) -> list[dict[str, Any]]:
            inside = [name for name in trees[revision] if not place or name.startswith(f"{place}/")]
            own = len(place) + 1 if place else 0
            found = [self.entry(revision, name) for name in inside if recursive or "/" not in name[own:]]
            folders = {name[: name.index("/", own)] for name in inside if "/" in name[own:]}
            return found + [{"type": "directory", "path": name, "oid": "0", "size": 0} for name in sorted(folders)]

        def send(self, content: Any) -> None:
            status = 404 if content is None else 200
            told = {"error": "not here"} if content is None else content
            body = told if isinstance(told, bytes) else json.dumps(told).encode()
            self.send_response(status)
            if content is None:
                found = "RepoNotFound" if repository not in self.path else "RevisionNotFound"
                self.send_header("X-Error-Code", found if "/api/" in self.path else "EntryNotFound")
                self.send_header("X-Error-Message", "not here")
            self.send_header("Content-Length", str(len(body)))
            self.send_header("ETag", f'"{hashlib.sha1(body).hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join(timeout=30)

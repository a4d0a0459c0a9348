"""A real Chromium, and pages made from records. A page that logs an error, a warning or a request fails its test."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest

from made_records import make_run
from report_pages import page_of, ready

ROOT = Path(__file__).resolve().parents[2]
WAIT_MS = 20_000
# Of a window that says nothing of itself; as root there is no sandbox.
ARGUMENTS = ["--no-sandbox", "--disable-dev-shm-usage"]


def chromium() -> str:
    """The path of the browser; CI may install it."""
    spec = importlib.util.spec_from_file_location("browser_script", ROOT / "scripts" / "browser.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    found = script.ensure() if os.environ.get("CI") == "true" else script.find()
    if found is None:
        pytest.fail(script.HOW)
    return found


@pytest.fixture(scope="session")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium(), args=ARGUMENTS)
        yield started
        started.close()


@pytest.fixture
def visit(browser):
    """A function that opens a file with an address's state, and waits until the page is there.

    Afterwards every page must have been silent, and asked nobody for anything but itself.
    """
    contexts, said, asked = [], [], []

    def open_(file: Path, state: str = "", *, width: int = 1280, height: int = 900, dark: bool = False, **more):
        context = browser.new_context(
            viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light", **more
        )
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(WAIT_MS)
        page.on("console", lambda message: said.append(message.text) if message.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: said.append(str(error)))
        own = file.resolve().as_uri()
        page.on("request", lambda one: asked.append(one.url) if not _own(one.url, own) else None)
        page.goto(own + (f"#{state}" if state else ""))
        ready(page)
        return page

    yield open_
    for context in contexts:
        context.close()
    # When following ends between two questions of a page, the last one finds no file.
    assert [text for text in said if "ERR_FILE_NOT_FOUND" not in text] == []
    assert asked == []


def _own(url: str, own: str) -> bool:
    return url.partition("#")[0] == own or url.startswith((f"{own}.stamp.js?", "blob:", "data:"))


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    """Two runs: a healthy one, and one whose answers collapse."""
    folder = tmp_path_factory.mktemp("runs")
    sizes = {"rollouts_per_step": 8, "tokens": 24}
    first = make_run(folder / "first", steps=10, seed=1, **sizes)
    second = make_run(folder / "second", steps=14, seed=2, trouble="collapse", host="verl", **sizes)
    return [first, second]


@pytest.fixture(scope="session")
def comparison(runs):
    """The page of both runs."""
    return page_of(runs, runs[0].parent / "both.html")


@pytest.fixture(scope="session")
def single(runs):
    """The page of the healthy run."""
    return page_of(runs[:1], runs[0] / "report.html")

"""`sdpo report --watch`: an open page follows a run that goes on, and keeps what one looks at."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest

from made_records import make_run
from report_pages import ready

LIMIT_S = 90


@pytest.fixture
def grown(tmp_path):
    """A run with six steps of which the records tell three, and a function that tells the rest."""
    folder = make_run(tmp_path / "run", steps=6, rollouts_per_step=4, tokens=12)
    later = {}
    for file in (folder / "records").glob("*.jsonl"):
        lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
        known = [line for line in lines if json.loads(line)["kind"] != "end" and json.loads(line)["step"] <= 3]
        later[file] = [line for line in lines if line not in known]
        file.write_text("".join(known), encoding="utf-8")

    def tell(kinds):
        for file, lines in later.items():
            with file.open("a", encoding="utf-8") as records:
                records.writelines(line for line in lines if json.loads(line)["kind"] in kinds)

    return folder, tell


@pytest.fixture
def watching(grown, tmp_path):
    folder, _ = grown
    said = (tmp_path / "said.txt").open("w+")
    command = [sys.executable, "-m", "sdpo_plugins.cli", "report", str(folder), "--watch", "--every", "0.3"]
    process = subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT)
    yield process, said
    process.kill()
    process.wait(LIMIT_S)
    said.close()


def wait_for(true, what):
    limit = time.monotonic() + LIMIT_S
    while not true():
        assert time.monotonic() < limit, what
        time.sleep(0.1)


def test_an_open_page_shows_what_is_new_and_keeps_its_state(visit, grown, watching):
    folder, tell = grown
    process, said = watching
    page_file = folder / "report.html"
    wait_for(lambda: (folder / "report.html.stamp.js").exists(), "a first page")
    page = visit(page_file, "view=rollouts&feedback=1&sort=longest", dark=True)
    page.set_default_timeout(LIMIT_S * 1000)
    assert page.locator("#following").is_visible()
    page.keyboard.press("j")
    page.keyboard.press("t")
    rollout = "() => new URLSearchParams(location.hash.slice(1)).get('open')"
    opened, before = page.evaluate(rollout), page.text_content("#tab-count")
    tell({"rollout", "tokens", "step"})
    page.wait_for_function("before => document.querySelector('#tab-count')?.textContent > before", arg=before)
    ready(page)
    assert (before, page.text_content("#tab-count")) == ("12", "24")
    assert page.evaluate(rollout) == opened
    assert page.input_value("#f-feedback") == "1"
    assert page.input_value("#f-sort") == "longest"
    assert page.evaluate("() => document.documentElement.dataset.theme") == "light"

    tell({"end"})
    assert process.wait(LIMIT_S) == 0
    said.seek(0)
    assert "Every run has ended." in said.read()
    assert not (folder / "report.html.stamp.js").exists()
    page.wait_for_function("() => document.querySelector('#following')?.hidden === true")
    ready(page)
    assert page.evaluate(rollout) == opened

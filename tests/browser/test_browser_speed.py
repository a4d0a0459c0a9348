"""2,000 rollouts: the page opens and filters at once."""

from __future__ import annotations

import re
import time

import pytest

from made_records import make_run
from report_pages import page_of

COPIES = 125
# Twice what an unloaded core needs, and more: only a page that has become slow by a power fails.
OPEN_S = 6.0
FILTER_MS = 1000
LARGEST_MB = 12

# Milliseconds until the next picture after something was typed into a field.
TYPED = """([selector, value]) => new Promise((done) => {
  const field = document.querySelector(selector);
  const start = performance.now();
  const count = document.querySelector('#shown-count');
  new MutationObserver(() => requestAnimationFrame(() => done(performance.now() - start)))
    .observe(count, { childList: true, characterData: true, subtree: true });
  field.value = value;
  field.dispatchEvent(new Event('input', { bubbles: true }));
})"""


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A page of 2,000 rollouts: 16 of them over and over, each with a number of its own."""
    folder = make_run(
        tmp_path_factory.mktemp("large") / "run", steps=2, rollouts_per_step=8, tokens=60, token_share=1.0
    )
    for file in (folder / "records").glob("*-*.jsonl"):
        lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
        with file.open("w", encoding="utf-8") as copies:
            for copy in range(COPIES):
                copies.writelines(renumbered(line, copy) for line in lines)
    return page_of([folder], folder / "report.html")


def renumbered(line, copy):
    step = int(re.search(r'"step": ?(\d+)', line)[1]) + 2 * copy
    line = re.sub(r'"step": ?\d+', f'"step": {step}', line, count=1)
    return re.sub(r'"id": ?(\d+)', lambda found: f'"id": {step * 2**20 + int(found[1]) % 2**20}', line, count=1)


def test_two_thousand_rollouts_open_and_filter_at_once(visit, large):
    assert large.stat().st_size < LARGEST_MB * 2**20
    start = time.monotonic()
    page = visit(large, "view=rollouts")
    assert time.monotonic() - start < OPEN_S
    assert page.text_content("#shown-count") == "2,000 of 2,000 rollouts"
    assert page.locator("#rollouts tr[data-place]").count() == 50
    assert page.evaluate(TYPED, ["#f-reward-min", "0.5"]) < FILTER_MS
    assert page.evaluate(TYPED, ["#f-text", "answer is"]) < FILTER_MS
    assert page.evaluate(TYPED, ["#f-text", "answer is 1"]) < FILTER_MS
    start = time.monotonic()
    page.keyboard.press("Escape")
    page.locator("#rollouts tr[data-place]").nth(5).click()
    opened = page.locator("#rollouts tr[aria-selected=true]").get_attribute("data-place")
    page.wait_for_selector(f"#detail[data-place='{opened}']")
    assert time.monotonic() - start < OPEN_S / 2

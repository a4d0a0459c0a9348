"""The page as a whole, in Chromium: loading, curves, colours, keys, foreign texts."""

from __future__ import annotations

import json

import pytest
from axe_playwright_python.sync_playwright import Axe

from made_records import make_run
from report_pages import page_of, ready
from sdpo_plugins.records import read_run
from sdpo_plugins.report.curves import standard_curves

DRAWN = "() => document.querySelectorAll('#curves .chart[data-drawn]').length"
# What Bokeh holds of each line that is drawn, by the title of its card: {title: [[steps, values], …]}.
LINES = """() => Object.fromEntries([...document.querySelectorAll('#curves .curve')].map((card) => {
  const sheet = Bokeh.documents.find((each) => each.roots().some((root) => card.querySelector('.chart')
    .contains(Bokeh.index.get_by_id(root.id)?.el)));
  const lines = sheet ? sheet.roots()[0].renderers.filter((each) => each.glyph.type === 'Line') : [];
  return [card.querySelector('.curve-title').textContent, lines.map((each) =>
    [Array.from(each.data_source.data.step), Array.from(each.data_source.data.value)])];
}))"""
NO_OVERFLOW = "() => document.documentElement.scrollWidth <= innerWidth"


def see_all_curves(page) -> int:
    cards = page.locator("#curves .curve")
    for at in range(cards.count()):
        cards.nth(at).scroll_into_view_if_needed()
    page.wait_for_function(f"({DRAWN})() === {cards.count()}")
    return cards.count()


def test_every_standard_curve_is_drawn_with_the_values_of_the_records(visit, runs, comparison):
    page = visit(comparison)
    expected = {}
    for folder in runs:
        for curve in standard_curves(read_run(folder)):
            expected.setdefault(curve.title, []).append(
                [list(curve.steps), pytest.approx(list(curve.values), rel=1e-5)]
            )
    assert see_all_curves(page) == len(expected) >= 9
    assert page.evaluate(LINES) == expected


def test_a_curve_says_its_values_at_the_pointer(visit, single, runs):
    page = visit(single)
    page.wait_for_selector(".curve[data-key=reward] .chart[data-drawn]")
    chart = page.locator("#curves .curve[data-key=reward] .chart")
    chart.scroll_into_view_if_needed()
    steps, values = read_run(runs[0]).series("reward")
    box = chart.bounding_box()
    # The last step stands near the right end of the curve.
    page.mouse.move(box["x"] + box["width"] - 30, box["y"] + box["height"] / 2)
    page.mouse.move(box["x"] + box["width"] - 14, box["y"] + box["height"] / 2)
    page.wait_for_function(f"() => document.querySelector('#tip').innerText.includes('step {steps[-1]}')")
    assert float(page.locator("#tip dd").inner_text()) == pytest.approx(values[-1], abs=1e-4)
    page.mouse.move(0, 0)
    page.wait_for_selector("#tip", state="hidden")


def test_smoothing_and_hidden_runs_stay_over_a_reload(visit, comparison):
    page = visit(comparison)
    page.wait_for_selector(".curve[data-key=reward] .chart[data-drawn='2']")
    page.select_option("#smooth", "0.9")
    page.get_by_role("button", name="second").click()
    page.wait_for_selector(".curve[data-key=reward] .chart[data-drawn='1']")
    page.reload()
    ready(page)
    assert page.input_value("#smooth") == "0.9"
    page.wait_for_selector(".curve[data-key=reward] .chart[data-drawn='1']")
    assert page.get_by_role("button", name="second").get_attribute("aria-pressed") == "false"


def test_any_other_metric_is_found_and_drawn(visit, single):
    page = visit(single)
    page.fill("#metric-search", "learning")
    shown = page.locator("#metric-list button:visible")
    assert shown.all_inner_texts() == ["learning_rate"]
    shown.first.click()
    page.wait_for_selector("#metric-curves .chart[data-drawn]")
    page.locator("#metric-curves .close").click()
    assert page.locator("#metric-curves .curve").count() == 0


def test_health_and_facts_stand_on_top(visit, comparison):
    page = visit(comparison)
    second = page.locator(".run[data-run='1']")
    assert "collapse" in second.locator(".finding.level-bad").inner_text()
    assert "made/model" in second.inner_text()
    assert "finished" in second.locator(".state").inner_text()


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("view", ["overview", "rollouts"])
def test_an_accessibility_checker_finds_nothing(visit, comparison, view, dark):
    page = visit(comparison, f"view={view}&sort=disagreement", dark=dark)
    found = Axe().run(page)
    told = [(each["id"], each["nodes"][0]["html"][:200]) for each in found.response["violations"]]
    assert told == []


@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.parametrize("view", ["overview", "rollouts"])
def test_nothing_hangs_over_the_edge(visit, comparison, view, width):
    page = visit(comparison, f"view={view}", width=width)
    if view == "overview":
        see_all_curves(page)
    assert page.evaluate(NO_OVERFLOW)


def test_the_theme_follows_the_system_until_one_is_chosen(visit, single):
    page = visit(single, dark=True)
    theme = "() => document.documentElement.dataset.theme"
    assert page.evaluate(theme) == "dark"
    page.emulate_media(color_scheme="light")
    page.wait_for_function(f"() => ({theme})() === 'light'")
    page.keyboard.press("t")
    assert page.evaluate(theme) == "dark"
    page.reload()
    ready(page)
    assert page.evaluate(theme) == "dark"
    page.keyboard.press("?")
    assert page.locator("#help").is_visible()
    page.keyboard.press("Escape")
    assert not page.locator("#help").is_visible()


# What a model may write; each would set `hit` if a browser took it for HTML.
EVIL = (
    "</script><img src=x onerror=globalThis.hit=1><!-- <script>globalThis.hit=1</script> ${hit} {{hit}} @{hit} \u2028"
)


def test_foreign_texts_are_shown_and_never_run(visit, tmp_path):
    folder = make_run(tmp_path / "a<img src=x onerror=globalThis.hit=1>&", steps=4, rollouts_per_step=4, tokens=12)
    for file in (folder / "records").glob("*.jsonl"):
        file.write_text("".join(json.dumps(poisoned(json.loads(line))) + "\n" for line in file.open(encoding="utf-8")))
    page = visit(page_of([folder], tmp_path / "report.html"))
    page.wait_for_selector(".curve[data-key=reward] .chart[data-drawn]")
    page.locator("#metric-list button").filter(has_text="onerror").click()
    page.wait_for_selector("#metric-curves .chart[data-drawn]")
    page.locator("#metric-curves .chart").hover()
    page.keyboard.press("2")
    for _ in range(16):
        page.keyboard.press("j")
    page.keyboard.press("Enter")
    page.fill("#f-text", "<img src=x")
    page.wait_for_function("() => document.querySelector('#shown-count').textContent.startsWith('16 of')")
    page.wait_for_timeout(200)
    assert page.evaluate("() => globalThis.hit") is None
    assert page.evaluate("() => document.querySelectorAll('img').length") == 0
    shown = page.inner_text("#detail")
    assert "</script><img src=x onerror=globalThis.hit=1><!--" in shown


def poisoned(line):
    kind = line["kind"]
    if kind == "run":
        line |= {"model": EVIL, "host": EVIL, "config": {**line["config"], EVIL: EVIL}}
    elif kind == "step":
        line["metrics"][EVIL] = 1.0
    elif kind == "end":
        line["reason"] = EVIL
    elif kind == "rollout":
        line |= {"response": EVIL, "feedback": EVIL, "group": EVIL, "rewards": {EVIL: 1.0}}
        line["prompt"] = [{"role": EVIL, "content": EVIL}]
        if line["teacher_prompt"]:
            line["teacher_prompt"] = [{"role": EVIL, "parts": [{"kind": EVIL, "text": EVIL}]}]
        line["truncated_tokens"] = {EVIL: 3}
    elif kind == "tokens":
        line["pieces"] = dict.fromkeys(line["pieces"], EVIL)
    return line

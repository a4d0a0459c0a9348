"""The browser of rollouts, in Chromium: filters, sorting, keys, and one rollout with its tokens."""

from __future__ import annotations

import math

import pytest

from report_pages import ready
from sdpo_plugins.records import read_run

# The colour behind an element as red, green, blue, alpha.
PAINTED = """each => {
  const canvas = new OffscreenCanvas(1, 1).getContext("2d");
  canvas.fillStyle = getComputedStyle(each).backgroundColor;
  canvas.fillRect(0, 0, 1, 1);
  return [...canvas.getImageData(0, 0, 1, 1).data];
}"""
OPENED = "() => document.querySelector('#rollouts tr[aria-selected=true]')?.dataset.place"


@pytest.fixture(scope="module")
def recorded(runs):
    """(name of the run, rollout), in the page's order."""
    return [(folder.name, rollout) for folder in runs for rollout in read_run(folder).rollouts]


def shown(page) -> int:
    return int(page.text_content("#shown-count").split()[0].replace(",", ""))


def asked(page, filters) -> int:
    """Set filters and return how many rollouts are shown."""
    for name, value in filters.items():
        field = page.locator(f"[data-filter={name}]")
        field.select_option(value) if field.evaluate("each => each.tagName") == "SELECT" else field.fill(value)
    page.wait_for_timeout(250)
    return shown(page)


def texts(line):
    return "\n".join([*(turn["content"] for turn in line["prompt"]), line["response"], line["feedback"] or ""]).lower()


FILTERS = {
    "run": ({"run": "second"}, lambda run, line: run == "second"),
    "success": ({"success": "1"}, lambda run, line: line["success"]),
    "failure": ({"success": "0"}, lambda run, line: not line["success"]),
    "active": ({"active": "1"}, lambda run, line: line["active"]),
    "inactive": ({"active": "0"}, lambda run, line: not line["active"]),
    "feedback": ({"feedback": "1"}, lambda run, line: line["feedback"] is not None),
    "no_demonstration": ({"demonstration": "0"}, lambda run, line: line["demonstration_index"] is None),
    "reward": ({"rewardMin": "0.5", "rewardMax": "1"}, lambda run, line: 0.5 <= line["reward"] <= 1),
    "steps": ({"stepMin": "3", "stepMax": "6"}, lambda run, line: 3 <= line["step"] <= 6),
    "text": ({"text": "WRONG: 1"}, lambda run, line: "wrong: 1" in texts(line)),
    "several": (
        {"run": "first", "feedback": "1", "stepMax": "8", "text": "what is"},
        lambda run, line: run == "first" and line["feedback"] is not None and line["step"] <= 8,
    ),
}


def test_each_filter_shows_what_the_records_say(visit, comparison, recorded):
    page = visit(comparison, "view=rollouts")
    assert shown(page) == len(recorded)
    for name, (filters, belongs) in FILTERS.items():
        expected = sum(bool(belongs(run, rollout.line)) for run, rollout in recorded)
        assert 0 < expected < len(recorded), name
        assert asked(page, filters) == expected, name
        page.click("#f-reset")
        assert shown(page) == len(recorded), name


def test_rollouts_without_token_values_are_counted_and_explained(visit, comparison, recorded):
    page = visit(comparison, "view=rollouts")
    without = sum(rollout.tokens is None for _, rollout in recorded)
    assert f"{without} without token values" in page.text_content("#shown-note")
    assert asked(page, {"active": "0"}) > 0
    page.locator("#rollouts tr[data-place]").first.click()
    page.wait_for_function("() => document.querySelector('#detail').innerText.includes('Nothing to teach here')")


def first_place(page) -> int:
    return int(page.locator("#rollouts tr[data-place]").first.get_attribute("data-place"))


def test_sorting_puts_the_extreme_first(visit, comparison, recorded):
    def gaps(rollout):
        if rollout.tokens is None:
            return -1.0
        pairs = zip(rollout.tokens["student"], rollout.tokens["teacher"], strict=True)
        values = [abs(teacher - student) for student, teacher in pairs if student is not None]
        return sum(values) / len(values)

    page = visit(comparison, "view=rollouts")
    keys = {
        "disagreement": gaps,
        "longest": lambda rollout: rollout.line["response_tokens"],
        "newest": lambda rollout: rollout.step,
        "oldest": lambda rollout: -rollout.step,
    }
    for name, key in keys.items():
        page.select_option("#f-sort", name)
        best = max(key(rollout) for _, rollout in recorded)
        assert key(recorded[first_place(page)][1]) == pytest.approx(best, rel=1e-4), name
    page.locator("#rollouts th.c-gap").click()
    assert page.locator("#rollouts th.c-gap").get_attribute("aria-sort") == "descending"


def test_keys_walk_through_list_and_tokens(visit, single):
    page = visit(single, "view=rollouts&sort=disagreement")
    places = [row.get_attribute("data-place") for row in page.locator("#rollouts tr[data-place]").all()]
    page.keyboard.press("j")
    assert page.evaluate(OPENED) == places[1]
    page.keyboard.press("ArrowDown")
    assert page.evaluate(OPENED) == places[2]
    page.keyboard.press("k")
    assert page.evaluate(OPENED) == places[1]
    assert page.evaluate("() => document.activeElement.dataset.place") == places[1]
    page.wait_for_selector(f"#detail[data-place='{places[1]}'] .token")
    page.keyboard.press("Enter")
    at = "() => document.activeElement.dataset.at"
    start = int(page.evaluate(at))
    page.keyboard.press("Home")
    assert page.evaluate(at) == "0"
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert page.evaluate(at) == "2"
    assert page.locator("#tip").is_visible()
    page.keyboard.press("Enter")
    assert page.locator(".token[aria-pressed=true]").get_attribute("data-at") == "2" != start
    page.keyboard.press("/")
    assert page.evaluate("() => document.activeElement.id") == "f-text"
    page.keyboard.type("jkt?")
    assert page.input_value("#f-text") == "jkt?"


def test_fifty_steps_down_turn_the_page_of_the_list(visit, single):
    page = visit(single, "view=rollouts")
    for _ in range(52):
        page.keyboard.press("j")
    assert page.locator(".dt-paging-button.current").inner_text() == "2"
    row = page.locator("#rollouts tr[aria-selected=true]")
    assert row.count() == 1
    page.wait_for_selector(f"#detail[data-place='{row.get_attribute('data-place')}']")


def test_a_token_shows_the_alternatives_of_both_with_the_right_numbers(visit, comparison, recorded):
    place = next(
        at for at, (run, each) in enumerate(recorded) if run == "first" and each.tokens and each.line["step"] > 3
    )
    name, rollout = recorded[place]
    page = visit(comparison, f"view=rollouts&open={name}:{rollout.id}")
    values = rollout.tokens
    at = max(number for number, masked in enumerate(values["mask"]) if masked)
    page.locator(f".token[data-at='{at}']").click()
    table = page.locator("table.alternatives tbody tr")
    for rank, (own, others) in enumerate(zip(values["student_top"][at], values["teacher_top"][at], strict=True)):
        cells = table.nth(rank).locator("td").all()
        for (token, log_prob), name, share in ((own, cells[0], cells[1]), (others, cells[2], cells[3])):
            piece = values["pieces"][str(token)].replace(" ", "·").replace("\n", "⏎")
            assert piece in name.inner_text()
            assert name.locator("[aria-label=sampled]").count() == (token == values["ids"][at])
            shown_share = float(share.inner_text().replace("%", ""))
            assert shown_share == pytest.approx(100 * math.exp(log_prob), abs=0.06)
    facts = page.locator(".token-facts").inner_text()
    gap = values["teacher"][at] - values["student"][at]
    assert f"{abs(gap):.2f}" in facts
    assert str(values["ids"][at]) in facts


def test_colours_follow_the_verdict_and_masked_tokens_are_grey(visit, single, runs):
    failed = [each for each in read_run(runs[0]).rollouts if each.tokens and not each.line["success"]]
    rollout = next(each for each in failed if 0 in each.tokens["mask"])
    page = visit(single, f"view=rollouts&open=first:{rollout.id}")
    classes = [token.get_attribute("class").split() for token in page.locator(".tokens .token").all()]
    values = rollout.tokens
    for at, found in enumerate(classes):
        assert ("masked" in found) == (values["mask"][at] == 0)
        if values["mask"][at]:
            gap = round(1000 * gap_at(values, at))
            assert abs(gap) <= 1 or ("approve" in found) == (gap > 0) != ("reject" in found)
    strong = min((at for at in range(len(classes)) if values["mask"][at]), key=lambda at: gap_at(values, at))
    red, _, blue, _ = page.locator(f".tokens .token[data-at='{strong}']").evaluate(PAINTED)
    assert gap_at(values, strong) < 0 and red > blue + 10
    friendly = max((at for at in range(len(classes)) if values["mask"][at]), key=lambda at: gap_at(values, at))
    red, _, blue, _ = page.locator(f".tokens .token[data-at='{friendly}']").evaluate(PAINTED)
    assert gap_at(values, friendly) > 0 and blue > red + 10


def gap_at(values, at):
    return values["teacher"][at] - values["student"][at]


def test_the_teachers_prompt_stands_beside_with_its_sections(visit, single, runs):
    rollouts = read_run(runs[0]).rollouts
    ids = {each.id for each in rollouts}
    rollout = next(each for each in rollouts if each.tokens and each.line["demonstration_index"] is not None)
    page = visit(single, f"view=rollouts&open=first:{rollout.id}")
    for message in rollout.line["teacher_prompt"]:
        for part in message["parts"]:
            kept = page.locator(f".part.part-{part['kind']}").all_text_contents()
            assert part["text"] in kept
    target = rollout.id - rollout.line["row"] + rollout.line["demonstration_index"]
    assert target in ids
    page.get_by_role("button", name="Open the rollout that demonstrates").click()
    page.wait_for_function(f"() => new URLSearchParams(location.hash.slice(1)).get('open') === 'first:{target}'")


def test_a_reload_keeps_filters_sorting_rollout_and_token(visit, comparison):
    page = visit(comparison, "view=rollouts")
    asked(page, {"run": "second", "feedback": "1", "text": "wrong"})
    page.select_option("#f-sort", "disagreement")
    page.keyboard.press("Escape")
    page.keyboard.press("j")
    page.locator("#rollouts tr[data-place]").nth(2).click()
    page.wait_for_selector(".tokens .token")
    page.locator(".tokens .token").first.click()
    before = page.text_content("#shown-count"), page.evaluate(OPENED), page.text_content("#alternatives h3")
    page.reload()
    ready(page)
    page.wait_for_selector("#alternatives h3")
    assert (page.text_content("#shown-count"), page.evaluate(OPENED), page.text_content("#alternatives h3")) == before
    assert page.input_value("#f-text") == "wrong"
    assert page.input_value("#f-sort") == "disagreement"

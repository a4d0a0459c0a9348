"""What the report's page holds: texts, numbers, facts, and how it is written."""

from __future__ import annotations

import base64
import gzip
import itertools
import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from made_records import make_run
from sdpo_plugins.config import SDPOConfig
from sdpo_plugins.errors import DataError
from sdpo_plugins.records import Step, read_run
from sdpo_plugins.report.page import build_page, write_page
from sdpo_plugins.report.page.facts import changed_options, distinct_names, run_facts
from sdpo_plugins.report.page.rollouts import chosen_rollouts, detail, summary_columns
from sdpo_plugins.report.page.tokens import packed_tokens


class Scripts(HTMLParser):
    """The texts of a page's script elements by their id, and every address it names."""

    def __init__(self, text):
        super().__init__()
        self.texts, self.addresses, self._open = {}, [], None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.addresses += [value for name, value in attrs if name in ("src", "href", "srcset", "action")]
        self._open = given.get("id", "") if tag == "script" else None

    def handle_data(self, data):
        if self._open is not None:
            self.texts[self._open] = self.texts.get(self._open, "") + data

    def handle_endtag(self, tag):
        self._open = None


def unpacked(text):
    return json.loads(gzip.decompress(base64.b64decode(text)))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return read_run(make_run(tmp_path_factory.mktemp("made") / "run", steps=4, rollouts_per_step=8, tokens=16))


def test_the_page_names_no_address_outside_of_it(run):
    found = Scripts(build_page([run]).html)
    assert set(found.addresses) == {"#main", "data:,"}


def test_opened_rollouts_are_those_of_the_records(run):
    found = Scripts(build_page([run]).html)
    data = json.loads(found.texts["data"])
    count = math.ceil(len(run.rollouts) / data["chunk"])
    details = [each for at in range(count) for each in unpacked(found.texts[f"chunk-{at}"])]
    assert [each["id"] for each in details] == data["rollouts"]["id"] == [rollout.id for rollout in run.rollouts]
    assert [each["response"] for each in details] == [rollout.line["response"] for rollout in run.rollouts]
    assert f"chunk-{count}" not in found.texts


def test_token_values_come_back_from_their_short_form(run):
    for line in (rollout.tokens for rollout in run.rollouts if rollout.tokens):
        packed = packed_tokens(line)
        assert [packed["ids"][at] for at in packed["at"]] == line["ids"]
        assert "".join(packed["pieces"][at] for at in packed["at"]) == "".join(
            line["pieces"][str(each)] for each in line["ids"]
        )
        for name in ("student", "teacher"):
            values = [None if value is None else -value / 1000 for value in packed[name]]
            assert values == [None if value is None else pytest.approx(value, abs=6e-4) for value in line[name]]
            assert tops_of(packed[f"{name}Top"], packed["ids"]) == [
                [(token, pytest.approx(value, abs=6e-4)) for token, value in top or []] for top in line[f"{name}_top"]
            ]


def tops_of(packed, ids):
    at, tops = 0, []
    for count in packed["counts"]:
        logs = packed["logs"][at : at + count]
        tops.append([(ids[packed["at"][at + rank]], -sum(logs[: rank + 1]) / 1000) for rank in range(count)])
        at += count
    return tops


def test_the_list_has_the_means_over_tokens_that_carry_loss(run):
    columns = summary_columns([(0, each) for each in run.rollouts], [run])
    for at, rollout in enumerate(run.rollouts):
        if rollout.tokens is None:
            assert columns["gap"][at] is None and columns["why"][at]
            continue
        pairs = zip(rollout.tokens["student"], rollout.tokens["teacher"], strict=True)
        gaps = [teacher - student for student, teacher in pairs if student is not None]
        assert columns["gap"][at] == pytest.approx(sum(gaps) / len(gaps), rel=1e-3, abs=1e-6)
        assert columns["disagreement"][at] == pytest.approx(sum(map(abs, gaps)) / len(gaps), rel=1e-3)
        assert columns["why"][at] == ""


def test_why_there_are_no_token_values(tmp_path, run):
    grpo = read_run(make_run(tmp_path / "grpo", steps=1, rollouts_per_step=4, tokens=8, method="grpo"))
    assert "GRPO" in summary_columns([(0, grpo.rollouts[0])], [grpo])["why"][0]
    active = next(each for each in run.rollouts if each.line["active"])
    inactive = replace(active, line={**active.line, "active": False}, tokens=None)
    unwritten = replace(active, tokens=None)
    said = summary_columns([(0, inactive), (0, unwritten)], [run])["why"]
    assert "neither a demonstration nor feedback" in said[0]
    assert "not recorded" in said[1]


@pytest.mark.parametrize(("limit", "expected"), [(1000, 64), (64, 64), (20, 20), (2, 2), (1, 1)])
def test_of_too_many_rollouts_an_even_choice_is_shown(run, limit, expected):
    chosen = chosen_rollouts([run, run], limit)
    assert len(chosen) == expected
    assert len({(number, rollout.id) for number, rollout in chosen}) == expected
    if expected == 20:
        assert {rollout.step for _, rollout in chosen} == {rollout.step for rollout in run.rollouts}
        assert [number for number, _ in chosen].count(0) == 10


def test_the_demonstration_is_found_by_its_row(run):
    ids = {rollout.id: rollout.line["row"] for rollout in run.rollouts}
    shown = [detail(rollout) for rollout in run.rollouts if rollout.line["demonstration_index"] is not None]
    assert shown and all(ids[each["demonstrationId"]] == each["demonstrationRow"] for each in shown)


def test_foreign_text_stays_within_its_element(tmp_path, run):
    evil = "</script><script>alert(1)</script><!-- \ud800"
    line = {**run.rollouts[0].line, "response": evil, "prompt": evil}
    made = replace(run, name=evil, rollouts=(replace(run.rollouts[0], line=line),))
    page = build_page([made])
    write_page(page.html, tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "alert(1)</script>" not in text
    found = Scripts(text)
    assert json.loads(found.texts["data"])["rollouts"]["snippet"] == [evil]
    assert unpacked(found.texts["chunk-0"])[0]["response"] == evil


def test_the_same_records_give_the_same_page(run):
    first, second = build_page([run]), build_page([run])
    assert first == second
    fewer = build_page([replace(run, rollouts=run.rollouts[:-1])])
    assert fewer.stamp != first.stamp


def test_a_run_without_rollouts_or_steps_has_a_page(run):
    page = build_page([replace(run, rollouts=(), steps=(), end=None)])
    assert page.shown == 0
    assert "No step was recorded yet" in page.html


def test_facts_say_how_a_run_ended(run):
    assert run_facts(run, "x").state == "finished"
    assert run_facts(replace(run, end=None), "x").state == "open"
    stopped = run_facts(replace(run, end={**run.end, "reason": "KeyboardInterrupt"}), "x")
    assert stopped.state == "stopped"
    assert "KeyboardInterrupt" in dict(stopped.facts)["State"]
    again = run_facts(replace(run, headers=(*run.headers, {**run.headers[0], "step": 3})), "x")
    assert dict(again.facts)["Restarted"] == "from step 3"


@pytest.mark.parametrize(
    ("name", "shown"), [("Qwen/Qwen3-8B", "Qwen/Qwen3-8B"), ("/home/a/models/mine", "models/mine")]
)
def test_where_a_model_lies_is_not_told(run, name, shown):
    facts = run_facts(replace(run, headers=({**run.headers[0], "model": name},)), "x")
    assert dict(facts.facts)["Model"] == shown


def test_curves_stand_in_one_order_whichever_run_comes_first(tmp_path, run):
    grpo = read_run(make_run(tmp_path / "grpo", steps=4, rollouts_per_step=4, tokens=8, method="grpo"))
    orders = []
    for runs in ([run, grpo], [grpo, run]):
        data = json.loads(Scripts(build_page(runs).html).texts["data"])
        orders.append([curve["key"] for curve in data["curves"]])
    assert orders[0] == orders[1]
    assert {"reward", "gap"} <= set(orders[0])


def test_a_long_run_has_as_many_points_as_a_screen(run):
    steps = tuple(Step(step, 0.0, {"reward": step / 10}) for step in range(1, 10_001))
    data = json.loads(Scripts(build_page([replace(run, steps=steps)]).html).texts["data"])
    line = next(curve for curve in data["curves"] if curve["key"] == "reward")["lines"][0]
    assert 2000 < len(line["steps"]) <= 3000
    assert line["steps"][-1] == 10_000
    assert len({after - before for before, after in itertools.pairwise(line["steps"])}) == 1
    assert line["values"] == [step / 10 for step in line["steps"]]


def test_options_that_differ_from_the_defaults():
    config = SDPOConfig(alpha=1.0, distillation_topk=None).to_mapping()
    assert dict(changed_options(config)) == {"alpha": "1.0", "distillation_topk": "null"}
    assert dict(changed_options({**config, "invented": 3}))["invented"] == "3"


def test_runs_of_one_name_are_told_apart(tmp_path, run):
    runs = [replace(run, name="run", folder=tmp_path / part / "run" / "records") for part in ("a", "b")]
    assert distinct_names([*runs, replace(run, name="other")]) == ["a/run", "b/run", "other"]


def test_a_page_that_cannot_be_written_leaves_the_old_one(tmp_path):
    write_page("old", tmp_path / "page.html")
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file" / "page.html", tmp_path):
        with pytest.raises(DataError, match="--output"):
            write_page("new", place)
    assert (tmp_path / "page.html").read_text() == "old"
    assert sorted(each.name for each in tmp_path.iterdir()) == ["file", "page.html"]


def test_the_scripts_never_parse_text_as_html(run):
    script = Scripts(build_page([run]).html).texts[""]
    assert re.findall(r"innerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", script) == []

"""The scorers `multiple_choice` and `tool_use`."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from sdpo_plugins import SDPOConfig
from sdpo_plugins.errors import ConfigError, DataError
from sdpo_plugins.plugins import build_scorer, catalogue
from sdpo_plugins.testing import check_scorer
from sdpo_plugins.types import Score

WEIRD = (
    "<answer>",
    "</answer>",
    "<answer>B",
    "Action:",
    "Action: a\n",
    "Action Input: {",
    '{"a": [',
    "\x00",
    "\ud800",
    " ",
)


def scored(name: str, response: str, truth: Any, row: dict[str, Any] | None = None, **options: Any) -> Score:
    score = build_scorer(SDPOConfig(), name, options)
    found = score(response, {"ground_truth": truth, **(row or {})})
    assert isinstance(found, Score)
    return found


@pytest.mark.parametrize(
    ("name", "truth"), [("multiple_choice", "B"), ("tool_use", '[{"Action": "a", "Action_Input": "{}"}]')]
)
def test_anything_is_scored_in_a_moment(name: str, truth: str) -> None:
    score = build_scorer(SDPOConfig(), name)
    start = time.monotonic()
    for piece in WEIRD:
        text = piece * (1_000_000 // len(piece))
        for response in (piece, text, f"{text}B</answer>", f"<answer>{text}", f"Action: x\nAction Input: {text}"):
            found = score(response, {"ground_truth": truth})
            assert len(str(found.feedback)) <= 2000
            assert "\ud800" not in f"{found.feedback} {found.details['pred']}"
    assert time.monotonic() - start < 20


@pytest.mark.parametrize("name", ["multiple_choice", "tool_use"])
def test_rows_without_a_truth(name: str) -> None:
    score = build_scorer(SDPOConfig(), name, {"truth_field": "answer"})
    with pytest.raises(
        DataError, match=r"field 'answer' is missing or null; the row has 'answr'\. Did you mean 'answr'"
    ):
        score("", {"answr": "B"})
    with pytest.raises(DataError, match="missing or null; the row has 'answer'"):
        score("", {"answer": None})


@pytest.mark.parametrize("value", ["False", "yes", [True], 2])
def test_a_row_that_says_neither_yes_nor_no_of_truncation(value: Any) -> None:
    with pytest.raises(DataError, match="`truncated` must be true or false"):
        scored("multiple_choice", "", "B", {"truncated": value})


@pytest.mark.parametrize("name", ["code", "math", "multiple_choice", "tool_use"])
def test_options_that_are_none(name: str) -> None:
    with pytest.raises(ConfigError, match=r"`scorer_options\.truth_fields` is no option.*Did you mean 'truth_field'"):
        build_scorer(SDPOConfig(), name, {"truth_fields": "answer"})


# Multiple choice -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("response", "reward", "answer", "wrong_format"),
    [
        ("<reasoning>b</reasoning>\n<answer>\nB\n</answer>\n", 1.0, "B", 0),
        ("<answer>B</answer>", 1.0, "B", 0),
        ("<answer>A</answer> no: <answer> B </answer>", 1.0, "B", 0),
        ("<answer>B</answer> no: <answer>A</answer>", 0.0, "A", 0),
        ("<answer>B</answer> I think", 1.0, "B", 1),
        ("<answer>A</answer>", 0.0, "A", 0),
        ("<answer>b</answer>", 0.0, "b", 1),
        ("<answer>B: iron</answer>", 0.0, "B: iron", 1),
        ("<answer>A or B</answer>", 0.0, "A or B", 1),
        ("<answer><answer>B</answer>", 1.0, "B", 0),
        ("<answer>B", 0.0, "", 1),
        ("B", 0.0, "", 1),
        ("<answer></answer>", 0.0, "", 1),
        ("", 0.0, "", 1),
    ],
)
def test_multiple_choice(response: str, reward: float, answer: str, wrong_format: int) -> None:
    details = {"acc": reward, "incorrect_format": wrong_format, "truncated": 0, "pred": answer}
    assert scored("multiple_choice", response, "B") == Score(reward, None, details)


def test_what_multiple_choice_says_if_asked_to() -> None:
    wanted = "Incorrect Format: End your answer with one letter between tags, as in <answer>A</answer>."
    ask = {"format_feedback": True}
    assert scored("multiple_choice", "b", "B", **ask).feedback == wanted
    assert scored("multiple_choice", "<answer>A</answer>", "B", **ask).feedback is None
    assert scored("multiple_choice", "<answer>B</answer> Yes.", "B", **ask).feedback is None
    cut = scored("multiple_choice", "Well", "B", {"truncated": True}, **ask)
    assert str(cut.feedback).startswith("Truncated Attempt: ") and cut.details["truncated"] == 1
    told = scored("multiple_choice", "b", "B", reveal_truth=True, **ask)
    assert told.feedback == f"{wanted} The right answer is B."
    assert scored("multiple_choice", "<answer>A</answer>", "C", reveal_truth=True).feedback == "The right answer is C."


@pytest.mark.parametrize("truth", ["", "b", "AB", "B ", 1, ["B"]])
def test_a_choice_that_is_none(truth: Any) -> None:
    with pytest.raises(DataError, match="must be one capital letter; got"):
        scored("multiple_choice", "<answer></answer>", truth)


def test_multiple_choice_keeps_the_contract() -> None:
    rows = [{"ground_truth": "B"}, {"ground_truth": "C", "truncated": False}]
    entry = catalogue("scorer")["multiple_choice"]
    for options in ({}, {"format_feedback": True, "reveal_truth": True}):
        check_scorer(entry, rows, correct=["<answer>B</answer>", "<answer>C</answer>"], options=options)


# Tool use ------------------------------------------------------------------------------------------------------------

ONE = json.dumps([{"Action": "find", "Action_Input": '{"text": "axolotl", "page": 1}'}])
TWO = [{"Action": "a", "Action_Input": {"x": 1}}, {"Action": "b", "Action_Input": {"y": {"z": 2}}}]
SAME = json.dumps([{"Action": "a", "Action_Input": {"x": 1}}, {"Action": "a", "Action_Input": {"x": 2}}])
NONE = json.dumps([{"Action": "ping", "Action_Input": "{}"}])
QUOTED = [{"Action": "say", "Action_Input": {"text": "Action: find\nAction Input: {}"}}]
FIND = 'Action: find\nAction Input: {"page": 1, "text": "axolotl"}'
CROSSED = 'Action: a\nAction Input: {"y": {"z": 2}}\nAction: b\nAction Input: {"x": 1}'

CALLS: list[tuple[str, Any, float, int, str]] = [
    (f"Thought: look.\n{FIND}", ONE, 1.0, 0, ""),
    (f"{FIND}\nObservation: …", ONE, 1.0, 0, ""),
    ('Action: b\nAction Input: {"y": {"z": 2}}\nAction: a\nAction Input: {"x": 1}', TWO, 1.0, 0, ""),
    ("Action: ping", NONE, 1.0, 0, ""),
    ("Action: ping\nAction Input: {}", NONE, 1.0, 0, ""),
    ('Action: say\nAction Input: {"text": "Action: find\\nAction Input: {}"}', QUOTED, 1.0, 0, ""),
    ("I would look for axolotls.", ONE, 0.0, 1, "No tool was called"),
    ("", ONE, 0.0, 1, "No tool was called"),
    ("Action: ping\nAction Input: {", NONE, 0.0, 1, "input of ping is no JSON object"),
    ("Action: ping\nAction Input: [1]", NONE, 0.0, 1, "input of ping is no JSON object"),
    ("Action: ping\nAction Input: " + "[" * 100_000, NONE, 0.0, 1, "input of ping is no JSON object"),
    ('Action: ping\nAction Input: {"a": ' + "[" * 100_000, NONE, 0.0, 1, "input of ping is no JSON object"),
    ('Action: ping\nAction Input: {"a": ' + "9" * 5000 + "}", NONE, 0.0, 1, "input of ping is no JSON object"),
    ('Action: seek\nAction Input: {"text": "axolotl", "page": 1}', ONE, 0.0, 0, "not the right tools: seek"),
    (f"{FIND}\n{FIND}", ONE, 0.0, 0, "not the right tools: find, find"),
    ('Action: find\nAction Input: {"text": "newt", "page": 1}', ONE, 0.0, 0, 'inputs: find {"text": "newt"'),
    ('Action: find\nAction Input: {"text": "axolotl", "page": true}', ONE, 0.0, 0, "not these inputs"),
    ('Action: find\nAction Input: {"text": "axolotl", "page": 1.0}', ONE, 1.0, 0, ""),
    ("Action: find", ONE, 0.0, 0, "inputs: find {}"),
    (CROSSED, TWO, 0.0, 0, "not these inputs"),
    ('Action: a\nAction Input: {"x": 1}\n' * 2, SAME, 0.0, 0, 'inputs: a {"x": 1}'),
    ('Action: a\nAction Input: {"x": 2}\nAction: a\nAction Input: {"x": 1}', SAME, 1.0, 0, ""),
]


@pytest.mark.parametrize(("response", "truth", "reward", "wrong_format", "feedback"), CALLS)
def test_tool_calls(response: str, truth: Any, reward: float, wrong_format: int, feedback: str) -> None:
    found = scored("tool_use", response, truth)
    assert (found.reward, found.details["acc"], found.details["incorrect_format"]) == (reward, reward, wrong_format)
    assert feedback in (found.feedback or "") and (found.feedback is None) == (reward == 1.0)
    told = scored("tool_use", response, truth, reveal_truth=True)
    assert told.reward == reward and ("Expected: " in (told.feedback or "")) == (reward == 0.0)


def test_the_right_calls_are_named_only_if_asked_for() -> None:
    for response in ("", "Action: seek", "Action: find", "Action: find\nAction Input: {"):
        assert "axolotl" not in str(scored("tool_use", response, ONE).feedback)
        told = str(scored("tool_use", response, ONE, reveal_truth=True).feedback)
        assert told.endswith(' Expected: find {"text": "axolotl", "page": 1}.')


def test_the_authors_throw_all_inputs_together() -> None:
    assert scored("tool_use", CROSSED, TWO, compare="merged").reward == 1.0
    other = CROSSED.replace("1", "3")
    found = scored("tool_use", other, TWO, compare="merged")
    assert found.reward == 0.0
    assert found.feedback == 'The tools are right, but not these inputs: a {"y": {"z": 2}}; b {"x": 3}.'
    with pytest.raises(ConfigError, match=r"`scorer_options\.compare` must be one of 'calls', 'merged'"):
        scored("tool_use", CROSSED, TWO, compare="together")


def test_a_call_that_was_cut_off() -> None:
    found = scored("tool_use", 'Action: find\nAction Input: {"te', ONE, {"truncated": True})
    assert str(found.feedback).startswith("Truncated Attempt: ") and found.details["truncated"] == 1


def test_a_long_text_still_names_the_truth() -> None:
    found = scored("tool_use", "Action: " + "a" * 9000, ONE, reveal_truth=True, max_chars=300)
    assert len(str(found.feedback)) == 300 and str(found.feedback).endswith('"page": 1}.')


@pytest.mark.parametrize(
    "truth",
    [
        "",
        "{}",
        "[]",
        "[1]",
        '[{"Action": "a"}]',
        '[{"Action": "a", "Action_Input": "[1]"}]',
        3,
        [{"Action": 1}],
        [None],
    ],
)
def test_right_calls_that_cannot_be_read(truth: Any) -> None:
    with pytest.raises(DataError, match=r"scorer 'tool_use' cannot be used: .* It must be a list"):
        scored("tool_use", FIND, truth)


def test_tool_use_keeps_the_contract() -> None:
    rows = [{"ground_truth": ONE}, {"ground_truth": TWO}]
    right = [FIND, 'Action: a\nAction Input: {"x": 1}\nAction: b\nAction Input: {"y": {"z": 2}}']
    for options in ({}, {"compare": "merged", "reveal_truth": True}):
        check_scorer(catalogue("scorer")["tool_use"], rows, correct=right, options=options)

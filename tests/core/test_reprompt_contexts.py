"""Teacher contexts: parity with the authors' code, and what their code does not cover."""

from __future__ import annotations

import copy
import pickle
import random
import subprocess
import sys
from dataclasses import replace

import pytest

from sdpo_plugins.config import SDPOConfig
from sdpo_plugins.errors import ConfigError, DataError, PluginError
from sdpo_plugins.reprompt import build_teacher_contexts, is_success
from sdpo_plugins.reprompt.templates import parse_template
from sdpo_plugins.types import Rollout

USER = [{"role": "user", "content": "What is 7*8?"}]
METRIC = "self_distillation/"


def golden_rollouts(case: dict) -> list[Rollout]:
    columns = (case[name] for name in ("group_ids", "prompts", "responses", "rewards", "feedback"))
    return [Rollout(*row) for row in zip(*columns, strict=True)]


def golden_config(golden: dict, case: dict) -> SDPOConfig:
    return SDPOConfig(**case["config"], **golden["templates"])


@pytest.mark.parametrize("number", range(24))
def test_a_golden_batch_is_reproduced(reprompt_golden: dict, number: int) -> None:
    case = reprompt_golden["cases"][number]
    built = build_teacher_contexts(golden_rollouts(case), golden_config(reprompt_golden, case))
    expected = case["expected"]
    assert [context.messages for context in built.contexts] == expected["teacher_messages"]
    assert built.self_distillation_mask == expected["self_distillation_mask"]
    assert expected["metrics"]
    for name, value in expected["metrics"].items():
        assert built.metrics[name] == pytest.approx(value, abs=1e-6), name


def test_all_golden_batches_are_there(reprompt_golden: dict) -> None:
    assert len(reprompt_golden["cases"]) == 24


@pytest.mark.parametrize("number", range(24))
def test_shuffling_a_batch_shuffles_contexts_and_keeps_metrics(reprompt_golden: dict, number: int) -> None:
    case = reprompt_golden["cases"][number]
    rollouts, config = golden_rollouts(case), golden_config(reprompt_golden, case).replace(selector="shortest")
    plain = build_teacher_contexts(rollouts, config)
    order = list(range(len(rollouts)))
    random.Random(number).shuffle(order)
    shuffled = build_teacher_contexts([rollouts[i] for i in order], config)
    assert shuffled.metrics == pytest.approx(plain.metrics)
    assert shuffled.self_distillation_mask == [plain.self_distillation_mask[i] for i in order]
    for new, i in zip(shuffled.contexts, order, strict=True):
        if new.demonstration_index is not None:
            old = plain.contexts[i].demonstration_index
            assert len(rollouts[order[new.demonstration_index]].response) == len(rollouts[old].response)


def test_padding_rows_change_nothing_for_the_others(reprompt_golden: dict) -> None:
    for case in reprompt_golden["cases"]:
        rollouts, config = golden_rollouts(case), golden_config(reprompt_golden, case)
        plain = build_teacher_contexts(rollouts, config)
        first = rollouts[0]
        padding = [
            Rollout(first.group_id, first.prompt, "padding", 1.0, "padding feedback", is_padding=True) for _ in range(3)
        ]
        padded = build_teacher_contexts([*rollouts, *padding], config)
        assert padded.contexts[: len(rollouts)] == plain.contexts
        assert padded.self_distillation_mask[len(rollouts) :] == [0.0] * 3
        assert padded.metrics == plain.metrics


def test_padding_first_in_the_batch_never_demonstrates() -> None:
    rollouts = [Rollout(0, USER, "pad", 1.0, is_padding=True), Rollout(0, USER, "5", 0.0), Rollout(0, USER, "56", 1.0)]
    built = build_teacher_contexts(rollouts, SDPOConfig())
    assert [context.demonstration_index for context in built.contexts] == [None, 2, None]
    assert built.metrics[METRIC + "reprompt_sample_fraction"] == 0.5


def test_braces_in_every_text_stay_as_they_are() -> None:
    texts = [
        "{prompt}",
        "{solution}",
        "{feedback}",
        "{feedback_raw}",
        "{0}",
        "{}",
        "{{x}}",
        "{successful_previous_attempt}",
    ]
    for text in texts:
        rollouts = [
            Rollout(0, [{"role": "user", "content": f"Q {text}"}], "wrong", 0.0, f"F {text}"),
            Rollout(0, USER, f"S {text}", 1.0),
        ]
        built = build_teacher_contexts(rollouts, SDPOConfig(environment_feedback_only_without_solution=False))
        assert built.contexts[0].messages[0]["content"] == (
            f"Q {text}\nCorrect solution:\n\nS {text}\nThe following is feedback from your unsuccessful earlier "
            f"attempt:\n\nF {text}\n\nCorrectly solve the original question."
        )


def test_doubled_braces_in_templates_are_literal() -> None:
    config = SDPOConfig(
        reprompt_template="{{{prompt}}}{solution}{feedback}", solution_template="{successful_previous_attempt}"
    )
    built = build_teacher_contexts([Rollout(0, "Q", "a", 0.0), Rollout(0, "Q", "b", 1.0)], config)
    assert built.contexts[0].messages == "{Q}b"


@pytest.mark.parametrize("text", ["{prompt!r}", "{prompt:>9}", "{}", "{prompt.x}", "{prompt[0]}"])
def test_a_placeholder_is_a_plain_name(text: str) -> None:
    with pytest.raises(ConfigError, match="plain name"):
        parse_template(text)


@pytest.mark.parametrize("text", ["{prompt", "prompt}", "{{x}"])
def test_unbalanced_braces_are_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_template(text)


def test_string_prompts_give_strings_by_the_same_template() -> None:
    built = build_teacher_contexts(
        [Rollout(0, "7*8=", "54", 0.0, "Wrong."), Rollout(1, "7*8=", "54", 0.0)], SDPOConfig()
    )
    assert built.contexts[0].messages == (
        "7*8=\nThe following is feedback from your unsuccessful earlier attempt:\n\nWrong.\n\n"
        "Correctly solve the original question."
    )
    assert built.contexts[1].messages == "7*8="
    assert built.self_distillation_mask == [1.0, 0.0]


def test_multi_turn_prompts_keep_all_but_the_last_message() -> None:
    prompt = [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": None, "tool_calls": [{"name": "f"}]},
        {"role": "tool", "content": "out", "name": "f"},
        {"role": "user", "content": "Q", "name": "ann"},
    ]
    before = copy.deepcopy(prompt)
    built = build_teacher_contexts([Rollout(0, prompt, "x", 0.0, "F")], SDPOConfig())
    messages = built.contexts[0].messages
    assert messages[:4] == prompt[:4]
    assert messages[4]["name"] == "ann" and messages[4]["content"].startswith("Q\nThe following is feedback")
    messages[0]["content"] = "changed"
    assert prompt == before


def test_inactive_contexts_are_copies_of_the_prompt() -> None:
    prompt = [{"role": "user", "content": [{"type": "text", "text": "Q"}]}]
    context = build_teacher_contexts([Rollout(0, prompt, "x", 0.0)], SDPOConfig()).contexts[0]
    assert context.messages == prompt and not context.active
    context.messages[0]["content"][0]["text"] = "changed"
    assert prompt[0]["content"][0]["text"] == "Q"


def test_after_a_tool_turn_the_conversation_stays_and_a_user_message_follows() -> None:
    prompt = [
        *USER,
        {"role": "assistant", "content": "", "tool_calls": [{"name": "f"}]},
        {"role": "tool", "content": "56"},
    ]
    built = build_teacher_contexts([Rollout(0, prompt, "x", 0.0, "F"), Rollout(0, prompt, "x", 0.0)], SDPOConfig())
    assert built.contexts[0].messages[:3] == prompt
    assert built.contexts[0].messages[3] == {
        "role": "user",
        "content": "The following is feedback from your unsuccessful earlier attempt:\n\nF\n\n"
        "Correctly solve the original question.",
    }
    assert built.contexts[1].messages == prompt


def content_of(parts: list) -> list:
    rollouts = [Rollout(0, [{"role": "user", "content": parts}], "x", 0.0), Rollout(0, USER, "56", 1.0)]
    return build_teacher_contexts(rollouts, SDPOConfig()).contexts[0].messages[0]["content"]


TAIL = "\nCorrect solution:\n\n56\n\nCorrectly solve the original question."


def test_content_lists_keep_images_before_the_text() -> None:
    image, other = {"type": "image", "image": object()}, {"type": "image"}
    parts = content_of([image, other, {"type": "text", "text": "Which is "}, {"type": "text", "text": "larger?"}])
    assert parts == [image, other, {"type": "text", "text": "Which is larger?" + TAIL}]
    assert parts[0]["image"] is image["image"]


def test_content_lists_keep_images_between_texts() -> None:
    image = {"type": "image_url", "image_url": {"url": "data:,"}}
    parts = content_of([{"type": "text", "text": "Is "}, image, "blue?"])
    assert parts == [{"type": "text", "text": "Is "}, image, {"type": "text", "text": "blue?" + TAIL}]
    assert content_of([{"type": "text", "text": "Q"}, image])[-1] == {"type": "text", "text": TAIL}


def test_a_template_with_text_before_the_prompt_frames_the_parts() -> None:
    config = SDPOConfig(reprompt_template="Task: {prompt}{solution}{feedback} Task again: {prompt}")
    prompt = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Q"}]}]
    built = build_teacher_contexts([Rollout(0, prompt, "x", 0.0, "F")], config)
    parts = built.contexts[0].messages[0]["content"]
    assert [part["type"] for part in parts] == ["text", "image", "text"]
    assert (
        parts[0]["text"] == "Task: " and parts[2]["text"].startswith("Q\nThe") and parts[2]["text"].endswith("again: Q")
    )


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ([{"role": "assistant", "content": "Hi"}], "role 'assistant'"),
        ([{"role": "system", "content": "Hi"}], "role 'system'"),
        ([], "no messages"),
        (7, "got int"),
        ({"role": "user", "content": "x"}, "got dict"),
        (["hello"], "got str"),
        ([{"role": "user", "content": None}], "got NoneType"),
        ([{"role": "user", "content": [{"type": "text"}]}], "got the part"),
    ],
)
def test_a_prompt_that_cannot_be_used_is_refused_by_row(prompt: object, said: str) -> None:
    rollouts = [Rollout(0, USER, "x", 0.0), Rollout(1, prompt, "x", 0.0)]
    with pytest.raises(DataError, match="Row 1") as caught:
        build_teacher_contexts(rollouts, SDPOConfig())
    assert said in str(caught.value)


def test_success_by_total_or_by_named_reward() -> None:
    named = SDPOConfig(success_reward_name="correct", success_reward_threshold=1.0)
    right = Rollout(0, USER, "56", 0.1, rewards={"correct": 1.0, "format": -0.9})
    wrong = Rollout(0, USER, "54", 1.5, rewards={"correct": 0.0, "format": 1.5})
    unscored = Rollout(0, USER, "?", 1.5, rewards={"correct": None, "format": 1.5})
    assert [is_success(r, named) for r in (right, wrong, unscored)] == [True, False, False]
    assert [is_success(r, SDPOConfig(success_reward_threshold=1.0)) for r in (right, wrong)] == [False, True]
    built = build_teacher_contexts([wrong, right], named)
    assert built.contexts[0].demonstration_index == 1 and not built.contexts[1].active


def test_an_absent_named_reward_is_an_error_that_lists_the_names() -> None:
    config = SDPOConfig(success_reward_name="acc")
    with pytest.raises(DataError, match=r"Row 0.*'acc'.*'correct', 'format'"):
        build_teacher_contexts([Rollout(0, USER, "x", 1.0, rewards={"correct": 1.0, "format": 0.0})], config)
    with pytest.raises(DataError, match="none"):
        build_teacher_contexts([Rollout(0, USER, "x", 1.0)], config)


def test_nan_is_no_success_and_a_float32_threshold_is_met() -> None:
    assert not is_success(Rollout(0, USER, "x", float("nan")), SDPOConfig(success_reward_threshold=0.0))
    assert is_success(Rollout(0, USER, "x", 0.699999988079071), SDPOConfig(success_reward_threshold=0.7))
    assert not is_success(Rollout(0, USER, "x", 0.6999), SDPOConfig(success_reward_threshold=0.7))
    with pytest.raises(DataError, match="must be a number, got None"):
        build_teacher_contexts([Rollout(0, USER, "x", None)], SDPOConfig())  # type: ignore[arg-type]


def test_feedback_that_is_no_text_is_refused() -> None:
    with pytest.raises(DataError, match=r"Row 0.*feedback must be a text or None"):
        build_teacher_contexts([Rollout(0, USER, "x", 0.0, 3.5)], SDPOConfig())  # type: ignore[arg-type]


def test_metrics_beyond_the_authors() -> None:
    rollouts = [
        Rollout(0, USER, "<think>never", 0.0, "F"),
        Rollout(0, USER, "<think>a</think>56", 1.0, " "),
        Rollout(1, USER, "cut off", 0.0, "F", thinking_opened=True),
        Rollout(1, USER, "a</think>54", 0.0, thinking_opened=True),
    ]
    metrics = build_teacher_contexts(rollouts, SDPOConfig(include_environment_feedback=False)).metrics
    assert metrics[METRIC + "feedback_unused_fraction"] == 0.5
    assert metrics[METRIC + "feedback_available_fraction"] == 0.0
    assert metrics[METRIC + "unclosed_thinking_fraction"] == 0.5
    assert metrics[METRIC + "demonstration_chars_mean"] == 2.0
    assert metrics[METRIC + "group_count"] == 2.0
    assert metrics[METRIC + "success_rollout_fraction"] == 0.25
    assert build_teacher_contexts(rollouts, SDPOConfig()).metrics[METRIC + "feedback_unused_fraction"] == 0.0


@pytest.mark.parametrize("rollouts", [[], [Rollout(0, USER, "x", 1.0, is_padding=True)]])
def test_a_batch_without_real_rows_has_zero_metrics(rollouts: list[Rollout]) -> None:
    built = build_teacher_contexts(rollouts, SDPOConfig())
    assert set(built.metrics.values()) == {0.0} and built.self_distillation_mask == [0.0] * len(rollouts)


def test_strict_thinking_removal_passes_over_empty_demonstrations() -> None:
    rollouts = [Rollout(0, USER, "<think>never", 1.0), Rollout(0, USER, "56", 1.0), Rollout(0, USER, "54", 0.0)]
    strict = build_teacher_contexts(rollouts, SDPOConfig(thinking_removal="strict"))
    assert [context.demonstration_index for context in strict.contexts] == [1, None, 1]
    tolerant = build_teacher_contexts(rollouts, SDPOConfig())
    assert [context.demonstration_index for context in tolerant.contexts] == [1, 0, 0]


def test_a_demonstration_that_began_inside_of_the_templates_tag_loses_its_thinking() -> None:
    rollouts = [Rollout(0, USER, "long thoughts</think>\n56", 1.0, thinking_opened=True), Rollout(0, USER, "54", 0.0)]
    context = build_teacher_contexts(rollouts, SDPOConfig()).contexts[1]
    assert context.sections[0].text == "56" and "thoughts" not in context.messages[0]["content"]


def test_strict_removal_knows_that_the_template_opened_the_tag() -> None:
    rollouts = [Rollout(0, USER, "cut off in thought", 1.0, thinking_opened=True), Rollout(0, USER, "54", 0.0)]
    config = SDPOConfig(thinking_removal="strict")
    assert build_teacher_contexts(rollouts, config).contexts[1].demonstration_index is None
    closed = [replace(rollouts[0], thinking_opened=False), rollouts[1]]
    assert build_teacher_contexts(closed, config).contexts[1].demonstration_index == 0


def test_rebuild_writes_the_same_messages_and_drops_emptied_sections() -> None:
    rollouts = [Rollout(0, USER, "54", 0.0, "Wrong."), Rollout(0, USER, "56", 1.0)]
    config = SDPOConfig(environment_feedback_only_without_solution=False)
    context = pickle.loads(pickle.dumps(build_teacher_contexts(rollouts, config))).contexts[0]
    assert [section.kind for section in context.sections] == ["demonstration", "feedback"]
    assert context.rebuild(["56", "Wrong."]) == context.messages
    only_feedback = context.rebuild(["", "Wrong."])[0]["content"]
    assert "Correct solution" not in only_feedback and "Wrong." in only_feedback
    assert context.rebuild(["", ""])[0]["content"] == "What is 7*8?\n\nCorrectly solve the original question."
    with pytest.raises(ValueError, match="2 sections"):
        context.rebuild([""])


def test_an_empty_successful_answer_demonstrates_as_in_the_authors_code() -> None:
    context = build_teacher_contexts([Rollout(0, "Q", "x", 0.0), Rollout(0, "Q", "", 1.0)], SDPOConfig()).contexts[0]
    assert context.messages == "Q\nCorrect solution:\n\n\n\nCorrectly solve the original question."
    assert context.rebuild([""]) == context.messages


def test_a_selector_may_decline_but_not_choose_outside_of_the_candidates() -> None:
    rollouts = [Rollout(0, USER, "54", 0.0), Rollout(0, USER, "56", 1.0)]
    declined = build_teacher_contexts(rollouts, SDPOConfig(), select=lambda index, candidates, rollouts: None)
    assert declined.self_distillation_mask == [0.0, 0.0]
    with pytest.raises(PluginError, match=r"chose 0 for rollout 0.*\[1\]"):
        build_teacher_contexts(rollouts, SDPOConfig(), select=lambda index, candidates, rollouts: 0)


def test_reprompt_imports_no_torch() -> None:
    code = "import sdpo_plugins.reprompt, sys; assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

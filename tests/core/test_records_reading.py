"""Finding and reading runs, and what a rollout's line says."""

import json

import pytest

from sdpo_plugins import Rollout, SDPOConfig, build_teacher_contexts
from sdpo_plugins.errors import DataError
from sdpo_plugins.records import (
    NOT_RECORDED,
    Pieces,
    RunRecorder,
    chosen_rows,
    find_runs,
    fingerprint,
    marked_prompt,
    read_run,
    record_folder,
    record_id,
    rollout_line,
)
from sdpo_plugins.reprompt import encode_context


def _started(folder, **options):
    recorder = RunRecorder(folder, SDPOConfig(**options))
    recorder.start(host="trl", host_version="1.16.1", model="tiny", step=0, ranks=1)
    return recorder


def test_runs_are_found_at_and_below_a_folder(tmp_path):
    for name in ("a", "b"):
        _started(record_folder(SDPOConfig(), tmp_path / name))
    assert find_runs(tmp_path) == [tmp_path / "a" / "records", tmp_path / "b" / "records"]
    assert find_runs(tmp_path / "a") == find_runs(tmp_path / "a" / "records")
    assert read_run(tmp_path / "a").name == "a"
    assert read_run(tmp_path / "a", name="first").name == "first"
    with pytest.raises(DataError, match="2 runs"):
        read_run(tmp_path)


def test_a_folder_of_ones_own(tmp_path):
    config = SDPOConfig(record_dir=str(tmp_path / "elsewhere"))
    assert record_folder(config, "runs/x") == tmp_path / "elsewhere"


def test_what_is_no_run_is_refused_with_advice(tmp_path):
    with pytest.raises(DataError, match="There is no folder"):
        find_runs(tmp_path / "missing")
    with pytest.raises(DataError, match="holds no records"):
        find_runs(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="is a file"):
        find_runs(tmp_path / "file")


def test_another_format_is_refused_by_its_number(tmp_path):
    (tmp_path / "steps.jsonl").write_text(json.dumps({"kind": "run", "format": 99, "version": "9.0", "step": 0}) + "\n")
    with pytest.raises(DataError, match=r"format 99.*9\.0"):
        read_run(tmp_path)


def test_a_fingerprint_changes_with_the_records(tmp_path):
    recorder = _started(tmp_path)
    before = fingerprint(tmp_path)
    assert before == fingerprint(tmp_path)
    recorder.metrics(1, {"reward": 1.0})
    assert fingerprint(tmp_path) != before


def test_the_header_holds_the_options(tmp_path):
    _started(tmp_path, alpha=1.0)
    run = read_run(tmp_path)
    assert run.config["alpha"] == 1.0
    assert SDPOConfig.from_mapping(run.config) == SDPOConfig(alpha=1.0)
    assert run.headers[0]["method"] == "sdpo"
    assert run.end is None


def test_the_projects_own_model_is_named_without_its_place(tmp_path):
    from sdpo_plugins.embedded import checkpoint_path

    recorder = RunRecorder(tmp_path, SDPOConfig())
    recorder.start(host="trl", host_version="1", model=str(checkpoint_path("text")), step=0, ranks=1)
    assert read_run(tmp_path).headers[0]["model"] == "embedded/checkpoint"
    recorder.start(host="trl", host_version="1", model="/models/mine", step=0, ranks=1)
    assert read_run(tmp_path).headers[0]["model"] == "/models/mine"


def test_grpo_runs_say_so(tmp_path):
    _started(tmp_path / "off", enabled=False)
    _started(tmp_path / "one", grpo_weight=1.0)
    assert [read_run(tmp_path / name).headers[0]["method"] for name in ("off", "one")] == ["grpo", "grpo"]


def test_a_run_that_goes_on_has_not_ended(tmp_path):
    recorder = _started(tmp_path)
    recorder.end(0)
    assert read_run(tmp_path).end is not None
    recorder.start(host="trl", host_version="1.16.1", model="tiny", step=3, ranks=1)
    assert read_run(tmp_path).end is None


def test_rows_are_chosen_alike_everywhere_and_differently_each_time():
    rows = [2, 3, 5, 7, 11, 13]
    first = [chosen_rows(batch, rows, 2) for batch in range(30)]
    assert first == [chosen_rows(batch, tuple(rows), 2) for batch in range(30)]
    assert {row for chosen in first for row in chosen} == set(rows)
    assert all(len(chosen) == 2 and chosen == sorted(chosen) for chosen in first)
    assert chosen_rows(0, rows, 99) == rows
    assert chosen_rows(0, rows, 0) == []


def test_ids_are_unique_over_batches():
    ids = {record_id(batch, row) for batch in range(5) for row in range(1000)}
    assert len(ids) == 5000
    assert NOT_RECORDED not in ids


def _batch():
    prompt = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is 2+2?"}]
    return [
        Rollout(0, prompt, "It is 4.", 1.0),
        Rollout(0, prompt, "5", 0.0, feedback="Not 5 {braces}.", rewards={"exact": 0.0}),
    ]


def test_a_rollouts_line_marks_the_parts_of_the_teachers_prompt():
    config = SDPOConfig(environment_feedback_only_without_solution=False)
    rollouts = _batch()
    contexts = build_teacher_contexts(rollouts, config)
    encoded = encode_context(contexts.contexts[1], None, config, render=lambda messages: [1, 2, 3])
    line = rollout_line(
        1, rollouts[1], contexts.contexts[1], encoded, config, step=7, batch=2, response_tokens=1, cut_off=False
    )
    assert line["id"] == record_id(2, 1)
    assert (line["step"], line["row"], line["demonstration_index"], line["active"]) == (7, 1, 0, True)
    assert line["success"] is False
    assert line["rewards"] == {"exact": 0.0}
    system, user = line["teacher_prompt"]
    assert system == {"role": "system", "parts": [{"kind": "other", "text": "Be brief."}]}
    assert "".join(part["text"] for part in user["parts"]) == contexts.contexts[1].messages[-1]["content"]
    by_kind = {part["kind"]: part["text"] for part in user["parts"] if part["kind"] != "template"}
    assert by_kind == {"question": "What is 2+2?", "demonstration": "It is 4.", "feedback": "Not 5 {braces}."}
    assert json.loads(json.dumps(line)) == line


def test_an_inactive_rollout_has_no_teacher_prompt():
    config = SDPOConfig()
    rollouts = _batch()
    context = build_teacher_contexts(rollouts, config).contexts[0]
    encoded = encode_context(context, None, config, render=lambda messages: [1], skip_inactive=True)
    line = rollout_line(0, rollouts[0], context, encoded, config, step=1, batch=0, response_tokens=4)
    assert (line["active"], line["teacher_prompt"], line["cut_off"]) == (False, None, None)
    assert line["success"] is True


@pytest.mark.parametrize(("limit", "kinds"), [(55, {"demonstration", "feedback"}), (26, {"feedback"})])
def test_shortened_sections_are_found_in_what_is_left_of_them(limit, kinds):
    config = SDPOConfig(
        environment_feedback_only_without_solution=False,
        max_reprompt_len=limit,
        remove_thinking_from_demonstration=False,
    )
    words = " ".join(f"word{number}" for number in range(40))
    prompt = [{"role": "user", "content": "Q?"}]
    rollouts = [Rollout(0, prompt, words, 1.0), Rollout(0, prompt, "no", 0.0, feedback=" ".join(["wrong"] * 15))]
    context = build_teacher_contexts(rollouts, config).contexts[1]
    encoded = encode_context(context, None, config, render=lambda messages: messages[-1]["content"].split())
    assert encoded.cut
    parts = marked_prompt(encoded.messages, prompt, context)[-1]["parts"]
    assert "".join(part["text"] for part in parts) == encoded.messages[-1]["content"]
    found = {part["kind"]: part["text"] for part in parts if part["kind"] not in ("template", "question")}
    assert set(found) == kinds
    if "demonstration" in found:
        assert words.endswith(found["demonstration"])
        assert found["demonstration"] != words


def test_after_a_tools_turn_the_question_stands_further_up():
    prompt = [
        {"role": "user", "content": "What is the weather?"},
        {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "weather"}}]},
        {"role": "tool", "content": "rain"},
    ]
    config = SDPOConfig()
    rollouts = [Rollout(0, prompt, "It rains.", 1.0), Rollout(0, prompt, "Sun.", 0.0)]
    context = build_teacher_contexts(rollouts, config).contexts[1]
    marked = marked_prompt(context.messages, prompt, context)
    assert [turn["role"] for turn in marked] == ["user", "assistant", "tool", "user"]
    assert [part["text"] for part in marked[-1]["parts"] if part["kind"] == "demonstration"] == ["It rains."]


def test_pictures_in_a_prompt_are_named_in_brackets():
    prompt = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}]
    config = SDPOConfig()
    rollouts = [Rollout(0, prompt, "A cat.", 1.0), Rollout(0, prompt, "A dog.", 0.0)]
    context = build_teacher_contexts(rollouts, config).contexts[1]
    encoded = encode_context(context, None, config, render=lambda messages: [1])
    line = rollout_line(1, rollouts[1], context, encoded, config, step=1, batch=0, response_tokens=3)
    assert line["prompt"] == [{"role": "user", "content": "[image]What is it?"}]
    assert {"kind": "demonstration", "text": "A cat."} in line["teacher_prompt"][0]["parts"]


def test_pieces_are_texts_of_single_tokens():
    transformers = pytest.importorskip("transformers")
    from sdpo_plugins.embedded import checkpoint_path

    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint_path("text"))
    ids = tokenizer("12 + 30", add_special_tokens=False)["input_ids"]
    cross = tokenizer("∑", add_special_tokens=False)["input_ids"]
    beyond = len(tokenizer) + 5
    pieces = Pieces(tokenizer).of([*ids, *cross, beyond])
    assert "".join(pieces[token] for token in ids) == "12 + 30"
    assert len(cross) > 1
    assert all(pieces[token] and "\N{REPLACEMENT CHARACTER}" not in pieces[token] for token in cross)
    assert pieces[beyond] == f"<{beyond}>"

"""Tokenisation and truncation with a real BPE tokenizer: what is never cut, what is, and what stays untouched."""

from __future__ import annotations

import copy
import logging
import random
import re
import warnings

import pytest

from sdpo_plugins.config import SDPOConfig
from sdpo_plugins.errors import ConfigError, DataError, PluginError
from sdpo_plugins.reprompt import (
    build_teacher_contexts,
    check_prompts,
    encode_context,
    encode_contexts,
    encoding_metrics,
    make_render,
    rendered_text,
)
from sdpo_plugins.reprompt.truncation import keep_part, longest_fitting
from sdpo_plugins.types import Rollout, Section, TeacherContext

SYSTEM = {"role": "system", "content": "You are careful."}
PROMPT = [SYSTEM, {"role": "user", "content": "What is the sum of 12 and 30?"}]
BASE = (
    "<|im_start|>system\nYou are careful.<|im_end|>\n<|im_start|>user\nWhat is the sum of 12 and 30?",
    "\n\nCorrectly solve the original question.<|im_end|>\n<|im_start|>assistant\n",
)
METRIC = "self_distillation/"


def words(seed: int, count: int) -> str:
    draw = random.Random(seed)
    return " ".join(
        draw.choice(["sum", "digit", "carried", "12345", "naïve", "{x}", "Error\n", "両"]) for _ in range(count)
    )


def both(demonstration: str, feedback: str, prompt: object = PROMPT) -> TeacherContext:
    config = SDPOConfig(environment_feedback_only_without_solution=False)
    rollouts = [Rollout(0, prompt, "54", 0.0, feedback), Rollout(0, prompt, demonstration, 1.0)]
    return build_teacher_contexts(rollouts, config).contexts[0]


def full_state(tokenizer) -> tuple:
    plain = {name: copy.deepcopy(value) for name, value in vars(tokenizer).items() if name != "_tokenizer"}
    return repr(sorted(plain.items(), key=lambda item: item[0])), tokenizer.backend_tokenizer.to_str()


def test_ids_are_those_of_the_rendered_text(bpe_tokenizer) -> None:
    context = both("12+30 is 42", "Wrong.")
    encoded = encode_context(context, bpe_tokenizer, SDPOConfig())
    text = bpe_tokenizer.decode(encoded.ids)
    assert text.startswith(BASE[0] + "\nCorrect solution:\n\n12+30 is 42") and text.endswith("Wrong." + BASE[1])
    assert text == rendered_text(bpe_tokenizer, context.messages, SDPOConfig())
    assert encoded.active and not encoded.cut and not encoded.dropped and encoded.messages == context.messages
    assert all(type(token) is int for token in encoded.ids)


def test_plain_strings_are_tokenised_as_they_are(bpe_tokenizer) -> None:
    from tokenizers import processors

    context = both("42", "Wrong.", prompt="12+30=")
    assert isinstance(context.messages, str)
    bpe_tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|pad|> $A", special_tokens=[("<|pad|>", 0)]
    )
    plain = encode_context(context, bpe_tokenizer, SDPOConfig(), add_special_tokens=False).ids
    assert bpe_tokenizer.decode(plain) == context.messages
    assert encode_context(context, bpe_tokenizer, SDPOConfig()).ids == [0, *plain]


@pytest.mark.parametrize("limit", [70, 75, 90, 120, 180, 260, 400, 700, 1100])
@pytest.mark.parametrize("seed", range(4))
def test_sections_are_shortened_and_nothing_else(bpe_tokenizer, limit: int, seed: int) -> None:
    demonstration, feedback = words(seed, 150), words(seed + 50, 60)
    context = both(demonstration, feedback)
    whole = encode_context(context, bpe_tokenizer, SDPOConfig())
    encoded = encode_context(context, bpe_tokenizer, SDPOConfig(max_reprompt_len=limit))
    text = bpe_tokenizer.decode(encoded.ids)
    assert len(encoded.ids) <= limit
    assert text.startswith(BASE[0]) and text.endswith(BASE[1])
    assert sum(encoded.truncated_tokens.values()) == len(whole.ids) - len(encoded.ids)
    assert encoded.cut == (len(whole.ids) > limit)
    middle = text[len(BASE[0]) : len(text) - len(BASE[1])]
    found = re.fullmatch(
        r"(?:\nCorrect solution:\n\n(?P<solution>.+?))?"
        r"(?:\nThe following is feedback from your unsuccessful earlier attempt:\n\n(?P<feedback>.+))?",
        middle,
        re.DOTALL,
    )
    assert found, middle
    # The demonstration keeps its end and goes before the feedback loses anything; the feedback keeps its beginning.
    assert demonstration.endswith(found["solution"] or "")
    assert feedback.startswith(found["feedback"] or "")
    if found["solution"]:
        assert found["feedback"] == feedback and not encoded.truncated_tokens.get("feedback")
    assert encoded.active == bool(middle) and encoded.dropped == (not middle)
    # Little of the room is wasted: a word's border (at most 40 characters) and half a percent.
    if encoded.cut and encoded.active:
        assert len(encoded.ids) >= limit - limit // 200 - 45 - (30 if not found["solution"] else 0)


def test_what_never_fits_is_dropped_and_the_question_stays(bpe_tokenizer) -> None:
    prompt = [SYSTEM, {"role": "user", "content": "What is " + words(1, 80)}]
    context = both("42", "Wrong.", prompt)
    encoded = encode_context(context, bpe_tokenizer, SDPOConfig(max_reprompt_len=50))
    assert not encoded.active and encoded.dropped and len(encoded.ids) == 50
    assert bpe_tokenizer.decode(encoded.ids).endswith(BASE[1])
    assert encode_context(context, bpe_tokenizer, SDPOConfig(max_reprompt_len=50), skip_inactive=True).ids == []


@pytest.mark.parametrize("limit", [20, 100])
def test_the_authors_hard_cuts(bpe_tokenizer, limit: int) -> None:
    context = both(words(3, 80), words(4, 80))
    whole = encode_context(context, bpe_tokenizer, SDPOConfig()).ids
    for mode, expected in (("left", whole[-limit:]), ("right", whole[:limit])):
        config = SDPOConfig(max_reprompt_len=limit, reprompt_truncation=mode)
        encoded = encode_context(context, bpe_tokenizer, config)
        assert encoded.ids == expected and encoded.active
        assert encoded.truncated_tokens == {"prompt": len(whole) - limit}
    with pytest.raises(DataError, match=rf"row 3 has {len(whole)} tokens; `max_reprompt_len` is {limit}"):
        config = SDPOConfig(max_reprompt_len=limit, reprompt_truncation="error")
        encode_context(context, bpe_tokenizer, config, row=3)


def test_the_tokenizer_stays_exactly_as_it_was(bpe_tokenizer, caplog) -> None:
    bpe_tokenizer.backend_tokenizer.enable_truncation(max_length=7, stride=2, direction="left")
    bpe_tokenizer.backend_tokenizer.enable_padding(direction="left", pad_id=0, pad_token="<|pad|>", length=12)
    before = full_state(bpe_tokenizer)
    contexts = [both(words(i, 90), words(i, 40)) for i in range(2)] + [both("42", words(9, 40), prompt="12+30=")]
    with warnings.catch_warnings(), caplog.at_level(logging.DEBUG):
        warnings.simplefilter("error")
        for mode in ("sections", "left", "right"):
            config = SDPOConfig(max_reprompt_len=100, reprompt_truncation=mode)
            encoded = encode_contexts(contexts, bpe_tokenizer, config)
            assert all(len(ids) <= 100 for ids in encoded.ids)
        config = SDPOConfig(apply_chat_template_kwargs={"enable_thinking": False})
        assert len(encode_contexts(contexts, bpe_tokenizer, config).ids[0]) > bpe_tokenizer.model_max_length
        check_prompts([PROMPT], bpe_tokenizer, config)
    assert full_state(bpe_tokenizer) == before
    assert "longer than the specified maximum" not in caplog.text


def test_few_tokenizer_calls(bpe_tokenizer) -> None:
    calls = []
    render = make_render(bpe_tokenizer, SDPOConfig())

    def counted(messages):
        calls.append(1)
        return render(messages)

    encode_context(both("42", "Wrong."), None, SDPOConfig(), render=counted)
    assert len(calls) == 1
    calls.clear()
    encode_context(both(words(0, 2000), "Wrong."), None, SDPOConfig(max_reprompt_len=1000), render=counted)
    assert len(calls) <= 7


def test_a_batch_encodes_equal_texts_once_and_counts(bpe_tokenizer) -> None:
    rollouts = [Rollout(0, PROMPT, "54", 0.0) for _ in range(6)] + [Rollout(0, PROMPT, words(2, 100), 1.0)]
    built = build_teacher_contexts(rollouts, SDPOConfig())
    config = SDPOConfig(max_reprompt_len=120)
    calls = []
    render = make_render(bpe_tokenizer, config)

    def counted(messages):
        calls.append(1)
        return render(messages)

    encoded = encode_contexts(built, None, config, render=counted, skip_inactive=True)
    alone = len(calls)
    calls.clear()
    encode_contexts(built.contexts[:1], None, config, render=counted)
    assert alone == len(calls)
    assert encoded.self_distillation_mask == [1.0] * 6 + [0.0] and encoded.ids[6] == []
    assert encoded.ids[0] == encoded.ids[5] and encoded.ids[0] is not encoded.ids[5]
    metrics = encoded.metrics
    removed = encoded.contexts[0].truncated_tokens["demonstration"]
    assert metrics[METRIC + "truncated_fraction"] == 1.0 and metrics[METRIC + "dropped_too_long_fraction"] == 0.0
    assert metrics[METRIC + "truncated_tokens_mean"] == removed > 0
    assert metrics[METRIC + "truncated_demonstration_tokens_mean"] == removed
    assert metrics[METRIC + "teacher_prompt_length_max"] == len(encoded.ids[0]) <= 120
    assert metrics[METRIC + "teacher_prompt_length_mean"] == len(encoded.ids[0])
    assert encoding_metrics(encoded.contexts) == metrics


def test_inactive_rows_count_nowhere_and_keep_the_prompts_ids(bpe_tokenizer) -> None:
    built = build_teacher_contexts([Rollout(0, PROMPT, "54", 0.0), Rollout(1, PROMPT, "5", 0.0, "F")], SDPOConfig())
    encoded = encode_contexts(built, bpe_tokenizer, SDPOConfig())
    assert bpe_tokenizer.decode(encoded.ids[0]) == BASE[0] + "<|im_end|>\n<|im_start|>assistant\n"
    assert encoded.metrics[METRIC + "teacher_prompt_length_mean"] == len(encoded.ids[1])
    short = encode_contexts(built, bpe_tokenizer, SDPOConfig(max_reprompt_len=8))
    assert (
        short.metrics[METRIC + "truncated_fraction"] == 1.0
        and short.metrics[METRIC + "dropped_too_long_fraction"] == 1.0
    )
    assert [len(ids) for ids in short.ids] == [8, 8] and short.self_distillation_mask == [0.0, 0.0]
    assert not short.contexts[0].cut and not short.contexts[0].dropped


def test_tools_and_template_arguments_reach_the_template(bpe_tokenizer) -> None:
    context = both("42", "Wrong.")
    tools = [{"type": "function", "function": {"name": "add"}}]
    config = SDPOConfig(apply_chat_template_kwargs={"enable_thinking": False})
    encoded = encode_context(
        context, bpe_tokenizer, config, tools=tools, chat_template_kwargs={"enable_thinking": True}
    )
    text = bpe_tokenizer.decode(encoded.ids)
    assert text.startswith("<|im_start|>tools\n[{") and text.endswith("<think>\n\n</think>\n\n")
    plain = encode_context(context, bpe_tokenizer, SDPOConfig(), tools=[])
    assert "tools" not in bpe_tokenizer.decode(plain.ids)
    own = encode_context(context, bpe_tokenizer, SDPOConfig(), chat_template="{{ messages | length }}")
    assert bpe_tokenizer.decode(own.ids) == "2"
    with pytest.raises(ConfigError, match="'tokenize'"):
        encode_context(context, bpe_tokenizer, SDPOConfig(apply_chat_template_kwargs={"tokenize": False}))


def test_chat_prompts_need_a_chat_template(bpe_tokenizer) -> None:
    bpe_tokenizer.chat_template = None
    with pytest.raises(DataError, match=r"no chat template.*plain strings"):
        encode_context(both("42", "Wrong."), bpe_tokenizer, SDPOConfig())
    with pytest.raises(DataError, match="no chat template"):
        check_prompts([PROMPT], bpe_tokenizer)
    assert check_prompts(["12+30="], bpe_tokenizer, SDPOConfig()) == []
    assert check_prompts([PROMPT], bpe_tokenizer, SDPOConfig(), chat_template="x") == []


def test_a_template_that_refuses_the_roles_is_explained(bpe_tokenizer) -> None:
    prompt = [{"role": "critic", "content": "c"}, *PROMPT]
    with pytest.raises(DataError, match=r"\['critic', 'system', 'user'\]: no critics here"):
        encode_context(both("42", "Wrong.", prompt), bpe_tokenizer, SDPOConfig())


def test_images_survive_truncation_and_reach_the_host(bpe_tokenizer) -> None:
    image = {"type": "image", "image": object()}
    prompt = [SYSTEM, {"role": "user", "content": [image, {"type": "text", "text": "What is it?"}]}]
    context = both(words(0, 90), "Wrong.", prompt)
    encoded = encode_contexts([context], bpe_tokenizer, SDPOConfig(max_reprompt_len=90)).contexts[0]
    assert encoded.messages[1]["content"][0]["image"] is image["image"]
    assert "<|image|>What is it?\nCorrect solution:" in bpe_tokenizer.decode(encoded.ids) and encoded.cut


def test_a_context_without_sections_is_dropped_if_too_long_and_without_rebuild_is_an_error() -> None:
    def render(text: str) -> list[int]:
        return list(range(len(text)))

    config = SDPOConfig(max_reprompt_len=4)
    bare = encode_context(TeacherContext("a longer text", active=True), None, config, render=render)
    assert bare.dropped and not bare.active and len(bare.ids) == 4
    broken = TeacherContext("a longer text", active=True, sections=(Section("feedback", "text"),))
    with pytest.raises(PluginError, match="rebuild"):
        encode_context(broken, None, config, render=render)


def test_longest_fitting_finds_the_border_on_uneven_texts() -> None:
    for seed in range(200):
        draw = random.Random(seed)
        costs = [draw.choice([0, 1, 1, 3, 9 if i % 50 < 5 else 0]) for i in range(draw.randrange(2, 400))] + [1]
        sums = [5]
        for cost in costs:
            sums.append(sums[-1] + cost)
        limit = draw.randrange(5, sums[-1])
        calls = []

        def length_at(characters: int, sums: list[int] = sums, calls: list = calls) -> int:
            calls.append(characters)
            return sums[characters]

        found = longest_fitting(length_at, len(costs), limit, sums[0], sums[-1])
        assert sums[found] <= limit and len(calls) <= 12
        assert found == 0 or found in calls
        assert (
            found + 1 > len(costs) or sums[found + 1] > limit or limit - sums[found] <= limit // 200 or len(calls) == 12
        )


def test_longest_fitting_does_not_creep_where_interpolation_misleads() -> None:
    found = longest_fitting(lambda n: 5 + 9 * max(n - 10_000, 0), 10_100, 50, 5, 905)
    assert 9_900 <= found <= 10_005


def test_keep_part_stops_at_words() -> None:
    demonstration, feedback = Section("demonstration", "alpha 12345 omega"), Section("feedback", "alpha 12345 omega")
    assert [keep_part(demonstration, n) for n in (0, 5, 6, 8, 11, 12, 17, 99)] == [
        "", "omega", "omega", "omega", "12345 omega", "12345 omega", "alpha 12345 omega", "alpha 12345 omega"
    ]  # fmt: skip
    assert [keep_part(feedback, n) for n in (0, 5, 8, 11, 12, 16, 17)] == [
        "", "alpha", "alpha", "alpha 12345", "alpha 12345", "alpha 12345", "alpha 12345 omega"
    ]  # fmt: skip
    assert keep_part(Section("demonstration", "x" * 100), 60) == "x" * 60


def test_check_prompts_names_rows_and_long_questions(bpe_tokenizer) -> None:
    with pytest.raises(DataError, match="dataset is empty"):
        check_prompts([])
    bad = [PROMPT, *[[{"role": "assistant", "content": "Hi"}]] * 7]
    with pytest.raises(DataError, match=r"(?s)7 of 8 prompts.*Row 1: .*'assistant'.*and 2 more"):
        check_prompts(bad, bpe_tokenizer, SDPOConfig())
    long = [{"role": "user", "content": words(0, 90)}]
    config = SDPOConfig(max_reprompt_len=70)
    notices = check_prompts([PROMPT, long, "short"], bpe_tokenizer, config)
    assert len(notices) == 1 and "Row 1" in notices[0] and "(70)" in notices[0]
    with pytest.raises(DataError, match="Row 1"):
        check_prompts([PROMPT, long], bpe_tokenizer, SDPOConfig(max_reprompt_len=70, reprompt_truncation="error"))

"""Removal of thinking parts: pairs, tags that the template opened, tags never closed."""

from __future__ import annotations

import pytest
import torch

from sdpo_plugins.reprompt import (
    decode_responses,
    opens_thinking,
    remove_thinking,
    thinking_is_unclosed,
    thinking_opened,
)

# text, opened, paired, tolerant, strict
MATRIX = [
    ("56", False, "56", "56", "56"),
    ("", False, "", "", ""),
    ("<think>\na {x}\n</think>\n\n56", False, "56", "56", "56"),
    ("<think>a</think>b<think>c</think> d", False, "bd", "bd", "bd"),
    ("<think>a</think>", False, "", "", ""),
    ("thoughts</think>\n56", False, "thoughts</think>\n56", "56", "56"),
    ("thoughts</think>\n56", True, "thoughts</think>\n56", "56", "56"),
    ("a</think>b<think>c</think>d", True, "a</think>bd", "bd", "bd"),
    ("a <think> b</think> 56", True, "a 56", "56", "56"),
    ("a</think> b</think> 56", False, "a</think> b</think> 56", "56", "56"),
    ("56\n<think>again", False, "56\n<think>again", "56", "56"),
    ("<think>a</think>56 <think>again", False, "56 <think>again", "56", "56"),
    ("<think>never closed 56", False, "<think>never closed 56", "<think>never closed 56", ""),
    ("cut off 56", True, "cut off 56", "cut off 56", ""),
    ("a</think><think>56", False, "a</think><think>56", "<think>56", ""),
    ("56</think>", False, "56</think>", "56</think>", ""),
    ("a</think><think>b</think>", True, "a</think>", "a</think>", ""),
]


@pytest.mark.parametrize(("text", "opened", "paired", "tolerant", "strict"), MATRIX)
def test_each_mode(text: str, opened: bool, paired: str, tolerant: str, strict: str) -> None:
    results = [remove_thinking(text, "<think>", mode, opened) for mode in ("paired", "tolerant", "strict")]
    assert results == [paired, tolerant, strict]


@pytest.mark.parametrize(("text", "opened", "paired", "tolerant", "strict"), MATRIX)
def test_tolerant_leaves_something_wherever_paired_does(
    text: str, opened: bool, paired: str, tolerant: str, strict: str
) -> None:
    assert bool(paired.strip()) == bool(remove_thinking(text, "<think>", "tolerant", opened).strip())


def test_another_tag_is_taken_literally() -> None:
    assert remove_thinking("<a.b>x</a.b> 5 <aXb>y</aXb>", "<a.b>", "paired") == "5 <aXb>y</aXb>"


def test_an_unknown_mode_is_an_error() -> None:
    with pytest.raises(ValueError, match="'pared'"):
        remove_thinking("x", "<think>", "pared")


def test_unclosed() -> None:
    cases = {"<think>a": True, "<think>a</think>b": False, "b": False, "a</think>b<think>": True, "</think>": False}
    assert {text: thinking_is_unclosed(text, "<think>") for text in cases} == cases
    assert thinking_is_unclosed("b", "<think>", opened=True)
    assert not thinking_is_unclosed("b</think>", "<think>", opened=True)


def test_a_template_that_opens_the_tag_is_recognised() -> None:
    assert opens_thinking("<|im_start|>assistant\n<think>\n", "<think>")
    assert not opens_thinking("<|im_start|>assistant\n<think>\n\n</think>\n\n", "<think>")
    assert not opens_thinking("Use <think> tags.\n<|im_start|>assistant\n", "<think>")


def test_decoding_keeps_thinking_tags_even_where_they_are_special_tokens(bpe_tokenizer):
    tokenizer = bpe_tokenizer
    tokenizer.add_special_tokens({"additional_special_tokens": ["<think>", "</think>"]})
    text = "<think>two numbers</think> sum<|im_end|><|pad|><|pad|>"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    expected = "<think>two numbers</think> sum"
    assert decode_responses(tokenizer, [ids, []], "<think>") == [expected, ""]
    assert decode_responses(tokenizer, torch.tensor([ids]), "<think>") == [expected]
    # Tags of another name are special tokens like any other.
    assert "<think>" not in decode_responses(tokenizer, [ids], "<reason>")[0]


def test_a_prompt_opens_thinking_if_it_ends_in_the_tag(bpe_tokenizer):
    prompts = [
        "the sum of two numbers " * 20 + "<think>\n",
        "<think> two numbers",
        "<think>\n\n</think>\n\n",
        "a<think>",
    ]
    rows = [bpe_tokenizer(prompt, add_special_tokens=False)["input_ids"] for prompt in prompts]
    assert thinking_opened(bpe_tokenizer, rows, "<think>") == [True, False, False, True]
    assert thinking_opened(bpe_tokenizer, [torch.tensor(row) for row in rows], "<think>") == [True, False, False, True]

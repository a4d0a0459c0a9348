"""Hidden states behind shared prefixes: the plain pass's, for fewer tokens, with every kind of attention."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sdpo_plugins.errors import ConfigError, DataError, HostError
from sdpo_plugins.prefix import PrefixPlan, hidden_behind_prefixes, plain_hidden, plan_prefixes
from sdpo_plugins.prefix.cache import expanded
from tiny_bodies import SHARING, padded, tiny_body, tokens

QUESTION = tokens(9, 0)
DEMONSTRATIONS = [tokens(8, 1), tokens(11, 2)]

# Prompts and completions, row by row.
BATCHES: dict[str, tuple[list[list[int]], list[list[int]]]] = {
    "one prompt": (
        [QUESTION + DEMONSTRATIONS[0]] * 4,
        [tokens(length, 10 + length) for length in (5, 3, 1, 4)],
    ),
    "two demonstrations": (
        [QUESTION + DEMONSTRATIONS[row % 2] for row in range(6)],
        [tokens(4, 20 + row) for row in range(6)],
    ),
    "feedback behind": (
        [QUESTION + DEMONSTRATIONS[0] + tokens(row, 30 + row) for row in (3, 1, 0, 4)],
        [tokens(length, 40 + length) for length in (2, 5, 4, 3)],
    ),
    "groups, singletons and a short row": (
        [
            QUESTION + DEMONSTRATIONS[0],
            tokens(17, 50),
            tokens(20, 51),
            tokens(3, 52),
            QUESTION + DEMONSTRATIONS[0],
            tokens(20, 51),
            tokens(1, 53),
        ],
        [tokens(length, 60 + length) for length in (4, 2, 4, 3, 1, 3, 4)],
    ),
    "identical rows": ([QUESTION] * 5, [tokens(4, 80)] * 5),
    "empty completions": (
        [QUESTION + DEMONSTRATIONS[row % 2] for row in range(4)],
        [[], tokens(4, 71), tokens(2, 72), []],
    ),
}


def batch_of(name: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Padded tensors of a batch; both sides are wider than they need to be."""
    prompts, completions = BATCHES[name]
    return (*padded(prompts, "left", width=24), *padded(completions, "right", width=6))


def planned(batch: tuple[Tensor, Tensor, Tensor, Tensor]) -> PrefixPlan:
    """The plan of a batch that has one."""
    plan = plan_prefixes(batch[0], batch[1], batch[3])
    assert plan is not None
    return plan


def assert_like_plain(shared: Tensor, plain: Tensor, asked: Tensor, bound: float) -> None:
    """Equal where a token is asked for, relative to the largest entry; zeros elsewhere."""
    asked = asked.bool()
    assert shared.shape == plain.shape
    assert not shared.requires_grad
    assert float((shared - plain)[asked].abs().max() / plain[asked].abs().max()) <= bound
    assert not shared[~asked].any()


@pytest.mark.parametrize("name", BATCHES)
@pytest.mark.parametrize(
    ("kind", "attention"),
    # Gemma-2's soft-capped scores exist in the eager form alone; the attention sinks of GPT-OSS too.
    [
        *itertools.product(SHARING, ["eager"]),
        *itertools.product(sorted(SHARING.keys() - {"gemma2", "gpt_oss"}), ["sdpa"]),
    ],
)
def test_hidden_states_are_those_of_the_plain_pass(kind: str, attention: str, name: str) -> None:
    body, batch = tiny_body(kind, attention), batch_of(name)
    plain = plain_hidden(body, *batch).detach()
    shared = hidden_behind_prefixes(body, *batch, planned(batch))
    assert_like_plain(shared, plain, batch[3], 1e-5)


def test_plain_pass_is_the_model_s_own() -> None:
    body, (prompt_ids, prompt_mask, completion_ids, completion_mask) = (
        tiny_body("qwen3"),
        batch_of("two demonstrations"),
    )
    hidden = plain_hidden(body, prompt_ids, prompt_mask, completion_ids, completion_mask)
    assert hidden.requires_grad
    for row, (prompt, completion) in enumerate(zip(*BATCHES["two demonstrations"], strict=True)):
        alone = body(input_ids=torch.tensor([prompt + completion])).last_hidden_state[0]
        expected = alone[len(prompt) - 1 : -1]
        torch.testing.assert_close(hidden[row, : len(completion)], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", BATCHES)
def test_tokens_that_the_model_embeds_are_the_plan_s(name: str) -> None:
    body, batch = tiny_body("llama"), batch_of(name)
    embedded: list[int] = []
    body.get_input_embeddings().register_forward_pre_hook(lambda _, inputs: embedded.append(inputs[0].numel()))
    plan = planned(batch)
    hidden_behind_prefixes(body, *batch, plan)
    prefixes, rows = len(plan.prefix_rows), len(plan.row_prefixes)
    assert embedded == [prefixes * plan.prefix_width, rows * plan.rest_width]
    assert sum(embedded) == plan.tokens
    prompts, completions = BATCHES[name]
    assert plan.plain_tokens == rows * (max(map(len, prompts)) + max(map(len, completions)) - 1)


@pytest.mark.parametrize(("rows_at_once", "forwards"), [(1, 8), (2, 5), (5, 3), (7, 2), (100, 2)])
def test_rests_in_slices(rows_at_once: int, forwards: int) -> None:
    body, batch = tiny_body("gemma3_text"), batch_of("groups, singletons and a short row")
    calls: list[int] = []
    body.register_forward_pre_hook(lambda _, __, inputs: calls.append(len(inputs["input_ids"])), with_kwargs=True)
    plan = planned(batch)
    sliced = hidden_behind_prefixes(body, *batch, plan, rows_at_once=rows_at_once)
    assert len(calls) == forwards
    assert max(calls[1:]) == min(rows_at_once, 7)
    assert sum(calls[1:]) == 7
    torch.testing.assert_close(sliced, hidden_behind_prefixes(body, *batch, plan), rtol=1e-5, atol=1e-5)


def test_holes_in_completions() -> None:
    body, (prompt_ids, prompt_mask, completion_ids, _) = tiny_body("qwen3"), batch_of("one prompt")
    holes = torch.tensor([[1, 0, 1, 1, 0, 0], [0, 1, 1, 0, 0, 1], [1, 0, 0, 0, 0, 0], [1, 1, 0, 1, 0, 0]])
    batch = (prompt_ids, prompt_mask, completion_ids, holes)
    plain, shared = plain_hidden(body, *batch).detach(), hidden_behind_prefixes(body, *batch, planned(batch))
    torch.testing.assert_close(shared[holes.bool()], plain[holes.bool()], rtol=1e-5, atol=1e-5)


def test_boolean_masks() -> None:
    body, batch = tiny_body("qwen3", "sdpa"), batch_of("feedback behind")
    booleans = (batch[0], batch[1].bool(), batch[2], batch[3].bool())
    plan = planned(batch)
    assert planned(booleans) == plan
    torch.testing.assert_close(
        hidden_behind_prefixes(body, *booleans, plan), hidden_behind_prefixes(body, *batch, plan), rtol=0, atol=0
    )


@pytest.mark.parametrize("kind", ["qwen3", "gemma3_text"])
def test_bfloat16_errs_no_more_than_the_plain_pass(kind: str) -> None:
    body, batch = tiny_body(kind, "sdpa"), batch_of("two demonstrations")
    body.bfloat16()
    plain, shared = plain_hidden(body, *batch).detach(), hidden_behind_prefixes(body, *batch, planned(batch))
    exact = plain_hidden(body.float(), *batch).detach()
    assert shared.dtype == torch.bfloat16
    asked = batch[3].bool()
    error, plain_error = ((states.float() - exact)[asked].norm() for states in (shared, plain))
    assert float(error) <= 1.5 * float(plain_error)


def test_lora() -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    model = Qwen3ForCausalLM(
        Qwen3Config(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
                    num_key_value_heads=2, head_dim=8)
    )  # fmt: skip
    settings = LoraConfig(r=4, target_modules=["q_proj", "k_proj", "v_proj", "down_proj"], init_lora_weights=False)
    adapted = get_peft_model(model, settings).eval()
    body, batch = adapted.get_base_model().model, batch_of("feedback behind")
    plain = plain_hidden(body, *batch).detach()
    assert_like_plain(hidden_behind_prefixes(body, *batch, planned(batch)), plain, batch[3], 1e-5)
    with adapted.disable_adapter():
        base = plain_hidden(body, *batch).detach()
        assert_like_plain(hidden_behind_prefixes(body, *batch, planned(batch)), base, batch[3], 1e-5)
    assert not torch.allclose(base, plain, atol=1e-2)


def test_the_cache_of_the_prefixes_is_neither_copied_nor_changed() -> None:
    body, (prompt_ids, prompt_mask, *_) = tiny_body("mistral", sliding_window=6), batch_of("two demonstrations")
    with torch.no_grad():
        cache = body(input_ids=prompt_ids[:2], attention_mask=prompt_mask[:2], use_cache=True).past_key_values
        before = [(layer.keys, layer.keys.clone(), layer.get_seq_length()) for layer in cache.layers]
        view = expanded(cache, torch.tensor([1, 0, 1]))
        mask = torch.cat([prompt_mask[[1, 0, 1]], torch.ones(3, 2, dtype=torch.long)], dim=1)
        body(input_ids=torch.tensor([[5, 6]] * 3), attention_mask=mask, past_key_values=view, use_cache=True)
    for layer, seen, (keys, values, length) in zip(cache.layers, view.layers, before, strict=True):
        assert layer.keys is keys and seen.keys is keys
        assert torch.equal(keys, values)
        assert layer.get_seq_length() == length


def test_training_mode_with_gradient_checkpointing_is_refused() -> None:
    body, batch = tiny_body("qwen3"), batch_of("one prompt")
    body.gradient_checkpointing_enable()
    body.train()
    with pytest.raises(HostError, match=r"in training mode.*\. Put the model in eval mode, or score without"):
        hidden_behind_prefixes(body, *batch, planned(batch))
    body.eval()
    assert_like_plain(
        hidden_behind_prefixes(body, *batch, planned(batch)), plain_hidden(body, *batch).detach(), batch[3], 1e-5
    )


class Refusing(nn.Module):
    """A body that no refused call may reach."""

    def forward(self, **_: Any) -> None:
        raise AssertionError("the model was called")


def test_bad_input_is_refused_before_the_model_runs() -> None:
    batch = batch_of("one prompt")
    prompt_ids, prompt_mask, completion_ids, completion_mask = batch
    plan, body = planned(batch), Refusing()
    with pytest.raises(ConfigError, match="`rows_at_once` must be at least 1, or None for all rows, got 0"):
        hidden_behind_prefixes(body, *batch, plan, rows_at_once=0)
    with pytest.raises(DataError, match="the plan is one of 4 rows, but 2 were given"):
        hidden_behind_prefixes(body, *(tensor[:2] for tensor in batch), plan)
    for run in (
        lambda *inputs: plain_hidden(body, *inputs),
        lambda *inputs: hidden_behind_prefixes(body, *inputs, plan),
    ):
        with pytest.raises(DataError, match="there are 4 prompts, but 3 completions"):
            run(prompt_ids, prompt_mask, completion_ids[:3], completion_mask[:3])
        with pytest.raises(DataError, match=r"got \[4, 6\] and \[4, 5\]"):
            run(prompt_ids, prompt_mask, completion_ids, completion_mask[:, 1:])
        with pytest.raises(DataError, match="Pad prompts on the left"):
            run(prompt_ids.flip(1), prompt_mask.flip(1), completion_ids, completion_mask)


@pytest.mark.parametrize("change", ["longer completions", "shorter prompts"])
def test_plan_of_another_batch_is_refused(change: str) -> None:
    batch = batch_of("one prompt")
    plan = planned(batch)
    if change == "longer completions":
        other = (*batch[:3], torch.ones_like(batch[3]))
    else:
        other = (*padded([[5, 6]] * 4, "left"), *batch[2:])
    with pytest.raises(DataError, match="the plan does not fit these prompts and completions"):
        hidden_behind_prefixes(Refusing(), *other, plan)

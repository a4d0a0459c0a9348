"""The contract kit accepts what keeps the contracts, ours first of all, and says what is wrong with what does not."""

import dataclasses
import sys
from pathlib import Path

import pytest
import torch

from sdpo_plugins import (
    Divergence,
    Reprompter,
    Scorer,
    SDPOConfig,
    Selector,
    TeacherContext,
    TeacherContexts,
    TeacherStrategy,
    builtin,
    hookimpl,
)
from sdpo_plugins.plugins import catalogue
from sdpo_plugins.teacher import Teacher
from sdpo_plugins.teacher.strategies import Ema, Frozen
from sdpo_plugins.testing import (
    check_divergence,
    check_plugin,
    check_reprompter,
    check_scorer,
    check_selector,
    check_teacher,
)
from sdpo_plugins.types import Score


@pytest.mark.parametrize("alpha", [0.0, 0.1, 0.5, 1.0])
def test_our_generalized_jsd_at(alpha):
    check_divergence(catalogue("divergence")["generalized_jsd"], config=SDPOConfig(alpha=alpha))


@pytest.mark.parametrize("name", catalogue("divergence"))
def test_our_divergences(name):
    check_divergence(catalogue("divergence")[name])


@pytest.mark.parametrize("name", catalogue("selector"))
def test_our_selectors(name):
    check_selector(catalogue("selector")[name])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"include_environment_feedback": False},
        {"selector": "none"},
        {"dont_reprompt_on_self_success": False, "environment_feedback_only_without_solution": False},
        {"thinking_removal": "strict", "remove_thinking_from_demonstration": True},
    ],
)
def test_our_reprompter(options):
    check_reprompter(catalogue("reprompter")["template"], config=SDPOConfig(**options))


@pytest.mark.parametrize("name", catalogue("teacher"))
@pytest.mark.parametrize("options", [{}, {"teacher_update_every": 3, "teacher_update_unit": "optimizer_step"}])
def test_our_teachers(name, options):
    check_teacher(catalogue("teacher")[name], config=SDPOConfig(**options))


def test_our_plugin_as_a_whole():
    check_plugin(builtin)


def test_the_example_plugin(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "example_plugin")
    import sdpo_renyi

    for order in (0.5, 2.0):
        check_plugin(sdpo_renyi, options={"renyi": {"order": order}})
    sys.modules.pop("sdpo_renyi")


# What each check must catch


def kl(student, teacher):
    # The plain formula with −inf made harmless, to be broken below in one way each.
    student, teacher = student.clamp(min=-1e4), teacher.clamp(min=-1e4)
    if student.dtype in (torch.float16, torch.bfloat16):
        student, teacher = student.float(), teacher.float()
    return (teacher.exp() * (teacher - student)).sum(-1)


def in_place(student, teacher):
    with torch.no_grad():
        teacher.add_(0.1)
    return kl(student, teacher)


calls = iter(range(10**9))

BROKEN_DIVERGENCES = {
    "must sum over the last dimension": lambda s, t: kl(s, t).sum(),
    "must return a tensor": lambda s, t: 0.0,
    "changed its inputs": in_place,
    "must give torch.float32 for inputs of torch.float32": lambda s, t: kl(s, t).double(),
    "must not be negative": lambda s, t: -kl(s, t),
    "must be zero where student and teacher are equal": lambda s, t: kl(s, t) + 0.1,
    "must tell different distributions apart": lambda s, t: kl(s, t) * 0.0,
    "gave different results": lambda s, t: kl(s, t) * (1.0 + 1e-3 * next(calls)),
    "mixes tokens": lambda s, t: kl(s, t) + (kl(s, t) - kl(s, t).mean()).abs() * 0.1 if s.numel() else kl(s, t),
    "must be differentiable": lambda s, t: kl(s.detach(), t),
    "differs from finite differences": lambda s, t: kl(s, t).detach() + 2.0 * (kl(s, t) - kl(s, t).detach()),
    "is NaN where a log-probability is −inf": lambda s, t: (t.exp() * (t - s)).sum(-1).to(kl(s, t).dtype),
    "the gradient there is": lambda s, t: kl(s, t).clamp(min=0.0).sqrt(),
}


@pytest.mark.parametrize("message", BROKEN_DIVERGENCES)
def test_broken_divergences(message):
    function = BROKEN_DIVERGENCES[message]
    with pytest.raises(AssertionError, match="the divergence 'broken'") as caught:
        check_divergence(Divergence("broken", "", lambda config, options: function))
    assert message in str(caught.value)


def test_the_formula_they_are_broken_from_is_right():
    check_divergence(Divergence("kl", "", lambda config, options: kl))


def greedy(index, candidates, rollouts):
    return list(candidates).pop()


def clearing(index, candidates, rollouts):
    if isinstance(candidates, list):
        candidates.clear()
        return None
    return candidates[0]


def renaming(index, candidates, rollouts):
    rollouts[0] = dataclasses.replace(rollouts[0], response="changed")
    return candidates[0]


BROKEN_SELECTORS = {
    "must return one of the candidates": lambda index, candidates, rollouts: index,
    "changed its candidates": clearing,
    "changed the rollouts": renaming,
    "must choose the same again": lambda index, candidates, rollouts: candidates[next(calls) % len(candidates)],
}


@pytest.mark.parametrize("message", BROKEN_SELECTORS)
def test_broken_selectors(message):
    with pytest.raises(AssertionError, match="the selector 'broken'") as caught:
        check_selector(Selector("broken", "", lambda config, options: BROKEN_SELECTORS[message]))
    assert message in str(caught.value)


def contexts(rollouts, change=lambda row, context: context):
    made = []
    for row, rollout in enumerate(rollouts):
        prompt = rollout.prompt if isinstance(rollout.prompt, str) else [dict(m) for m in rollout.prompt]
        made.append(change(row, TeacherContext(prompt, active=False)))
    return TeacherContexts(tuple(made), {})


def at_row(row, **changes):
    def change(index, context):
        return dataclasses.replace(context, **changes) if index == row else context

    return lambda rollouts: contexts(rollouts, change)


BROKEN_REPROMPTERS = {
    "must return TeacherContexts": lambda rollouts: [],
    "must give one context for each": lambda rollouts: TeacherContexts((), {}),
    "must be a string like its prompt": at_row(5, messages=[{"role": "user", "content": "1+1="}]),
    "must be a list of messages": at_row(0, messages="What is 2+2?"),
    "must end in a user's or a tool's message": at_row(
        0, messages=[{"role": "assistant", "content": "4"}], active=True
    ),
    "must copy the prompt's messages": lambda rollouts: TeacherContexts(
        tuple(TeacherContext(rollout.prompt, active=False) for rollout in rollouts), {}
    ),
    "is padding and must be inactive": at_row(8, active=True),
    "must keep its own prompt": at_row(0, messages=[{"role": "user", "content": "other"}]),
    "cannot have a demonstration": at_row(0, demonstration_index=3),
    "demonstration for another question": at_row(0, active=True, demonstration_index=5),
    "outside of the batch": at_row(0, active=True, demonstration_index=99),
    "padding row as its demonstration": at_row(0, active=True, demonstration_index=8),
    "metrics as finite numbers": lambda rollouts: TeacherContexts(contexts(rollouts).contexts, {"x": float("nan")}),
}


@pytest.mark.parametrize("message", BROKEN_REPROMPTERS)
def test_broken_reprompters(message):
    with pytest.raises(AssertionError, match="the reprompter 'broken'") as caught:
        check_reprompter(Reprompter("broken", "", lambda config, options: BROKEN_REPROMPTERS[message]))
    assert message in str(caught.value)


def test_the_contexts_they_are_broken_from_are_right():
    check_reprompter(Reprompter("inactive", "", lambda config, options: contexts))


class StartsAtZero(Ema):
    def start(self, tensors):
        super().start(tensors)
        self._held = {name: torch.zeros_like(value) for name, value in self._held.items()}


class ChangesTheStudent(Ema):
    def update(self, tensors, *, reduce=None):
        for value in tensors.values():
            value.add_(1e-3)
        return super().update(tensors, reduce=reduce)


class Forgets(Ema):
    def state_dict(self):
        state = super().state_dict()
        return {**state, "tensors": {name: torch.zeros_like(value) for name, value in state["tensors"].items()}}


class NeverDue(Frozen):
    def due(self, rollout_batches, optimizer_steps):
        return False


class WithGradient(Frozen):
    def score(self, forward, tensors):
        return forward()


BROKEN_TEACHERS = {
    "must equal the student right after `start`": StartsAtZero,
    "changed the student's": ChangesTheStudent,
    "gives other logits after a checkpoint": Forgets,
    "must be due after": NeverDue,
    "must give logits without gradient": WithGradient,
}


@pytest.mark.parametrize("message", BROKEN_TEACHERS)
def test_broken_teachers(message):
    made = BROKEN_TEACHERS[message]
    strategy = TeacherStrategy("broken", "", lambda config, options: made(0.05, "rollout_batch", 1))
    with pytest.raises(AssertionError, match="the teacher 'broken'") as caught:
        check_teacher(strategy)
    assert message in str(caught.value)


def test_a_teacher_without_methods_and_a_shared_one():
    with pytest.raises(AssertionError, match="lacks the methods check_model, start, due"):
        check_teacher(TeacherStrategy("broken", "", lambda config, options: object()))
    shared = Teacher(0.05, "rollout_batch", 1)
    with pytest.raises(AssertionError, match="built afresh for each run"):
        check_teacher(TeacherStrategy("broken", "", lambda config, options: shared))


def scorer(function):
    return Scorer("broken", "", lambda config, options: function)


BROKEN_SCORERS = {
    "must return a Score": lambda text, row: 1.0,
    "must give a finite reward": lambda text, row: Score(float("nan")),
    "must give feedback as a text": lambda text, row: Score(0.0, feedback=["no"]),
    "raised ValueError": lambda text, row: Score(float(text)),
    "changed its sample": lambda text, row: row.update(seen=True) or Score(0.0),
    "differently the second time": lambda text, row: Score(float(next(calls))),
    "no more (0.0) than an empty one": lambda text, row: Score(0.0),
}


@pytest.mark.parametrize("message", BROKEN_SCORERS)
def test_broken_scorers(message):
    with pytest.raises(AssertionError, match="the scorer 'broken'") as caught:
        check_scorer(scorer(BROKEN_SCORERS[message]), [{"answer": "4"}], correct=["4"])
    assert message in str(caught.value)


def test_a_good_scorer():
    check_scorer(scorer(lambda text, row: Score(float(text == row["answer"]), "No.")), [{"answer": "4"}], correct=["4"])


def test_a_plugin_with_a_broken_strategy_or_hook():
    class Broken:
        @hookimpl
        def sdpo_selectors(self):
            return [Selector("mine", "", lambda config, options: lambda index, candidates, rollouts: -1)]

    with pytest.raises(AssertionError, match="the selector 'mine' must return one of the candidates"):
        check_plugin(Broken())

    class Misspelt:
        @hookimpl
        def sdpo_selector(self):
            return []

    with pytest.raises(AssertionError, match="Did you mean 'sdpo_selectors'"):
        check_plugin(Misspelt())

    class Picky:
        @hookimpl
        def sdpo_validate(self):
            return ["I do not like it."]

    with pytest.raises(AssertionError, match="objects even to the default configuration"):
        check_plugin(Picky())

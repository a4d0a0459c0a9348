"""Token values of recorded rows: the model's own distributions, beside a loss that they leave alone."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from sdpo_plugins import SDPOConfig
from sdpo_plugins.causal_lm import needed_split
from sdpo_plugins.embedded import checkpoint_path
from sdpo_plugins.losses import LMHead, per_token_losses
from sdpo_plugins.plugins import resolve
from sdpo_plugins.records import NOT_RECORDED, token_line
from sdpo_plugins.records.capture import Watch, logits_at, logits_from_hidden, watch_tokens
from sdpo_plugins.teacher import local_tensors
from sdpo_plugins.token_pass import ChosenTokens, TeacherStates, student_loss

WIDTH, VOCABULARY = 12, 40


def flat(logits):
    """Logits [M, V] as whole logits of one row."""
    return logits_at(logits.unsqueeze(0), torch.zeros(len(logits), dtype=torch.long), torch.arange(len(logits)), 1.0)


def _case(seed=0):
    """Two rows of five tokens; the third of row 0 is a tool's, row 1 begins at its second token."""
    make = torch.Generator().manual_seed(seed)
    row = torch.tensor([0, 0, 0, 0, 1, 1, 1])
    position = torch.tensor([0, 1, 3, 4, 1, 2, 3])
    hidden = [torch.randn(7, WIDTH, generator=make) for _ in range(3)]
    heads = [torch.randn(VOCABULARY, WIDTH, generator=make) for _ in range(3)]
    ids = torch.randint(VOCABULARY, (2, 5), generator=make)
    return row, position, hidden, [LMHead(head) for head in heads], ids


def _expected(logits, tau):
    return (logits / tau).log_softmax(-1)


@pytest.mark.parametrize("tau", [1.0, 0.7])
@pytest.mark.parametrize("recorded", [[5, NOT_RECORDED], [NOT_RECORDED, 9], [5, 9]])
def test_values_are_those_of_the_whole_distributions(recorded, tau):
    row, position, hidden, heads, ids = _case()
    shares = [0.25, 0.75]
    divergence = torch.rand(7)
    watch = Watch(torch.tensor(recorded), ids, alternatives=3, limit=99)
    own = logits_from_hidden(hidden[:1], heads[:1], [1.0], tau)
    watch_tokens(watch, row, position, divergence, own, logits_from_hidden(hidden[1:], heads[1:], shares, tau))
    assert watch.wanted
    assert [values.id for values in watch.found] == [one for one in recorded if one != NOT_RECORDED]
    student = _expected(hidden[0] @ heads[0].weight.t(), tau)
    mixed = sum(
        share * (part @ head.weight.t()) for share, part, head in zip(shares, hidden[1:], heads[1:], strict=True)
    )
    teacher = _expected(mixed, tau)
    for values in watch.found:
        at = recorded.index(values.id)
        index = (row == at).nonzero().squeeze(1).tolist()
        first = int(position[index[0]])
        length = int(position[index[-1]]) - first + 1
        assert values.length == length
        assert values.ids == ids[at, first : first + length].tolist()
        assert values.mask == [int(first + column in position[index].tolist()) for column in range(length)]
        for one in index:
            column = int(position[one]) - first
            token = values.ids[column]
            assert values.student[column] == pytest.approx(float(student[one, token]), abs=1e-5)
            assert values.teacher[column] == pytest.approx(float(teacher[one, token]), abs=1e-5)
            assert values.divergence[column] == pytest.approx(float(divergence[one]), abs=1e-6)
            entropy = -(student[one].exp() * student[one]).sum()
            assert values.entropy[column] == pytest.approx(float(entropy), abs=1e-5)
            for top, whole in ((values.student_top, student), (values.teacher_top, teacher)):
                best = whole[one].topk(3)
                assert [token for token, _ in top[column]] == best.indices.tolist()
                assert [value for _, value in top[column]] == pytest.approx(best.values.tolist(), abs=1e-5)
        masked = [column for column in range(length) if not values.mask[column]]
        for column in masked:
            assert values.student[column] is values.teacher[column] is values.student_top[column] is None


def test_long_answers_are_cut_and_their_length_is_kept():
    row, position, hidden, heads, ids = _case()
    watch = Watch(torch.tensor([4, NOT_RECORDED]), ids, alternatives=2, limit=2)
    both = flat(hidden[0] @ heads[0].weight.t())
    watch_tokens(watch, row, position, torch.zeros(7), both, both)
    (values,) = watch.found
    assert (values.length, len(values.ids), len(values.student), values.mask) == (5, 2, 2, [1, 1])


def test_rows_without_distilled_tokens_are_left_out():
    row, position, hidden, heads, ids = _case()
    watch = Watch(torch.tensor([1, 2]), ids, alternatives=0, limit=9)
    only = row == 1
    rows = flat((hidden[0] @ heads[0].weight.t())[only])
    watch_tokens(watch, row[only], position[only], torch.zeros(3), rows, rows)
    assert [values.id for values in watch.found] == [2]
    assert watch.found[0].student_top[0] == []


def test_a_masked_vocabulary_has_a_finite_entropy():
    logits = torch.zeros(1, 4)
    logits[0, 2:] = -torch.inf
    watch = Watch(torch.tensor([0]), torch.tensor([[1]]), alternatives=4, limit=9)
    rows = flat(logits)
    watch_tokens(watch, torch.tensor([0]), torch.tensor([0]), torch.zeros(1), rows, rows)
    assert watch.found[0].entropy == pytest.approx([0.6931472])


def test_a_line_names_every_token_it_uses():
    row, position, hidden, heads, ids = _case()
    watch = Watch(torch.tensor([7, NOT_RECORDED]), ids, alternatives=5, limit=9)
    both = flat((hidden[0] @ heads[0].weight.t())[:4])
    watch_tokens(watch, row, position, torch.zeros(7), both, both)
    values = watch.found[0]
    line = token_line(values, 3, {token: f"t{token}" for token in range(VOCABULARY)})
    used = {str(token) for top in line["student_top"] if top for token, _ in top} | {
        str(token) for token in line["ids"]
    }
    assert set(line["pieces"]) == used
    assert line["student_top"][2] is None
    assert (line["kind"], line["step"], line["id"], line["length"]) == ("tokens", 3, 7, 5)


def _pass(config, watch):
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_pretrained(checkpoint_path())
    split = needed_split(model, "a test")
    strategies = resolve(config)
    strategies.teacher.start(local_tensors(model))
    width = split.head().weight.shape[1]
    row, position = torch.tensor([0, 0, 1, 1, 1]), torch.tensor([0, 1, 0, 1, 2])
    ids = torch.randint(split.head().weight.shape[0], (2, 3))
    states = torch.randn(5, width, requires_grad=True)
    passes = len(strategies.teacher.passes)
    scored = TeacherStates([split.head().detached()] * passes, [torch.randn(5, width) for _ in range(passes)])
    tokens = ChosenTokens(ids[row, position], row, position, ids.shape, torch.full((5,), 0.2))
    if watch is not None:
        watch.ids = ids
    loss, found = student_loss(
        split, states, tokens, strategies.teacher, scored, config, strategies.divergence, temperature=0.8, watch=watch
    )
    loss.backward()
    gradients = {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}
    return loss.detach(), states.grad, gradients, found, (split, states, scored, tokens, strategies)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"distillation_topk": 8, "distillation_add_tail": False},
        {"distillation_topk": None},
        {"alpha": 1.0, "full_logit_distillation": False},
        {"teacher": "trust_region"},
    ],
    ids=["tail", "renormalised", "full", "sampled", "two passes"],
)
def test_a_watched_pass_is_the_pass_and_tells_its_values(options):
    config = SDPOConfig(**{"distillation_topk": 8, **options})
    watch = Watch(torch.tensor([NOT_RECORDED, 11]), torch.zeros(2, 3), alternatives=4, limit=99)
    plain = _pass(config, None)
    watched = _pass(config, watch)
    assert torch.equal(plain[0], watched[0])
    assert torch.equal(plain[1], watched[1])
    assert plain[2].keys() == watched[2].keys()
    assert all(torch.equal(plain[2][name], watched[2][name]) for name in plain[2])
    (values,) = watch.found
    split, states, scored, tokens, strategies = watched[4]
    weight = split.head().weight.detach()
    shares = [item.share for item in strategies.teacher.passes]
    student = states.detach()[2:] @ weight.t()
    teacher = sum(share * (part[2:] @ weight.t()) for share, part in zip(shares, scored.hidden, strict=True))
    losses = per_token_losses(student, teacher, tokens.ids[2:], config, temperature=0.8)
    assert values.divergence == pytest.approx(losses.divergence.tolist(), abs=1e-5)
    assert values.student == pytest.approx(losses.student_log_probs.tolist(), abs=1e-5)
    expected = _expected(teacher, 0.8).gather(-1, tokens.ids[2:, None]).squeeze(-1)
    assert values.teacher == pytest.approx(expected.tolist(), abs=1e-5)

"""Bad input to the fused loss: refused with what was wrong, what was given and what to do."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from fused_cases import MODES, draw, on
from sdpo_plugins.errors import ConfigError, DataError
from sdpo_plugins.losses import LinearTerm, LMHead, PolicyTerm, as_head, fused_row_losses, fused_self_distillation_loss

INF, NAN = float("inf"), float("nan")
CASE = draw(3, 4)


def run(mode="tail", *, config=None, **changes):
    names = ("hidden", "head", "teacher_hidden", "teacher_head", "token_ids")
    given = {**{name: getattr(CASE, name) for name in names}, "mask": torch.ones(3, 4), **changes}
    return fused_self_distillation_loss(
        *(given.pop(name) for name in (*names, "mask")), MODES[mode] if config is None else config, **given
    )


def rows(mode="tail", **changes):
    given = {
        "student_hidden": CASE.hidden.flatten(0, 1),
        "student_head": CASE.head,
        "teacher_hidden": CASE.teacher_hidden.flatten(0, 1),
        "teacher_head": CASE.teacher_head,
        "token_ids": CASE.token_ids.flatten(),
        "weights": torch.ones(12),
        "config": MODES[mode],
        **changes,
    }
    return fused_row_losses(**given)


def test_the_good_case_passes():
    assert torch.isfinite(run()[0]) and torch.isfinite(rows().loss)


@pytest.mark.parametrize(
    ("message", "changes"),
    [
        (r"`student_hidden` must have the shape \[3, 4, 'H'\].*got \[3, 3, 8\]", {"hidden": CASE.hidden[:, :3]}),
        (r"`student_hidden`.*got \[12, 8\]", {"hidden": CASE.hidden.flatten(0, 1)}),
        (r"`student_hidden`.*got \[\]", {"hidden": torch.tensor(0.0)}),
        (r"`teacher_hidden`.*\[3, 4, 'H'\].*got \[2, 4, 8\]", {"teacher_hidden": CASE.teacher_hidden[:2]}),
        (r"`student_hidden` must be float hidden states.*int64", {"hidden": CASE.hidden.long()}),
        (r"`student_hidden` has the width 7, but its head multiplies 8.*\[23, 8\]", {"hidden": CASE.hidden[..., :7]}),
        (r"`teacher_hidden` has the width 7, but its head", {"teacher_hidden": CASE.teacher_hidden[..., :7]}),
        (r"share one vocabulary, got heads of 23 and 22", {"teacher_head": CASE.teacher_weight[:22]}),
        (r"`response_mask` must have the shape \[3, 4\].*got \[3, 5\]", {"mask": torch.ones(3, 5)}),
        (r"`old_log_probs`.*\[3, 4\].*got \[4\]", {"old_log_probs": torch.zeros(4)}),
        (r"`rollout_is_weights`.*got \[3, 1\]", {"rollout_is_weights": torch.ones(3, 1)}),
        (r"`self_distillation_mask`.*\[3\].*got \[3, 4\]", {"self_distillation_mask": torch.ones(3, 4)}),
        (r"`advantages`.*\[3\].*got \[4\]", {"advantages": torch.ones(4), "config": on("tail", grpo_weight=0.5)}),
        (r"`token_ids` must be whole numbers, got torch.float64", {"token_ids": CASE.token_ids.double()}),
        (r"`token_ids` must lie in \[0, 23\).*from 23 to 23.*-100", {"token_ids": torch.full((3, 4), 23)}),
        (r"`token_ids` must lie in \[0, 23\).*from -100", {"token_ids": torch.full((3, 4), -100)}),
        (r"got 1, 1 and 2 \(`teacher_shares`\)", {"teacher_shares": (0.5, 0.5)}),
        (r"got 2, 2 and 1 \(`teacher_shares`\)", {"teacher_hidden": [CASE.teacher_hidden] * 2}),
        (r"got 0, 0 and 0", {"teacher_hidden": [], "teacher_shares": ()}),
        (
            r"`teacher_shares` must add up to 1, got \[0.5, 0.6\]",
            {"teacher_hidden": [CASE.teacher_hidden] * 2, "teacher_shares": (0.5, 0.6)},
        ),
    ],
)
def test_what_does_not_fit_is_refused(message, changes):
    with pytest.raises(DataError, match=message):
        run(**changes)


@pytest.mark.parametrize(
    ("message", "changes"),
    [
        (
            r"`student_hidden` must have one row for each of the 11 tokens, got 12",
            {"token_ids": CASE.token_ids[0, :1].expand(11)},
        ),
        (r"`token_ids` must be whole numbers, got torch.int64 of shape \[3, 4\]", {"token_ids": CASE.token_ids}),
        (r"`token_ids` must be whole numbers, got torch.int64 of shape \[\]", {"token_ids": torch.tensor(1)}),
        (r"`weights`.*\[12\].*got \[11\]", {"weights": torch.ones(11)}),
        (r"`weights` must be given where there is a teacher", {"weights": None}),
        (r"`old_log_probs`.*\[12\].*got \[3, 4\]", {"old_log_probs": torch.ones(3, 4)}),
        (r"`student_hidden` must be float hidden states", {"student_hidden": CASE.hidden}),
        (r"at most the 12 rows.*got 13", {"teacher_hidden": torch.zeros(13, 8).double(), "weights": torch.ones(13)}),
    ],
)
def test_rows_that_do_not_fit_are_refused(message, changes):
    with pytest.raises(DataError, match=message):
        rows(**changes)


def test_settings_that_cannot_be_used():
    for memory in (0, -1, NAN, INF):
        with pytest.raises(ConfigError, match="`chunk_memory_mb` must be a finite number greater than 0"):
            run(chunk_memory_mb=memory)
    wide = draw(1, 1, 70_000, 2)
    names = ("hidden", "head", "teacher_hidden", "teacher_head", "token_ids")
    with pytest.raises(ConfigError, match=r"`chunk_memory_mb=0.5` is too small.*Give at least \d.*default.*is 256"):
        run(mask=torch.ones(1, 1), chunk_memory_mb=0.5, **{name: getattr(wide, name) for name in names})
    for count in (0, -3):
        with pytest.raises(ConfigError, match=rf"`rows_per_chunk` must be.*at least 1, got {count}.*`chunk_memory_mb`"):
            run(rows_per_chunk=count)
    with pytest.raises(ConfigError, match="`temperature` must be a finite number greater than 0"):
        run(temperature=0.0)
    with pytest.raises(ConfigError, match="`loss_agg_mode` must be one of"):
        run(loss_agg_mode="mean")


def put(tensor, index, value):
    changed = tensor.detach().clone()
    changed[index] = value
    return changed.requires_grad_(tensor.requires_grad)


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("name", ["student_hidden", "teacher_hidden"])
@pytest.mark.parametrize("mode", MODES)
def test_hidden_states_that_are_not_finite_are_named(mode, name, value):
    """Behind a masked token and an inactive row, so that the place is not the place among the active tokens."""
    argument = name.removeprefix("student_")
    mask = torch.ones(3, 4)
    mask[2, 0] = 0
    with pytest.raises(DataError, match=rf"`{name}` must be finite, got {value} in row 2, position 1, entry 5 of 8"):
        run(
            mode,
            mask=mask,
            self_distillation_mask=torch.tensor([0, 1, 1]),
            rows_per_chunk=2,
            **{argument: put(getattr(CASE, argument), (2, 1, 5), value)},
        )


def test_the_second_pass_of_a_teacher_is_named_too():
    with pytest.raises(DataError, match=r"`teacher_hidden` must be finite, got nan in row 1, position 3, entry 0"):
        run(teacher_hidden=[CASE.teacher_hidden, put(CASE.teacher_hidden, (1, 3, 0), NAN)], teacher_shares=(0.9, 0.1))


@pytest.mark.parametrize("name", ["old_log_probs", "rollout_is_weights"])
def test_numbers_that_are_not_finite_are_named(name):
    with pytest.raises(DataError, match=rf"`{name}` must be finite at active tokens, got nan in row 0, position 2"):
        run(**{name: put(torch.ones(3, 4), (0, 2), NAN)})


def test_numbers_of_a_policy_term_are_named():
    config = on("tail", grpo_weight=0.5)
    with pytest.raises(DataError, match=r"`advantages` must be finite.*got inf in row 1, position 0"):
        run(advantages=torch.tensor([1.0, INF, 1.0]), config=config)
    # Row 0 has no teacher: its old log-probs are the policy term's alone.
    with pytest.raises(DataError, match=r"`old_log_probs` must be finite.*got nan in row 0, position 2"):
        run(
            advantages=torch.ones(3),
            config=config,
            old_log_probs=put(torch.zeros(3, 4), (0, 2), NAN),
            self_distillation_mask=torch.tensor([0, 1, 1]),
        )
    for term in (LinearTerm(put(torch.ones(12), 7, NAN)), PolicyTerm(put(torch.ones(12), 7, NAN), torch.ones(12))):
        with pytest.raises(DataError, match=r"`weights` must be finite.*got nan in row 7"):
            rows(terms=[term])


@pytest.mark.parametrize("mode", MODES)
def test_heads_that_are_not_finite_are_suspected(mode):
    for name, head in (
        ("head", put(CASE.weight, (0, 0), NAN)),
        ("teacher_head", put(CASE.teacher_weight, (slice(None), 1), NAN)),
    ):
        with pytest.raises(DataError, match=r"row 0, position 0 are not finite.*look for NaN or infinity in a head"):
            run(mode, **{name: head})


def test_a_divergence_of_the_wrong_shape_is_refused():
    for mode in ("tail", "renormalised", "full"):
        with pytest.raises(DataError, match=r"the result of the divergence"):
            run(mode, divergence=lambda student, teacher: student - teacher)


@pytest.mark.parametrize(
    ("message", "arguments"),
    [
        (r"float matrix \[V, H\], got \[4\]", (torch.ones(4),)),
        (r"float matrix \[V, H\], got \[4, 2\] of torch.int64", (torch.ones(4, 2).long(),)),
        (r"float matrix \[V, H\], got \[0, 2\]", (torch.ones(0, 2),)),
        (r"4 tokens must have the shape \[4\], got \[2\]", (torch.ones(4, 2), torch.ones(2))),
        (r"`scale` of a head.*got 0.0", (torch.ones(4, 2), None, 0.0)),
        (r"`soft_cap` of a head.*got nan", (torch.ones(4, 2), None, 1.0, NAN)),
    ],
)
def test_heads_that_are_none(message, arguments):
    with pytest.raises(DataError, match=message):
        LMHead(*arguments)


def test_modules_that_do_more_than_a_matrix():
    class Scaled(nn.Linear):
        def forward(self, hidden):
            return super().forward(hidden) * 2

    for value in (Scaled(8, 23), nn.Sequential(nn.Linear(8, 23)), None, "lm_head"):
        with pytest.raises(DataError, match=rf"`student_head` must be an LMHead.*got {type(value).__name__}\. Build"):
            run(head=value)
    with pytest.raises(DataError, match="`teacher_head` must be an LMHead"):
        run(teacher_head=nn.Identity())
    assert as_head(nn.Linear(8, 23)).vocabulary == 23


def test_a_head_that_zero_3_has_sharded():
    weight, bias = nn.Parameter(torch.ones(4, 2)), nn.Parameter(torch.ones(4))
    weight.ds_status = SimpleNamespace(name="NOT_AVAILABLE")
    with pytest.raises(DataError, match=r"the weight of the head is spread over ranks by ZeRO-3.*`loss_path: logits`"):
        as_head(weight)
    weight.ds_status = SimpleNamespace(name="AVAILABLE")
    assert as_head(weight).width == 2
    bias.ds_status = SimpleNamespace(name="INFLIGHT")
    with pytest.raises(DataError, match="the bias of the head is spread over ranks by ZeRO-3"):
        LMHead(weight, bias)


def test_a_head_that_fsdp_has_sharded(tmp_path):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        weight, bias = (distribute_tensor(value, mesh, [Shard(0)]) for value in (torch.ones(4, 2), torch.ones(4)))
        with pytest.raises(DataError, match=r"the weight of the head is a DTensor, one shard.*`loss_path: logits`"):
            run(head=weight)
        with pytest.raises(DataError, match="the bias of the head is a DTensor"):
            LMHead(torch.ones(4, 2), bias)
    finally:
        torch.distributed.destroy_process_group()

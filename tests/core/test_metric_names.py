"""The catalogue of metrics against what is really given: nothing uncatalogued, nothing catalogued that nobody gives."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

import pytest
import torch

from sdpo_plugins import Rollout, SDPOConfig
from sdpo_plugins.losses import fused_self_distillation_loss, self_distillation_loss
from sdpo_plugins.metric_names import HOSTS, METRICS, markdown_table, metric
from sdpo_plugins.reprompt import build_teacher_contexts, encode_contexts
from sdpo_plugins.step_metrics import SUMS, means_of_sums
from sdpo_plugins.teacher import Ema, local_tensors

ROOT = Path(__file__).resolve().parents[2]
# What only a running host gives; `in_sources` sees to it that the adapter still does.
OF_RUNNING_HOSTS = {
    "self_distillation/teacher_accuracy": "sdpo_trl/trainer.py",
    "kl": "sdpo_trl/metrics.py",
    "aux_loss": "sdpo_trl/metrics.py",
    "actor/kl_loss": "sdpo_verl/host_loss.py",
    "actor/kl_coef": "sdpo_verl/host_loss.py",
}


def names(where: str) -> set[str]:
    return {item.name for item in METRICS if where in item.where}


@functools.cache
def of_the_losses() -> set[str]:
    """Of both paths, with every option that adds a metric."""
    torch.manual_seed(0)
    hidden, other = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    head = torch.nn.Linear(4, 9, bias=False)
    ids, mask = torch.randint(9, (2, 3)), torch.ones(2, 3)
    more = {"old_log_probs": torch.full((2, 3), -2.0), "rollout_is_weights": torch.ones(2, 3)}
    found: set[str] = set()
    for config in (
        SDPOConfig(distillation_topk=4, is_clip=2.0, per_token_loss_clip=0.5),
        SDPOConfig(distillation_topk=None),
    ):
        _, metrics = self_distillation_loss(head(hidden), head(other), ids, mask, config, **more)
        found |= set(metrics)
        _, metrics = fused_self_distillation_loss(
            hidden, head.weight, other, head.weight, ids, mask, config, entropies=True, **more
        )
        found |= set(metrics)
    return found


def of_a_batch() -> set[str]:
    rollouts = [Rollout(0, "2+2?", "5", 0.0, "Wrong."), Rollout(0, "2+2?", "4", 1.0)]
    config = SDPOConfig(include_environment_feedback=True)
    contexts = build_teacher_contexts(rollouts, config)
    encoded = encode_contexts(contexts, None, config, render=lambda text: list(text.encode()))
    return {*contexts.metrics, *encoded.metrics}


def of_a_step() -> set[str]:
    return set(means_of_sums(dict.fromkeys(SUMS, 1.0) | {"gap_tokens": 2.0}))


def of_a_teacher() -> set[str]:
    tensors = local_tensors(torch.nn.Linear(2, 2))
    teacher = Ema(rate=0.5, unit="rollout_batch", every=1)
    teacher.start(tensors)
    return set(teacher.update(tensors))


def test_each_name_stands_once_with_its_words():
    assert len({item.name for item in METRICS}) == len(METRICS)
    for item in METRICS:
        assert item.meaning and item.unit and not item.meaning.endswith("."), item
        assert set(item.where) <= {*HOSTS, "loss"} and item.where, item


def test_the_loss_functions_give_what_is_catalogued():
    assert of_the_losses() == names("loss")


def test_every_host_gives_what_the_core_gives_it():
    everywhere = {item.name for item in METRICS if set(HOSTS) <= set(item.where)}
    assert of_a_batch() | of_a_step() | of_a_teacher() == everywhere


def test_nothing_is_catalogued_that_nobody_gives():
    given = of_the_losses() | of_a_batch() | of_a_step() | of_a_teacher() | set(OF_RUNNING_HOSTS)
    assert given == {item.name for item in METRICS}


@pytest.mark.parametrize("name", OF_RUNNING_HOSTS)
def test_adapters_still_give_what_only_they_do(name):
    tree = ast.parse((ROOT / "adapters" / OF_RUNNING_HOSTS[name]).read_text(encoding="utf-8"))
    written = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    assert name in written or name.removeprefix("actor/") in written


def test_every_name_in_the_sources_is_catalogued():
    known, found = {item.name for item in METRICS}, {}
    for path in sorted([*(ROOT / "sdpo_plugins").rglob("*.py"), *(ROOT / "adapters").rglob("*.py")]):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            name = str(node.value) if isinstance(node, ast.Constant) else ""
            if re.fullmatch(r"(self_distillation|teacher)/[a-z_]+", name) and name not in known:
                found[name] = str(path.relative_to(ROOT))
    assert found == {}


def test_the_table_shows_every_metric_in_cells_that_markdown_keeps_apart():
    rows = markdown_table().splitlines()
    assert len(rows) == len(METRICS) + 2
    for item, row in zip(METRICS, rows[2:], strict=True):
        cells = re.split(r"(?<!\\)\|", row)
        assert [cell.strip() for cell in cells[1:4]] == [f"`{item.name}`", item.meaning, item.unit] and len(cells) == 7


def test_an_entry_is_found_by_name():
    found = metric("teacher/distance")
    assert found is not None and found.where == HOSTS
    assert metric("loss") is None


@pytest.mark.slow
def test_a_run_in_trl_logs_what_is_catalogued(tmp_path):
    from transformers import AutoTokenizer

    from sdpo_plugins.embedded import checkpoint_path
    from sdpo_trl import SDPOTrainer
    from tiny_trl import digits_reward, questions, tiny_arguments, tiny_model

    trainer = SDPOTrainer(
        tiny_model(),
        reward_funcs=digits_reward,
        args=tiny_arguments(tmp_path, teacher_accuracy_every=1, include_environment_feedback=True),
        train_dataset=questions(),
        processing_class=AutoTokenizer.from_pretrained(checkpoint_path()),
    )
    trainer.train()
    logged = {name for entry in trainer.state.log_history for name in entry}
    ours = {name for name in logged if name.startswith(("self_distillation/", "teacher/")) or metric(name)}
    always = {item.name for item in METRICS if "trl" in item.where and not item.optional}
    assert always <= ours <= names("trl")
    assert {"self_distillation/teacher_accuracy", "self_distillation/gap_on_failure"} <= ours


@pytest.mark.slow
def test_what_trl_itself_would_name_has_trls_names():
    from sdpo_trl.metrics import step_metrics

    sums = {name: torch.tensor(1.0) for name in ("kl", "kl_tokens", "balance", "balance_batches")}
    found = step_metrics(sums, torch.device("cpu"), lambda local: local)
    assert {name for name in found if "/" not in name} == {"kl", "aux_loss"} <= names("trl")

"""The `lora_ema` teacher on a real PEFT adapter of a tiny real Qwen3: two adapters, one base."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import safe_open
from torch import Tensor, nn
from transformers import Qwen3Config, Qwen3ForCausalLM

from sdpo_plugins.errors import TeacherError
from sdpo_plugins.teacher import Ema, Frozen, LoraEma, Teacher, load_teacher, local_tensors, save_teacher

IDS = torch.tensor([[1, 5, 9, 2], [7, 7, 3, 0]])


def base(dtype: torch.dtype = torch.float32) -> Qwen3ForCausalLM:
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        tie_word_embeddings=True,
    )
    return Qwen3ForCausalLM(config).to(dtype).eval()


def adapted(dtype: torch.dtype = torch.float32, **options: object) -> PeftModel:
    model = base(dtype)
    config = LoraConfig(**{"r": 2, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], **options})
    return get_peft_model(model, config).eval()


def make(rate: float = 0.25) -> LoraEma:
    return LoraEma(rate, "rollout_batch", 1)


def train(model: nn.Module, steps: int = 2) -> None:
    """Real steps, through autograd and an optimizer."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05)
    for _ in range(steps):
        model(input_ids=IDS, labels=IDS).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def logits(model: nn.Module) -> Tensor:
    return model(input_ids=IDS).logits


def values(teacher: Teacher) -> dict[str, Tensor]:
    return teacher.state_dict()["tensors"]


def test_starts_as_an_exact_copy_of_a_trained_adapter() -> None:
    model = adapted()
    train(model)  # B is no longer zero: a teacher that starts at zero would be the base
    tensors = local_tensors(model)
    teacher = make()
    teacher.check_model(model)
    teacher.start(tensors)
    assert any(value.abs().sum() > 0 for name, value in values(teacher).items() if "lora_B" in name)
    assert torch.equal(teacher.score(lambda: logits(model), tensors), logits(model))
    with model.disable_adapter():
        without = logits(model)
    assert not torch.allclose(teacher_logits(teacher, model), without)


def teacher_logits(teacher: Teacher, model: nn.Module) -> Tensor:
    return teacher.score(lambda: logits(model), local_tensors(model))


def test_each_factor_is_averaged_by_itself() -> None:
    model = adapted()
    train(model)
    tensors = local_tensors(model)
    teacher = make(rate=0.25)
    teacher.start(tensors)
    first = {name: live.clone() for name, live in values(teacher).items()}
    train(model)
    before = logits(model).detach()
    metrics = teacher.update(tensors)
    for name, value in values(teacher).items():
        torch.testing.assert_close(value, 0.75 * first[name] + 0.25 * tensors[name])
    assert metrics["teacher/distance"] > 0
    scored = teacher.score(lambda: logits(model), tensors)
    assert not torch.allclose(scored, before)
    assert torch.equal(logits(model), before)

    # Not the EMA of the product: off by −r(1−r)·(B'−B)(A'−A), as the docstring says.
    factor = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.default.weight"
    old_a, old_b = first[factor.format("A")], first[factor.format("B")]
    new_a, new_b = tensors[factor.format("A")], tensors[factor.format("B")]
    product = values(teacher)[factor.format("B")] @ values(teacher)[factor.format("A")]
    of_products = 0.75 * old_b @ old_a + 0.25 * new_b @ new_a
    torch.testing.assert_close(product, of_products - 0.25 * 0.75 * (old_b - new_b) @ (old_a - new_a))
    assert not torch.allclose(product, of_products, rtol=1e-3)


def test_the_teacher_equals_a_model_with_its_adapter_loaded() -> None:
    """An independent oracle: another PeftModel into which the averaged factors are copied."""
    model = adapted()
    tensors = local_tensors(model)
    teacher = make(rate=0.5)
    teacher.start(tensors)
    train(model)
    teacher.update(tensors)
    oracle = adapted()
    missing, unexpected = oracle.load_state_dict(values(teacher), strict=False)
    assert unexpected == [] and not any("lora" in name for name in missing)
    assert torch.equal(teacher.score(lambda: logits(model), tensors), logits(oracle).detach())


def test_one_base_serves_both() -> None:
    model = adapted(torch.bfloat16)
    tensors = local_tensors(model)
    teacher = make()
    teacher.start(tensors)
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert values(teacher).keys() == trainable
    assert len(trainable) == 2 * 2 * 2  # layers × modules × factors
    held = sum(value.numel() for value in values(teacher).values())
    everything = sum(parameter.numel() for parameter in model.parameters())
    assert held == sum(p.numel() for p in model.parameters() if p.requires_grad) < everything / 10
    pointers = {name: p.data_ptr() for name, p in model.named_parameters() if not p.requires_grad}
    with teacher.applied(tensors):
        now = {name: p.data_ptr() for name, p in model.named_parameters() if not p.requires_grad}
    assert now == pointers
    assert list(model.peft_config) == ["default"]


def test_a_frozen_base_in_another_dtype() -> None:
    """The shape of QLoRA: a base in a narrow dtype, factors in float32."""
    model = adapted(torch.bfloat16)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.float()
    tensors = local_tensors(model)
    teacher = make()
    teacher.start(tensors)
    train(model)
    teacher.update(tensors)
    before = logits(model).detach()
    assert not torch.equal(teacher_logits(teacher, model), before)
    assert torch.equal(logits(model), before)


def test_a_resumed_run_equals_one_that_never_stopped(tmp_path: Path) -> None:
    model = adapted()
    tensors = local_tensors(model)
    teacher = make()
    teacher.start(tensors)
    train(model)
    teacher.update(tensors)
    model.save_pretrained(tmp_path / "adapter")
    save_teacher(teacher, tmp_path / "teacher")

    resumed = PeftModel.from_pretrained(base(), tmp_path / "adapter", is_trainable=True).eval()
    again = make()
    again.check_model(resumed)
    load_teacher(again, tmp_path / "teacher", local_tensors(resumed))
    assert torch.equal(teacher_logits(again, resumed), teacher_logits(teacher, model))
    for one, follower in ((model, teacher), (resumed, again)):
        train(one)
        follower.update(local_tensors(one))
    for name, value in values(teacher).items():
        assert torch.equal(value, values(again)[name]), name
    assert torch.equal(teacher_logits(again, resumed), teacher_logits(teacher, model))


def test_evaluation_before_training_then_training() -> None:
    model = adapted()
    tensors = local_tensors(model)
    teacher = make()
    assert torch.equal(teacher.score(lambda: logits(model), tensors), logits(model))
    assert not teacher.started
    teacher.start(tensors)
    train(model)
    teacher.update(tensors)
    assert not torch.equal(teacher.score(lambda: logits(model), tensors), logits(model))


def test_the_saved_adapter_is_the_students_alone(tmp_path: Path) -> None:
    model = adapted()
    tensors = local_tensors(model)
    teacher = make()
    teacher.start(tensors)
    train(model)
    teacher.update(tensors)
    model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "adapter_model.safetensors", "pt") as file:
        names = list(file.keys())
        for name in names:
            assert torch.equal(file.get_tensor(name), tensors[name.replace(".weight", ".default.weight")])
    assert len(names) == len(tensors) - len(tensors.buffers)
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == []


def test_whole_modules_that_peft_trains_are_averaged_with_the_adapter() -> None:
    model = adapted(modules_to_save=["lm_head"], target_modules=["q_proj"])
    tensors = local_tensors(model)
    teacher = make()
    teacher.check_model(model)
    teacher.start(tensors)
    saved = [name for name in values(teacher) if "modules_to_save" in name]
    assert saved == ["base_model.model.lm_head.modules_to_save.default.weight"]
    first = values(teacher)[saved[0]].clone()
    train(model)
    teacher.update(tensors)
    torch.testing.assert_close(values(teacher)[saved[0]], 0.75 * first + 0.25 * tensors[saved[0]])
    assert not torch.allclose(teacher_logits(teacher, model), logits(model))


@pytest.mark.parametrize(
    "options",
    [{"use_dora": True}, {"bias": "all"}, {"trainable_token_indices": [1, 5]}, {"target_modules": ["embed_tokens"]}],
)
def test_other_shapes_of_lora(options: dict[str, object]) -> None:
    model = adapted(**options)
    tensors = local_tensors(model)
    teacher = make()
    teacher.check_model(model)
    teacher.start(tensors)
    train(model)
    teacher.update(tensors)
    assert values(teacher).keys() == {name for name, p in model.named_parameters() if p.requires_grad}
    assert not torch.allclose(teacher_logits(teacher, model), logits(model))


def test_a_model_without_lora_is_refused_with_what_to_do() -> None:
    teacher = make()
    with pytest.raises(TeacherError, match=r"needs a model with trainable LoRA.*get_peft_model.*teacher='ema'"):
        teacher.check_model(base())
    with pytest.raises(TeacherError, match="needs a model with trainable LoRA"):
        teacher.start(local_tensors(base()))


def test_a_frozen_adapter_is_refused_with_what_to_do() -> None:
    model = adapted().requires_grad_(False)
    with pytest.raises(TeacherError, match="is_trainable=True"):
        make().check_model(model)


def test_a_base_that_is_trained_too_is_refused_with_what_to_do() -> None:
    model = adapted()
    model.base_model.model.model.norm.weight.requires_grad_(True)
    with pytest.raises(
        TeacherError, match=r"base's parameters are trained too: base_model\.model\.model\.norm\.weight"
    ):
        make().check_model(model)
    Ema(0.1, "rollout_batch", 1).check_model(model)


@pytest.mark.parametrize("kind", [LoraEma, Ema, Frozen])
def test_a_merged_adapter_is_refused(kind: type[Teacher]) -> None:
    model = adapted()
    model.merge_adapter()
    with pytest.raises(TeacherError, match=r"4 modules .* merged .*unmerge_adapter"):
        kind(0.1, "rollout_batch", 1).check_model(model)
    model.unmerge_adapter()
    kind(0.1, "rollout_batch", 1).check_model(model)


def test_an_adapter_of_another_rank_is_refused(tmp_path: Path) -> None:
    model = adapted()
    teacher = make()
    teacher.start(local_tensors(model))
    save_teacher(teacher, tmp_path)
    with pytest.raises(TeacherError, match=r"lora_A\.default\.weight \(teacher \[2, 16\], student \[3, 16\]\)"):
        load_teacher(make(), tmp_path, local_tensors(adapted(r=3)))

"""Vision-language models under SDPO: tiny real models and processors, pictures read by PIL, no torchvision."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from datasets import Dataset
from PIL import Image
from transformers import (
    AutoTokenizer,
    CLIPVisionConfig,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3Processor,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    ProcessorMixin,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLProcessor,
    Qwen3Config,
    SiglipVisionConfig,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from sdpo_plugins.embedded import checkpoint_path
from sdpo_plugins.errors import ConfigError
from sdpo_plugins.records import read_run
from tiny_trl import digits_reward
from watched_loss import Scripted, Spying, core_loss

TEMPLATE = """\
{%- for message in messages %}<|im_start|>{{ message.role }}
{% for part in message.content %}{% if part.type == "image" %}PICTURE{% else %}{{ part.text }}{% endif %}{% endfor -%}
<|im_end|>
{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""

TEXT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": True,
    "bos_token_id": None,
    "initializer_range": 0.3,
}


@dataclass(frozen=True)
class Family:
    """A model, its processor, the token that stands for a part of a picture, a picture's text, and what the model needs
    beside ids for one row of a batch."""

    model: Any
    processor: Any
    token: int
    picture: str
    inputs: Callable[[dict[str, Any], int, torch.Tensor], dict[str, torch.Tensor]]


def tokenizer_with(**tokens: str) -> Any:
    return AutoTokenizer.from_pretrained(checkpoint_path(), extra_special_tokens=tokens)


def text_of(tokenizer: Any) -> dict[str, Any]:
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    return {**TEXT, **ends, "vocab_size": len(tokenizer)}


def one_picture(batch: dict[str, Any], row: int) -> torch.Tensor:
    return batch["pixel_values"][row : row + 1].double()


def llava() -> Family:
    tokenizer = tokenizer_with(image_token="<image>")
    image = tokenizer.convert_tokens_to_ids("<image>")
    vision = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=32,
        patch_size=16,
        initializer_range=0.3,
    )
    model = LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=vision,
            text_config=Qwen3Config(**text_of(tokenizer)),
            image_token_id=image,
            image_seq_length=4,
            vision_feature_layer=-1,
            tie_word_embeddings=True,
        )
    )
    processor = LlavaProcessor(
        CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
        tokenizer,
        patch_size=16,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE.replace("PICTURE", "<image>"),
    )
    return Family(
        model, processor, image, "<image>" * 4, lambda batch, row, ids: {"pixel_values": one_picture(batch, row)}
    )


class PictureProcessor(Qwen2VLProcessor):
    """Qwen2-VL's without its part for videos, which needs torchvision."""

    def __init__(self, image_processor: Any, tokenizer: Any, chat_template: str | None = None) -> None:
        self.image_token, self.video_token = "<|image_pad|>", "<|video_pad|>"
        self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
        self.video_token_id = tokenizer.convert_tokens_to_ids(self.video_token)
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)


def qwen2_vl() -> Family:
    names = ("image_pad", "video_pad", "vision_start", "vision_end")
    tokenizer = tokenizer_with(**{name: f"<|{name}|>" for name in names})
    numbers = {name: tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in names}
    model = Qwen2VLForConditionalGeneration(
        Qwen2VLConfig(
            text_config={
                **text_of(tokenizer),
                "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]},
            },
            vision_config={
                "depth": 1,
                "embed_dim": 16,
                "hidden_size": 32,
                "num_heads": 2,
                "mlp_ratio": 2,
                "patch_size": 14,
                "initializer_range": 0.3,
            },
            image_token_id=numbers["image_pad"],
            video_token_id=numbers["video_pad"],
            vision_start_token_id=numbers["vision_start"],
            vision_end_token_id=numbers["vision_end"],
            tie_word_embeddings=True,
        )
    )
    processor = PictureProcessor(
        Qwen2VLImageProcessorPil(patch_size=14, merge_size=2, min_pixels=28 * 28, max_pixels=28 * 28 * 4),
        tokenizer,
        chat_template=TEMPLATE.replace("PICTURE", "<|vision_start|><|image_pad|><|vision_end|>"),
    )

    def inputs(batch: dict[str, Any], row: int, ids: torch.Tensor) -> dict[str, torch.Tensor]:
        grid = batch["image_grid_thw"]
        first, count = int(grid[:row].prod(dim=1).sum()), int(grid[row].prod())
        return {
            "pixel_values": batch["pixel_values"][first : first + count].double(),
            "image_grid_thw": grid[row : row + 1],
            "mm_token_type_ids": (ids == numbers["image_pad"]).long()[None],
        }

    return Family(model, processor, numbers["image_pad"], "<|vision_start|><|image_pad|>", inputs)


def gemma3() -> Family:
    tokenizer = tokenizer_with(boi_token="<start>", image_token="<soft>", eoi_token="<end>")
    image = tokenizer.convert_tokens_to_ids("<soft>")
    model = Gemma3ForConditionalGeneration(
        Gemma3Config(
            text_config={**text_of(tokenizer), "query_pre_attn_scalar": 16},
            vision_config=SiglipVisionConfig(
                hidden_size=16,
                intermediate_size=32,
                num_hidden_layers=1,
                num_attention_heads=2,
                image_size=32,
                patch_size=8,
                vision_use_head=False,
            ),
            mm_tokens_per_image=4,
            boi_token_index=tokenizer.boi_token_id,
            eoi_token_index=tokenizer.eoi_token_id,
            image_token_index=image,
            image_token_id=image,
            tie_word_embeddings=True,
        )
    )
    # Gemma starts this weight at zero, and pictures without effect.
    torch.nn.init.normal_(model.model.multi_modal_projector.mm_input_projection_weight)
    processor = Gemma3Processor(
        Gemma3ImageProcessorPil(size={"height": 32, "width": 32}),
        tokenizer,
        image_seq_length=4,
        chat_template=TEMPLATE.replace("PICTURE", "<start>"),
    )

    def inputs(batch: dict[str, Any], row: int, ids: torch.Tensor) -> dict[str, torch.Tensor]:
        return {
            "pixel_values": one_picture(batch, row),
            "token_type_ids": (ids == image).long()[None],
        }

    return Family(model, processor, image, "<soft>" * 4, inputs)


FAMILIES = {"llava": llava, "qwen2_vl": qwen2_vl, "gemma3": gemma3}


@pytest.fixture(params=list(FAMILIES))
def family(request: pytest.FixtureRequest) -> Family:
    torch.manual_seed(0)
    return FAMILIES[request.param]()


def pictures(count: int = 4) -> Dataset:
    """Pictures of different colours and, for the model that keeps them, sizes."""
    return Dataset.from_dict(
        {
            "prompt": [[{"role": "user", "content": f"What is on picture {index}?"}] for index in range(count)],
            "image": [Image.new("RGB", (28 + 28 * (index % 2), 32), (60 * index, 80, 9)) for index in range(count)],
        }
    )


def script(prompts: Sequence[str]) -> list[str]:
    return [("It is 31", "It is 9", "8", "I say 7")[row % 4] for row in range(len(prompts))]


def right(completions: Sequence[Any], **_: Any) -> list[float]:
    return [float("31" in re.sub(r"\W", " ", str(answer[0]["content"]))) for answer in completions]


def trained(make_trainer: Any, family: Family, cls: type = Scripted, **args: Any) -> Spying:
    more = {"script": script} if cls is Scripted else {}
    settings = {"max_steps": 1, "learning_rate": 0.0, "max_completion_length": 12, **args}
    trainer: Spying = make_trainer(
        family.model,
        args=settings,
        cls=cls,
        processing_class=family.processor,
        train_dataset=pictures(),
        reward_funcs=right if cls is Scripted else digits_reward,
        **more,
    )
    trainer.train()
    return trainer


def recomputed(trainer: Spying, family: Family) -> float:
    (batch,) = trainer.seen
    return float(core_loss(trainer, model_inputs=lambda row, ids: family.inputs(batch, row, ids)))


def test_the_teacher_sees_the_picture_and_the_loss_is_the_cores(make_trainer: Any, family: Family) -> None:
    trainer = trained(make_trainer, family)
    rows = trainer.rows()
    assert sum(row["active"] for row in rows) == 6
    for row in rows:
        assert family.picture in row["prompt"]
        question = row["prompt"].partition("<|im_end|>")[0]
        told = f"{question}\nCorrect solution:\n\nIt is 31\n\nCorrectly solve the original question."
        assert row["teacher"].startswith(told if row["active"] else row["prompt"])
        # Between student and teacher the picture has as many tokens.
        counts = [int((row[ids] == family.token).sum()) for ids in ("teacher_ids", "prompt_ids")]
        assert counts[0] == counts[1] > 0
    (batch,) = trainer.seen
    for name in ("token_type_ids", "mm_token_type_ids"):
        if name in batch:
            ids = torch.cat([batch["sdpo_prompt_ids"], batch["completion_ids"]], dim=1)
            assert torch.equal(batch[f"sdpo_{name}"], (ids == family.token).long())
    recorded = {rollout.id: rollout for rollout in read_run(trainer.args.output_dir).rollouts}
    assert len(recorded) == 4
    for mark, row in zip(batch["sdpo_record"].tolist(), rows, strict=True):
        if mark >= 0:
            rollout = recorded[mark]
            assert (rollout.tokens is not None) == row["active"]
            assert rollout.tokens is None or rollout.tokens["ids"] == row["answer_ids"].tolist()
            assert rollout.line["prompt"][0]["content"].startswith("[image]What is on picture")
    assert trainer.losses[0] == pytest.approx(recomputed(trainer, family), rel=5e-5)


def test_the_picture_matters(make_trainer: Any, family: Family) -> None:
    trainer = trained(make_trainer, family)
    loss = recomputed(trainer, family)
    trainer.seen[0]["pixel_values"] = trainer.seen[0]["pixel_values"].flip(0)
    assert abs(recomputed(trainer, family) - loss) > 1e-4 * loss


def test_two_real_steps_with_pictures_move_the_model(make_trainer: Any, family: Family) -> None:
    before = {name: value.clone() for name, value in family.model.named_parameters()}
    trainer = trained(
        make_trainer,
        family,
        cls=Spying,
        max_steps=2,
        learning_rate=1e-3,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        include_environment_feedback=True,
    )
    assert trainer.state.global_step == 2
    assert all(loss > 0 for loss in trainer.losses) and len(trainer.losses) == 4
    moved = {name for name, value in family.model.named_parameters() if not torch.equal(value, before[name])}
    assert any("vis" in name for name in moved)
    assert any("language" in name or "lm_head" in name for name in moved)


def test_prompts_too_long_for_the_teacher_keep_their_picture(make_trainer: Any, family: Family) -> None:
    """Rows that become inactive are scored along with the others, so a cut through their picture would end the run."""
    with pytest.warns(UserWarning, match="longer than `max_reprompt_len`"):
        trainer = trained(make_trainer, family, max_reprompt_len=8)
    rows = trainer.rows()
    assert not any(row["active"] for row in rows)
    assert all(row["teacher"] == row["prompt"] for row in rows)
    assert trainer.losses == [0.0]


def test_questions_without_pictures(make_trainer: Any, family: Family) -> None:
    trainer = make_trainer(
        family.model,
        args={"max_steps": 1, "learning_rate": 0.0, "max_completion_length": 12},
        cls=Scripted,
        script=script,
        processing_class=family.processor,
        train_dataset=pictures().remove_columns("image"),
        reward_funcs=right,
    )
    trainer.train()
    assert sum(row["active"] for row in trainer.rows()) == 6
    for row in trainer.rows():
        question = row["prompt"].partition("<|im_end|>")[0]
        assert "What is on picture" in question
        assert row["teacher"].startswith(f"{question}\nCorrect solution:" if row["active"] else "")
    assert trainer.losses[0] == pytest.approx(float(core_loss(trainer)), rel=5e-5)


def test_the_teachers_accuracy_is_refused(make_trainer: Any) -> None:
    with pytest.raises(ConfigError, match=r"teacher_accuracy_every=1.*vision-language"):
        trained(make_trainer, llava(), teacher_accuracy_every=1)

"""SDPO with Unsloth: four-bit weights, LoRA adapters, and an optimizer with eight-bit states.

python recipes/trl/sdpo_with_unsloth.py           Qwen2.5-0.5B-Instruct, on a CUDA GPU with Unsloth
python recipes/trl/sdpo_with_unsloth.py --tiny    the same run without Unsloth: the embedded model with PEFT, on a CPU
"""

import random
import re

from plumbing import command_line

arguments = command_line("Train adapters by Unsloth.", steps=60, tiny_steps=60, output="runs/sdpo_with_unsloth")
if arguments.tiny:
    print("--tiny: without Unsloth. The same trainer and settings, with PEFT's adapters on full-precision weights.")
else:
    try:
        from unsloth import FastLanguageModel, PatchFastRL
    except ImportError as error:
        raise SystemExit(
            f"This example needs Unsloth ({error}): `pip install unsloth` on a machine with a CUDA GPU, or run it "
            "with --tiny, which uses PEFT without Unsloth."
        ) from None
    PatchFastRL("GRPO", FastLanguageModel)  # patch first …

from datasets import Dataset  # noqa: E402
from plumbing import accuracy, housekeeping, load  # noqa: E402
from trl import GRPOConfig  # noqa: E402

from sdpo_plugins.embedded import load_task  # noqa: E402
from sdpo_trl import SDPOConfig, SDPOTrainer  # noqa: E402  … import second

RANK = 16
THINK = "Think inside <think> and </think>, then give the number alone."


class Correct:
    """A reward of 1 for the right number after the thinking; what was wrong is in `last_feedback`."""

    def __init__(self):
        self.last_feedback: list[str] = []

    def __call__(self, prompts, completions, truth, **kwargs) -> list[float]:
        scores = []
        self.last_feedback = []
        for completion, right in zip(completions, truth, strict=True):
            numbers = re.findall(r"\d+", completion[0]["content"].split("</think>")[-1])
            answer = numbers[-1] if numbers else "nothing"
            scores.append(float(answer == right))
            self.last_feedback.append("" if answer == right else f"Wrong. The answer is {right}, not {answer}.")
        return scores


def stories(count, seed):
    """Make word problems with two steps."""
    rng, rows = random.Random(seed), []
    for _ in range(count):
        boxes, each, given = rng.randint(2, 9), rng.randint(5, 12), rng.randint(1, 9)
        text = f"Mia has {boxes} boxes of {each} pencils and gives {given} pencils away. How many are left? {THINK}"
        rows.append({"prompt": [{"role": "user", "content": text}], "truth": str(boxes * each - given)})
    return rows


def model_with_adapters():
    """Load the model; Unsloth brings its own adapters, for PEFT's the trainer gets a configuration."""
    if arguments.tiny:
        from peft import LoraConfig

        adapters = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type="CAUSAL_LM")
        return *load(arguments), adapters
    model, tokenizer = FastLanguageModel.from_pretrained(arguments.model, max_seq_length=2048, load_in_4bit=True)
    model = FastLanguageModel.get_peft_model(model, r=RANK, lora_alpha=2 * RANK, random_state=arguments.seed)
    return model, tokenizer, None


def main():
    model, tokenizer, peft_config = model_with_adapters()
    sums = load_task("sums")
    train = sums.rows("train") if arguments.tiny else stories(256, seed=0)
    held_out = sums.rows("evaluation") if arguments.tiny else stories(32, seed=1)
    reward = Correct()

    settings = {
        "num_generations": 4,
        "max_completion_length": 256,
        "temperature": 0.7,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "learning_rate": 1e-4,
        "optim": "adamw_8bit",
    }
    if arguments.tiny:
        settings |= {
            "num_generations": 8,
            "max_completion_length": 6,
            "temperature": 1.0,
            "per_device_train_batch_size": 64,
            "gradient_accumulation_steps": 1,
            "learning_rate": 2e-3,
            "optim": "adamw_torch",  # eight-bit states come with bitsandbytes
        }
    grpo_config = GRPOConfig(**settings, **housekeeping(arguments))

    sdpo_config = SDPOConfig(
        enabled=not arguments.grpo,
        alpha=0.5,
        distillation_topk=100,
        teacher_mode="lora_ema",
        teacher_update_rate=0.05,
        include_environment_feedback=True,
        remove_thinking_from_demonstration=True,  # <think>…</think> of a demonstration is not for the teacher
    )

    trainer = SDPOTrainer(
        model=model,
        args=grpo_config,
        sdpo_config=sdpo_config,
        processing_class=tokenizer,
        reward_funcs=[reward],
        train_dataset=Dataset.from_list(train),
        peft_config=peft_config,
    )
    before = accuracy(trainer, reward, held_out, arguments.samples)
    trainer.train(resume_from_checkpoint=arguments.resume)
    after = accuracy(trainer, reward, held_out, arguments.samples)
    print(f"accuracy before {before:.1%}, after {trainer.state.global_step} steps {after:.1%}")
    trainer.save_model(arguments.output)


if __name__ == "__main__":
    main()

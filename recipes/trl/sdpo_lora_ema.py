"""SDPO with LoRA: one base model in memory, the student's adapter, and a teacher that is its moving average.

python recipes/trl/sdpo_lora_ema.py           Qwen2.5-0.5B-Instruct
python recipes/trl/sdpo_lora_ema.py --tiny    the embedded model, about a minute on a CPU
"""

import re

from datasets import Dataset
from peft import LoraConfig
from plumbing import accuracy, command_line, housekeeping, load
from trl import GRPOConfig

from sdpo_plugins.embedded import load_task
from sdpo_trl import SDPOConfig, SDPOTrainer


def reward_fn(prompts, completions, truth, **kwargs):
    """Score each completion, and say what was wrong: a list of mappings with `score` and `feedback`."""
    results = []
    for completion, right in zip(completions, truth, strict=True):
        numbers = re.findall(r"\d+", completion[0]["content"])
        answer = numbers[-1] if numbers else "nothing"
        wrong = f"Wrong. The answer is {right}, not {answer}."
        results.append({"score": float(answer == right), "feedback": None if answer == right else wrong})
    return results


def main():
    arguments = command_line("Train adapters on additions.", steps=100, tiny_steps=60, output="runs/sdpo_lora_ema")
    model, tokenizer = load(arguments)
    sums = load_task("sums")
    train, held_out = sums.rows("train"), sums.rows("evaluation")

    settings = {
        "num_generations": 4,
        "max_completion_length": 128,
        "temperature": 0.7,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "learning_rate": 1e-4,  # adapters take larger steps than whole models
    }
    if arguments.tiny:
        settings |= {
            "num_generations": 8,
            "max_completion_length": 6,
            "temperature": 1.0,
            "per_device_train_batch_size": 64,
            "gradient_accumulation_steps": 1,
            "learning_rate": 2e-3,
        }
    grpo_config = GRPOConfig(**settings, **housekeeping(arguments))

    sdpo_config = SDPOConfig(
        enabled=not arguments.grpo,
        alpha=0.5,
        distillation_topk=100,
        teacher_mode="lora_ema",  # starts as an exact copy of the student's adapter; the base is shared
        teacher_update_rate=0.05,  # teacher = 0.95 * teacher + 0.05 * student, in float32
        include_environment_feedback=True,
    )

    trainer = SDPOTrainer(
        model=model,
        args=grpo_config,
        sdpo_config=sdpo_config,
        processing_class=tokenizer,
        reward_funcs=[reward_fn],
        train_dataset=Dataset.from_list(train),
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    trainer.model.print_trainable_parameters()
    before = accuracy(trainer, reward_fn, held_out, arguments.samples)
    trainer.train(resume_from_checkpoint=arguments.resume)
    after = accuracy(trainer, reward_fn, held_out, arguments.samples)
    print(f"accuracy before {before:.1%}, after {trainer.state.global_step} steps {after:.1%}")
    trainer.save_model(arguments.output)  # the student's adapter alone


if __name__ == "__main__":
    main()

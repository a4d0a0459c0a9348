"""Minimal SDPO: additions, rewards 1 and 0, and a sentence about each wrong answer.

python recipes/trl/basic_sdpo.py           Qwen2.5-0.5B-Instruct
python recipes/trl/basic_sdpo.py --tiny    the embedded model, under a minute on a CPU
"""

import re

from datasets import Dataset
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
        if answer == right:
            results.append({"score": 1.0, "feedback": None})
        else:
            results.append({"score": 0.0, "feedback": f"Wrong. The answer is {right}, not {answer}."})
    return results


def main():
    arguments = command_line("Train on additions.", steps=100, tiny_steps=60, output="runs/basic_sdpo")
    model, tokenizer = load(arguments)
    # Rows with `prompt` (chat messages) and `truth`: "What is 23 + 45?", "68".
    sums = load_task("sums")
    train, held_out = sums.rows("train"), sums.rows("evaluation")

    settings = {
        "num_generations": 4,  # answers to each question
        "max_completion_length": 128,
        "temperature": 0.7,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "learning_rate": 1e-5,
    }
    if arguments.tiny:  # half a million parameters want another learning rate, and short answers are enough
        settings |= {
            "num_generations": 8,
            "max_completion_length": 6,
            "temperature": 1.0,
            "per_device_train_batch_size": 64,
            "gradient_accumulation_steps": 1,
            "learning_rate": 2e-4,
        }
    grpo_config = GRPOConfig(**settings, **housekeeping(arguments))

    sdpo_config = SDPOConfig(
        enabled=not arguments.grpo,  # SDPO's loss in the place of GRPO's
        alpha=0.5,  # Jensen-Shannon divergence
        distillation_topk=100,
        teacher_mode="ema",
        ema_tau=0.05,
        include_environment_feedback=True,  # the teacher reads the feedback
    )

    trainer = SDPOTrainer(
        model=model,
        args=grpo_config,
        sdpo_config=sdpo_config,
        processing_class=tokenizer,
        reward_funcs=[reward_fn],
        train_dataset=Dataset.from_list(train),
    )
    before = accuracy(trainer, reward_fn, held_out, arguments.samples)
    trainer.train(resume_from_checkpoint=arguments.resume)
    after = accuracy(trainer, reward_fn, held_out, arguments.samples)
    print(f"accuracy before {before:.1%}, after {trainer.state.global_step} steps {after:.1%}")
    trainer.save_model(arguments.output)


if __name__ == "__main__":
    main()

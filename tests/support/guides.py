"""The code of two guides that users bring: sdpo-trainer's README and that of sdpo-rl's examples.

As written there, but for the module of the import.
"""

__all__ = ["SDPO_RL_CONFIGS", "SDPO_RL_REWARD", "SDPO_TRAINER", "SDPO_TRAINER_CONFIG", "SDPO_TRAINER_REWARD"]

SDPO_TRAINER = """
from sdpo_trl import SDPOTrainer, SDPOConfig
from trl import GRPOConfig
from transformers import AutoModelForCausalLM, AutoTokenizer

# Load model
model = AutoModelForCausalLM.from_pretrained("Qwen/Qwen2.5-0.5B-Instruct")
tokenizer = AutoTokenizer.from_pretrained("Qwen/Qwen2.5-0.5B-Instruct")

# Configure GRPO (base trainer)
grpo_config = GRPOConfig(
    output_dir="./output",
    num_generations=4,
    max_completion_length=128,
    learning_rate=1e-5,
)

# Configure SDPO (self-distillation)
sdpo_config = SDPOConfig(
    enabled=True,
    alpha=0.5,
    distillation_topk=100,
    teacher_mode="ema",
    ema_tau=0.05,
)

# Define reward function
def reward_fn(prompts, completions, **kwargs):
    # Your evaluation logic here
    return [{"score": 1.0, "feedback": "Good!"} for _ in completions]

# Train!
trainer = SDPOTrainer(
    model=model,
    args=grpo_config,
    sdpo_config=sdpo_config,
    processing_class=tokenizer,
    reward_funcs=[reward_fn],
    train_dataset=your_dataset,
)

trainer.train()
"""

SDPO_TRAINER_REWARD = """
def reward_fn(prompts: list[str], completions: list[str], **kwargs) -> list[dict]:
    results = []
    for prompt, completion in zip(prompts, completions):
        # Your evaluation logic
        if is_correct(completion):
            score = 1.0
            feedback = "Correct!"
        else:
            score = 0.0
            feedback = f"Wrong. The answer is {correct_answer}."

        results.append({"score": score, "feedback": feedback})

    return results
"""

SDPO_TRAINER_CONFIG = """
sdpo_config = SDPOConfig(
    enabled=True,                   # Enable SDPO (replaces GRPO loss)
    alpha=0.5,                      # Generalized JSD balance (0.5 = symmetric)
    distillation_topk=100,          # Top-K logits for efficiency
    teacher_mode="ema",             # EMA teacher (alternatives: "copy", "fixed")
    ema_tau=0.05,                   # EMA update rate
    ema_update_every=1,             # Update teacher every N batches
    is_coef=0.0,                    # Importance sampling coefficient
    is_clip=2.0,                    # IS weight clipping threshold
    reprompt_teacher=True,          # Use peer demos as teacher input
    thinking_tag="<think>",         # Strip thinking tags from demos
)
"""

SDPO_RL_CONFIGS = """
from trl import GRPOConfig

grpo_config = GRPOConfig(
    output_dir="./output",
    num_generations=4,              # Completions per prompt
    max_completion_length=128,      # Max tokens per completion
    temperature=0.7,
    per_device_train_batch_size=4,
    gradient_accumulation_steps=2,
    learning_rate=1e-5,
    bf16=True,
    remove_unused_columns=False,    # Required for SDPO
)

from sdpo_trl import SDPOConfig

sdpo_config = SDPOConfig(
    enabled=True,                              # SDPO replaces GRPO loss
    alpha=0.5,                                 # JSD (symmetric). Paper default.
    distillation_topk=100,                     # Top-100 logits
    teacher_mode="ema",                        # EMA teacher
    teacher_update_rate=0.05,                  # teacher = 0.95*teacher + 0.05*student
    is_clip=2.0,                               # IS ratio clamp
    include_environment_feedback=True,         # Use feedback in teacher prompts
    environment_feedback_only_without_solution=True,  # Feedback only when no peer demo
    remove_thinking_from_demonstration=True,   # Strip <think> from demos
)
"""

SDPO_RL_REWARD = """
class MyReward:
    def __init__(self):
        self.last_feedback: list[str] = []

    def __call__(self, prompts, completions, **kwargs) -> list[float]:
        scores = []
        self.last_feedback = []
        for completion in completions:
            if is_correct(completion):
                scores.append(1.0)
                self.last_feedback.append("")
            else:
                scores.append(0.0)
                self.last_feedback.append(f"Wrong: {why}")
        return scores
"""

"""Code with test feedback: programs run in a sandbox, and the teacher reads which test failed and how.

python recipes/trl/sdpo_rich_feedback.py           Qwen2.5-0.5B-Instruct, twelve small problems
python recipes/trl/sdpo_rich_feedback.py --tiny    the embedded code model: functions that only failing tests explain
"""

import json

from datasets import Dataset
from plumbing import accuracy, command_line, housekeeping, load
from trl import GRPOConfig

from sdpo_plugins.embedded import load_task
from sdpo_plugins.feedback import BatchScorer
from sdpo_trl import SDPOConfig, SDPOTrainer

# Function, what it does, and tests: arguments and the right result.
PROBLEMS = [
    # lists
    ("total(numbers)", "returns the sum of a list of numbers", [(([1, 2, 3],), 6), (([],), 0), (([-4, 4, 9],), 9)]),
    ("unique(items)", "removes repeated items, keeping order", [(([1, 2, 1],), [1, 2]), (([],), []), (([3, 3],), [3])]),
    ("second_largest(numbers)", "returns the second largest distinct number", [(([1, 5, 3],), 3), (([7, 7, 2],), 2)]),
    # strings
    ("vowels(text)", "counts the vowels aeiou, in either case", [(("Hello",), 2), (("XYZ",), 0), (("AEIOU",), 5)]),
    ("initials(name)", "returns the initials in upper case", [(("ada lovelace",), "AL"), (("Alan M Turing",), "AMT")]),
    (
        "is_palindrome(text)",
        "ignores case and spaces",
        [(("Never odd or even",), True), (("abc",), False), (("",), True)],
    ),
    # conditionals
    ("sign(x)", "returns -1, 0 or 1", [((-8,), -1), ((0,), 0), ((3,), 1)]),
    ("leap(year)", "says whether a year is a leap year", [((2000,), True), ((1900,), False), ((2024,), True)]),
    ("grade(points)", "returns A from 90, B from 80, else C", [((95,), "A"), ((80,), "B"), ((79,), "C"), ((90,), "A")]),
    # loops
    ("factorial(n)", "returns n!", [((0,), 1), ((5,), 120), ((10,), 3628800)]),
    ("digits_sum(n)", "returns the sum of the decimal digits", [((0,), 0), ((507,), 12), ((99,), 18)]),
    ("collatz_steps(n)", "counts Collatz steps until 1 is reached", [((1,), 0), ((6,), 8), ((7,), 16)]),
]


def problem_rows():
    """Make rows of a dataset: `prompt`, and `ground_truth` with the tests as the scorer `code` reads them."""
    rows = []
    for function, text, tests in PROBLEMS:
        question = f"Write a Python function {function}. It {text}. Put your code inside a ```python ... ``` block."
        truth = {
            "testtype": "functional",
            "fn_name": function.partition("(")[0],
            "inputs": ["\n".join(map(json.dumps, arguments)) for arguments, _ in tests],  # an argument a line
            "outputs": [json.dumps(result) for _, result in tests],
        }
        rows.append({"prompt": [{"role": "user", "content": question}], "ground_truth": json.dumps(truth)})
    return rows


class TestResults:
    """A reward: 1 if a program passes all tests. What failed is in `last_feedback`, in the order of the completions.

    A program sees no network and no file of yours, has limits of time and memory, and never meets the right results.
    """

    def __init__(self):
        self.run_tests = BatchScorer("code")
        self.results = {}
        self.last_feedback: list[str] = []

    def __call__(self, prompts, completions, ground_truth, **kwargs) -> list[float]:
        answers = [completion[0]["content"] for completion in completions]
        tried = list(zip(answers, ground_truth, strict=True))
        new = [each for each in dict.fromkeys(tried) if each not in self.results]  # no program is run twice
        scores = self.run_tests([answer for answer, _ in new], [{"ground_truth": truth} for _, truth in new])
        self.results |= dict(zip(new, scores, strict=True))
        results = [self.results[each] for each in tried]
        self.last_feedback = [result.feedback or "" for result in results]
        return [result.reward for result in results]


def main():
    arguments = command_line("Train on programs.", steps=100, tiny_steps=40, output="runs/sdpo_rich_feedback")
    model, tokenizer = load(arguments, family="code")
    rows = load_task("programs").rows() if arguments.tiny else problem_rows()
    reward = TestResults()

    settings = {
        "num_generations": 4,
        "max_completion_length": 256,
        "temperature": 0.7,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "learning_rate": 1e-5,
    }
    if arguments.tiny:
        settings |= {
            "max_completion_length": 24,
            "temperature": 1.0,
            "per_device_train_batch_size": 64,
            "gradient_accumulation_steps": 1,
            "learning_rate": 3e-4 if arguments.grpo else 1e-3,  # the best of each
            "lr_scheduler_type": "constant",
        }
    grpo_config = GRPOConfig(**settings, **housekeeping(arguments))

    sdpo_config = SDPOConfig(
        enabled=not arguments.grpo,
        alpha=0.5,
        distillation_topk=100,
        # A tiny model's moving average forgets how to read feedback (docs/demo.md).
        teacher_mode="frozen" if arguments.tiny else "ema",
        teacher_update_rate=0.05,
        is_clip=2.0,
        include_environment_feedback=True,
        environment_feedback_only_without_solution=True,  # feedback where no program of the group is right
        remove_thinking_from_demonstration=True,
    )

    trainer = SDPOTrainer(
        model=model,
        args=grpo_config,
        sdpo_config=sdpo_config,
        processing_class=tokenizer,
        reward_funcs=[reward],
        train_dataset=Dataset.from_list(rows),
    )
    before = accuracy(trainer, reward, rows, arguments.samples)
    trainer.train(resume_from_checkpoint=arguments.resume)
    after = accuracy(trainer, reward, rows, arguments.samples)
    print(f"accuracy before {before:.1%}, after {trainer.state.global_step} steps {after:.1%}")
    trainer.save_model(arguments.output)


if __name__ == "__main__":
    main()

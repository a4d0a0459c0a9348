"""`python -m benchmarks.solve`: test-time self-distillation beside best-of-k on hard questions of the embedded model.

Questions are chosen by the untrained model alone: in the order of their names, those of which none of its answers is
right. What a run has done is kept, so that the command goes on where it was stopped.
"""

from __future__ import annotations

import json
import math
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.console import tell
from benchmarks.solve_tables import draw, table
from sdpo_plugins.embedded import checkpoint_path
from sdpo_plugins.embedded.grading import scored
from sdpo_plugins.embedded.programs import FUNCTION_NAMES, answer_of, true_formula
from sdpo_plugins.embedded.stale import former_formula, stale_question
from sdpo_plugins.solve import Question, SolveSettings
from sdpo_plugins.solve.results import write_atomically

__all__ = ["Measured", "app", "grade", "question_of", "settings_of"]

# The learning rate was chosen on the functions before these.
FIRST_NAME = 16
MAX_TOKENS = 24

app = typer.Typer(add_completion=False)


@dataclass(frozen=True)
class Measured:
    """What the untrained model does with a question.

    Args:
        name: The function's name.
        answers: How many were sampled.
        successes: Right ones.
        log_probability: log₁₀ of the probability that it writes just the right program.
    """

    name: str
    answers: int
    successes: int
    log_probability: float


def question_of(name: str) -> Question:
    """Return the hard question for a function."""
    question = stale_question(name)
    return Question(tuple(question.messages), {"ground_truth": question.truth})


def grade(completions: Sequence[Any], ground_truth: Sequence[str], **_: Any) -> list[dict[str, Any]]:
    """Score with the project's scorer `code`; a program is not run twice for the same tests."""
    results = [
        scored("code", truth, completion[0]["content"])
        for completion, truth in zip(completions, ground_truth, strict=True)
    ]
    return [{"score": score, "feedback": feedback} for score, feedback in results]


def settings_of(seed: int, budget: int, learning_rate: float) -> SolveSettings:
    """Return the settings of one run of the study."""
    return SolveSettings(
        budget=budget,
        learning_rate=learning_rate,
        max_completion_length=MAX_TOKENS,
        seed=seed,
        baseline="none",
        checkpoint_every=1000,
        options={"record": False, "use_cpu": True},
    )


def measure_base(name: str, answers: int, seed: int) -> Measured:
    """Let the untrained model answer a question many times.

    Args:
        name: The function's name.
        answers: How often.
        seed: Of the sampling.

    Returns:
        How often it was right, and the exact probability of the right program.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from sdpo_trl.embedded import sampled_answers

    place = checkpoint_path("code")
    tokenizer = AutoTokenizer.from_pretrained(place)
    model = AutoModelForCausalLM.from_pretrained(place).eval()
    question = stale_question(name)
    texts = Counter(
        sampled_answers(
            model, tokenizer, [question.messages] * answers, max_new_tokens=MAX_TOKENS, seed=seed, batch_size=512
        )
    )
    right = sum(count for text, count in texts.items() if scored("code", question.truth, text)[0] >= 1.0)
    prompt = tokenizer.apply_chat_template(question.messages, tokenize=False, add_generation_prompt=True)
    ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    answer = tokenizer(answer_of(name, true_formula(name).text) + tokenizer.eos_token, add_special_tokens=False)[
        "input_ids"
    ]
    with torch.no_grad():
        logp = model(torch.tensor([ids + answer])).logits[0, len(ids) - 1 : -1].log_softmax(-1)
    total = logp.gather(1, torch.tensor(answer)[:, None]).sum().item()
    return Measured(name, answers, right, total / math.log(10))


def choose(count: int, answers: int, seed: int, keep: Path) -> list[Measured]:
    """Measure questions in the order of their names until enough are hard.

    Args:
        count: How many hard ones are wanted.
        answers: Answers of the untrained model to each.
        seed: Of the sampling.
        keep: File of what was measured; read first.

    Returns:
        All that were measured.
    """
    found = [Measured(**each) for each in json.loads(keep.read_text())] if keep.exists() else []
    for name in FUNCTION_NAMES[FIRST_NAME + len(found) :]:
        if sum(each.successes == 0 for each in found) >= count:
            break
        found.append(measure_base(name, answers, seed))
        write_atomically(keep, json.dumps([asdict(each) for each in found], indent=2) + "\n")
        tell(f"{name}: {found[-1].successes} of {answers} answers of the untrained model are right")
    return found


@app.command()
def measure(
    questions: Annotated[int, typer.Option(min=1, help="Hard questions.")] = 6,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each.")] = 3,
    budget: Annotated[int, typer.Option(min=16, help="Answers of a run, a multiple of 16.")] = 320,
    answers: Annotated[int, typer.Option(min=1, help="Answers of the untrained model to each question.")] = 2048,
    learning_rate: Annotated[float, typer.Option(help="Of SDPO; all else is the preset paper_test_time.")] = 1e-3,
    output: Annotated[Path, typer.Option(help="Folder of runs, results.json and solve.png.")] = Path(
        "runs/bench-solve"
    ),
) -> None:
    """Compare SDPO at test time with best-of-k of the untrained model, at the same number of answers."""
    import torch

    from sdpo_trl.solve import solve

    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message="No rollout has succeeded")
    output.mkdir(parents=True, exist_ok=True)
    measured = choose(questions, answers, 0, output / f"base-{answers}.json")
    hard = [each for each in measured if each.successes == 0][:questions]
    place = str(checkpoint_path("code"))
    firsts: dict[str, list[int | None]] = {}
    for seed in range(seeds):
        for each in hard:
            outcome = solve(
                question_of(each.name),
                grade,
                settings_of(seed, budget, learning_rate),
                output / f"{each.name}-{seed}",
                place=place,
            )
            firsts.setdefault(each.name, []).append(outcome.sdpo.first_success)
            tell(f"{each.name}, seed {seed}: {outcome.sentences()[0]}")
        results: dict[str, Any] = {
            "budget": budget,
            "learning_rate": learning_rate,
            "measured": [asdict(one) for one in measured],
            "formulas": {one.name: [former_formula(one.name).text, true_formula(one.name).text] for one in hard},
            "first_success": firsts,
        }
        write_atomically(output / "results.json", json.dumps(results, indent=2) + "\n")
        print(table(results))
        draw(results, output / "solve.png")


if __name__ == "__main__":
    app()

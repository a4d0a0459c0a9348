"""Records of runs that never took place: consistent, seeded, with one kind of trouble on request.

Texts and contexts are the core's (`build_teacher_contexts`); log-probs are drawn, valid, and agree with one another.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from made_tokens import position, span_of, split
from sdpo_plugins.config import SDPOConfig
from sdpo_plugins.records import FORMAT, BoundedLines, TokenValues, record_id, rollout_line, token_line
from sdpo_plugins.reprompt import EncodedContext, build_teacher_contexts
from sdpo_plugins.types import Rollout, TeacherContext

TROUBLES = (
    "collapse",
    "leak",
    "nothing_succeeds",
    "teacher_is_student",
    "frozen_ema",
    "truncation",
    "cut_off",
    "entropy_collapse",
    "feedback_unused",
    "teacher_worsens",
    "ema_runs_away",
    "gap_inverted",
    "no_end",
    "warned",
)
GROUP = 4
_STARTED = 1_790_000_000.0
_HOST_VERSIONS = {"trl": "1.16.1", "verl": "0.10.0", "openrlhf": "0.11.2"}
_NAMES = {
    "trl": "reward completions/mean_length completions/clipped_ratio loss entropy grad_norm learning_rate",
    "verl": "critic/score/mean response_length/mean response_length/clip_ratio actor/loss actor/entropy "
    "actor/grad_norm actor/lr",
    "openrlhf": "reward response_length response_clip_ratio policy_loss entropy_loss actor_grad_norm actor_lr",
}
"""Of reward, length, answers cut off, loss, entropy, gradient, rate."""
_ASIDES = (
    "Let me think → slowly 🙂.",
    "A naïve way: count.",
    "Überprüfen wir das: 数 = number.",
    'In HTML: <b class="x">&amp;</b></script><!-- no -->.',
    "\tfirst the ones,\n\tthen the tens.",
)


@dataclass
class _Made:
    """A rollout under construction."""

    rollout: Rollout
    right: bool
    tool: str | None
    context: TeacherContext | None = None
    tokens: TokenValues | None = None
    cut_off: bool = False
    removed: dict[str, int] = field(default_factory=dict)


def make_run(
    folder: Path | str,
    *,
    steps: int = 12,
    rollouts_per_step: int = 8,
    tokens: int = 24,
    seed: int = 0,
    trouble: str | None = None,
    host: str = "trl",
    method: str = "sdpo",
    token_share: float = 0.75,
    model: str = "made/model",
    first_step: int = 1,
) -> Path:
    """Write the records of a made run.

    Args:
        folder: The run's folder; `records/` is made in it.
        steps: Optimizer steps, one rollout batch each.
        rollouts_per_step: A multiple of 4, the size of a group.
        tokens: About how many tokens a response has.
        seed: Of everything that is drawn.
        trouble: One of `TROUBLES`, or None for a healthy run.
        host: Under whose names its metrics stand.
        method: "sdpo" or "grpo"; the latter has neither teacher nor tokens.
        token_share: Share of the active rollouts whose tokens were recorded.
        model: Name of the model.
        first_step: The number of the first step.

    Returns:
        The folder.
    """
    assert trouble is None or trouble in TROUBLES, trouble
    assert rollouts_per_step % GROUP == 0, rollouts_per_step
    folder = Path(folder)
    maker = _Maker(random.Random(f"{seed}/{trouble}"), steps, tokens, trouble, method, host)
    metrics_file, rollouts_file = (
        BoundedLines(folder / "records" / f"{name}.jsonl", limit_mb=256) for name in ("steps", "rollouts-00000")
    )
    header = {"kind": "run", "format": FORMAT, "version": "0.1.0", "host": host, "host_version": _HOST_VERSIONS[host]}
    header |= {"method": method, "model": model, "started": _STARTED, "step": first_step - 1, "ranks": 1}
    metrics_file.write({**header, "config": maker.config.to_mapping()})
    for number in range(steps):
        step = first_step + number
        rows = maker.batch(number, rollouts_per_step)
        for row, made in enumerate(rows):
            rollouts_file.write(_rollout_line(step, number, row, made, maker.config))
            if made.tokens is not None and maker.random.random() < token_share:
                values = replace(made.tokens, id=record_id(number, row))
                rollouts_file.write(
                    token_line(values, step, {token: maker.pieces[token] for token in values.used_ids()})
                )
        time = _STARTED + 1.25 * (number + 1)
        metrics_file.write({"kind": "step", "step": step, "time": time, "metrics": maker.metrics(number, rows)})
        if trouble == "warned" and number == steps // 2:
            text = "12% of the teacher prompts of a batch were longer than `max_reprompt_len` and were cut."
            metrics_file.write({"kind": "warning", "step": step, "text": text})
    if trouble != "no_end":
        metrics_file.write({"kind": "end", "step": step, "time": time, "reason": "finished"})
    return folder


class _Maker:
    """Draws batches; what a trouble changes stands where it is changed."""

    def __init__(self, random_: random.Random, steps: int, tokens: int, trouble: str | None, method: str, host: str):
        self.random = random_
        self.steps = steps
        self.tokens = tokens
        self.trouble = trouble
        self.method = method
        self.host = host
        self.vocabulary: dict[str, int] = {}
        self.pieces: dict[int, str] = {}
        self.config = SDPOConfig(
            enabled=method == "sdpo",
            include_environment_feedback=trouble not in ("feedback_unused", "nothing_succeeds"),
            success_reward_threshold=0.5,
        )

    def progress(self, number: int) -> float:
        return number / max(self.steps - 1, 1)

    def batch(self, number: int, count: int) -> list[_Made]:
        share = {"nothing_succeeds": 0.0, "teacher_worsens": 0.3}.get(
            self.trouble or "", 0.35 + 0.5 * self.progress(number)
        )
        rows = []
        for row in range(count):
            group = number * (count // GROUP) + row // GROUP
            numbers = random.Random(f"question {group}")
            a, b = numbers.randint(11, 79), numbers.randint(11, 79)
            right = self.random.random() < share
            rows.append(self._row(number, row, group, a, b, right))
        contexts = build_teacher_contexts([made.rollout for made in rows], self.config)
        self.context_metrics = dict(contexts.metrics)
        for made, context in zip(rows, contexts.contexts, strict=True):
            made.context = context
            if self.trouble == "truncation" and context.active and self.random.random() < 0.6:
                made.removed = {"demonstration": 120}
            if self.method == "sdpo" and context.active:
                made.tokens = self._tokens(number, made)
        return rows

    def _row(self, number: int, row: int, group: int, a: int, b: int, right: bool) -> _Made:
        answer = a + b if right else a + b + self.random.choice((-10, -2, 1, 10))
        tool = f"<tool>{a}+{b} ⇒ {answer}</tool>" if row % 5 == 2 else None
        text = self._response(number, row, a, b, answer, tool)
        if self.trouble == "collapse" and self.progress(number) > 0.4:
            text, tool = str(answer), None
        if self.trouble == "leak" and self.progress(number) > 0.5 and row % 2 == 0:
            text = f"As the correct solution says, and the feedback from my unsuccessful earlier attempt. {text}"
        feedback = None if right or self.trouble == "nothing_succeeds" else f"Wrong: {answer} ≠ {a + b}.\nAdd again."
        prompt = [{"role": "system", "content": "Answer briefly."}, {"role": "user", "content": f"What is {a} + {b}?"}]
        rollout = Rollout(group, prompt, text, float(right), feedback, {"exact": float(right), "format": 1.0})
        cut = self.trouble == "cut_off" and row % 2 == 1
        return _Made(replace(rollout, response=text[:-3] if cut else text), right, tool, cut_off=cut)

    def _response(self, number: int, row: int, a: int, b: int, answer: int, tool: str | None) -> str:
        lines = [self.random.choice(_ASIDES)] if (number + row) % 3 == 0 else []
        lines.append(f"We add {a} and {b}.")
        if tool:
            lines.append(tool)
        while len(split("\n".join(lines))) < self.tokens - 8:
            lines.append(f"{a % 10} + {b % 10} = {a % 10 + b % 10}, and {a} + {b} = {answer}.")
        return "\n".join([*lines, f"The answer is {answer}."])

    def _tokens(self, number: int, made: _Made) -> TokenValues:
        pieces = split(made.rollout.response)
        ids = [self.vocabulary.setdefault(piece, len(self.vocabulary) + 3) for piece in pieces]
        self.pieces.update(zip(ids, pieces, strict=True))
        others: dict[bool, list[int]] = {True: [], False: []}
        for one, text in self.pieces.items():
            others[_is_number(text)].append(one)
        masked = span_of(pieces, made.tool)
        rows = [
            [None] * 6 if place in masked else self._values(number, token, pieces[place], made.right, others)
            for place, token in enumerate(ids)
        ]
        mask = [int(place not in masked) for place in range(len(ids))]
        return TokenValues(0, len(ids), ids, mask, *(list(column) for column in zip(*rows, strict=True)))

    def _values(self, number: int, token: int, piece: str, right: bool, others: dict[bool, list[int]]) -> list[Any]:
        sure = self.trouble == "entropy_collapse" and self.progress(number) > 0.4
        blind = self.trouble == "teacher_worsens" and self.progress(number) > 0.5
        chosen = 0.999 if sure else max(self.random.betavariate(3.0, 1.2), 0.01)
        if self.trouble == "teacher_is_student":
            liking = None
        elif self.trouble == "gap_inverted":
            liking = not right
        else:
            wrong_digit = not right and _is_number(piece) and self.random.random() < 0.7
            liking = blind or not wrong_digit
        return position(self.random, token, others[_is_number(piece)], chosen, liking)

    def metrics(self, number: int, rows: Sequence[_Made]) -> dict[str, float | None]:
        """The step's metrics under the host's names, from the rollouts where these decide."""
        progress, noise = self.progress(number), self.random.uniform(0.95, 1.05)
        lengths = [len(split(made.rollout.response)) for made in rows]
        reward = sum(made.rollout.reward for made in rows) / len(rows)
        entropy = 0.8 - 0.25 * progress
        if self.trouble == "entropy_collapse":
            entropy = 0.8 if progress < 0.4 else 0.01
        length, cut = sum(lengths) / len(lengths), sum(made.cut_off for made in rows) / len(rows)
        figures = (reward, length, cut, 0.2 * noise, entropy * noise, 0.5, 1e-6)
        found: dict[str, float | None] = dict(zip(_NAMES[self.host].split(), figures, strict=True))
        found["not_finite"] = math.nan
        if self.method != "sdpo":
            return found
        own = self._own_metrics(rows, progress, noise)
        own["entropy"] = entropy * noise if own["active_tokens"] else None
        found.update({f"self_distillation/{name}": value for name, value in own.items() if value is not None})
        found.update(self.context_metrics)
        distance = {"frozen_ema": 0.0, "ema_runs_away": 1e-5 * 10 ** (4 * progress)}.get(
            self.trouble or "", 1e-5 * (1 - math.exp(-4 * (number + 1) / self.steps))
        )
        found |= {"teacher/distance": distance, "teacher/relative_distance": distance * 30}
        found["teacher/updates"] = float(number + 1)
        return found

    def _own_metrics(self, rows: Sequence[_Made], progress: float, noise: float) -> dict[str, float | None]:
        truncated = 0.6 if self.trouble == "truncation" else 0.0
        own: dict[str, float | None] = {
            "truncated_fraction": truncated,
            "truncated_tokens_mean": truncated * 120,
            "truncated_demonstration_tokens_mean": truncated * 120,
            "truncated_feedback_tokens_mean": 0.0,
            "dropped_too_long_fraction": 0.0,
            "teacher_prompt_length_mean": 90.0 * noise,
            "teacher_prompt_length_max": 140.0,
        }
        accuracy = 0.8 - 0.6 * progress if self.trouble == "teacher_worsens" else 0.7 + 0.2 * progress
        own["teacher_accuracy"] = accuracy * noise if self.trouble != "nothing_succeeds" else 0.0
        pairs = [(*pair, made.right) for made in rows if made.tokens for pair in _gaps(made.tokens)]
        own["active_tokens"] = float(len(pairs))
        own["divergence"] = _mean([divergence for _, divergence, _ in pairs])
        own["gap"] = _mean([gap for gap, _, _ in pairs])
        own["gap_on_success"] = _mean([gap for gap, _, right in pairs if right])
        own["gap_on_failure"] = _mean([gap for gap, _, right in pairs if not right])
        return own


def _rollout_line(step: int, number: int, row: int, made: _Made, config: SDPOConfig) -> dict[str, Any]:
    context = made.context
    assert context is not None
    encoded = EncodedContext([], context.active, context.messages, truncated_tokens=made.removed)
    return rollout_line(
        row,
        made.rollout,
        context,
        encoded if config.enabled else None,
        config,
        step=step,
        batch=number,
        response_tokens=len(split(made.rollout.response)),
        cut_off=made.cut_off,
    )


def _gaps(tokens: TokenValues) -> list[tuple[float, float]]:
    """(log q − log π, divergence) of the tokens that carry loss."""
    rows = zip(tokens.student, tokens.teacher, tokens.divergence, strict=True)
    return [(q - p, d) for p, q, d in rows if p is not None and q is not None and d is not None]


def _is_number(piece: str) -> bool:
    return piece.strip().isdigit()


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None

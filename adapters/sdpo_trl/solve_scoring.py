"""The reward function of `sdpo solve`: it scores a batch of answers and writes every one down at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from sdpo_plugins.errors import RewardError
from sdpo_plugins.feedback.trl import answer_of
from sdpo_plugins.reprompt import reaches
from sdpo_plugins.solve import Attempt, Question, RunFolder
from sdpo_plugins.solve.attempts import SDPO, first_success, of_method
from sdpo_trl.rewards import FeedbackRecorder, reward_name

__all__ = ["Progress", "ScoredAttempts"]

Progress = Callable[[str, int, int, float | None, bool], None]


class ScoredAttempts:
    """Scores answers to the question with the user's reward function, and keeps the log of attempts.

    Args:
        question: The question.
        reward: A reward function for TRL, with or without feedback.
        folder: Where attempts and the solution are written.
        threshold: Smallest reward that is a success.
        samples: Attempts in a batch.
        progress: Called after each batch; None: nobody looks.

    Attributes:
        method: Whose attempts these are.
        attempts: Those of this method so far.
        goal: How many are to be made, for `progress`.
    """

    def __init__(
        self,
        question: Question,
        reward: Callable[..., Any],
        folder: RunFolder,
        threshold: float,
        samples: int,
        progress: Progress | None = None,
    ) -> None:
        self.__name__ = reward_name(reward)
        self.question = question
        self.folder = folder
        self.threshold = threshold
        self.samples = samples
        self.method = SDPO
        self.attempts: list[Attempt] = []
        self.goal = 0
        self._recorder = FeedbackRecorder()
        self._reward = self._recorder.wrap(reward)
        self._progress = progress

    @property
    def solved(self) -> bool:
        """Whether an attempt of this method has succeeded."""
        return first_success(self.attempts, self.threshold) is not None

    def resume(self, logged: Sequence[Attempt], whole_batches: bool = False) -> None:
        """Take up the attempts of this method from the log.

        Args:
            logged: All attempts of the log.
            whole_batches: Cut off a batch that a crash left incomplete; the log, too.
        """
        mine = of_method(logged, self.method)
        if whole_batches and len(mine) % self.samples:
            mine = mine[: len(mine) - len(mine) % self.samples]
            self.folder.log.replace([*(each for each in logged if each.method != self.method), *mine])
        self.attempts = mine

    def __call__(self, completions: Sequence[Any], **columns: Any) -> list[dict[str, Any]]:
        """Score a batch and write it down.

        Args:
            completions: Texts or messages, as TRL gives them.
            **columns: What else TRL gives.

        Returns:
            A mapping with `score` and `feedback` for each.
        """
        rewards = self._reward(completions=completions, **columns)
        feedback = self._recorder.take(len(rewards)) or [None] * len(rewards)
        done = len(self.attempts)
        if any(reward is None for reward in rewards):
            raise RewardError(
                f"The reward function {self.__name__!r} gave no reward (None) for an answer. It must "
                "give every answer a number."
            )
        new = [
            Attempt(done + at + 1, self.method, done // self.samples, answer_of(completion), reward, said)
            for at, (completion, reward, said) in enumerate(zip(completions, rewards, feedback, strict=True))
        ]
        already = self.solved
        self.folder.log.append(new)
        self.attempts += new
        if self.method == SDPO and not already and self.solved:
            self.folder.write_solution(next(each.response for each in new if reaches(each.reward, self.threshold)))
        self.tell()
        return [{"score": each.reward, "feedback": each.feedback} for each in new]

    def tell(self) -> None:
        """Report how far this is."""
        if self._progress is not None:
            best = max((each.reward for each in self.attempts), default=None)
            self._progress(self.method, len(self.attempts), self.goal, best, self.solved)

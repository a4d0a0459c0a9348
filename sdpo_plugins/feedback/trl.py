"""A scorer as a reward function of TRL: for GRPOTrainer as it is, and with feedback for SDPOTrainer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sdpo_plugins.errors import ConfigError, RewardError
from sdpo_plugins.feedback._progress import Progress
from sdpo_plugins.feedback._shared import numbers_of, texts_of
from sdpo_plugins.feedback.batch import TIMEOUT, BatchScorer

__all__ = ["TRLReward", "for_trl"]

# What TRL gives a reward function beside the columns of the dataset.
_NO_COLUMNS = ("environments", "log_extra", "log_metric", "trainer_state")


def for_trl(
    name: str,
    *,
    plugins: Sequence[str] = (),
    workers: int | None = None,
    timeout: float = TIMEOUT,
    progress: Progress | bool = True,
    eos_token_id: int | Sequence[int] | None = None,
    max_completion_length: int | None = None,
    **options: Any,
) -> TRLReward:
    """Make a reward function of TRL from a scorer of the catalogue.

    A sample is the row's columns and its `prompt`. Of a completion of several messages the last one of the assistant is
    scored: the final answer after all tool calls. Feedback and the details go through TRL's own `log_extra` and
    `log_metric`, so they are in the table of completions and in the logs of a plain GRPOTrainer too.

    Whether an answer was cut off (`truncated` of the sample) is known from its tokens, if one of the two options is
    given: it does not end with an end-of-sequence token, and it is as long as allowed. `sdpo train` gives both.

    Args:
        name: A name of `catalogue("scorer")`.
        plugins: Plug-ins in use beside our own.
        workers: As for `BatchScorer`.
        timeout: As for `BatchScorer`.
        progress: As for `BatchScorer`.
        eos_token_id: The tokens that end an answer.
        max_completion_length: Tokens of the longest answer.
        **options: The scorer's own.

    Returns:
        A function for `reward_funcs`, called `name` in the logs.

    Raises:
        ConfigError: Unknown scorer, invalid options.
        SDPOError: What the scorer needs is missing or broken: a library, a sandbox.

    Example:
        >>> reward = for_trl("multiple_choice", workers=1)
        >>> reward(prompts=["?"] * 2, completions=["<answer>B</answer>", "C"], ground_truth=["B", "B"])
        [1.0, 0.0]
        >>> reward.close()
    """
    scorer = BatchScorer(name, options, plugins=plugins, workers=workers, timeout=timeout, progress=progress)
    reward = TRLReward(scorer, eos_token_id, max_completion_length)
    scorer.check()
    return reward


class TRLReward:
    """A scorer that TRL can call.

    Args:
        scorer: Scores.
        eos_token_id: The tokens that end an answer, if known.
        max_completion_length: Tokens of the longest answer, if known.

    Attributes:
        last_feedback: The texts of the last batch where TRL could not be told of them (a release without `log_extra`).
    """

    def __init__(
        self,
        scorer: BatchScorer,
        eos_token_id: int | Sequence[int] | None = None,
        max_completion_length: int | None = None,
    ) -> None:
        ends = [eos_token_id] if isinstance(eos_token_id, int) else eos_token_id
        if max_completion_length is not None and max_completion_length < 1:
            raise ConfigError(f"`max_completion_length` must be at least 1, got {max_completion_length!r}.")
        self.__name__ = scorer.name
        self.scorer = scorer
        self.last_feedback: list[str | None] | None = None
        self._ends = None if ends is None else frozenset(ends)
        self._longest = max_completion_length

    def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        completion_ids: Sequence[Sequence[int]] | None = None,
        log_extra: Callable[[str, list[Any]], None] | None = None,
        log_metric: Callable[[str, float], None] | None = None,
        **columns: Any,
    ) -> list[float]:
        """Score a batch.

        Args:
            prompts: Texts or chat messages.
            completions: Texts or lists of messages.
            completion_ids: Their tokens.
            log_extra: TRL's.
            log_metric: TRL's.
            **columns: The dataset's, a list with one value for each completion.

        Returns:
            One reward for each completion.

        Raises:
            DataError: A row or a completion cannot be used.
        """
        texts = [answer_of(completion) for completion in completions]
        samples = self._samples(prompts, completion_ids, columns)
        scores = self.scorer(texts, samples)
        feedback = [score.feedback for score in scores]
        if log_extra is not None:
            log_extra("feedback", [text or "" for text in feedback])
            for key in texts_of(scores[0]) if scores else ():
                log_extra(f"{self.__name__}/{key}", [score.details.get(key) for score in scores])
        self.last_feedback = feedback if log_extra is None else None
        if log_metric is not None and scores:
            for key in numbers_of(scores[0]):
                values = [numbers_of(score).get(key, 0.0) for score in scores]
                log_metric(f"{self.__name__}/{key}", sum(values) / len(values))
        return [score.reward for score in scores]

    def close(self) -> None:
        """End the workers; the next batch starts new ones."""
        self.scorer.close()

    def _samples(
        self, prompts: Sequence[Any], completion_ids: Sequence[Sequence[int]] | None, columns: Mapping[str, Any]
    ) -> list[dict[str, Any]]:
        count = len(prompts)
        found = {
            name: values
            for name, values in columns.items()
            if name not in _NO_COLUMNS and isinstance(values, (list, tuple)) and len(values) == count
        }
        samples = [
            {**{name: values[at] for name, values in found.items()}, "prompt": prompts[at]} for at in range(count)
        ]
        if self._ends is None and self._longest is None:
            return samples
        if completion_ids is None:
            raise RewardError(
                "`eos_token_id` and `max_completion_length` say which answers were cut off, but TRL gives no "
                "`completion_ids`. Leave both out."
            )
        for sample, tokens in zip(samples, completion_ids, strict=True):
            sample["truncated"] = self._cut_off(tokens)
        return samples

    def _cut_off(self, tokens: Sequence[int]) -> bool:
        ended = self._ends is not None and len(tokens) > 0 and tokens[-1] in self._ends
        return not ended and (self._longest is None or len(tokens) >= self._longest)


def answer_of(completion: Any) -> str:
    """Return the text to score: a text itself, of messages the last one of the assistant.

    Raises:
        RewardError: It is neither.

    Example:
        >>> answer_of([{"role": "assistant", "content": "Let me see."}, {"role": "tool", "content": "4"},
        ...            {"role": "assistant", "content": "It is 4."}])
        'It is 4.'
    """
    if isinstance(completion, str):
        return completion
    if not isinstance(completion, (list, tuple)) or not all(isinstance(each, Mapping) for each in completion):
        raise RewardError(f"A completion must be a text or a list of messages, got {completion!r}.")
    said = [message.get("content") for message in completion if message.get("role") == "assistant"]
    content = said[-1] if said else None
    if content is None:  # nothing but a tool call, or nothing at all
        return ""
    if isinstance(content, str):
        return content
    return "".join(part.get("text") or "" for part in content if part.get("type") == "text")

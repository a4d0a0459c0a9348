"""Scorers as reward functions of verl, also without a line of code:

reward:
  custom_reward_function:
    path: pkg://sdpo_plugins.feedback.verl
    name: code                        # any scorer's name
    reward_kwargs: {workers: 4}       # its options, and plugins, workers, timeout
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sdpo_plugins.feedback._shared import plain, shared_scorer
from sdpo_plugins.feedback.batch import TIMEOUT, default_workers

__all__ = ["VerlReward", "compute_score", "for_verl"]

# `reward.num_workers` of verl: as many processes call the function, each with workers of its own.
_REWARD_WORKERS = 8
# What verl adds for functions that ask a reward model.
_OF_REWARD_MODELS = ("reward_router_address", "reward_model_tokenizer")


def for_verl(
    name: str,
    *,
    plugins: Sequence[str] = (),
    workers: int | None = None,
    timeout: float = TIMEOUT,
    **options: Any,
) -> VerlReward:
    """Make a reward function of verl from a scorer of the catalogue.

    A sample is `extra_info` of the row with `data_source` and `ground_truth`.

    Args:
        name: A name of `catalogue("scorer")`.
        plugins: Plug-ins in use beside our own.
        workers: Processes of each of verl's reward workers; None: an eighth of `default_workers()`, as there are eight
            of them unless `reward.num_workers` says otherwise.
        timeout: As for `BatchScorer`.
        **options: The scorer's own.

    Returns:
        `compute_score(data_source, solution_str, ground_truth, extra_info, **reward_kwargs)` → `score`, `acc`,
        `feedback` ("" for none) and the scorer's details.

    Raises:
        ConfigError: Unknown scorer, invalid options.

    Example:
        >>> compute_score = for_verl("multiple_choice", workers=1)
        >>> found = compute_score("chemistry", "<answer>B</answer>", "B")
        >>> found["score"], found["acc"], found["feedback"]
        (1.0, 1.0, '')
    """
    given = {"plugins": list(plugins), "workers": workers, "timeout": timeout, **options}
    reward = VerlReward(name, given)
    reward.check()
    return reward


class VerlReward:
    """A scorer that verl can call, copy to other processes, and call from many threads.

    Args:
        name: Of the catalogue.
        settings: The scorer's options, with `plugins`, `workers` and `timeout`.
    """

    def __init__(self, name: str, settings: Mapping[str, Any]) -> None:
        self.__name__ = name
        self._settings = dict(plain(settings))

    def check(self) -> None:
        """Raise what is wrong with name and settings.

        Raises:
            ConfigError: Unknown scorer, invalid options.
        """
        shared_scorer(self.__name__, self._settings, _workers())

    def __call__(
        self,
        data_source: Any,
        solution_str: str,
        ground_truth: Any,
        extra_info: Mapping[str, Any] | None = None,
        **reward_kwargs: Any,
    ) -> dict[str, Any]:
        """Score one response.

        Args:
            data_source: Of the row.
            solution_str: The decoded response.
            ground_truth: Of the row.
            extra_info: Of the row.
            **reward_kwargs: More settings, of `reward.custom_reward_function.reward_kwargs`; they win.

        Returns:
            `score`, `acc`, `feedback`, and the scorer's details: the same keys for every response, as verl needs them.

        Raises:
            ConfigError: Unknown scorer, invalid options.
            DataError: The row cannot be used.
        """
        more = {key: value for key, value in reward_kwargs.items() if key not in _OF_REWARD_MODELS}
        scorer = shared_scorer(self.__name__, {**self._settings, **more}, _workers())
        sample = {**(extra_info or {}), "data_source": data_source, "ground_truth": ground_truth}
        (score,) = scorer([solution_str], [sample])
        return {"acc": score.reward, **score.details, "score": score.reward, "feedback": score.feedback or ""}


def _workers() -> int:
    return max(1, default_workers() // _REWARD_WORKERS)


def compute_score(
    data_source: Any,
    solution_str: str,
    ground_truth: Any,
    extra_info: Mapping[str, Any] | None = None,
    *,
    scorer: str,
    **reward_kwargs: Any,
) -> dict[str, Any]:
    """Score one response with the scorer that `reward_kwargs` names: for those of plug-ins.

    Args:
        data_source: Of the row.
        solution_str: The decoded response.
        ground_truth: Of the row.
        extra_info: Of the row.
        scorer: A name of `catalogue("scorer")`.
        **reward_kwargs: The scorer's options, and `plugins`, `workers` and `timeout`.

    Returns:
        As `VerlReward`.
    """
    return VerlReward(scorer, {})(data_source, solution_str, ground_truth, extra_info, **reward_kwargs)


def __getattr__(name: str) -> VerlReward:
    # verl takes the function by its name: each scorer of our own is one.
    from sdpo_plugins.builtin import sdpo_scorers

    if name in {scorer.name for scorer in sdpo_scorers()}:
        return VerlReward(name, {})
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

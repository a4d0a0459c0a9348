"""A scorer as the reward function of OpenRLHF, the `reward_func` of a reward file:

from sdpo_plugins.feedback import for_openrlhf

reward_func = for_openrlhf("math", tokenizer="Qwen/Qwen3-8B")
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from sdpo_plugins.errors import DataError, RewardError
from sdpo_plugins.feedback._shared import numbers_of, plain, shared_scorer
from sdpo_plugins.feedback.batch import TIMEOUT, default_workers

__all__ = ["OpenRLHFReward", "for_openrlhf", "sample_of"]

# As many vLLM engines as a machine has GPUs call the function, each with workers of its own.
_MOST_WORKERS = 4
# How the end of a turn is written by the models in use, where the tokenizer is not known.
_END = re.compile(r"(?:\s*(?:<\|[^<>|\s]+\|>|</s>|<eos>|<end_of_turn>))+\s*\Z")


def for_openrlhf(
    name: str,
    *,
    tokenizer: str | None = None,
    plugins: Sequence[str] = (),
    workers: int | None = None,
    timeout: float = TIMEOUT,
    **options: Any,
) -> OpenRLHFReward:
    """Make the reward function of a reward file from a scorer of the catalogue.

    A sample is the object that the label holds as JSON, `{"ground_truth": …}`; a label that is no such object is the
    ground truth itself.

    Args:
        name: A name of `catalogue("scorer")`.
        tokenizer: The model's folder or name on the hub. OpenRLHF gives the response with its special tokens: with the
            tokenizer they are taken out, and an answer without one at its end was cut off (`truncated` of the sample).
            Without, only what looks like the end of a turn (`<|im_end|>`, `</s>` …) is taken off.
        plugins: Plug-ins in use beside our own.
        workers: Processes of each vLLM engine; None: `default_workers()`, at most 4.
        timeout: As for `BatchScorer`.
        **options: The scorer's own.

    Returns:
        reward_func(queries, prompts, labels) → `rewards`, `scores` and `extra_logs`, in which `feedback` has the texts.

    Raises:
        ConfigError: Unknown scorer, invalid options.
    """
    given = {"plugins": list(plugins), "workers": workers, "timeout": timeout, **options}
    reward = OpenRLHFReward(name, given, tokenizer)
    reward.check()
    return reward


class OpenRLHFReward:
    """A scorer that OpenRLHF can call, from many threads.

    Args:
        name: Of the catalogue.
        settings: The scorer's options, with `plugins`, `workers` and `timeout`.
        tokenizer: The model's folder or name on the hub, if known.
    """

    def __init__(self, name: str, settings: Mapping[str, Any], tokenizer: str | None = None) -> None:
        self.__name__ = name
        self._settings = dict(plain(settings))
        self._tokenizer = tokenizer

    def check(self) -> None:
        """Raise what is wrong with name and settings.

        Raises:
            ConfigError: Unknown scorer, invalid options.
        """
        shared_scorer(self.__name__, self._settings, _workers())

    def __call__(
        self, queries: Sequence[str], prompts: Sequence[str], labels: Sequence[Any], **_: Any
    ) -> dict[str, Any]:
        """Score responses.

        Args:
            queries: Prompts with responses, special tokens included.
            prompts: The prompts alone.
            labels: Of the rows.

        Returns:
            `rewards` and `scores` (float tensors), and `extra_logs` with the scorer's numbers and `feedback` ("" for
            none).

        Raises:
            DataError: A query does not begin with its prompt, or a row cannot be used.
        """
        import torch  # OpenRLHF makes tensors of what it gets in different ways; of a tensor in none

        responses, samples = [], []
        for query, prompt, label in zip(queries, prompts, labels, strict=True):
            if not query.startswith(prompt):
                raise DataError(
                    "A query does not begin with its prompt, because OpenRLHF cut the prompt: raise `--data.max_len`. "
                    f"The prompt: {prompt[:200]!r}"
                )
            response, cut_off = self._answer(query[len(prompt) :])
            responses.append(response)
            samples.append({**sample_of(label), **({} if cut_off is None else {"truncated": cut_off})})
        scores = shared_scorer(self.__name__, self._settings, _workers())(responses, samples)
        rewards = torch.tensor([score.reward for score in scores], dtype=torch.float32)
        logs: dict[str, Any] = {
            key: torch.tensor([numbers_of(score).get(key, 0.0) for score in scores])
            for key in (numbers_of(scores[0]) if scores else ())
        }
        logs["feedback"] = [score.feedback or "" for score in scores]
        return {"rewards": rewards, "scores": rewards, "extra_logs": logs}

    def _answer(self, text: str) -> tuple[str, bool | None]:
        """Return the response without special tokens, and whether it was cut off, if that is known."""
        if self._tokenizer is None:
            return _END.sub("", text), None
        special = _special_tokens(self._tokenizer)
        ended = text.rstrip().endswith(special)
        return re.sub("|".join(map(re.escape, special)), "", text), not ended


def sample_of(label: Any) -> dict[str, Any]:
    """Return the sample that a label holds.

    Raises:
        RewardError: There is no label.

    Example:
        >>> sample_of('{"ground_truth": "B", "split": "train"}'), sample_of("42")
        ({'ground_truth': 'B', 'split': 'train'}, {'ground_truth': '42'})
    """
    if label is None:
        raise RewardError("A row has no label: name the field that holds it with `--data.label_key`.")
    found: Any = label
    if isinstance(label, str):
        try:
            found = json.loads(label)
        except ValueError:
            found = None
    if isinstance(found, Mapping) and "ground_truth" in found:
        return dict(found)
    return {"ground_truth": label}


def _workers() -> int:
    return min(_MOST_WORKERS, default_workers())


@functools.lru_cache(maxsize=4)
def _special_tokens(name: str) -> tuple[str, ...]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(name)
    if tokenizer.eos_token is None:
        raise DataError(f"The tokenizer {name!r} has no token that ends an answer. Leave `tokenizer` out.")
    added = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
    return tuple(sorted({*tokenizer.all_special_tokens, *added}, key=len, reverse=True))

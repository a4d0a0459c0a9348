"""The embedded checkpoints: what each is pre-trained on, and for how long. No torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol

from sdpo_plugins.embedded.code_corpus import CodeCorpus, CodeMixture, code_tokenizer_texts
from sdpo_plugins.embedded.corpus import Conversation, Corpus, Mixture, tokenizer_texts

__all__ = ["FAMILIES", "Family", "PretrainSettings"]


class Conversations(Protocol):
    """A source of conversations to pre-train on."""

    def plain(self, count: int, slips: bool = True) -> list[Conversation]:
        """Conversations without a context."""
        ...

    def with_context(self, count: int) -> list[Conversation]:
        """Conversations with a demonstration, feedback or both."""
        ...


@dataclass(frozen=True)
class PretrainSettings:
    """How a checkpoint is trained: first until questions and contexts are known, then some steps of doubt.

    Args:
        learning_steps: at most so many optimizer steps with right answers only.
        doubt_steps: steps with slips after that. With slips from the start, addition takes far longer.
        known: the first part ends when the mean losses of the family's `watched` kinds are below this (nats a
            token). A fixed number of steps would leave the accuracy to chance: addition appears suddenly.
        plain: conversations without a context in a step.
        contexts: conversations with a context in a step.
        muon_rate: peak learning rate of the layers' matrices.
        adamw_rate: peak learning rate of embeddings and norms.
        warmup: warm-up steps.
    """

    learning_steps: int = 400
    doubt_steps: int = 240
    known: float = 0.12
    plain: int = 64
    contexts: int = 48
    muon_rate: float = 5e-3
    adamw_rate: float = 3e-3
    warmup: int = 30

    def rate(self, step: int, doubt_from: int | None) -> float:
        """The share of the peak learning rates at a step.

        Args:
            step: counted from 0.
            doubt_from: the first step with slips; None while it is not known.

        Returns:
            Warm-up to 1, slow linear decay to 0.4 while learning, then linear decay to nearly 0.
        """

        def learning(at: int) -> float:
            return min(1.0, (at + 1) / self.warmup) * (1 - 0.6 * at / max(1, self.learning_steps))

        if doubt_from is None:
            return learning(step)
        return learning(doubt_from) * max(0.02, 1 - (step - doubt_from) / max(1, self.doubt_steps))


@dataclass(frozen=True)
class Family:
    """One embedded checkpoint.

    Args:
        name: its name, as for ``checkpoint_path(name)``.
        corpus: makes the source of conversations from a seed.
        tokenizer_texts: gives the texts that its tokenizer is trained on.
        watched: kinds of conversations whose loss says when the first part of pre-training is done.
        settings: how it is trained.
    """

    name: str
    corpus: Callable[[int], Conversations]
    tokenizer_texts: Callable[[], Iterator[str]]
    watched: tuple[str, ...]
    settings: PretrainSettings


# The tokenizers have draws and shares of their own, so that they stay the same whatever the models are trained on.
_TEXT = Family(
    name="text",
    corpus=Corpus,
    tokenizer_texts=lambda: tokenizer_texts(Corpus(seed=0, mixture=Mixture(plain_sums=0.85, slip=0.45))),
    watched=("sum", "context"),
    settings=PretrainSettings(),
)
_CODE = Family(
    name="code",
    corpus=CodeCorpus,
    tokenizer_texts=lambda: code_tokenizer_texts(CodeCorpus(seed=0, mixture=CodeMixture())),
    watched=("context",),
    # Finding a formula from its failing tests comes slowly and steadily: nothing tells when to stop but the time.
    settings=PretrainSettings(learning_steps=400, doubt_steps=150, known=0.0, plain=16, contexts=96),
)

FAMILIES: Mapping[str, Family] = MappingProxyType({family.name: family for family in (_TEXT, _CODE)})

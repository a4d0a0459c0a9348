"""How much memory a run takes, computed from the model's configuration and what the adapters really hold."""

from sdpo_plugins.estimate.cards import CARDS, Card, Fit, fits
from sdpo_plugins.estimate.comparison import Row, comparison
from sdpo_plugins.estimate.facts import Linear, ModelFacts, RunFacts
from sdpo_plugins.estimate.phases import GIB, Estimate, Phase, estimate
from sdpo_plugins.estimate.reading import facts_of_config, read_model

__all__ = [
    "CARDS",
    "GIB",
    "Card",
    "Estimate",
    "Fit",
    "Linear",
    "ModelFacts",
    "Phase",
    "Row",
    "RunFacts",
    "comparison",
    "estimate",
    "facts_of_config",
    "fits",
    "read_model",
]

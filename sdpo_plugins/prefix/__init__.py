"""Prefix sharing: what the prompts of a scoring pass have in common is computed once, the rests behind its cache."""

from sdpo_plugins.prefix.forward import hidden_behind_prefixes, plain_hidden
from sdpo_plugins.prefix.plan import MIN_SAVED, PrefixPlan, plan_prefixes
from sdpo_plugins.prefix.support import prefix_sharing_problem

__all__ = [
    "MIN_SAVED",
    "PrefixPlan",
    "hidden_behind_prefixes",
    "plain_hidden",
    "plan_prefixes",
    "prefix_sharing_problem",
]

"""Self-Distilled Policy Optimization (SDPO) as plug-ins for the frameworks that train language models."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from sdpo_plugins._options import option
from sdpo_plugins._version import __version__
from sdpo_plugins.config import SDPOConfig
from sdpo_plugins.errors import (
    ConfigError,
    DataError,
    HostError,
    PluginError,
    RewardError,
    SDPOError,
    TeacherError,
)
from sdpo_plugins.hookspecs import hookimpl
from sdpo_plugins.plugins import Strategies, create_plugin_manager, installed_plugins, resolve, validate
from sdpo_plugins.types import (
    Divergence,
    Host,
    Reprompter,
    Rollout,
    Score,
    Scorer,
    Selector,
    TeacherContext,
    TeacherContexts,
    TeacherStrategy,
)

if TYPE_CHECKING:
    from sdpo_plugins.losses import self_distillation_loss
    from sdpo_plugins.reprompt import build_teacher_contexts
    from sdpo_plugins.teacher import Teacher

# Imported at first use: `import sdpo_plugins` must stay quick, and must not need torch.
_LAZY = {
    "build_teacher_contexts": "sdpo_plugins.reprompt",
    "self_distillation_loss": "sdpo_plugins.losses",
    "Teacher": "sdpo_plugins.teacher",
}

__all__ = [
    "ConfigError",
    "DataError",
    "Divergence",
    "Host",
    "HostError",
    "PluginError",
    "Reprompter",
    "RewardError",
    "Rollout",
    "SDPOConfig",
    "SDPOError",
    "Score",
    "Scorer",
    "Selector",
    "Strategies",
    "Teacher",
    "TeacherContext",
    "TeacherContexts",
    "TeacherError",
    "TeacherStrategy",
    "__version__",
    "build_teacher_contexts",
    "create_plugin_manager",
    "hookimpl",
    "installed_plugins",
    "option",
    "resolve",
    "self_distillation_loss",
    "validate",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)

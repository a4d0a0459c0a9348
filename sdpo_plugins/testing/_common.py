"""What the checks share: building an entry as a run would, and a batch of rollouts that has every case."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sdpo_plugins._catalogues import Kind, parse_options
from sdpo_plugins.config import SDPOConfig
from sdpo_plugins.types import Rollout

__all__ = ["build_entry", "sample_rollouts"]


def build_entry(entry: Any, kind: Kind[Any], config: SDPOConfig | None, options: Mapping[str, Any] | None) -> Any:
    """Build a strategy the way `resolve` does, from plain options."""
    assert isinstance(entry, kind.entry), f"a {kind.name} entry must be a {kind.entry.__name__}, got {entry!r}"
    config = config if config is not None else SDPOConfig()
    built = entry.build(config, parse_options(entry, kind, options or {}))
    assert built is not None, f"`build` of the {kind.name} {entry.name!r} must return the strategy, got None"
    return built


def sample_rollouts() -> list[Rollout]:
    """Return a batch with shuffled groups, several successes, none, feedback, no feedback, braces, and padding."""
    system = {"role": "system", "content": "Answer with a number."}

    def chat(question: str) -> list[dict[str, str]]:
        return [dict(system), {"role": "user", "content": question}]

    return [
        Rollout("a", chat("What is 2+2?"), "I think it is {four}: 4", 1.0, feedback="Correct."),
        Rollout("b", chat("What is {x} if 3x = 9?"), "2", 0.0, feedback="Wrong: 3·2 = 6, not 9."),
        Rollout("a", chat("What is 2+2?"), "5", 0.0, feedback="Wrong. {prompt}"),
        Rollout("a", chat("What is 2+2?"), "<think>Easy.</think>4", 0.9),
        Rollout("b", chat("What is {x} if 3x = 9?"), "9", 0.0, feedback="   "),
        Rollout("c", "1+1=", "2", 1.0),
        Rollout("c", "1+1=", "3", 0.0),
        Rollout("a", chat("What is 2+2?"), "4", 1.0),
        Rollout("a", chat("What is 2+2?"), "", 0.0, is_padding=True),
    ]

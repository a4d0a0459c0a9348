"""Teacher prompts rendered as verl's agent loops render the student's: template, its arguments, tools."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from omegaconf import DictConfig, OmegaConf

from sdpo_plugins.config import SDPOConfig
from sdpo_plugins.reprompt import make_render
from sdpo_plugins.reprompt.rendering import Render
from sdpo_plugins.types import Rollout

__all__ = ["PromptStyle", "prompt_style", "tool_schemas"]


@dataclass(frozen=True)
class PromptStyle:
    """How a run turns messages into prompts.

    Args:
        tokenizer: Only read.
        chat_template: The template of the agent loops, or None for the tokenizer's own.
        arguments: verl's arguments of the template.
        schemas: Every tool's schema by name.
    """

    tokenizer: Any
    chat_template: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    schemas: Mapping[str, Any] = field(default_factory=dict)

    def render(self, config: SDPOConfig, tools: Sequence[Any] | None = None) -> Render:
        """Return the function that tokenises a prompt, with the configuration's own template arguments on top.

        Args:
            config: The SDPO options.
            tools: Schemas that the prompt shows.
        """
        return make_render(
            self.tokenizer,
            config,
            tools=tools,
            chat_template=self.chat_template,
            chat_template_kwargs=self.arguments,
        )

    def renders(
        self, rollouts: Sequence[Rollout], prompts: Sequence[Sequence[int]], extra: Sequence[Any], config: SDPOConfig
    ) -> tuple[list[Render], int]:
        """Return how each row's teacher prompt becomes token ids, with the tools that the student's prompt shows.

        Args:
            rollouts: One for each row.
            prompts: Token ids of the student's prompts.
            extra: The dataset's `extra_info` of each.
            config: The SDPO options.

        Returns:
            A function for each row, and how many prompts are rendered in a way that is not known here.
        """
        real = [at for at, rollout in enumerate(rollouts) if not rollout.is_padding]
        shown, unknown = self.shown_tools(
            [prompts[at] for at in real], [rollouts[at] for at in real], [extra[at] for at in real]
        )
        plain = self.render(config)
        by_tools: dict[tuple[str, ...], Render] = {(): plain}
        found = [plain] * len(rollouts)
        for at, names in zip(real, shown, strict=True):
            if names not in by_tools:
                by_tools[names] = self.render(config, [self.schemas[name] for name in names])
            found[at] = by_tools[names]
        return found, unknown

    def shown_tools(
        self, prompts: Sequence[Sequence[int]], rollouts: Sequence[Rollout], extra: Sequence[Any]
    ) -> tuple[list[tuple[str, ...]], int]:
        """Find out which tools each of the student's prompts shows.

        Only some agent loops show tools, and a row does not say which loop made it: its prompt does.

        Args:
            prompts: Token ids of the student's prompts.
            rollouts: With the messages of each.
            extra: The dataset's `extra_info` of each; its `tool_selection` names the tools of a row.

        Returns:
            Names of the tools that each prompt shows, and how many prompts are rendered in neither way.
        """
        found: list[tuple[str, ...]] = []
        unknown = 0
        renders: dict[tuple[str, ...], Render] = {}
        known: dict[tuple[Any, ...], tuple[str, ...] | None] = {}
        for ids, rollout, info in zip(prompts, rollouts, extra, strict=True):
            selected = (info.get("tool_selection") if isinstance(info, Mapping) else None) or self.schemas
            tools = tuple(name for name in selected if name in self.schemas)
            key = (tuple(ids), tools)
            if key not in known:
                known[key] = None
                for names in dict.fromkeys([tools, ()]):
                    if names not in renders:
                        renders[names] = self.render(SDPOConfig(), [self.schemas[name] for name in names])
                    if renders[names](rollout.prompt) == list(ids):
                        known[key] = names
                        break
            shown = known[key]
            unknown += shown is None
            found.append(shown or ())
        return found, unknown


def prompt_style(config: DictConfig, tokenizer: Any) -> PromptStyle:
    """Read a run's way of rendering prompts out of verl's configuration.

    Args:
        config: The whole configuration.
        tokenizer: The trainer's.
    """
    arguments = OmegaConf.select(config, "data.apply_chat_template_kwargs") or {}
    return PromptStyle(
        tokenizer,
        # verl gives it to its agent loops' tokenizers, not to the trainer's.
        OmegaConf.select(config, "actor_rollout_ref.model.custom_chat_template"),
        OmegaConf.to_container(arguments, resolve=True) if isinstance(arguments, DictConfig) else dict(arguments),
        tool_schemas(config),
    )


def tool_schemas(config: DictConfig) -> dict[str, Any]:
    """Return the schemas of the tools that verl's agent loops are given, by name.

    Args:
        config: The whole configuration.
    """
    given = {
        name: OmegaConf.select(config, f"actor_rollout_ref.rollout.multi_turn.{name}")
        for name in ("tool_config_path", "function_tool_path")
    }
    if not any(given.values()):
        return {}
    from verl.tools.tool_registry import load_all_tools

    try:
        from verl.utils.import_utils import resolve_config_path
    except ImportError:  # verl 0.9.0
        from verl.experimental.agent_loop.utils import resolve_config_path

    tools = load_all_tools(**{name: resolve_config_path(path) if path else None for name, path in given.items()})
    return {tool.name: tool.tool_schema.model_dump(exclude_unset=True, exclude_none=True) for tool in tools}

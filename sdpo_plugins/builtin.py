"""Our own strategies and hosts, registered through the same hooks as anyone's. Nothing heavy is imported here."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sdpo_plugins.hookspecs import hookimpl
from sdpo_plugins.types import Divergence, Host, Reprompter, Scorer, Selector, TeacherStrategy

if TYPE_CHECKING:
    from sdpo_plugins.config import SDPOConfig

__all__ = ["HOSTS"]

# The versions that an adapter was tested with stand here only; `sdpo doctor` and the adapters read them from here.
HOSTS = (
    Host(
        "trl",
        "trl",
        ">=1.0,<1.17",
        "sdpo_trl",
        "pip install 'sdpo-plugins[trl]'",
        "Hugging Face TRL: a subclass of GRPOTrainer.",
    ),
    Host(
        "verl",
        "verl",
        ">=0.9.0,<0.11",
        "sdpo_verl",
        "pip install 'sdpo-plugins[verl]'",
        "verl: a trainer mode, workers and Hydra files, loaded as a plug-in of verl.",
    ),
    Host(
        "openrlhf",
        "openrlhf",
        ">=0.10.4,<0.12",
        "sdpo_openrlhf",
        "pip install 'sdpo-plugins[openrlhf]'",
        "OpenRLHF: a launcher around its own program, with subclasses of its controllers and policy actor.",
    ),
)


@dataclass(frozen=True)
class _Lazy:
    """A build function that is imported when it is called: choosing names must not import torch."""

    path: str

    def __call__(self, config: SDPOConfig, options: Any) -> Any:
        module, _, name = self.path.partition(":")
        return getattr(importlib.import_module(module), name)(config, options)


def _divergence(name: str, summary: str) -> Divergence:
    return Divergence(name, summary, _Lazy(f"sdpo_plugins.losses.divergences:build_{name}"))


def _selector(name: str, summary: str) -> Selector:
    return Selector(name, summary, _Lazy(f"sdpo_plugins.reprompt.selectors:build_{name}"))


def _teacher(name: str, summary: str) -> TeacherStrategy:
    return TeacherStrategy(name, summary, _Lazy(f"sdpo_plugins.teacher.strategies:build_{name}"))


@hookimpl
def sdpo_divergences() -> list[Divergence]:
    return [
        _divergence("generalized_jsd", "The authors': forward KL at alpha 0, reverse KL at 1, Jensen–Shannon between."),
        _divergence("forward_kl", "KL(T‖S), whatever alpha is: covers all that the teacher might say."),
        _divergence("reverse_kl", "KL(S‖T), whatever alpha is: drops what the teacher would not say."),
        _divergence("js", "The symmetric Jensen–Shannon divergence, whatever alpha is."),
    ]


@hookimpl
def sdpo_selectors() -> list[Selector]:
    return [
        _selector("first", "The authors': the first success of the group."),
        _selector("random", "A random success of the group, the same on every rank (`selector_seed`)."),
        _selector("shortest", "The success with the shortest response."),
        _selector("best_reward", "The success with the highest reward."),
        _selector("none", "No demonstration: the teacher reads feedback alone."),
    ]


@hookimpl
def sdpo_reprompters() -> list[Reprompter]:
    return [
        Reprompter(
            "template",
            "The authors': question, demonstration and feedback in the three templates.",
            _Lazy("sdpo_plugins.reprompt.contexts:build_template"),
        )
    ]


@hookimpl
def sdpo_teachers() -> list[TeacherStrategy]:
    return [
        _teacher("ema", "A moving average of the student's weights, in float32."),
        _teacher("frozen", "The student as it was at the start."),
        _teacher("live", "The student itself, in this step; diverges in the paper's ablation."),
        _teacher("trust_region", "The initial student's logits moved towards the student's: ref^(1−r)·student^r."),
        _teacher("lora_ema", "One base model with two adapters: the student's, and a moving average of it."),
    ]


@hookimpl
def sdpo_scorers() -> list[Scorer]:
    # The modules of the options are light: a sandbox, math-verify or a client is imported when a scorer is built.
    from sdpo_plugins.feedback.code import CodeOptions
    from sdpo_plugins.feedback.llm_judge import LLMJudgeOptions
    from sdpo_plugins.feedback.math_answer import MathOptions
    from sdpo_plugins.feedback.multiple_choice import MultipleChoiceOptions
    from sdpo_plugins.feedback.tool_use import ToolUseOptions

    place = "sdpo_plugins.feedback"
    return [
        Scorer(
            "code",
            "A program that must pass every test, run in a sandbox; says in the authors' form what fails.",
            _Lazy(f"{place}.code:build_code"),
            CodeOptions,
        ),
        Scorer(
            "math",
            "An answer in \\boxed{} that must equal the truth as mathematics (math-verify).",
            _Lazy(f"{place}.math_answer:build_math"),
            MathOptions,
        ),
        Scorer(
            "multiple_choice",
            "The right letter between <answer> tags; by default without any feedback text.",
            _Lazy(f"{place}.multiple_choice:build_multiple_choice"),
            MultipleChoiceOptions,
        ),
        Scorer(
            "tool_use",
            "The right tools with the right inputs, as `Action:` and `Action Input:`.",
            _Lazy(f"{place}.tool_use:build_tool_use"),
            ToolUseOptions,
        ),
        Scorer(
            "llm_judge",
            "A language model behind an OpenAI-compatible server, which gives the score and says why.",
            _Lazy(f"{place}.llm_judge:build_llm_judge"),
            LLMJudgeOptions,
        ),
    ]


@hookimpl
def sdpo_hosts() -> list[Host]:
    return list(HOSTS)


@hookimpl
def sdpo_attach(target: object) -> Host | None:
    # By the name of the package that made it: asking with isinstance would import every host.
    packages = {ancestor.__module__.partition(".")[0] for ancestor in type(target).__mro__}
    return next((host for host in HOSTS if host.distribution in packages), None)

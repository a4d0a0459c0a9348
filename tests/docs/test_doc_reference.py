"""The reference names every hook, option, metric, command, public name and field of a record, and one that is missing
is found."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from doc_blocks import ROOT
from made_records import make_run
from sdpo_plugins import SDPOConfig, hookspecs
from sdpo_plugins._reference_code import PACKAGES, commands, public_names
from sdpo_plugins.metric_names import METRICS
from sdpo_plugins.plugins import catalogue
from sdpo_plugins.presets import PRESETS


def document(name: str) -> str:
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


def undocumented_hooks(text: str) -> list[str]:
    names = [name for name in vars(hookspecs) if name.startswith("sdpo_")]
    return [name for name in names if f"\n## `{name}`\n" not in text]


def undocumented_options(text: str) -> list[str]:
    return [item.name for item in dataclasses.fields(SDPOConfig) if f"\n| `{item.name}` | " not in text]


def undocumented_presets(text: str) -> list[str]:
    return [name for name in PRESETS if f"\n- `{name}`: " not in text]


def undocumented_strategies(text: str) -> list[str]:
    kinds = ("divergence", "selector", "reprompter", "scorer", "teacher", "host")
    return [name for kind in kinds for name in catalogue(kind) if f"\n| {kind} | `{name}` | " not in text]


def undocumented_metrics(text: str) -> list[str]:
    return [item.name for item in METRICS if f"\n| `{item.name}` | " not in text]


def undocumented_scorer_options(text: str) -> list[str]:
    options = {name: scorer.options for name, scorer in catalogue("scorer").items() if scorer.options is not None}
    missing = []
    for name, kind in options.items():
        table = text.partition(f"<!-- generated: options-of-{name} -->")[2].partition("<!-- end -->")[0]
        missing += [f"{name}.{item.name}" for item in dataclasses.fields(kind) if f"\n| `{item.name}` | " not in table]
    return missing


def undocumented_commands(text: str) -> list[str]:
    missing = []
    for name, command in commands().items():
        section = text.partition(f"\n## `{name}`\n")[2].partition("\n## ")[0]
        names = [one for item in command.params for one in item.opts if one.startswith("--")]
        shown = [one for one in names if one not in ("--install-completion", "--show-completion")]
        missing += [name] * (not section) + [f"{name} {one}" for one in shown if f"`{one}`" not in section]
    return missing


def undocumented_names(text: str) -> list[str]:
    return [
        f"{package}.{name}"
        for package in PACKAGES
        for name in public_names(package)
        if not re.search(rf"(:: |`){re.escape(package)}\.{name}(\n|`)", text)
    ]


Check = Callable[[str], list[str]]
CHECKS: dict[str, tuple[str, Check]] = {
    "hooks": ("reference/hooks.md", undocumented_hooks),
    "options": ("configuration.md", undocumented_options),
    "presets": ("configuration.md", undocumented_presets),
    "strategies": ("configuration.md", undocumented_strategies),
    "metrics": ("reference/metrics.md", undocumented_metrics),
    "scorers": ("feedback.md", undocumented_scorer_options),
    "commands": ("reference/commands.md", undocumented_commands),
    "python": ("reference/api.md", undocumented_names),
}


@pytest.mark.parametrize("kind", CHECKS)
def test_everything_is_documented(kind: str) -> None:
    name, missing = CHECKS[kind]
    assert missing(document(name)) == []


@pytest.mark.parametrize(
    ("kind", "line", "missed"),
    [
        ("hooks", "## `sdpo_scorers`", "sdpo_scorers"),
        ("options", "| `alpha` | ", "alpha"),
        ("presets", "- `paper`: ", "paper"),
        ("strategies", "| teacher | `ema` | ", "ema"),
        ("metrics", "| `teacher/updates` | ", "teacher/updates"),
        ("scorers", "| `stop_after` | ", "code.stop_after"),
        ("commands", "| `--seeds` | ", "sdpo demo --seeds"),
        ("commands", "## `sdpo doctor`", "sdpo doctor"),
        ("python", ".. autofunction:: sdpo_plugins.losses.js", "sdpo_plugins.losses.js"),
        ("python", ".. autoclass:: sdpo_plugins.Rollout", "sdpo_plugins.Rollout"),
    ],
)
def test_what_is_removed_is_missed(kind: str, line: str, missed: str) -> None:
    name, missing = CHECKS[kind]
    lines = document(name).split("\n")
    kept = [each for each in lines if each != line and not (line.endswith(" ") and each.startswith(line))]
    assert len(kept) < len(lines)
    assert missed in missing("\n".join(kept))


# Records --------------------------------------------------------------------------------------------------------------


def undocumented_fields(text: str, lines: list[dict]) -> list[str]:
    missing = []
    for line in lines:
        section = text.partition(f"\n### `{line['kind']}`\n")[2].partition("\n### ")[0]
        left = "\n".join(row.split(" | ")[0] for row in section.splitlines())
        missing += [f"{line['kind']}.{key}" for key in line if key != "kind" and f"`{key}`" not in left]
    return sorted(set(missing))


def test_every_field_of_a_record_is_documented(tmp_path: Path) -> None:
    make_run(tmp_path, trouble="warned")
    files = sorted((tmp_path / "records").glob("*.jsonl"))
    lines = [json.loads(line) for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    assert {line["kind"] for line in lines} >= {"run", "step", "warning", "end", "rollout", "tokens"}
    text = document("reference/records.md")
    assert undocumented_fields(text, lines) == []
    assert undocumented_fields(text.replace("`feedback_used`", ""), lines) == ["rollout.feedback_used"]

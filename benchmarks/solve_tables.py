"""The table and the picture of `python -m benchmarks.solve`."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sdpo_plugins.solve.discovery import best_of_k_interval, discovery_at_k, mean_interval

__all__ = ["curves", "draw", "table"]

Band = tuple[float, float, float]
_SDPO, _BASE = "#2e6f95", "#d1495b"


def curves(results: Mapping[str, Any], ks: Sequence[int]) -> tuple[list[Band], list[Band]]:
    """Return discovery@k of SDPO and best-of-k, each as mean, low, high over the questions.

    SDPO's band resamples questions with their seeds. That of best-of-k is of the mean probability of an answer, from
    all answers of the untrained model: with p̄ the mean over questions, the mean of 1 − (1 − p)^k is at most
    1 − (1 − p̄)^k.

    Args:
        results: Of the study.
        ks: Numbers of answers.
    """
    firsts: Mapping[str, list[int | None]] = results["first_success"]
    base = [each for each in results["measured"] if each["name"] in firsts]
    answers, successes = (sum(each[key] for each in base) for key in ("answers", "successes"))
    ours, theirs = [], []
    for k in ks:
        values = [discovery_at_k(runs, k) for runs in firsts.values()]
        ours.append((statistics.fmean(values), *mean_interval(values)))
        theirs.append((1 - (1 - successes / answers) ** k, *best_of_k_interval(answers, successes, k)))
    return ours, theirs


def table(results: Mapping[str, Any]) -> str:
    """Return the results as Markdown: a row a question, and the means."""
    budget = results["budget"]
    lines = [
        "| question | report says, truth | right by the untrained model | chance of the right program | "
        f"SDPO: first right answer, by seed | solved within {budget} |",
        "|---|---|---|---|---|---|",
    ]
    measured = {each["name"]: each for each in results["measured"]}
    for name, runs in results["first_success"].items():
        former, today = results["formulas"][name]
        base = measured[name]
        places = ", ".join("–" if first is None else str(first) for first in runs)
        lines.append(
            f"| {name} | `{former}`, `{today}` | {base['successes']} of {base['answers']} | "
            f"10^{base['log_probability']:.1f} | {places} | {sum(first is not None for first in runs)} of {len(runs)} |"
        )
    ks = [k for k in (16, 64, 128, 256, budget) if k <= budget]
    ours, theirs = curves(results, ks)
    lines += ["", "| k | SDPO: discovery@k | best-of-k |", "|---|---|---|"]
    for k, (mean, low, high), (other, least, most) in zip(ks, ours, theirs, strict=True):
        lines.append(f"| {k} | {mean:.0%} ({low:.0%} … {high:.0%}) | {other:.0%} ({least:.0%} … {most:.0%}) |")
    return "\n".join(lines)


def draw(results: Mapping[str, Any], path: Path) -> None:
    """Draw both curves with their 95 % bands.

    Args:
        results: Of the study.
        path: Where the PNG goes.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import PercentFormatter

    ks = list(range(0, results["budget"] + 1, 4))
    figure, axes = pyplot.subplots(figsize=(6.4, 4.0), dpi=150)
    for bands, name, colour in zip(
        curves(results, ks), ("SDPO at test time", "best of k, untrained model"), (_SDPO, _BASE), strict=True
    ):
        middle, low, high = zip(*bands, strict=True)
        axes.plot(ks, middle, color=colour, label=name, linewidth=2)
        axes.fill_between(ks, low, high, color=colour, alpha=0.2, linewidth=0)
    axes.set_xlabel("answers sampled, k")
    axes.set_ylabel("share of runs that have a solution")
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_ylim(-0.02, 1.02)
    axes.set_xlim(0, results["budget"])
    runs = list(results["first_success"].values())
    axes.set_title(f"{len(runs)} hard questions × {len(runs[0])} seeds")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="upper left")
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)

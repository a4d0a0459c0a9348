"""`sdpo plot`: pictures of runs, for papers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sdpo_plugins.cli import completion

__all__ = ["plot_command"]

_FOLDER = "plots"


def plot_command(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="PATH…",
            help="Output folders of runs, or a folder that holds several. Runs whose names differ in a part "
            "`seed<number>` only are drawn as one mean, with a band from the lowest to the highest.",
        ),
    ],
    metric: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Only this curve, such as reward or gap_on_success, or this metric as logged; may be given several "
            "times.",
            autocompletion=completion.curves,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            show_default=False,
            help=f"A folder, for one file a curve and an overview; or a file, for all in one picture. Default: "
            f"{_FOLDER} in the first PATH.",
        ),
    ] = None,
    ending: Annotated[
        str | None,
        typer.Option(
            "--format",
            show_default=False,
            help="png, pdf or svg. Default: as --output ends, else png.",
            autocompletion=completion.picture_formats,
        ),
    ] = None,
    smooth: Annotated[
        bool, typer.Option("--smooth", help="Draw a moving mean over a tenth of the steps, and the values faintly.")
    ] = False,
    rollout: Annotated[
        int | None,
        typer.Option(metavar="ID", help="Draw the tokens of this rollout on the colours of the teacher's verdict."),
    ] = None,
    width: Annotated[float | None, typer.Option(metavar="INCHES", help="Of a picture.")] = None,
    height: Annotated[float | None, typer.Option(metavar="INCHES", help="Of a picture.")] = None,
    dpi: Annotated[int, typer.Option(help="Dots per inch of a png.")] = 150,
    style: Annotated[str, typer.Option(help="light or dark.", autocompletion=completion.picture_styles)] = "light",
    as_json: Annotated[bool, typer.Option("--json", help="Print the files and what is drawn in them as JSON.")] = False,
) -> None:
    """Draw a run's curves, or the tokens of an answer with the teacher's verdict, as pictures for a paper."""
    from sdpo_plugins.cli.plotting import plot
    from sdpo_plugins.report.drawing import Look

    plot(
        paths,
        metric or (),
        output or paths[0] / _FOLDER,
        ending,
        Look(style=style, width=width, height=height, dpi=dpi),
        smoothed=smooth,
        rollout=rollout,
        as_json=as_json,
    )

"""A picture of one answer: each token on the colour of the teacher's verdict, log q(y) − log π(y)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdpo_plugins.errors import DataError
from sdpo_plugins.records import RecordedRollout
from sdpo_plugins.report.drawing import Look, drawing, new_figure, save_figure
from sdpo_plugins.report.wrapping import Mark, cells_of, shortened, wrapped

if TYPE_CHECKING:
    import numpy as np

__all__ = ["Disagreement", "disagreements", "save_token_picture", "token_picture", "verdicts"]

_FONT = 9.0  # points
_CELL = 0.6021 * _FONT / 72  # inches; DejaVu Sans Mono's advance
_ROW = 1.65 * _FONT / 72
_MARGIN = 0.16
_WIDTH = 7.5
_LIMIT = 2.0  # nats at which a colour is full
_BEND = 0.7  # below 1: small verdicts are seen, too
_MOST = 1200
_TOP = 5
_BLUE = {"light": (0.13, 0.40, 0.67), "dark": (0.27, 0.60, 0.95)}
_RED = {"light": (0.75, 0.13, 0.17), "dark": (0.93, 0.33, 0.24)}


@dataclass(frozen=True)
class Disagreement:
    """A token about which student and teacher differ.

    Args:
        token: Its place in the response.
        verdict: log q(y) − log π(y).
        text: What stands beside the picture.
    """

    token: int
    verdict: float
    text: str


def token_picture(record: RecordedRollout, *, width: int = 900, dark: bool = False) -> np.ndarray[Any, Any]:
    """Draw an answer's tokens as wrapped text on the colours of the teacher's verdict.

    Blue: the teacher finds the token likelier than the student did (log q(y) > log π(y)); red: less likely; full
    colour from 2 nats on; grey text: no loss there (tool output). The largest differences are numbered, and named
    below.

    Args:
        record: A recorded rollout with token values.
        width: In pixels.
        dark: On a dark ground.

    Returns:
        uint8 [H, W, 3]; W is `width`, H what the text needs.

    Raises:
        DataError: The rollout was recorded without token values.
        SDPOError: matplotlib is not installed.
    """
    import numpy as np

    dots = 120
    look = Look(style="dark" if dark else "light", width=width / dots, dpi=dots)
    with drawing(look):
        figure = _figure(record, look)
        figure.set_dpi(dots)
        figure.canvas.draw()
        pixels = np.asarray(figure.canvas.buffer_rgba())[:, :, :3]
    return np.ascontiguousarray(pixels)


def save_token_picture(record: RecordedRollout, path: Path, look: Look) -> Path:
    """Write such a picture into a file; as a pdf or svg its text stays text.

    Args:
        record: As in `token_picture`, and so are the errors.
        path: Ends in png, pdf or svg.
        look: The look; the height is what the text needs, or `look.height` if that is more.
    """
    with drawing(look):
        return save_figure(_figure(record, look), path, look)


def verdicts(tokens: Mapping[str, Any]) -> list[float | None]:
    """Return log q(y) − log π(y) of each token, None where it carries no loss.

    Args:
        tokens: A line of kind `tokens`.

    Example:
        >>> verdicts({"student": [-2.0, None], "teacher": [-0.5, None]})
        [1.5, None]
    """
    pairs = zip(tokens["student"], tokens["teacher"], strict=True)
    return [None if ours is None or theirs is None else theirs - ours for ours, theirs in pairs]


def disagreements(tokens: Mapping[str, Any], count: int = _TOP) -> list[Disagreement]:
    """Return the tokens with the largest |log q(y) − log π(y)|, the largest first.

    Args:
        tokens: A line of kind `tokens`.
        count: At most so many.
    """
    known = [(place, value) for place, value in enumerate(verdicts(tokens)) if value is not None]
    chosen = sorted(known, key=lambda pair: -abs(pair[1]))[:count]
    return [Disagreement(place, value, _said(tokens, place, value)) for place, value in chosen if value != 0.0]


def _said(tokens: Mapping[str, Any], place: int, verdict: float) -> str:
    pieces = tokens["pieces"]
    ours, theirs = (math.exp(tokens[name][place]) for name in ("student", "teacher"))
    said = f"{_quoted(pieces[str(tokens['ids'][place])])}  student {_chance(ours)}, teacher {_chance(theirs)}"
    top = (tokens.get("teacher_top") or [None] * (place + 1))[place]
    if verdict < 0 and top and top[0][0] != tokens["ids"][place]:
        said += f"; rather {_quoted(pieces[str(top[0][0])])} {_chance(math.exp(top[0][1]))}"
    return said


def _figure(record: RecordedRollout, look: Look) -> Any:
    tokens = record.tokens
    if tokens is None:
        raise DataError(f"Rollout {record.id} was recorded without token values, so there are no verdicts to draw.")
    width = look.width or _WIDTH
    columns = int((width - 2 * _MARGIN) / _CELL)
    if columns < 20:
        raise DataError(f"A picture of tokens must be at least {20 * _CELL + 2 * _MARGIN:.1f} inches wide.")
    pieces = [tokens["pieces"][str(token)] for token in tokens["ids"][:_MOST]]
    marks = wrapped(pieces, columns)
    named = disagreements({**tokens, **{name: tokens[name][:_MOST] for name in ("student", "teacher")}})
    rest = int(tokens["length"]) - len(pieces)
    lines = [f"{number}  {one.text}" for number, one in enumerate(named, 1)]
    rows = max((mark.row for mark in marks), default=0) + 1
    # Heading, question, a gap, the tokens, what is left out, a gap, the legend, a gap, the list.
    top = _MARGIN + 2.6 * _ROW
    legend = top + (rows + (1 if rest > 0 else 0) + 0.6) * _ROW
    height = max(legend + (1.9 + len(lines)) * _ROW + _MARGIN, look.height or 0.0)
    figure = new_figure(width, height)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    for row, (text, weight) in enumerate(((_heading(record), "bold"), (_question(record), "normal"))):
        at = _MARGIN + (row + 0.5) * _ROW
        _write(axes, _MARGIN, at, shortened(text, columns), look.ink, weight=weight)
    _draw_tokens(axes, marks, verdicts(tokens), [one.token for one in named], top, look)
    if rest > 0:
        _write(axes, _MARGIN, top + (rows + 0.5) * _ROW, f"… and {rest:,} more tokens", _grey(look))
    _draw_legend(axes, width, legend, look)
    for row, line in enumerate(lines):
        _write(axes, _MARGIN, legend + (2.0 + row) * _ROW, shortened(line, columns), look.ink)
    return figure


def _draw_tokens(
    axes: Any, marks: Sequence[Mark], values: Sequence[float | None], named: Sequence[int], top: float, look: Look
) -> None:
    from matplotlib.collections import PatchCollection
    from matplotlib.patches import Rectangle

    boxes, colours = [], []
    numbered: set[int] = set()
    for mark in marks:
        x, y = _MARGIN + mark.column * _CELL, top + mark.row * _ROW
        value = values[mark.token] if mark.token < len(values) else None
        colour = _colour(value, look)
        if value is not None:
            boxes.append(Rectangle((x, y + 0.08 * _ROW), mark.cells * _CELL, 0.84 * _ROW))
            colours.append(colour)
        _write(axes, x, y + 0.5 * _ROW, mark.text, _grey(look) if value is None else _readable(colour))
        if mark.token in named:
            frame = Rectangle((x, y + 0.08 * _ROW), mark.cells * _CELL, 0.84 * _ROW, fill=False, edgecolor=look.ink)
            frame.set_linewidth(0.9)
            axes.add_patch(frame)
            if mark.token not in numbered:
                numbered.add(mark.token)
                number = str(named.index(mark.token) + 1)
                _write(axes, x + 0.5 * mark.cells * _CELL, y + 0.04 * _ROW, number, look.ink, number_of=look)
    axes.add_collection(PatchCollection(boxes, facecolors=colours, edgecolors="none", zorder=1))


def _draw_legend(axes: Any, width: float, at: float, look: Look) -> None:
    import numpy as np

    wide = min(1.6, width / 6)
    left = "teacher rejects"
    x = _MARGIN + cells_of(left) * _CELL + 0.1
    scale = np.array([[_colour(value, look) for value in np.linspace(-_LIMIT, _LIMIT, 101)]])
    axes.imshow(scale, extent=(x, x + wide, at + 0.85 * _ROW, at + 0.15 * _ROW), aspect="auto", zorder=1)
    # The picture of the scale must not set the limits.
    axes.set_xlim(0, width)
    _write(axes, _MARGIN, at + 0.5 * _ROW, left, look.ink)
    said = f"approves   log q − log π, −{_LIMIT:g} … +{_LIMIT:g} nats"
    columns = int((width - _MARGIN - x - wide - 0.1) / _CELL)
    _write(axes, x + wide + 0.1, at + 0.5 * _ROW, shortened(said, columns), look.ink)


def _write(
    axes: Any, x: float, y: float, text: str, colour: Any, *, weight: str = "normal", number_of: Look | None = None
) -> None:
    shown = axes.text(
        x,
        y,
        text,
        color=colour,
        fontsize=_FONT if number_of is None else 0.62 * _FONT,
        fontweight=weight if number_of is None else "bold",
        family=["DejaVu Sans Mono"],
        va="center_baseline",
        ha="left" if number_of is None else "center",
        parse_math=False,
        zorder=3,
    )
    if number_of is not None:
        shown.set_bbox(
            {"boxstyle": "circle,pad=0.12", "facecolor": number_of.background, "edgecolor": colour, "lw": 0.5}
        )


def _colour(verdict: float | None, look: Look) -> tuple[float, float, float]:
    from matplotlib.colors import to_rgb

    ground = to_rgb(look.background)
    if verdict is None:
        return ground
    share = 0.9 * min(abs(verdict) / _LIMIT, 1.0) ** _BEND
    full = (_BLUE if verdict > 0 else _RED)[look.style]
    red, green, blue = (a + share * (b - a) for a, b in zip(ground, full, strict=True))
    return red, green, blue


def _readable(ground: tuple[float, float, float]) -> str:
    red, green, blue = ground
    return "#14171C" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.5 else "white"


def _grey(look: Look) -> str:
    return "#8A8A8A" if look.style == "light" else "#8F959E"


def _heading(record: RecordedRollout) -> str:
    line = record.line
    read = [kind for kind, is_read in _read(line).items() if is_read]
    parts = [
        f"Rollout {record.id}",
        f"step {record.step}",
        "no reward" if line["reward"] is None else f"reward {line['reward']:g}",
        "succeeded" if line.get("success") else "failed",
        f"the teacher read {' and '.join(read) or 'neither demonstration nor feedback'}",
    ]
    return " · ".join(parts)


def _read(line: Mapping[str, Any]) -> dict[str, bool]:
    return {
        "a demonstration": line.get("demonstration_index") is not None,
        "feedback": bool(line.get("feedback_used")),
    }


def _question(record: RecordedRollout) -> str:
    prompt = record.line.get("prompt") or ""
    if isinstance(prompt, str):
        return prompt
    return next((str(turn["content"]) for turn in reversed(prompt) if turn.get("role") == "user"), "")


def _quoted(text: str) -> str:
    return f"“{text}”"


def _chance(probability: float) -> str:
    return f"{probability:.1%}" if probability < 0.0995 else f"{probability:.0%}"

"""What all static pictures share: how they look, and how they are saved. Nothing here touches pyplot's global state."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from sdpo_plugins.errors import DataError, SDPOError

__all__ = ["FORMATS", "STYLES", "Look", "drawing", "new_figure", "printable", "save_figure"]

FORMATS = ("png", "pdf", "svg")
STYLES = ("light", "dark")

# Okabe and Ito's colours, told apart by colour-blind readers too; a pale yellow is left out.
_COLOURS = {
    "light": ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#7F7F7F"),
    "dark": ("#56B4E9", "#E69F00", "#2FBF8F", "#CC79A7", "#3F8EDB", "#E0703A", "#A6A6A6"),
}
_INK = {"light": ("white", "#222222", "#D9D9D9"), "dark": ("#14171C", "#E6E6E6", "#3A3F47")}
# Other scripts, where the system has a font for them.
_OTHER_SCRIPTS = ("Noto Sans CJK SC", "Noto Sans CJK JP", "WenQuanYi Micro Hei", "Noto Sans", "Noto Emoji", "Symbola")
_MISSING_SIGN = "▯"


@dataclass(frozen=True)
class Look:
    """How a picture looks.

    Args:
        style: "light" or "dark".
        width: In inches; None: what suits the picture.
        height: In inches; None: what suits the picture.
        dpi: Dots per inch of a png.
    """

    style: str = "light"
    width: float | None = None
    height: float | None = None
    dpi: int = 150

    def __post_init__(self) -> None:
        if self.style not in STYLES:
            raise DataError(f"A picture's style is {' or '.join(STYLES)}, got {self.style!r}.")
        for name in ("width", "height"):
            value = getattr(self, name)
            if value is not None and not 0.5 <= value <= 200:
                raise DataError(f"A picture's {name} must lie between 0.5 and 200 inches, got {value:g}.")
        if not 20 <= self.dpi <= 2400:
            raise DataError(f"A picture's resolution must lie between 20 and 2400 dots per inch, got {self.dpi}.")

    @property
    def background(self) -> str:
        """Colour of the paper."""
        return _INK[self.style][0]

    @property
    def ink(self) -> str:
        """Colour of the text."""
        return _INK[self.style][1]

    @property
    def faint(self) -> str:
        """Colour of lines that only help."""
        return _INK[self.style][2]

    def colour(self, index: int) -> str:
        """Colour of the index-th run."""
        colours = _COLOURS[self.style]
        return colours[index % len(colours)]


@contextmanager
def drawing(look: Look) -> Iterator[None]:
    """Within the block matplotlib draws in this look; afterwards its settings are as before.

    Args:
        look: The look.

    Raises:
        SDPOError: matplotlib is not installed.
    """
    settings = {
        "font.family": ["DejaVu Sans", *_installed_fonts()],
        "font.size": 9.0,
        "axes.titlesize": 9.5,
        "axes.labelsize": 9.0,
        "figure.facecolor": look.background,
        "savefig.facecolor": look.background,
        "axes.facecolor": look.background,
        "axes.edgecolor": look.ink,
        "axes.labelcolor": look.ink,
        "text.color": look.ink,
        "xtick.color": look.ink,
        "ytick.color": look.ink,
        "axes.grid": True,
        "grid.color": look.faint,
        "grid.linewidth": 0.6,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "legend.frameon": False,
        # The same run gives the same file; letters of a PDF stay letters.
        "svg.hashsalt": "sdpo",
        "pdf.fonttype": 42,
    }
    with _matplotlib().rc_context(settings):
        yield


def new_figure(width: float, height: float, **options: Any) -> Any:
    """Return a figure of its own, known to no global list; call it inside of `drawing`.

    Args:
        width: In inches.
        height: In inches.
        options: Of matplotlib's `Figure`.
    """
    _matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), **options)
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Any, path: Path, look: Look) -> Path:
    """Write a figure in the format that the file's name ends in; call it inside of `drawing`.

    Args:
        figure: From `new_figure`.
        path: Ends in one of `FORMATS`; its folder is made.
        look: The look.

    Raises:
        DataError: The file cannot be written.
    """
    ending = path.suffix.removeprefix(".")
    # No date, so that the same run gives the same file.
    dates = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, format=ending, dpi=look.dpi, metadata=dates.get(ending))
    except OSError as error:
        raise DataError(
            f"The picture {path} cannot be written: {error.strerror or error}. Name another place by `--output`."
        ) from error
    return path


def printable(text: str) -> str:
    """Return a text with a sign in the place of each character that no font here can draw.

    Args:
        text: Without line breaks and tabs.
    """
    known = _drawable()
    return "".join(letter if ord(letter) in known else _MISSING_SIGN for letter in text)


def _matplotlib() -> Any:
    try:
        import matplotlib
    except ImportError as error:
        raise SDPOError(
            "Pictures need matplotlib, which is not installed: pip install 'sdpo-plugins[report]'"
        ) from error
    return matplotlib


@lru_cache(maxsize=1)
def _installed_fonts() -> tuple[str, ...]:
    _matplotlib()
    from matplotlib import font_manager

    names = {entry.name for entry in font_manager.fontManager.ttflist}
    return tuple(name for name in _OTHER_SCRIPTS if name in names)


@lru_cache(maxsize=1)
def _drawable() -> frozenset[int]:
    """Code points that the monospaced font or one of the fallbacks can draw."""
    _matplotlib()
    from matplotlib import font_manager
    from matplotlib.ft2font import FT2Font

    known: set[int] = set()
    for name in ("DejaVu Sans Mono", *_installed_fonts()):
        known |= set(FT2Font(font_manager.findfont(name)).get_charmap())
    return frozenset(known)

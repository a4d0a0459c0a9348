"""Pictures into the loggers that the host has open: TensorBoard, Weights & Biases, Trackio.

A logger is found only if something has imported it already; nothing here imports one.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from sdpo_plugins.errors import DataError

if TYPE_CHECKING:
    import numpy as np

__all__ = ["Sink", "log_picture", "open_sinks", "to_tensorboard", "to_trackio", "to_wandb"]

Sink = Callable[[str, "np.ndarray[Any, Any]", int], None]
"""`sink(name, array, step)`, array uint8 [H, W, 3]."""


def to_tensorboard(writer: Any) -> Sink:
    """Return a sink into a summary writer of torch or tensorboardX.

    Args:
        writer: A `SummaryWriter` that is open.
    """

    def sink(name: str, array: np.ndarray[Any, Any], step: int) -> None:
        writer.add_image(name, array, step, dataformats="HWC")

    return sink


def to_wandb(run: Any) -> Sink:
    """Return a sink into a run of Weights & Biases.

    The picture joins the next row that the host logs: a row of its own would move the run's step, and make it drop
    what a host logs under its own, lower, numbers.

    Args:
        run: `wandb.run`.
    """
    wandb = sys.modules["wandb"]

    def sink(name: str, array: np.ndarray[Any, Any], step: int) -> None:
        run.log({name: wandb.Image(array, caption=f"step {step}")}, commit=False)

    return sink


def to_trackio(run: Any, *, numbered: bool = False) -> Sink:
    """Return a sink into a run of Trackio.

    Args:
        run: The run that `trackio.init` returned.
        numbered: Whether the host names the step with everything it logs (verl does); otherwise Trackio counts.
    """
    trackio = sys.modules["trackio"]

    def sink(name: str, array: np.ndarray[Any, Any], step: int) -> None:
        picture = trackio.Image(array, caption=f"step {step}")
        run.log({name: picture}, step=step if numbered else None)

    return sink


def open_sinks(*, writer: Any = None, numbered: bool = False) -> list[Sink]:
    """Return a sink for each logger that is open in this process.

    Args:
        writer: The host's TensorBoard `SummaryWriter`, which cannot be found from here; None: it has none.
        numbered: As in `to_trackio`.

    Example:
        >>> open_sinks()
        []
    """
    found = [] if writer is None else [to_tensorboard(writer)]
    wandb_run = getattr(sys.modules.get("wandb"), "run", None)
    if wandb_run is not None:
        found.append(to_wandb(wandb_run))
    places = sys.modules.get("trackio.context_vars")
    trackio_run = places.current_run.get() if places is not None else None
    if trackio_run is not None:
        found.append(to_trackio(trackio_run, numbered=numbered))
    return found


def log_picture(name: str, array: np.ndarray[Any, Any], step: int, sinks: Iterable[Sink]) -> None:
    """Put a picture into loggers.

    Args:
        name: Under which it stands there, "sdpo/tokens" say.
        array: uint8 [H, W, 3], from `token_picture`.
        step: The host's step.
        sinks: From `open_sinks`.

    Raises:
        DataError: The array is no such picture.
    """
    if array.ndim != 3 or array.shape[2] != 3 or str(array.dtype) != "uint8":
        raise DataError(f"A picture is an array of uint8 [H, W, 3], got {array.dtype} {list(array.shape)}.")
    for sink in sinks:
        sink(name, array, step)

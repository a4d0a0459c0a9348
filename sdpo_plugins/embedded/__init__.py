"""The embedded models: two tiny checkpoints that this project trains itself, and the tasks that they can learn.

Importing this package does not import torch.
"""

from __future__ import annotations

from pathlib import Path

from sdpo_plugins.embedded.tasks import Question, Task, load_task, task_names

__all__ = ["Question", "Task", "checkpoint_path", "load_task", "task_names"]

_FOLDERS = {"text": "checkpoint", "code": "checkpoint_code"}


def checkpoint_path(family: str = "text") -> Path:
    """Where an embedded checkpoint lies: a directory for ``from_pretrained``.

    Args:
        family: ``"text"``, the demo's model, or ``"code"``, which writes Python functions.

    Returns:
        The directory with ``config.json``, ``model.safetensors`` and the tokenizer.

    Raises:
        FileNotFoundError: if the installation lacks the checkpoint; the message says how to train it.
        ValueError: for another family.

    Example:
        >>> checkpoint_path().name, checkpoint_path("code").name
        ('checkpoint', 'checkpoint_code')
    """
    if family not in _FOLDERS:
        raise ValueError(f"unknown family {family!r}; the embedded checkpoints are {', '.join(_FOLDERS)}")
    path = Path(__file__).parent / _FOLDERS[family]
    if not (path / "model.safetensors").is_file():
        raise FileNotFoundError(
            f"no checkpoint in {path}; train one with `python -m sdpo_plugins.embedded.pretrain --family {family} "
            f"--output {path}`"
        )
    return path

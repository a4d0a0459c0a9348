"""The embedded default: a tiny checkpoint that this project trains itself, and the tasks of its demo.

Importing this package does not import torch.
"""

from __future__ import annotations

from pathlib import Path

from sdpo_plugins.embedded.tasks import Question, Task, load_task, task_names

__all__ = ["Question", "Task", "checkpoint_path", "load_task", "task_names"]


def checkpoint_path() -> Path:
    """Where the embedded checkpoint lies: a directory for ``from_pretrained``.

    Returns:
        The directory with ``config.json``, ``model.safetensors`` and the tokenizer.

    Raises:
        FileNotFoundError: if the installation lacks the checkpoint; the message says how to train it.

    Example:
        >>> checkpoint_path().name
        'checkpoint'
    """
    path = Path(__file__).parent / "checkpoint"
    if not (path / "model.safetensors").is_file():
        raise FileNotFoundError(
            f"no checkpoint in {path}; train one with `python -m sdpo_plugins.embedded.pretrain --output {path}`"
        )
    return path

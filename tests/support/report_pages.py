"""Pages made from records, and what tests of them in a browser share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sdpo_plugins.records import read_run
from sdpo_plugins.report.page import build_page, write_page


def page_of(folders: Sequence[Path], file: Path, **options: Any) -> Path:
    """Write the page of some runs."""
    write_page(build_page([read_run(folder) for folder in folders], **options).html, file)
    return file


def ready(page: Any) -> None:
    """Wait until a page that was opened or loaded again is there."""
    page.wait_for_selector("html[data-ready]", state="attached")

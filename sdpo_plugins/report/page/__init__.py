"""One self-contained HTML page of one or several runs: health, curves, and a browser of rollouts.

The page needs no network and works from `file://`. Texts of models reach it as JSON and are shown as text only.
"""

from sdpo_plugins.report.page.building import Page, as_summary, build_page, write_page
from sdpo_plugins.report.page.following import follow

__all__ = ["Page", "as_summary", "build_page", "follow", "write_page"]

"""`make docs`: the site builds without a warning and without a network, and names everything that is public."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from sphinx.util.inventory import InventoryFile

from doc_blocks import ROOT
from sdpo_plugins._reference_code import PACKAGES, public_names

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build everything as `make docs` does, with a proxy that refuses where anything would ask the network."""
    recipe = re.search(r"^docs:.*\n\t@\$\(TRL\)/python (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    assert recipe
    folder = tmp_path_factory.mktemp("site")
    words = (
        recipe[1].replace("build/docs/doctrees", str(folder / "trees")).replace("build/docs/html", str(folder / "html"))
    )
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    done = subprocess.run(
        [sys.executable, *words.split()],
        cwd=ROOT,
        env={**os.environ, **nowhere, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return folder / "html"


def test_the_start_leads_to_the_map(site: Path) -> None:
    assert "url=docs/index.html" in (site / "index.html").read_text(encoding="utf-8")
    start = (site / "docs" / "index.html").read_text(encoding="utf-8")
    assert {"tutorial.html", "trl.html", "migrating.html", "reference/hooks.html"} <= set(
        re.findall(r'href="([^"#]+)', start)
    )


def test_pages_load_nothing_from_elsewhere(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 40
    for page in pages:
        loaded = re.findall(
            r'<(?:script|img|iframe|link rel="stylesheet")[^>]*(?:src|href)="(https?://[^"]+)"', page.read_text("utf-8")
        )
        assert loaded == [], page


def test_formulas_need_no_script(site: Path) -> None:
    assert "<math " in (site / "docs" / "algorithm.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_is_described(site: Path, package: str) -> None:
    with (site / "objects.inv").open("rb") as file:
        inventory = InventoryFile.load(file, "", os.path.join)
    described = {name for kind, names in inventory.items() if kind.startswith("py:") for name in names}
    page = (site / "docs" / "reference" / "api.html").read_text(encoding="utf-8")
    for name in public_names(package):
        full = f"{package}.{name}"
        # Of a name that several packages have, the others say where it is described.
        assert full in described or f"{full}</span></code>: see" in page, full

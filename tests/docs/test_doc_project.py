"""What the repository says of itself: how to cite it, what an issue should hold, what `make` can do."""

from __future__ import annotations

import re

import yaml

from doc_blocks import ROOT
from sdpo_plugins import __version__


def test_the_citation_is_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == __version__
    assert citation["cff-version"] == "1.2.0" and citation["preferred-citation"]["url"].endswith("2601.20802")


def test_issue_forms_are_forms() -> None:
    forms = {path.stem: yaml.safe_load(path.read_text("utf-8")) for path in (ROOT / ".github/ISSUE_TEMPLATE").glob("*")}
    assert set(forms) == {"bug", "feature", "question", "config"}
    for name in ("bug", "feature", "question"):
        assert {"name", "description", "body"} <= set(forms[name])
        fields = [item for item in forms[name]["body"] if item["type"] != "markdown"]
        assert fields and all(item["attributes"]["label"] and item["id"] for item in fields)
    labels = [item["attributes"].get("label") for item in forms["bug"]["body"]]
    assert "sdpo doctor --json" in labels


def test_the_contributors_guide_names_every_target() -> None:
    targets = re.findall(r"^([a-z-]+):.* ## ", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    guide = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    own = {"help", "env-trl"}
    assert len(targets) > 10
    assert [target for target in targets if target not in own and f"`make {target}`" not in guide] == []

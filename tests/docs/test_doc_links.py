"""Links between documents, to files and to headings lead somewhere; so do the documents that code names."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from urllib.parse import unquote

import pytest
from markdown_it import MarkdownIt

from doc_blocks import ROOT, pages


def links(path: Path) -> Iterator[str]:
    """Yield the addresses of links and images."""
    for token in MarkdownIt().enable("table").parse(path.read_text(encoding="utf-8")):
        for child in token.children or []:
            if child.type == "link_open":
                yield str(child.attrs["href"])
            elif child.type == "image":
                yield str(child.attrs["src"])


def anchors(path: Path) -> set[str]:
    """Return the headings' names as GitHub makes them."""
    found: set[str] = set()
    tokens = MarkdownIt().parse(path.read_text(encoding="utf-8"))
    for before, token in pairwise(tokens):
        if before.type == "heading_open":
            words = "".join(child.content for child in token.children or [])
            name = re.sub(r"[^\w\- ]", "", words.lower()).replace(" ", "-")
            number = 0
            while (unique := f"{name}-{number}" if number else name) in found:
                number += 1
            found.add(unique)
    return found


def problem(page: Path, address: str) -> str | None:
    """Say what is wrong with a link, or None."""
    if re.match(r"https?://|mailto:", address):
        return None
    place, _, heading = unquote(address).partition("#")
    target = (page.parent / place).resolve() if place else page
    if not target.exists():
        return f"{address}: there is no {place}"
    if heading and heading not in anchors(target):
        return f"{address}: there is no such heading"
    return None


@pytest.mark.parametrize("page", pages(), ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    assert [found for address in links(page) if (found := problem(page, address))] == []


@pytest.mark.parametrize("address", ["nowhere.md", "cli.md#nowhere", "#nowhere", "images/nowhere.png"])
def test_a_wrong_link_is_found(address: str) -> None:
    assert problem(ROOT / "docs" / "index.md", address) is not None


def test_documents_that_code_names_are_there() -> None:
    folders = ("sdpo_plugins", "adapters", "recipes", "scripts", "benchmarks")
    files = [
        path for folder in folders for path in (ROOT / folder).rglob("*") if path.suffix in {".py", ".yaml", ".sh"}
    ]
    named = {
        (name, str(path.relative_to(ROOT)))
        for path in files
        for name in re.findall(r"\bdocs/[\w/.-]+\.md\b", path.read_text(encoding="utf-8"))
    }
    assert named
    assert [(name, path) for name, path in sorted(named) if not (ROOT / name).is_file()] == []

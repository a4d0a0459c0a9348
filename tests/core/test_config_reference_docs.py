"""docs/configuration.md and docs/feedback.md say what the code says."""

from pathlib import Path

import pytest

from sdpo_plugins._reference_docs import BLOCKS, DOCUMENTS, filled

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_the_document_is_up_to_date(document):
    text = (DOCS / document).read_text(encoding="utf-8")
    assert filled(text) == text, "run: python -m sdpo_plugins._reference_docs"


def test_the_documents_have_every_block():
    text = "".join((DOCS / document).read_text(encoding="utf-8") for document in DOCUMENTS)
    assert [name for name in BLOCKS if f"<!-- generated: {name} -->" not in text] == []


def test_a_stale_block_is_replaced():
    stale = "before\n<!-- generated: options -->\n| STALE |\n<!-- end -->\nafter\n"
    fresh = filled(stale)
    assert "STALE" not in fresh
    assert "`distillation_topk`" in fresh
    assert fresh.startswith("before\n") and fresh.endswith("<!-- end -->\nafter\n")

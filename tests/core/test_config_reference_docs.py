"""docs/configuration.md says what the code says."""

from pathlib import Path

from sdpo_plugins._reference_docs import BLOCKS, filled

DOCUMENT = Path(__file__).parents[2] / "docs" / "configuration.md"


def test_the_document_is_up_to_date():
    text = DOCUMENT.read_text(encoding="utf-8")
    assert filled(text) == text, "run: python -m sdpo_plugins._reference_docs"


def test_the_document_has_every_block():
    text = DOCUMENT.read_text(encoding="utf-8")
    assert [name for name in BLOCKS if f"<!-- generated: {name} -->" not in text] == []


def test_a_stale_block_is_replaced():
    stale = "before\n<!-- generated: options -->\n| STALE |\n<!-- end -->\nafter\n"
    fresh = filled(stale)
    assert "STALE" not in fresh
    assert "`distillation_topk`" in fresh
    assert fresh.startswith("before\n") and fresh.endswith("<!-- end -->\nafter\n")

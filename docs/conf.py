"""How Sphinx builds the documentation: `make docs`. The sources are Markdown; so are the recipes' READMEs, which belong
to the site with the links that they have in the repository. Nothing is fetched, neither to build nor to read it.
"""

from __future__ import annotations

import sys
from pathlib import Path

from sdpo_plugins import __version__

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path.insert(0, str(HERE))  # mathml.py

project = "sdpo-plugins"
author = "The sdpo-plugins authors"
copyright = "The sdpo-plugins authors, Apache-2.0"
version = release = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "mathml",
    "public_names",
]
html_math_renderer = "mathml"
root_doc = "docs/index"
PAGES = {"docs", "recipes", "tests", "CHANGELOG.md", "CONTRIBUTING.md"}
EXAMPLES = {"example_plugin"}
exclude_patterns = [
    *sorted(path.name for path in ROOT.iterdir() if path.name not in PAGES),
    *sorted(f"tests/{path.name}" for path in (ROOT / "tests").iterdir() if path.name not in EXAMPLES),
]
templates_path = ["_templates"]
html_additional_pages = {"index": "to_docs.html"}

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4
myst_dmath_allow_digits = False

# Docstrings quote code as Markdown does.
default_role = "code"
highlight_language = "text"
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
# A name of this project that leads nowhere is an error. Other projects' pages would have to be fetched to know theirs.
nitpicky = True
nitpick_ignore_regex = [
    ("py:.*", r"(?!sdpo_).*"),
    # Given to a caller, who uses and never makes them: not public.
    ("py:.*", r"sdpo_.*\._.*"),
    ("py:.*", r"sdpo_plugins\.feedback\.\w+\.(OpenRLHF|TRL|Verl)Reward"),
    ("py:.*", r"sdpo_plugins\.types\.Section"),
]

html_theme = "furo"
html_title = f"sdpo-plugins {version}"
html_show_sphinx = False
html_static_path = ["_static"]
html_css_files = ["math.css"]

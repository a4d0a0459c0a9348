"""The libraries and the page's own style and scripts, as text."""

from __future__ import annotations

import base64
import gzip
import importlib.metadata
from functools import cache
from importlib import resources

from sdpo_plugins.errors import HostError

__all__ = ["Licence", "libraries", "licences", "own_script", "own_style", "packed", "template_text"]

Licence = tuple[str, str, str]

# The order matters: a file uses names of those before it.
_SCRIPTS = ("base", "state", "charts", "filters", "table", "tokens", "detail", "keys", "follow", "main")
_MISSING = "The report needs {}, which is not installed: pip install 'sdpo-plugins[report]'"


def packed(text: str, level: int = 9) -> str:
    """Return a text's UTF-8, gzip-compressed, in base64; the page's script unpacks it.

    Example:
        >>> gzip.decompress(base64.b64decode(packed("naïve"))).decode()
        'naïve'
    """
    # Without a time of day the same text always gives the same page.
    return base64.b64encode(gzip.compress(text.encode(), level, mtime=0)).decode()


@cache
def libraries() -> dict[str, str]:
    """Return the JavaScript of the libraries, packed: "charts" (BokehJS) and "table" (DataTables, an ES module).

    Raises:
        HostError: One of the packages that ship them is missing.
    """
    try:
        from bokeh.resources import Resources
    except ImportError as error:
        raise HostError(_MISSING.format("bokeh")) from error
    try:
        table = resources.files("itables").joinpath("html/dt_bundle.js").read_text(encoding="utf-8")
    except ModuleNotFoundError as error:
        raise HostError(_MISSING.format("itables")) from error
    charts = Resources(mode="inline", components=["bokeh", "bokeh-api"]).js_raw
    return {"charts": packed("\n".join(charts)), "table": packed(table)}


def licences() -> tuple[Licence, ...]:
    """Return (name, version, licence) of what the page contains beside its own code."""
    return (
        ("BokehJS", importlib.metadata.version("bokeh"), "BSD-3-Clause, © Bokeh contributors"),
        (
            "DataTables with jQuery",
            f"itables {importlib.metadata.version('itables')}",
            "MIT, © SpryMedia Ltd and others",
        ),
    )


def own_style() -> str:
    """Return the page's style sheet."""
    return _read("page.css")


def own_script() -> str:
    """Return the page's scripts as one function body, so that they share names with each other and nobody else."""
    body = "\n".join(_read(f"js/{name}.js") for name in _SCRIPTS)
    return f'(() => {{\n"use strict";\n{body}\n}})();'


def template_text() -> str:
    """Return the page's template."""
    return _read("page.html.j2")


def _read(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")

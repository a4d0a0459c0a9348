"""Links from annotations to the public names: `sdpo_plugins.types.Rollout` is described as `sdpo_plugins.Rollout`."""

from __future__ import annotations

import functools
from typing import Any

from docutils.nodes import Element, reference
from sphinx.util.nodes import make_refnode

from sdpo_plugins._reference_code import PACKAGES, public_names


@functools.cache
def described() -> dict[str, str]:
    """Return where each public object is described, by the place where it is defined."""
    found: dict[str, str] = {}
    for package in PACKAGES:
        for name, value in public_names(package).items():
            place = f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', '')}"
            found.setdefault(place, f"{package}.{name}")
    return found


def link(app: Any, env: Any, node: Element, inner: Element) -> reference | None:
    """Resolve a reference to a place of definition; None leaves it to others."""
    name = described().get(node.get("reftarget", ""))
    found = env.get_domain("py").objects.get(name) if name else None
    if found is None:
        return None
    return make_refnode(app.builder, node["refdoc"], found.docname, found.node_id, inner, name)


def setup(app: Any) -> dict[str, bool]:
    """Listen to references that Sphinx cannot resolve."""
    app.connect("missing-reference", link)
    return {"parallel_read_safe": True, "parallel_write_safe": True}

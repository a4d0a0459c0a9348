"""The runner as one text for `python -c` or for a server: its modules, without this package around them."""

from __future__ import annotations

import base64
import marshal
import zlib
from functools import cache
from importlib import resources

__all__ = ["bundle", "compiled_bundle"]

_PACKAGE = "sdpo_plugins.feedback.sandbox.runner"

# Each imports only those before it.
_MODULES = (
    "frames",
    "plain",
    "reports",
    "scratch",
    "seccomp",
    "confine",
    "watch",
    "programs",
    "objects",
    "trials",
    "main",
)

_LOADER = """
import gc, sys, types
gc.disable()
package = sys.modules[PACKAGE] = types.ModuleType(PACKAGE)
for name, code in MODULES:
    module = types.ModuleType(PACKAGE + "." + name)
    sys.modules[module.__name__] = module
    setattr(package, name, module)
    exec(code, module.__dict__)
package.main.main()
"""


@cache
def bundle() -> str:
    """Return the text; what it runs reads its job from standard input, as `runner.main` says."""
    return f"PACKAGE = {_PACKAGE!r}\nMODULES = {_sources()!a}\n{_LOADER}"


@cache
def compiled_bundle() -> str:
    """Return the same with the modules compiled, for an interpreter of this very version; it starts faster."""
    modules = [(name, compile(text, f"runner/{name}.py", "exec", dont_inherit=True)) for name, text in _sources()]
    data = base64.b64encode(zlib.compress(marshal.dumps(modules))).decode("ascii")
    load = f"MODULES = marshal.loads(zlib.decompress(base64.b64decode({data!r})))"
    return f"import base64, marshal, zlib\nPACKAGE = {_PACKAGE!r}\n{load}\n{_LOADER}"


def _sources() -> list[tuple[str, str]]:
    folder = resources.files(_PACKAGE)
    return [(name, folder.joinpath(f"{name}.py").read_text("utf-8")) for name in _MODULES]

"""Patches of modules, applied when and where a process imports them. Importing this module imports nothing else."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

__all__ = ["PATCHED", "install"]

PATCHED = {
    "deepspeed.comm.torch": "collectives",
    "openrlhf": "cuda",
    "openrlhf.models.actor": "attention_of_actor",
    "openrlhf.models.model": "attention_of_scorers",
    "openrlhf.models.ring_attn_utils": "flash_attention",
    "openrlhf.trainer.ppo_trainer": "controllers",
    "openrlhf.trainer.ray.vllm_worker_wrap": "weights_of_vllm",
    "openrlhf.utils.deepspeed.deepspeed": "strategy",
    "openrlhf.utils.deepspeed.deepspeed_utils": "optimizer",
    "openrlhf.utils.distributed_util": "group_with_vllm",
    "openrlhf.utils.logging_utils": "records",
    "openrlhf.utils.utils": "dtypes",
    "vllm.utils.system_utils": "processes_of_vllm",
}
"""Names of modules, and of the context manager in `openrlhf_cpu.patches` inside of which each is executed."""


def install() -> None:
    """Have modules patched that this process imports from now on; to call it again changes nothing.

    Raises:
        RuntimeError: A module that would have to be patched has been imported already.
    """
    if any(isinstance(finder, _Finder) for finder in sys.meta_path):
        return
    if late := sorted(PATCHED.keys() & sys.modules.keys()):
        raise RuntimeError(f"call openrlhf_cpu.hooks.install() before {', '.join(late)} is imported")
    sys.meta_path.insert(0, _Finder())


class _Finder(MetaPathFinder):
    """Finds the modules to patch, by asking the finders behind it."""

    def __init__(self) -> None:
        self._asking: set[str] = set()

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: Any = None) -> ModuleSpec | None:
        if name not in PATCHED or name in self._asking:
            return None
        self._asking.add(name)
        try:
            spec = find_spec(name)
        finally:
            self._asking.discard(name)
        if spec is not None and spec.loader is not None:
            spec.loader = _PatchingLoader(spec.loader, PATCHED[name])
        return spec


class _PatchingLoader(Loader):
    def __init__(self, loader: Loader, patch: str) -> None:
        self._loader, self._patch = loader, patch

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        from openrlhf_cpu import patches

        # Ray pickles what hangs on modules: from here on, only Python's own loader does.
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        with getattr(patches, self._patch)(module):
            self._loader.exec_module(module)

"""The console script `sdpo`; importing this package imports neither torch nor a host."""

from sdpo_plugins.cli.commands import app, main

__all__ = ["app", "main"]

"""Python imports this by itself at its start: so the patches reach Ray's workers and vLLM's processes too."""

from openrlhf_cpu.hooks import install

install()

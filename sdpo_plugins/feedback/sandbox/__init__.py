"""A sandbox for programs that a model wrote: nothing of them is trusted, and nothing of the host is theirs."""

from sdpo_plugins.feedback.sandbox.opening import open_sandbox
from sdpo_plugins.feedback.sandbox.types import Limits, Outcome, Program, Sandbox, SandboxError

__all__ = ["Limits", "Outcome", "Program", "Sandbox", "SandboxError", "open_sandbox"]

"""Opening a sandbox, and saying which of them this machine has."""

from __future__ import annotations

from typing import Literal, get_args

from sdpo_plugins.errors import ConfigError, nearest
from sdpo_plugins.feedback.sandbox.types import Isolation, Sandbox, SandboxError

__all__ = ["describe_isolation", "open_sandbox"]


def open_sandbox(
    isolation: Isolation = "bubblewrap",
    *,
    url: str | None = None,
    max_concurrent: int | None = None,
    attempts: int | None = None,
) -> Sandbox:
    """Open a sandbox and try it out; there is no falling back from one to another.

    Args:
        isolation: "bubblewrap": a process tree without network, files, and other processes. "rlimits": limits alone,
            with a warning of what they do not protect. "sandbox_fusion": a SandboxFusion server.
        url: Address of the server's `/run_code`, for "sandbox_fusion" and for nothing else, as are the next two.
        max_concurrent: Requests under way at once; None: see `SandboxFusion`.
        attempts: How often a request is made; None: see `SandboxFusion`.

    Returns:
        The sandbox. It holds no resources between runs, so there is nothing to close.

    Raises:
        ConfigError: An unknown isolation, or options that do not belong to it.
        SandboxError: This machine does not have it; the message says what to do.

    Example:
        >>> from sdpo_plugins.feedback.sandbox import Program
        >>> sandbox = open_sandbox()
        >>> outcome = sandbox.run(Program("print(int(input()) * 2)", "stdin"), ["21"])[0]
        >>> outcome.kind, outcome.output
        ('ok', '42\\n')
    """
    if isolation not in get_args(Isolation):
        hint = nearest(str(isolation), get_args(Isolation))
        raise ConfigError(f"isolation must be one of {', '.join(get_args(Isolation))}; got {isolation!r}.{hint}")
    if isolation == "sandbox_fusion":
        from sdpo_plugins.feedback.sandbox.sandbox_fusion import SandboxFusion

        if url is None:
            raise ConfigError("isolation 'sandbox_fusion' needs `url`, for example http://localhost:8080/run_code")
        given = {"max_concurrent": max_concurrent, "attempts": attempts}
        return SandboxFusion(url, **{name: value for name, value in given.items() if value is not None})
    strange = [
        name
        for name, value in (("url", url), ("max_concurrent", max_concurrent), ("attempts", attempts))
        if value is not None
    ]
    if strange:
        raise ConfigError(f"{', '.join(strange)}: only isolation 'sandbox_fusion' has that; got {isolation!r}")
    if isolation == "rlimits":
        from sdpo_plugins.feedback.sandbox.rlimits import open_rlimits

        return open_rlimits()
    from sdpo_plugins.feedback.sandbox.bubblewrap import open_bubblewrap

    return open_bubblewrap()


def describe_isolation() -> tuple[Literal["ok", "note", "warning"], str, str]:
    """Say what this machine has to run a model's programs in.

    Returns:
        "ok", "note" (no bubblewrap) or "warning" (it is there and does not work); what was found; what to do, or "".
    """
    from sdpo_plugins.feedback.sandbox.bubblewrap import ADVICE, find_bubblewrap, open_bubblewrap

    state: Literal["note", "warning"] = "note"
    try:
        find_bubblewrap()
        state = "warning"
        sandbox = open_bubblewrap()
    except SandboxError as error:
        found, advice, _ = str(error).partition(ADVICE)
        return state, found.strip(" ."), advice
    return "ok", f"bubblewrap {sandbox.way.name}, {sandbox.path}", ""

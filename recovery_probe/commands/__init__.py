"""The commands: a file for each, its flags as a dataclass and `run(argv)`, which does it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tyro


def words(metavar: str) -> Any:
    """A flag that takes several words, and may come several times."""
    return tyro.conf.arg(metavar=f"{metavar} …", help_behavior_hint="")


def tell(summary: dict[str, Any], path: Path, formats: Sequence[str] = ("html",)) -> None:
    """What analyses found, and where the page is."""
    for name, found in summary["analyses"].items():
        if "verdict" in found:
            print(f"{name}: {found['verdict']}")
    for name, reason in summary["not_done"].items():
        print(f"{name}: not done: {reason}")
    for kind in formats:
        print(f"report: {path / f'report.{kind}'}")

"""The commands: a file for each, its flags as a dataclass and `run(argv)`, which does it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tyro


def words(metavar: str) -> Any:
    """A flag that takes several words, and may come several times."""
    return tyro.conf.arg(metavar=f"{metavar} …", help_behavior_hint="")


def tell(
    summary: dict[str, Any],
    path: Path,
    formats: Sequence[str] = ("html",),
    asked: Sequence[str] = (),
) -> None:
    """What the analyses that were asked for by name found, or of all of them what is to be seen
    first and how many were done; and where the page is."""
    not_done, headline = summary["not_done"], summary.get("headline")
    for name in dict.fromkeys(asked):
        print(f"{name}: {summary[name].get('verdict', 'see its figure')}")
    if not asked and headline:
        print(headline["lead"])
        for label, value, _ in headline["numbers"]:
            print(f"  {label}: {value}")
    if not asked:
        failed = {name: why for name, why in not_done.items() if why.startswith("failed")}
        for name, why in failed.items():
            print(f"{name}: {why}")
        print(f"{len(summary['analyses'])} analyses done, {len(not_done)} not; the report says why")
    for kind in formats:
        print(f"report: {path / f'report.{kind}'}")

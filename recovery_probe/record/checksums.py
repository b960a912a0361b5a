"""Checksums of a run's text: settings, provenance, and what Zarr says of its arrays. The arrays'
values and the checkpoints have their own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from recovery_probe.record import store
from recovery_probe.record.checkpoint import digest

FILE = "checksums.json"


def texts(run: Path) -> Iterator[Path]:
    """The files that have one."""
    yield run / "config.toml"
    yield run / "provenance.json"
    yield from sorted((run / "record.zarr").rglob("zarr.json"))


def write(run: Path) -> None:
    """Of all texts as they are now: of a run that has ended, and is not written any more."""
    sums = {file.relative_to(run).as_posix(): digest(file) for file in texts(run)}
    store.write_json(run / FILE, sums)


def changed(run: Path) -> dict[str, str]:
    """File -> what is wrong with it. Nothing of a run that has none."""
    if not (run / FILE).exists():
        return {}
    try:
        sums = dict(json.loads((run / FILE).read_text("utf-8")))
    except (OSError, ValueError, TypeError):
        return {FILE: "cannot be read"}
    wrong = {}
    for name, expected in sums.items():
        try:
            if digest(run / name) != expected:
                wrong[name] = "is not as it was written"
        except OSError:
            wrong[name] = "is gone, or cannot be read"
    return wrong

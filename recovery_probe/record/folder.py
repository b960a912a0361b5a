"""What lies where in a run directory."""

from __future__ import annotations

from pathlib import Path


def is_run(path: Path) -> bool:
    """Whether a directory has what every run has."""
    return all((path / name).exists() for name in ("config.toml", "provenance.json", "record.zarr"))


def checkpoint_folder(run: Path, episodes_done: int) -> Path:
    """Where the weights after that many episodes lie."""
    return run / "checkpoints" / f"episodes-{episodes_done:05d}"


def checkpoints(run: Path) -> list[int]:
    """Episodes done at every checkpoint of a run, in order."""
    numbers = (f.name.removeprefix("episodes-") for f in (run / "checkpoints").glob("episodes-*"))
    return sorted(int(n) for n in numbers if n.isdecimal())

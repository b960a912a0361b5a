"""What lies where in a run directory."""

from __future__ import annotations

import os
from pathlib import Path

from recovery_probe.errors import InputError


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


def as_path(path: str | os.PathLike[str]) -> Path:
    """A path as its user means it: `~` is the home, and a link is what it points to. Raises
    `InputError` for a name that no file can have."""
    text = os.fspath(path)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise InputError(f"{text!a}: not a name that can be written as UTF-8") from None
    if "\0" in text:
        raise InputError(f"{text!r}: a name cannot hold a null character")
    found = Path(text).expanduser()
    if found.is_symlink() and not found.exists():
        raise InputError(f"{found}: a link to {os.readlink(found)}, which is not there")
    return found.resolve() if found.is_symlink() else found

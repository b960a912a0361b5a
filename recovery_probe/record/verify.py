"""What is damaged in a run directory, what that costs, and what can be made again. Imports no
torch."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import zarr

from recovery_probe import config
from recovery_probe.errors import InputError
from recovery_probe.record import checkpoint, checksums
from recovery_probe.record.folder import checkpoint_folder, checkpoints
from recovery_probe.record.layout import TRAINING

COPY = "bring back a copy, or train again"
REPLAY = "--mend trains it again"


@dataclass(frozen=True)
class Flaw:
    """Something that is not as it was written."""

    what: str  # config.toml, training/losses rows 20 to 39, checkpoint after 40 episodes
    wrong: str
    costs: str
    mend: str
    # What --mend makes again: a recorder's group, rows of the losses, or a checkpoint.
    group: str = ""
    rows: range = range(0)
    episodes_done: int | None = None

    def __str__(self) -> str:
        return f"{self.what}: {self.wrong}; {self.costs}; {self.mend}"


def verify(run: Path) -> list[Flaw]:
    """Every text, array and checkpoint of a run, read and compared with its checksum."""
    texts = [*_texts(run)]
    if any(flaw.mend == COPY for flaw in texts):
        return texts
    arrays = _arrays(run, {flaw.group for flaw in texts})
    return [*texts, *arrays, *_checkpoints(run)]


def _texts(run: Path) -> Iterator[Flaw]:
    wrong = checksums.changed(run)
    try:
        json.loads((run / "provenance.json").read_text("utf-8"))["status"]
    except (OSError, ValueError, TypeError, KeyError):
        wrong["provenance.json"] = "cannot be read"
    try:
        config.read(run / "config.toml")
    except InputError as error:
        wrong["config.toml"] = f"cannot be read ({error})"
    for name, reason in wrong.items():
        parts = Path(name).parts
        recorder = parts[1] if len(parts) > 2 and parts[0] == "record.zarr" else ""
        if recorder and recorder != TRAINING:
            yield Flaw(name, reason, _lacking(recorder), REPLAY, group=recorder)
        elif name == checksums.FILE:
            yield Flaw(name, reason, "texts cannot be compared", "--mend writes it anew")
        else:
            yield Flaw(name, reason, "nothing that is read with it can be trusted", COPY)


def _arrays(run: Path, known: Collection[str]) -> Iterator[Flaw]:
    """Flaws of arrays, but those of groups that are known to have some."""
    record = zarr.open_group(run / "record.zarr", mode="r", use_consolidated=False)
    complete = json.loads((run / "provenance.json").read_text("utf-8"))["status"] == "complete"
    for folder in sorted((run / "record.zarr").iterdir()):
        group = folder.name
        if not folder.is_dir() or group in known:
            continue
        try:
            arrays = sorted(zarr.open_group(folder, mode="r", use_consolidated=False).arrays())
        except Exception as error:
            reason = f"cannot be opened ({type(error).__name__})"
            if group == TRAINING:
                yield Flaw(group, reason, "nothing can be read", COPY)
            else:
                yield Flaw(group, reason, _lacking(group), REPLAY, group=group)
            continue
        for name, array in arrays:
            rows = _damaged(array, complete)
            if rows is None:
                continue
            what = f"{group}/{name}, rows {rows.start} to {rows.stop - 1}"
            wrong = "chunks are damaged or gone"
            if group != TRAINING:
                yield Flaw(what, wrong, _lacking(group), REPLAY, group=group)
            elif name in ("losses", "train_loss"):
                costs = "no analysis can be done"
                if name == "train_loss":  # row k is after episode k - 1
                    M = int(cast(Any, record.attrs["steps_per_episode"]))
                    rows = range(rows.start // M + 1, (rows.stop - 1) // M + 2)
                yield Flaw(what, wrong, costs, REPLAY, rows=rows)
            else:
                yield Flaw(what, wrong, "what was trained is not known", COPY)


def _damaged(array: Any, complete: bool) -> range | None:
    """The rows, from the first to the last, in chunks that cannot be read, or are gone from a
    complete run."""
    if not array.ndim:
        try:
            array[()]
        except Exception:
            return range(1)
        return None
    size, bad = array.chunks[0], []
    whole = not complete or array.nchunks_initialized == array.nchunks
    for start in range(0, array.shape[0], size):
        try:
            array[start : start + size]
            there = whole or _there(array, start // size)
        except Exception:
            there = False
        if not there:
            bad += [start, min(start + size, array.shape[0])]
    return range(min(bad), max(bad)) if bad else None


def _there(array: Any, first: int) -> bool:
    """Whether the chunks of these rows lie on the disk."""
    folder = Path(array.store.root) / array.path / "c" / str(first)
    return folder.is_file() if array.ndim == 1 else any(f.is_file() for f in folder.rglob("*"))


def _checkpoints(run: Path) -> Iterator[Flaw]:
    for done in checkpoints(run):
        folder = checkpoint_folder(run, done)
        if not (folder / checkpoint.STATE).exists() and not (run / checksums.FILE).exists():
            continue  # of a version that had none
        if wrong := checkpoint.damage(folder):
            costs = "resuming and replaying begin at an earlier one"
            what = f"checkpoint after {done} episodes"
            yield Flaw(what, wrong, costs, REPLAY, episodes_done=done)


def _lacking(recorder: str) -> str:
    return f"what needs {recorder} cannot be done"

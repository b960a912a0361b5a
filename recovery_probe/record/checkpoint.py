"""Checkpoints on the disk: folders that are whole or not there, and say what is in them.

`checkpoints/episodes-00020/` holds the weights as a folder that transformers can load, and
`state.json` with `state.safetensors`: all else that a run needs to go on from there, and the
SHA-256 of every file. Imports no torch.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from recovery_probe.record import store
from recovery_probe.record.folder import checkpoint_folder, checkpoints

STATE, TENSORS = "state.json", "state.safetensors"


def put(run: Path, done: int, fill: Callable[[Path], Mapping[str, Any]]) -> None:
    """Write the checkpoint after `done` episodes: `fill` is given a folder to write files in, and
    returns what `state.json` holds beside. Written aside, flushed to the disk, and put in place
    when whole."""
    folder = checkpoint_folder(run, done)
    aside = folder.with_name(folder.name + ".partial")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        state = {"episodes_done": done, **fill(aside)}
        state["sha256"] = {
            file.relative_to(aside).as_posix(): digest(file)
            for file in sorted(aside.rglob("*"))
            if file.is_file()
        }
        (aside / STATE).write_text(json.dumps(state) + "\n", encoding="utf-8")
        for file in (*aside.rglob("*"), aside):
            store.flush(file)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    shutil.rmtree(folder, ignore_errors=True)  # of a run that begins again
    os.replace(aside, folder)
    store.flush(folder.parent)


def copy_rest(checkpoint: Path, folder: Path) -> None:
    """What is the same in all checkpoints of a run: the configuration, the tokenizer."""
    for file in checkpoint.iterdir():
        if file.name != STATE and file.suffix != ".safetensors":
            shutil.copyfile(file, folder / file.name)


def state(folder: Path) -> dict[str, Any]:
    """What its `state.json` holds. Raises `Damaged` where that cannot be read."""
    with store.reading(folder / STATE):
        return dict(json.loads((folder / STATE).read_text("utf-8")))


def damage(folder: Path) -> str:
    """What is wrong with a checkpoint, in words: the first file that is not as it was written.
    Empty when it is whole."""
    try:
        sums = json.loads((folder / STATE).read_text("utf-8"))["sha256"]
    except FileNotFoundError:
        return f"{STATE} is gone"
    except (OSError, ValueError, TypeError, KeyError):
        return f"{STATE} cannot be read"
    for name, expected in sums.items():
        try:
            if digest(folder / name) != expected:
                return f"{name} is not as it was written"
        except OSError:
            return f"{name} is gone, or cannot be read"
    return ""


def newest(run: Path, episodes_done: int) -> tuple[int | None, dict[int, str]]:
    """The episodes done at the newest whole checkpoint of a run, of those after `episodes_done`
    or before; None where there is none. And those passed over -> what is wrong with them."""
    damaged: dict[int, str] = {}
    for done in reversed([n for n in checkpoints(run) if n <= episodes_done]):
        wrong = damage(checkpoint_folder(run, done))
        if not wrong:
            return done, damaged
        damaged[done] = wrong
    return None, damaged


def digest(file: Path) -> str:
    """SHA-256 of a file's content."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()

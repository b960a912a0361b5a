"""What a run will write and cost, said before it does."""

from __future__ import annotations

import shutil
from pathlib import Path

from recovery_probe.errors import InputError
from recovery_probe.machine import size_of
from recovery_probe.record.layout import EPISODE, STEP
from recovery_probe.recorders.recording import Recording, clock
from recovery_probe.saying import say
from recovery_probe.training import Training


def announce(recording: Recording, training: Training, path: Path, force: bool) -> None:
    """Say on standard error what will be written and what it will cost, before it is.

    Raises `InputError` when the disk has no room for it, unless `force`.
    """
    work = recording.rehearse()
    step = step_seconds(training)
    total = 0
    for recorder, arrays in recording.sizes().items():
        size = sum(count for _, count in arrays.values())
        shapes = ", ".join(
            f"{n} {'×'.join(map(str, s))}" if s else n for n, (s, _) in arrays.items()
        )
        seconds, calls, each = work[recorder]
        share = ""
        if each == STEP and seconds > step / 200:
            share = f", about {seconds / step:.0%} of a step"
        elif each == EPISODE and seconds > step:
            share = f", about {seconds:.1f} s at each of {calls} episodes"
        say(f"record {recorder}: {size / 1e6:.1f} MB{share}{f' ({shapes})' if shapes else ''}")
        total += size
    if not force:
        check_room(path, total, "record less (--no-record checkpoints), or add --force")


def check_room(path: Path, size: int, mend: str) -> None:
    """Raise `InputError` when so many bytes do not fit on the disk of `path`, which may not be
    there yet."""
    place = next(p for p in [path.resolve(), *path.resolve().parents] if p.exists())
    free = shutil.disk_usage(place).free
    if size > free:
        raise InputError(
            f"{path}: what is recorded may take {size_of(size)} and the disk has "
            f"{size_of(free)}: {mend}"
        )


def step_seconds(training: Training) -> float:
    """Seconds of a forward and a backward pass on document 0, the better of two tries."""
    tries = []
    for _ in range(2):
        start = clock(training.model.device)
        training.losses(slice(1)).sum().backward()
        tries.append(clock(training.model.device) - start)
    for parameter in training.model.parameters.values():
        parameter.grad = None
    return min(tries)

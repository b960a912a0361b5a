"""What a record holds: arrays along time, one row after the other, and when rows are due."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from recovery_probe.errors import InputError

FORMAT = 1  # of a record; raised when readers must know of a change
TRAINING = "training"  # the group of the record that is no recorder's
Time = Literal["step", "episodes_done"]
STEP: Final = "step"
EPISODE: Final = "episodes_done"


def check_format(run: Path, found: Any) -> None:
    """Raise `InputError` for a record of a format that this version does not read."""
    if found is None:
        raise InputError(
            f"{run}: its record says no format: it was written before there was one, and cannot be "
            "read; train again"
        )
    if not isinstance(found, int) or found > FORMAT:
        raise InputError(
            f"{run}: its record is of format {found}, and this version reads up to {FORMAT}: "
            "install a newer recovery_probe"
        )


@dataclass(frozen=True)
class Array:
    """An array that a recorder will fill, one row along time after the other."""

    time: Time
    dims: tuple[str, ...]  # of a row
    shape: tuple[int, ...]  # of a row
    description: str
    units: str = "1"
    dtype: str = "float32"  # or an integer or bool: then every due row must come
    # A row is of its moment, or of the stretch from there to the next row: then it counts only
    # once the stretch has ended.
    covers: Literal["moment", "stretch"] = "moment"


@dataclass(frozen=True)
class Timeline:
    """When what is trained on: the document of each episode, and M steps in each."""

    schedule: NDArray[np.int32]  # (episodes,)
    documents: int  # T
    steps: int  # M
    per_epoch: int  # episodes of an epoch: T, unless the schedule says otherwise
    lengths: tuple[int, ...] = ()  # those of each, where they are not all alike

    @property
    def episodes(self) -> int:
        return len(self.schedule)

    @functools.cached_property
    def boundaries(self) -> NDArray[np.int64]:
        """Episodes done when an epoch begins, and when the last one ends, if it is whole. What the
        schedule has beyond `lengths` is in epochs of `per_epoch`."""
        known = np.cumsum([0, *self.lengths])
        beyond = np.arange(known[-1] + self.per_epoch, self.episodes + 1, self.per_epoch)
        both = np.append(known, beyond)
        return both[both <= self.episodes]

    def place(self, episode: Any) -> tuple[Any, Any]:
        """The epoch of an episode, or of (n,) episodes, and its place within; the first are 0."""
        epoch = np.searchsorted(self.boundaries, episode, side="right") - 1
        return epoch, episode - self.boundaries[epoch]

    def begins_epoch(self, episode: int) -> bool:
        """Whether it is the first of an epoch."""
        return bool(self.place(episode)[1] == 0)

    def last(self, epochs: int, done: int | None = None) -> int:
        """Episodes done when the last so many epochs begin, of all or of those begun once `done`
        episodes are; 0 where there are no more, or for 0."""
        begin = self.boundaries[self.boundaries < (self.episodes if done is None else done)]
        return int(begin[-epochs]) if 0 < epochs <= len(begin) else 0

    @property
    def total(self) -> int:
        """Steps of the whole run."""
        return self.episodes * self.steps

    def due(self, every: str, time: str) -> NDArray[np.int64]:
        """Step indices, or numbers of episodes done, at which something is due.

        `every` is `step`, `N steps`, `episode`, `N episodes`, `epoch` or `N epochs`. Steps are the
        first of their period; episodes done start at 0. Raises `InputError` for anything else.
        """
        times = self.periods(every, time)
        return times[times < self.total] if time == STEP else times

    def periods(self, every: str, time: str) -> NDArray[np.int64]:
        """Where each period of `every` begins, as `due` has it, and where the last one ends, if
        that is where the run does."""
        match = re.fullmatch(r"(?:(\d{1,9}) )?(step|episode|epoch)s?", every)
        count = int(match[1] or 1) if match else 0
        if not match or not count or (time == EPISODE and match[2] == "step"):
            raise InputError(
                f"every = {every!r}: expected "
                + ("" if time == EPISODE else "'step', '5 steps', ")
                + "'episode', '5 episodes', 'epoch' or '2 epochs'"
            )
        M = self.steps if time == STEP else 1
        if match[2] == "step":
            return np.arange(0, self.total + 1, count)
        known = self.boundaries if match[2] == "epoch" else np.arange(self.episodes + 1)
        return known[::count] * M

    def labels(
        self, time: str, values: NDArray[np.integer], taken: frozenset[str] = frozenset()
    ) -> dict[str, tuple[str, NDArray[np.int64], dict[str, str]]]:
        """Coordinates along `step` or `episodes_done`, by which to select and group: document
        trained on, episode, epoch, and the place within. -1 (epoch 0) before any training. `taken`
        are names of the same dataset: `document` becomes `trained_on` beside one of that name,
        `episode` `in_episode`; others are left out."""
        if time == STEP:
            episode, within = values // self.steps, values % self.steps
            epoch, place = self.place(episode)[0], "step within its episode; first is 0"
        else:
            episode, place = values - 1, "place of the last episode within its epoch; first is 0"
            epoch, within = self.place(episode)
        before = episode < 0
        order = np.append(self.schedule, -1)
        last = "" if time == STEP else " last; -1 for none"
        found = {
            "document" if "document" not in taken else "trained_on": (
                np.where(before, -1, order[np.clip(episode, -1, self.episodes)]),
                f"document trained on{last}",
            ),
            "episode" if "episode" not in taken else "in_episode": (
                episode,
                "episode, from the start of the run; first is 0",
            ),
            "epoch": (
                np.where(before, 0, epoch + 1),
                "pass over the documents; first is 1",
            ),
            "within": (np.where(before, -1, within), place),
        }
        return {
            name: (time, np.asarray(labels, dtype=np.int64), {"description": text, "units": "1"})
            for name, (labels, text) in found.items()
            if name not in taken
        }


def module_coords(
    modules: Sequence[str],
) -> dict[str, tuple[str | tuple[str, ...], Any]]:
    """Coordinates of a `module` dimension: its name, its block (-1 for none) and its kind
    (`attn.q` of `blocks.3.attn.q`)."""
    split = [re.match(r"blocks\.(\d+)\.(.*)", m) for m in modules]
    return {
        "name": ("module", list(modules)),
        "block": ("module", [int(s[1]) if s else -1 for s in split]),
        "kind": ("module", [s[2] if s else m for s, m in zip(split, modules, strict=True)]),
    }

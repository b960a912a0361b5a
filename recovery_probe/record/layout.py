"""What a record holds: arrays along time, one row after the other, and when rows are due."""

from __future__ import annotations

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

    @property
    def episodes(self) -> int:
        return len(self.schedule)

    @property
    def total(self) -> int:
        """Steps of the whole run."""
        return self.episodes * self.steps

    def due(self, every: str, time: str) -> NDArray[np.int64]:
        """Step indices, or numbers of episodes done, at which something is due.

        `every` is `step`, `N steps`, `episode`, `N episodes`, `epoch` or `N epochs`. Steps are the
        first of their period; episodes done start at 0. Raises `InputError` for anything else.
        """
        match = re.fullmatch(r"(?:(\d{1,9}) )?(step|episode|epoch)s?", every)
        count = int(match[1] or 1) if match else 0
        if not match or not count or (time == EPISODE and match[2] == "step"):
            raise InputError(
                f"every = {every!r}: expected "
                + ("" if time == EPISODE else "'step', '5 steps', ")
                + "'episode', '5 episodes', 'epoch' or '2 epochs'"
            )
        each, M = self.per_epoch, self.steps
        if time == STEP:
            return np.arange(
                0, self.total, count * {"step": 1, "episode": M, "epoch": M * each}[match[2]]
            )
        return np.arange(0, self.episodes + 1, count * {"episode": 1, "epoch": each}[match[2]])

    def labels(
        self, time: str, values: NDArray[np.integer], taken: frozenset[str] = frozenset()
    ) -> dict[str, tuple[str, NDArray[np.int64], dict[str, str]]]:
        """Coordinates along `step` or `episodes_done`, by which to select and group: document
        trained on, episode, epoch, and the place within. -1 (epoch 0) before any training. `taken`
        are names of the same dataset: `document` becomes `trained_on` beside one of that name,
        `episode` `in_episode`; others are left out."""
        each = self.per_epoch
        if time == STEP:
            episode, within = values // self.steps, values % self.steps
            place = "step within its episode; first is 0"
        else:
            episode, within = values - 1, (values - 1) % each
            place = "place of the last episode within its epoch; first is 0"
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
                np.where(before, 0, episode // each + 1),
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

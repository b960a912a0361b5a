"""What an analysis is: a question put to a run, with what its answer would be if there were
nothing to see, and what it cannot see."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

import xarray as xr

from recovery_probe import plugins
from recovery_probe.analyze import estimate, groups
from recovery_probe.analyze.estimate import Estimate
from recovery_probe.analyze.salient import salient
from recovery_probe.errors import Missing
from recovery_probe.plugins import Plugin

if TYPE_CHECKING:  # a second of start-up
    from matplotlib.figure import Figure

    from recovery_probe.record.run import Run


def RUN(analysis: Analysis, runs: Sequence[Run]) -> None:
    """A run."""
    if not runs:
        raise Missing(f"{analysis.name} needs a run directory; train one first")


@dataclass(frozen=True)
class Analysis(Plugin, ABC):
    """A plug-in: one file, one class, and a frozen dataclass: its fields are its settings, and the
    comment above each is its help on the command line.

    The numbers of its dataset that have an interval or a p-value are put there as estimates
    (`estimate.put`): these are what the report tabulates, and what gets a mean, a spread and an
    interval over seeds (`across`). Called with a run and its controls it is checked, and computed:
    `Recovery()(run, *run.controls)`.
    """

    group: ClassVar[str] = "analyses"
    # Texts may be wrapped anywhere.
    question: ClassVar[str]
    null: ClassVar[str]  # what it would show if there were no effect
    blind_spot: ClassVar[str]  # what it cannot tell apart
    # The estimate that answers the question, if its p-value does: the run's smallest is corrected
    # for how many analyses have one (`multiplicity`).
    tested: ClassVar[str] = ""
    # What stands for it in a report's first table: an estimate, as `salient` calls it, and words
    # for it. The one that is tested, or else the first, when not given.
    shown: ClassVar[tuple[str, str]] = ("", "")
    # What the paper found, and where it says so; nothing of a question that it does not ask.
    paper: ClassVar[str] = ""
    # What it needs of a run and its controls, the run itself first. One that needs nothing, a
    # simulation, is computed without any run, when it is named and not otherwise.
    needs: ClassVar[tuple[Need, ...]] = (RUN,)

    def __init_subclass__(cls) -> None:
        for name, text in list(vars(cls).items()):
            if name in ("question", "null", "blind_spot", "paper"):
                setattr(cls, name, " ".join(text.split()))

    def __call__(self, *runs: Run) -> xr.Dataset:
        """What `compute` makes of a run and its controls. Raises `Missing` where they lack what it
        needs."""
        for need in self.needs:
            need(self, runs)
        dataset = self.compute(*runs)
        return dataset.assign_attrs(groups.origin(runs)) if runs else dataset

    def stored(self, run: Run) -> xr.Dataset | None:
        """What an earlier call left in a run's directory, if it was of the same settings, and the
        run has not gone on since."""
        path = run.path / "analyses" / f"{self.name}.zarr"
        if not path.exists():
            return None
        if path.stat().st_mtime < (run.path / "provenance.json").stat().st_mtime:
            return None
        found = xr.open_zarr(path, consolidated=None).load()
        return found if found.attrs.get("settings") == plugins.settings_of(self) else None

    def compute(self, *runs: Run) -> xr.Dataset:
        """Numbers of a run, which comes first, and its controls, with dimensions, units and how
        they were made: those of each, side by side, where no more is to be done."""
        episodes = groups.common(runs)
        return groups.beside(runs, lambda run: self.of_run(run, episodes))

    def of_run(self, run: Run, episodes: int) -> xr.Dataset:
        """Numbers of one of them, of as many episodes as all have done."""
        raise NotImplementedError

    @abstractmethod
    def plot(self, dataset: xr.Dataset) -> Figure:
        """A figure of these numbers; it computes none."""

    def summary(self, dataset: xr.Dataset) -> dict[str, Any]:
        """What JSON can hold; `verdict` is a sentence for the report."""
        before = f"{dataset.attrs['compared']} " if "compared" in dataset.attrs else ""
        if left_out := dataset.attrs.get("seeds_left_out"):
            before += f"Seeds that do not count, or not everywhere: {'; '.join(left_out)}. "
        return {
            "estimates": estimate.records(dataset),
            "verdict": before + self.verdict(dataset),
        }

    def main(self, dataset: xr.Dataset, side: int = 0) -> tuple[str, Estimate] | None:
        """What stands for it in a report's first table, in words and as an estimate: of the run, or
        (`side` 1) of its first control."""
        found = salient(dataset, side)
        name = self.shown[0] or self.tested or next(iter(found), "")
        return (self.shown[1] or name, found[name]) if name in found else None

    def agrees(self, dataset: xr.Dataset) -> bool | None:
        """Whether the numbers agree with what the paper found (`Estimate.agrees`, over seeds); None
        where that cannot be told."""
        return None

    def verdict(self, dataset: xr.Dataset) -> str:
        """What the numbers say, in a sentence or two."""
        raise NotImplementedError


# Raises `Missing`, with the mend, where a run or one of its controls lacks something.
Need: TypeAlias = Callable[["Analysis", Sequence["Run"]], None]

"""What an experiment is: a question that training on from a checkpoint of a run can answer."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

from annotated_types import Ge

from recovery_probe import config, plugins
from recovery_probe.analyze import needs
from recovery_probe.analyze.analysis import Analysis
from recovery_probe.errors import InputError, Missing
from recovery_probe.record import mends
from recovery_probe.record.folder import is_run
from recovery_probe.record.run import Run, open_run
from recovery_probe.train.plan import Begins, Point


@dataclass(frozen=True)
class Experiment(Analysis):
    """An analysis that has runs of its own made first, its `arms`, each of which begins with a
    checkpoint of the run, or of a control. They lie in `RUN/experiments/NAME`, and stay: the
    command goes on with those that are not done.

    Its settings are those of an analysis, and where it begins.
    """

    group: ClassVar[str] = "experiments"
    # Arms that some runs cannot have, such as those for which there are too few documents: what it
    # found without them says so.
    optional: ClassVar[tuple[str, ...]] = ()

    # whole epochs of the run that it begins after; 0 for the last that has a checkpoint before it
    after: Annotated[int, Ge(0)] = 0

    @abstractmethod
    def arms(self, run: Run) -> Mapping[str, Point]:
        """The runs that it needs beside a run, or beside a control of one, by name."""

    def folder(self, run: Run) -> Path:
        """Where its arms lie."""
        return run.path / "experiments" / plugins.key_of(self.name)

    def begins(self, run: Run) -> int:
        """Episodes done where it begins: at the end of a whole epoch. Raises `Missing` when there
        is no checkpoint there."""
        ends = [int(k) for k in run.timeline.boundaries[1:] if k <= run.episodes_done]
        there = [k for k in ends if k in run.checkpoints]
        if self.after:
            there = [k for k in there if k == ends[min(self.after, len(ends)) - 1]]
        elif len(there) > 1 and there[-1] == run.schedule.size:
            there.pop()  # so that the run itself goes on from there too
        if not there or self.after > len(ends):
            where = f"after {self.after} epochs" if self.after else "at the end of an epoch"
            raise Missing(
                f"{run.path}: {self.name} begins {where}, and there is no checkpoint (there are "
                f"some after {', '.join(map(str, run.checkpoints)) or 'no'} episodes); train again "
                "with --record checkpoints --checkpoints.every epoch"
            )
        return there[-1]

    def arm(self, run: Run, name: str, order: Sequence[int], every: int, **changes: Any) -> Point:
        """A run of these documents, one after the other, in epochs of `every` episodes; `changes`
        are settings. It records nothing but losses."""
        listed = {"kind": "listed", "documents": [int(k) for k in order], "every": every}
        epochs = -(-len(order) // every)
        settings = config.changed(
            run.config, **{"recorders": [], "schedule": listed, "epochs": epochs, **changes}
        )
        return Point(self.folder(run) / name, settings, begins=Begins(run.path, self.begins(run)))

    def parts(self) -> Sequence[Analysis]:
        """Experiments and analyses that it brings together, and has done before it."""
        return ()

    def before(self, run: Run, controls: Sequence[Run]) -> None:
        """Have done what it brings together of a run and its controls, and is not there yet."""

    def seconds(self, run: Run, controls: Sequence[Run]) -> float:
        """About how long that takes, beside training arms."""
        return 0.0

    def size(self, run: Run) -> int:
        """Bytes at most that it has yet to write beside the arms' own records."""
        return 0

    def prepare(self, run: Run) -> None:
        """Make what the settings of its arms name, such as files: before any of them is trained,
        and when some were and others not. What is there already stays."""

    def last_order(self, run: Run) -> list[int]:
        """The documents of the epoch after which it begins, in their order."""
        T, begins = run.config.documents.count, self.begins(run)
        return [int(k) for k in run.schedule.values[begins - T : begins]]

    def made(self, run: Run) -> dict[str, Run]:
        """Its arms beside a run, those that are there. Raises `Missing` when one is not complete
        that it cannot be without."""
        found = {}
        for name, point in self.arms(run).items():
            if arm := complete(point):
                found[name] = arm
            elif name not in self.optional:
                raise Missing(
                    f"{point.path}: not trained yet; python -m recovery_probe.experiment "
                    f"{self.name} {run.path}"
                )
        return found


def complete(point: Point) -> Run | None:
    """The arm, when it is there and at its end. Raises `InputError` when it is another one, made
    with other settings of the experiment. A file may lie elsewhere, since a run may be moved."""
    if not is_run(point.path) or (arm := open_run(point.path)).status != "complete":
        return None
    found = config.differences(config.resolved(arm.config), point.settings, roles=("numbers",))
    differing = {n: both for n, both in found.items() if len({Path(str(b)).name for b in both}) > 1}
    begins = point.begins and point.begins.told(point.path)
    if arm.provenance.get("begins") != begins:
        differing["begins"] = (arm.provenance.get("begins"), begins)
    if differing:
        pairs = "; ".join(f"{n} is {a!r} there, and {b!r} here" for n, (a, b) in differing.items())
        raise InputError(
            f"{point.path}: was made with other settings of the experiment ({pairs}): ask with "
            f"those, or remove {point.path.parent}"
        )
    return arm


def restartable(analysis: Analysis, runs: Sequence[Run]) -> None:
    """A run, and controls, that were trained and not simulated, with one checkpoint at least at the
    end of an epoch."""
    for run in runs:
        if mends.simulated(run.provenance):
            raise Missing(f"{run.path}: was simulated, and nothing can be trained on from it")
        assert isinstance(analysis, Experiment)
        analysis.begins(run)


NEEDS = (needs.RUN, needs.once_an_epoch, restartable)

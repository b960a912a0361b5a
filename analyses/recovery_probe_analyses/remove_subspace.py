"""Directions that documents share, taken out of every update: does recovery need them?"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import xarray as xr
from annotated_types import Ge, Le, Len

from recovery_probe import Run, stats
from recovery_probe.analyze import ages, estimate, plots
from recovery_probe.analyze.analysis import Analysis
from recovery_probe.analyze.estimate import Estimate
from recovery_probe.errors import InputError, Missing
from recovery_probe.experiments import NEEDS, Experiment, scores
from recovery_probe.machine import size_of
from recovery_probe.plugins import key_of
from recovery_probe.record import store
from recovery_probe.saying import say

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.figure import Figure
    from torch import Tensor

    from recovery_probe.train.plan import Point

PROJECT, SAME, ISOTROPIC = "project", "same", "isotropic"
MADE = "directions.json"
ENERGY = {"units": "share of the updates' energy"}


def undisturbed(analysis: Analysis, runs: Sequence[Run]) -> None:
    """A network that is the same when it is run again, and of which nothing is taken yet."""
    for run in runs:
        if editing := run.provenance.get("edited_by"):
            raise Missing(
                f"{run.path}: was trained with {', '.join(editing)}: without that its gradients "
                "are another network's"
            )
        if PROJECT in map(key_of, run.config.interventions):
            raise Missing(f"{run.path}: was trained with {PROJECT} itself; a run has it once")


@dataclass(frozen=True)
class RemoveSubspace(Experiment):
    """From a checkpoint at the end of an epoch two epochs in the order of that epoch: as they are
    (`same`), and with r directions taken out of every update, what remains scaled to the length
    that the whole had (`project`). Shared directions: the r leading principal ones, not centred, of
    the gradients of documents' losses, each made of length 1: of all documents at the end of an
    epoch before, or of held-out documents where it begins. Placebo: random directions in the
    span of the run's own updates, those of the T episodes of `same`'s first epoch, as many as take
    the same share of these updates' energy, the sum of their squared lengths; for the exact share
    the last one leans out of the span. `isotropic`: as many
    random directions of all weights as the largest r.

    loss (arm, age): mean loss at the ages 1 to T, after a document's first episode there. score
    (arm, reading): the share of the loss forgotten since age 1 that is gone at age T, of the mean
    (`curve`) and cross-fitted, as in `age_curve`. left (arm): the score, `curve`, as a share of
    `same`'s. beyond (rank): left of the placebo, mean of its draws, minus left of the shared.
    forgotten (arm): the rise of the mean loss, nats: without it no score is defined. removed (arm):
    the share of the updates' energy that the directions take. directions (arm): how many. overlap
    (arm): how much of the shared directions of that rank a placebo takes, mean squared cosine.
    """

    # how many shared directions are taken out
    ranks: Annotated[tuple[Annotated[int, Ge(1), Le(1000)], ...], Len(1)] = (1, 2, 4)
    # placebos for each of these
    draws: Annotated[int, Ge(1), Le(100)] = 2
    # whose gradients share them; earlier: those of all documents at the last checkpoint before, at
    # the end of an epoch; held_out: of held-out documents where it begins. When not given earlier,
    # if there is such a checkpoint
    of: Literal["earlier", "held_out"] | None = None

    name = "remove_subspace"
    question = (
        """Does recovery need the few directions that the gradients of all documents share?"""
    )
    null = """Any directions of the updates that take as much of their energy do as much: beyond is
    0. Random directions of all weights do nothing: left is 1."""
    blind_spot = """Plain least squares of documents that share a component loses all recovery with
    it, with no feature learned: a shared state that comes back (H2) needs these directions, and
    features that training aligns (H1) may too. Where nothing is shared documents do not disturb one
    another either: see `forgotten`. Energies are met on the updates of one epoch without
    projection: later, and under it, others are taken, and directions that all documents share stay
    in the updates for longer than those of single documents. A placebo that takes much has much of
    the shared directions in it (`overlap`), and then says too little. The documents of one run
    share its weights: intervals say how much documents differ."""
    needs = (*NEEDS, undisturbed)

    def arms(self, run: Run) -> Mapping[str, Point]:
        if run.provenance.get("role") == "control":
            return {}
        made = self._made(run)
        found = {SAME: self._arm(run, SAME)}
        for name in self._names():
            project = {"of": "update", "keep_norm": True, "directions": ""}
            if made:  # or else nothing is trained yet
                file = self.folder(run) / str(made[name]["file"])
                project["directions"] = str(file.resolve())
            found[name] = self._arm(run, name, project)
        return found

    def _names(self) -> list[str]:
        """Arms from which something is taken."""
        ranks = sorted(set(self.ranks))
        placebos = [_placebo(r, draw) for r in ranks for draw in range(self.draws)]
        return [*map(_shared, ranks), *placebos, ISOTROPIC]

    def _arm(self, run: Run, name: str, project: Mapping[str, Any] | None = None) -> Point:
        order, T = self.last_order(run), run.config.documents.count
        if project is None:
            return self.arm(run, name, order * 2, T)
        acting = [*run.config.interventions, PROJECT]
        return self.arm(run, name, order * 2, T, interventions=acting, project=dict(project))

    def source(self, run: Run) -> tuple[int, range]:
        """After how many episodes, and of which documents, gradients share directions. Raises
        `Missing` where there are none such."""
        T, H, begins = run.config.documents.count, run.config.documents.held_out, self.begins(run)
        ends = run.timeline.boundaries[1:].tolist()
        before = [k for k in run.checkpoints if k in ends and k < begins]
        if self.of == "held_out" or (self.of is None and not before):
            if max(self.ranks) > H:
                raise Missing(
                    f"{run.path}: {H} held-out documents share at most as many directions, and "
                    f"ranks = {self.ranks}: ask for fewer"
                    + ("" if before else ", or train with --checkpoints.every epoch")
                )
            return begins, range(T, T + H)
        if not before:
            raise Missing(
                f"{run.path}: no checkpoint at the end of an epoch before that after {begins} "
                "episodes, where it begins; --of held_out needs none"
            )
        return before[-1], range(T + H)

    def _recipe(self, run: Run) -> dict[str, Any]:
        """What decides the directions, as JSON gives it back."""
        time, documents = self.source(run)
        return {
            "begins": self.begins(run),
            "gradients_after": time,
            "documents": [documents.start, documents.stop],
            "ranks": sorted(set(self.ranks)),
            "draws": self.draws,
        }

    def _made(self, run: Run) -> dict[str, dict[str, Any]]:
        """Arm -> what is known of its directions; empty where they are not made yet. Raises
        `InputError` where they are of other settings."""
        path = self.folder(run) / MADE
        if not path.exists():
            return {}
        with store.reading(path):
            known = json.loads(path.read_text("utf-8"))
            recipe, arms = known["recipe"], dict(known["arms"])
        if recipe != (wanted := self._recipe(run)):
            differing = ", ".join(n for n in wanted if recipe.get(n) != wanted[n])
            raise InputError(
                f"{path}: made with other settings of the experiment ({differing}): ask with "
                f"those, or remove {path.parent}"
            )
        return arms

    def size(self, run: Run) -> int:
        """Of its directions: a placebo has at most as many as there are updates of an epoch."""
        if run.provenance.get("role") == "control" or self._made(run):
            return 0
        ranks, T = sorted(set(self.ranks)), run.config.documents.count
        directions = sum(ranks) + ranks[-1] + len(ranks) * self.draws * T
        return 4 * directions * int(run.provenance["parameters"])  # float32

    def prepare(self, run: Run) -> None:
        """Write the directions of every arm."""
        if run.provenance.get("role") == "control" or self._made(run):
            return
        from recovery_probe import subspaces
        from recovery_probe.experiments import vectors

        T, ranks = run.config.documents.count, sorted(set(self.ranks))
        time, documents = self.source(run)
        room = size_of(4 * (T + len(documents)) * int(run.provenance["parameters"]))
        say(
            f"{run.path}: the updates of {T} episodes, and {len(documents)} gradients after "
            f"{time}, {room} of memory"
        )
        updates = vectors.updates(self._arm(run, SAME), T)
        gradients = vectors.gradients(run, time, documents, [*updates])
        try:
            shared = subspaces.principal(gradients, ranks[-1])
        except InputError as error:
            raise InputError(f"{run.path}: ranks = {self.ranks}: {error}") from None
        del gradients
        arms: dict[str, dict[str, Any]] = {}
        for r in ranks:
            leading = {name: each[:r] for name, each in shared.items()}
            name = _shared(r)
            arms[name] = self._written(run, name, leading, updates, leading)
            for draw in range(self.draws):
                name = _placebo(r, draw)
                rng = run.rng(f"remove_subspace {name}")
                random = subspaces.placebo(updates, arms[_shared(r)]["removed"], rng)
                arms[name] = self._written(run, name, random, updates, leading)
        random = subspaces.isotropic(updates, ranks[-1], run.rng(f"remove_subspace {ISOTROPIC}"))
        arms[ISOTROPIC] = self._written(run, ISOTROPIC, random, updates, shared)
        # Last: with it, all are there.
        store.write_json(self.folder(run) / MADE, {"recipe": self._recipe(run), "arms": arms})

    def _written(
        self,
        run: Run,
        name: str,
        directions: Mapping[str, Tensor],
        updates: Mapping[str, Tensor],
        shared: Mapping[str, Tensor],
    ) -> dict[str, Any]:
        """Write the directions of an arm, in a file that is named by what is in it, and tell what
        they take of the updates and of the shared ones."""
        from recovery_probe import subspaces

        return {
            "file": write_directions(self.folder(run), name, directions),
            "directions": len(next(iter(directions.values()))),
            "removed": subspaces.removed(directions, updates),
            "overlap": subspaces.removed(directions, shared),
        }

    def compute(self, *runs: Run) -> xr.Dataset:
        run, T, rng = runs[0], runs[0].config.documents.count, runs[0].rng("remove_subspace")
        arms, known, ranks = self.made(run), self._made(run), sorted(set(self.ranks))
        names, (time, documents) = [*arms], self.source(run)
        curves = scores.first_waits([*arms.values()], T)
        dataset = xr.Dataset(
            {
                "loss": (("arm", "age"), curves.mean(axis=1), ages.NATS),
                "forgotten": ("arm", stats.own_tops(curves.mean(axis=1))[1], ages.NATS),
            },
            coords={
                "arm": names,
                "reading": list(scores.READINGS),
                "rank": ranks,
                "draw": np.arange(self.draws),
                "age": np.arange(1, T + 1),
            },
            attrs={
                "unit": "documents",
                "interval": "95% bootstrap over documents, the same drawn in all arms",
                "begins": self.begins(run),
                "gradients": f"of {len(documents)} {'held-out ' * (documents.start == T)}documents "
                f"after {time} episodes",
            },
        )
        nothing = {"removed": 0.0, "directions": 0, "overlap": np.nan}
        facts = [known.get(name, nothing) for name in names]
        for part, attrs in (("removed", ENERGY), ("directions", {}), ("overlap", {"units": "1"})):
            dataset[part] = ("arm", [float(each[part]) for each in facts], attrs)
        score = scores.of_arms(curves, rng)
        estimate.put(dataset, "score", ("arm", "reading"), score, **ages.SHARE)
        left = scores.interval(scores.shares, curves, rng, null=1.0)
        units = "share of the score with nothing taken out"
        estimate.put(dataset, "left", ("arm",), left, units=units)
        shared = [names.index(_shared(r)) for r in ranks]
        placebos = [[names.index(_placebo(r, d)) for d in range(self.draws)] for r in ranks]

        def beyond(curves: stats.Floats, drawn: stats.Ints) -> stats.Floats:
            each = scores.shares(curves, drawn)  # (resamples, arm)
            return each[:, placebos].mean(axis=2) - each[:, shared]

        estimate.put(
            dataset, "beyond", ("rank",), scores.interval(beyond, curves, rng), units=units
        )
        return dataset

    @plots.styled
    def plot(self, dataset: xr.Dataset) -> Figure:
        """Losses by age; what is left of the score, and what is taken of the updates, by rank."""
        fig, panels = plots.mosaic([["loss", "left", "removed"]])
        ranks = dataset["rank"].values
        largest, x = int(ranks[-1]), np.arange(len(ranks))
        shown = [(SAME, "nothing", "black", "-"), (ISOTROPIC, ISOTROPIC, plots.HELD_OUT, "--")]
        shown += [(_shared(largest), f"shared, {largest}", plots.RUN, "-")]
        for draw in dataset.draw.values:
            label = f"placebo of {largest}" if not draw else "_"
            shown.append((_placebo(largest, draw), label, plots.CONTROL, "-"))
        for name, label, colour, style in shown:
            y = dataset.loss.sel(arm=name)
            panels["loss"].plot(dataset.age, y, style, color=colour, label=label)
        panels["loss"].set(title="first wait", xlabel="age, episodes", ylabel="nats/token")
        for draw in dataset.draw.values:
            arms = [_placebo(r, draw) for r in ranks]
            place, label = x + 0.1 * (draw + 1), "placebo" if not draw else "_"
            line: dict[str, Any] = {"color": plots.CONTROL, "label": label}
            left = estimate.get(dataset, "left", arm=arms)
            plots.points(panels["left"], place, left, "s", **line)
            panels["removed"].plot(place, dataset.removed.sel(arm=arms), "s", ms=3, **line)
        arms = [_shared(r) for r in ranks]
        line = {"color": plots.RUN, "label": "shared"}
        plots.points(panels["left"], x, estimate.get(dataset, "left", arm=arms), "o-", **line)
        panels["removed"].plot(x, dataset.removed.sel(arm=arms), "o-", ms=4, **line)
        line = {"color": plots.HELD_OUT, "label": ISOTROPIC}
        one = estimate.get(dataset, "left", arm=[ISOTROPIC])
        plots.points(panels["left"], x[-1:] - 0.1, one, "^", **line)
        removed = dataset.removed.sel(arm=[ISOTROPIC])
        panels["removed"].plot(x[-1:] - 0.1, removed, "^", ms=4, **line)
        panels["left"].axhline(1, color=plots.HELD_OUT, linewidth=0.6)
        panels["left"].set(title="recovery at age T", ylabel="share left")
        panels["removed"].set(title="taken of the updates", ylabel="share of their energy")
        for name in ("left", "removed"):
            plots.zero(panels[name])
            panels[name].set_xticks(x, list(map(str, ranks)))
            panels[name].set_xlabel("shared directions")
            panels[name].set_xlim(-0.4, x[-1] + 0.2 + 0.1 * dataset.sizes["draw"])
        panels["loss"].legend()
        panels["removed"].legend()
        return fig

    def verdict(self, dataset: xr.Dataset) -> str:
        same = estimate.get(dataset, "score", arm=SAME, reading="curve")
        text = f"Recovery at age T with nothing taken out of updates {same}."
        if not same.value >= scores.LEAST:
            return f"{text} There is none that directions could be needed for."
        for r in dataset["rank"].values.tolist():
            shared = dataset.sel(arm=_shared(r))
            placebos = [_placebo(r, draw) for draw in dataset.draw.values]
            others = ", ".join(_of(estimate.get(dataset, "left", arm=name)) for name in placebos)
            taken, overlap = (dataset[n].sel(arm=placebos).values for n in ("removed", "overlap"))
            beyond = estimate.get(dataset, "beyond", rank=r)
            text += (
                f" Without {r} shared direction{'s' * (r > 1)} ({shared.removed.item():.2g} of the "
                f"updates' energy) {_of(estimate.get(dataset, 'left', arm=_shared(r)))} of that is "
                f"left, {shared.forgotten.item():.2g} nats being forgotten; without random ones of "
                f"the updates' span ({taken.mean():.2g}; {overlap.mean():.2g} of the shared ones "
                f"among it) {others}; beyond the placebo {_of(beyond)}."
            )
        none = _of(estimate.get(dataset, "left", arm=ISOTROPIC))
        removed = dataset.removed.sel(arm=ISOTROPIC).item()
        text += f" Without random directions of all weights ({removed:.1g}) {none}."
        return f"{text} Shared: principal directions of gradients {dataset.attrs['gradients']}."


def _shared(rank: int) -> str:
    return f"shared-{rank}"


def _placebo(rank: int, draw: int) -> str:
    return f"placebo-{rank}-{draw}"


def _of(share: Estimate) -> str:
    return "a share that is not defined" if np.isnan(share.value) else str(share)


def write_directions(folder: Path, name: str, directions: Mapping[str, Tensor]) -> str:
    """Write directions as `project` reads them, into `folder`/directions; returns where in
    `folder`. A file of the same name has the same in it."""
    from safetensors.torch import save_file

    tensors = {n: each.contiguous() for n, each in sorted(directions.items())}
    digest = hashlib.blake2b(digest_size=8)
    for n, each in tensors.items():
        digest.update(f"{n} {each.dtype} {tuple(each.shape)};".encode())
        digest.update(each.numpy().data)
    file = f"directions/{name}-{digest.hexdigest()}.safetensors"
    path = folder / file
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(path.name + ".partial")
    save_file(tensors, aside)
    os.replace(aside, path)
    return file

"""Cosines between the gradients of all documents."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from einops import rearrange
from numpy.typing import NDArray

from recovery_probe import Analysis, InputError, Missing, stats
from recovery_probe.analyze import estimate, plots, words
from recovery_probe.analyze.estimate import Estimate, of_mean
from recovery_probe.analyze.groups import beside, common
from recovery_probe.analyze.modules import module_groups
from recovery_probe.analyze.needs import RUN, checkpoints, once_an_epoch
from recovery_probe.record.labels import Labels
from recovery_probe.record.layout import module_coords

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from recovery_probe import Run

RECORDER = "document_gradients"


@dataclass(frozen=True)
class GradientSimilarity(Analysis):
    """Gradients of each document's loss, in eval mode: exact, from `document_gradients`, or worked
    out again from the checkpoints with `from_checkpoint` (paper, section 4.1 and figure 8a).

    cosine (run, episodes_done, group, document, other), of the documents trained on, numbered in
    the order of the cycle (of a run without one, as they are); group: the kinds of modules, every
    block, all together (`total`) and the attention of one block. And, all (run, episodes_done,
    group), with 95% bootstraps over documents:

    - held_out: mean cosine with held-out documents, beside overall, that with the other documents;
    - near_minus_far: mean cosine of neighbours minus that of documents half a cycle apart;
    - peak: where in the cycle (0 first, 1 last document) the document stands whose mean cosine
      with the others is largest; its interval resamples the others;
    - distance_r: correlation of cosine and cyclic distance, with the p-value of a Mantel test.

    by_lag (run, episodes_done, group, lag): mean over documents a cyclic lag apart.

    Raises `InputError` for episodes or a block that are not there.
    """

    # the block whose attention is a group of its own; the middle one when not given
    block: int | None = None
    # after how many episodes; all times that there are when not given
    episodes: tuple[int, ...] = ()
    # each module is a group too
    modules: bool = False
    # run the model again where gradients were not recorded, which takes torch and time
    from_checkpoint: bool = False

    name = "gradient_similarity"
    question = "Do documents' gradients agree, and with which neighbours in the cycle?"
    null = """Gradients know nothing of the cycle: cosines do not depend on the distance between two
    documents' turns (any order of the documents gives as strong a correlation), and no position has
    a larger mean than others: an interval of the peak that spans the cycle."""
    blind_spot = """Gradients are taken in eval mode and at a few times. Small gradients of
    documents just learned are compared by direction alone. Documents of one text are alike whatever
    the cycle: held-out documents show how much. A peak is a maximum: some document always has it.
    The documents of one run share its weights: intervals say how much documents differ."""
    needs = (RUN, once_an_epoch, checkpoints(unless=RECORDER))

    def compute(self, *runs: Run) -> xr.Dataset:
        times = self._times(runs)
        order = stats.cycle(runs[0].schedule.values, runs[0].config.documents.count)
        return beside(
            runs,
            lambda run: self._of_run(run, times, order),
            unit="documents",
            interval="95% studentised bootstrap over documents",
            p="Mantel test, two-sided, 499 orders of the documents",
        )

    def _times(self, runs: Sequence[Run]) -> list[int]:
        """Episodes done at the times asked for, or at all that the runs have in common."""
        of_runs = [
            run.recorder(RECORDER).episodes_done.values.tolist()
            if RECORDER in run.recorders
            else run.checkpoints
            for run in runs
        ]
        done = common(runs)
        known = sorted(t for t in set.intersection(*map(set, of_runs)) if t <= done)
        if not known:
            raise Missing(f"{runs[0].path}: no time at which the controls have gradients too")
        for time in set(self.episodes) - set(known):
            raise InputError(
                f"{runs[0].path}: no gradients after {time} episodes; there are some after "
                f"{', '.join(map(str, known))}"
            )
        return list(self.episodes) or known

    def _of_run(self, run: Run, times: Sequence[int], order: stats.Ints) -> xr.Dataset:
        parts = []
        for time in times:
            inner = _products(run, time)  # (module, document, other), one time in memory
            groups = self._groups(inner.module)
            maps = [stats.cosines(inner.values[which].sum(axis=0)) for which in groups.values()]
            parts.append(_numbers(np.stack(maps), order, run.rng("bootstrap")))
        dataset = xr.concat(parts, "episodes_done").assign_coords(
            episodes_done=list(times), group=list(groups)
        )
        attention = next(group for group in groups if group.endswith(" attention"))
        return dataset.assign_attrs(attention=attention)

    def _groups(self, module: xr.DataArray) -> dict[str, NDArray[np.bool_]]:
        groups = module_groups(module, blocks=True)
        blocks = [group for group in groups if group.startswith("block ")]
        chosen = blocks[len(blocks) // 2] if self.block is None else f"block {self.block}"
        if chosen not in groups:
            raise InputError(f"block = {self.block}: the blocks are 0 to {len(blocks) - 1}")
        groups[f"{chosen} attention"] = groups[chosen] & groups["attention"]
        names = module["name"].values.astype(str)
        return groups | {name: names == name for name in names.tolist() if self.modules}

    @plots.styled
    def plot(self, dataset: xr.Dataset) -> Figure:
        """At the last time: maps of a block's attention and of all modules; cosine by lag."""
        last = dataset.isel(episodes_done=-1, run=slice(2))
        groups = [dataset.attrs["attention"], "total"]
        titles = [[f"{run}, {group}" for group in groups] for run in last.run.values]
        fig, panels = plots.mosaic([*titles, ["lag", "lag"]], height=2.8)
        maps = last.cosine.sel(group=groups)
        top = plots.largest(maps)
        shown = [title for row in titles for title in row]
        plots.maps(
            fig,
            [panels[title] for title in shown],
            rearrange(maps.values, "run group document other -> (run group) document other"),
            shown,
            label="cosine of gradients",
            x="document",
            y="document",
            extend="max",
            vmin=-top,
            vmax=top,
        )
        blocks = [group for group in dataset.group.values if re.fullmatch(r"block \d+", group)]
        named, colours = {*blocks[:1], *blocks[-1:]}, plots.by_epoch(len(blocks))
        for (run, part, _), style in zip(plots.by_run(last), "-:", strict=False):
            for group, colour in zip(blocks, colours, strict=True):
                label = group if style == "-" and (group in named or len(blocks) <= 8) else None
                line: dict[str, Any] = {"color": colour, "label": label, "linewidth": 0.9}
                panels["lag"].plot(part.lag, part.by_lag.sel(group=group), style, **line)
            line = {"color": "black", "label": f"{run}, all modules"}
            panels["lag"].plot(part.lag, part.by_lag.sel(group="total"), style, **line)
        panels["lag"].set(xlabel="cyclic lag (documents)", ylabel="mean cosine of gradients")
        fig.legend(loc="outside lower center", ncols=4)
        fig.suptitle(f"after {int(last.episodes_done)} episodes", fontsize=8)
        return fig

    def verdict(self, dataset: xr.Dataset) -> str:
        last = dataset.isel(episodes_done=-1).sel(group="total")

        def clause(part: xr.Dataset) -> str:
            names = ("overall", "held_out", "near_minus_far", "peak", "distance_r")
            overall, held_out, near, peak, r = (estimate.get(part, name) for name in names)
            return (
                f"mean cosine {overall} with other documents, {held_out} with held-out ones; "
                f"neighbours exceed documents half a cycle apart by {near}; cosine and distance "
                f"correlate by {r.with_test()}; the largest mean lies at {peak} of the cycle"
            )

        clauses = ". ".join(words.by_run(last, clause))
        return f"After {int(last.episodes_done)} episodes, gradients of all modules. {clauses}."


def _products(run: Run, time: int) -> xr.DataArray:
    """(module, document, other): inner products of gradients after so many episodes."""
    if RECORDER in run.recorders:
        return run.recorder(RECORDER).inner.sel(episodes_done=time)
    return _again(run, time)


def _again(run: Run, time: int) -> xr.DataArray:
    """(module, document, other), worked out from the checkpoint as the recorder does."""
    from recovery_probe.gradient_products import GradientProducts
    from recovery_probe.training import Training

    products = GradientProducts(Training.at(run, time))
    inner = xr.DataArray(
        products().cpu().numpy(),
        dims=("module", "document", "other"),
        coords=xr.Coordinates(module_coords(products.modules)),
    )
    return inner.set_xindex(["name", "kind", "block"], Labels)


def _numbers(cosine: stats.Floats, order: stats.Ints, rng: np.random.Generator) -> xr.Dataset:
    """What `GradientSimilarity` describes, of (group, T + H, T + H) cosines at one time, with the
    documents trained on in the order of the cycle."""
    T = len(order)
    trained, held_out = cosine[:, order[:, None], order], cosine[:, order, T:]
    dataset = xr.Dataset(
        {
            "cosine": (("group", "document", "other"), trained),
            "by_lag": (("group", "lag"), np.stack([stats.by_cyclic_lag(m) for m in trained])),
        },
        coords={"document": np.arange(T), "other": np.arange(T), "lag": np.arange(T // 2) + 1},
    )
    maps = [_of_map(*both, rng) for both in zip(trained, held_out, strict=True)]
    for name in maps[0]:
        estimate.put(dataset, name, "group", estimate.stack([m[name] for m in maps]))
    return dataset


def _of_map(
    trained: stats.Floats, held_out: stats.Floats, rng: np.random.Generator
) -> dict[str, Estimate]:
    """Of the cosines of one group with the T documents trained on and with the held-out ones."""
    T = len(trained)
    others = np.where(np.eye(T, dtype=bool), np.nan, trained)

    def peaks(drawn: stats.Ints) -> stats.Floats:
        return stats.peaks(others, drawn)

    (peak,) = peaks(np.arange(T)[None])
    r, p = stats.mantel(others, stats.distances(T), rng, 499)
    return {
        "held_out": of_mean(stats.mean_of_counted(held_out), rng, 1000),
        "overall": of_mean(stats.mean_of_counted(others), rng, 1000),
        "near_minus_far": of_mean(stats.near_minus_far(others), rng, 1000),
        "peak": Estimate(peak, *stats.bootstrap_interval(peaks, T, rng, resamples=1000)),
        "distance_r": Estimate(r, p=p),
    }

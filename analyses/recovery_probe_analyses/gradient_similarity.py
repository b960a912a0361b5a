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
from recovery_probe.analyze import document_pairs, estimate, plots, words
from recovery_probe.analyze.groups import common, compared, labels
from recovery_probe.analyze.modules import module_groups
from recovery_probe.analyze.needs import RUN, checkpoints, once_an_epoch
from recovery_probe.record.labels import Labels
from recovery_probe.record.layout import module_coords

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from recovery_probe import Run

RECORDER, UNDEFINED = "document_gradients", document_pairs.UNDEFINED


@dataclass(frozen=True)
class GradientSimilarity(Analysis):
    """Gradients of each document's loss, in eval mode: exact, from `document_gradients`, or worked
    out again from the checkpoints with `from_checkpoint` (paper, section 4.1 and figure 8a).

    cosine (run, episodes_done, group, document, other), of the documents trained on, numbered in
    the order of the cycle (of a run without one, as they are); group: the kinds of modules, every
    block, all together (`total`) and the attention of one block. by_lag (run, episodes_done, group,
    lag): mean over documents a cyclic lag apart. And, all (run, episodes_done, group):

    - overall: mean cosine of two documents; held_out, of a document and a held-out one. The
      intervals are over documents, as rows and as columns;
    - near_minus_far: mean cosine of neighbours minus that of documents half a cycle apart, after
      document effects: the mean of each and the product of two strengths a_i a_j, such as weak
      gradients of fresh documents give. The interval is over pairs, which have then no more in
      common;
    - distance_r: correlation of cosine and cyclic distance after document effects, the straight
      lag |i - j| and how far apart the documents were last trained on; with a p-value over orders
      of the documents (Mantel, Freedman and Lane), and distance_r_before: as the cosines are;
    - peak: where in the cycle (0 first, 1 last document) the document stands whose mean cosine
      with the others is largest: a description, since some document always is.

    Run minus control, of the same documents: overall_difference, near_minus_far_difference and
    distance_r_difference (control, episodes_done, group). left_out: how many documents, held-out
    ones too, have no gradient in some group that has others.

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
    null = """Gradients know nothing of the cycle: but for what each document has with all others,
    cosines do not depend on the distance between two turns. After document effects neighbours
    exceed documents half a cycle apart by 0, and any order of the documents gives as strong a
    correlation with the distance. Run minus control is 0."""
    blind_spot = """Plain least squares of documents that share a component, a fixed kernel in which
    no feature can be learned, gives cosines that fall with the lag too, from .37 to .08: features
    that training aligns (H1) and a shared state that comes back (H2) are not told apart here.
    Gradients are taken in eval mode and at a few times; small ones of documents just learned are
    compared by direction alone. Documents of one text are alike whatever the cycle: held-out
    documents show how much. Another place of the documents in the cycle would tell what their
    texts do; a run has one. The documents of one run share its weights: intervals say how much
    documents differ. Effects of documents that are neither sums nor products are left in."""
    shown = ("overall", "mean cosine of two documents")
    paper = """After 4 epochs cosines of two documents are mostly positive (section 4.1, figure 8a;
    that they are highest near the centre of the map is not compared)."""
    tested = "distance_r"
    needs = (RUN, once_an_epoch, checkpoints(unless=RECORDER))

    def compute(self, *runs: Run) -> xr.Dataset:
        times, T = self._times(runs), runs[0].config.documents.count
        order = stats.cycle(runs[0].schedule.values, T)
        maps = [[self._cosines(run, time) for time in times] for run in runs]
        cosine = np.array([[list(of.values()) for of in of_run] for of_run in maps])
        return _numbers(
            document_pairs.in_order(cosine, order), list(maps[0][0]), runs, times, order
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

    def _cosines(self, run: Run, time: int) -> dict[str, stats.Floats]:
        """Group -> (T + H, T + H), of all documents; one time's products are in memory."""
        inner = _products(run, time)
        groups = self._groups(inner.module)
        return {
            group: stats.cosines(inner.values[which].sum(axis=0)) for group, which in groups.items()
        }

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

    def agrees(self, dataset: xr.Dataset) -> bool | None:
        """Whether the mean cosine of two documents is positive."""
        last = dataset.isel(run=0, episodes_done=-1).sel(group="total")
        return estimate.get(last, "overall").agrees(1, 0.01)

    def verdict(self, dataset: xr.Dataset) -> str:
        last = dataset.isel(episodes_done=-1).sel(group="total")

        def clause(part: xr.Dataset) -> str:
            names = ("overall", "held_out", "near_minus_far", "distance_r_before", "distance_r")
            overall, held_out, near, before, r = (estimate.get(part, name) for name in names)
            place = part.peak.item()
            peak = "is not defined" if np.isnan(place) else f"lies at {place:.2f} of the cycle"
            return (
                f"mean cosine {overall} with other documents, {held_out} with held-out ones; after "
                f"document effects neighbours exceed documents half a cycle apart by {near}; "
                f"cosine and distance correlate by {before.with_test()}, after document effects, "
                f"straight lag and recency by {r.with_test(undefined=UNDEFINED)}; the largest "
                f"mean, which some document always has, {peak}"
            )

        text = f"After {int(last.episodes_done)} episodes, gradients of all modules. "
        text += ". ".join(words.by_run(last, clause)) + "."
        for control in dataset.control.values:
            overall, near, r = (
                estimate.get(last, f"{name}_difference", control=control)
                for name in ("overall", "near_minus_far", "distance_r")
            )
            text += (
                f" Run minus control {control}: mean cosine {overall}, neighbours {near}, "
                f"correlation {r.with_test(undefined=UNDEFINED)}."
            )
        return text + document_pairs.said_of(dataset)


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


def _numbers(
    cosine: stats.Floats,
    groups: Sequence[str],
    runs: Sequence[Run],
    times: Sequence[int],
    order: stats.Ints,
) -> xr.Dataset:
    """Of (run, episodes_done, group, T, T + H) maps in the order of the cycle."""
    T, dims = len(order), ("episodes_done", "group")
    rows, held_out, left_out = document_pairs.counted(cosine)
    dataset = xr.Dataset(
        {
            "cosine": (("run", *dims, "document", "other"), cosine[..., :T]),
            "by_lag": (("run", *dims, "lag"), stats.by_cyclic_lag(cosine[..., :T])),
            "peak": (("run", *dims), stats.peak(cosine[..., :T])),
            "left_out": ((), left_out, {"of_seeds": "sum"}),
        },
        coords={
            "run": labels(runs),
            "control": labels(runs)[1:],
            "episodes_done": list(times),
            "group": list(groups),
            "document": np.arange(T),
            "other": np.arange(T),
            "lag": np.arange(T // 2) + 1,
        },
        attrs={
            "T": T,
            "attention": next(group for group in groups if group.endswith(" attention")),
            "unit": "documents",
            "interval": document_pairs.INTERVALS,
            "p": document_pairs.TEST.format("orders of the documents", "groups and times"),
            **compared(runs),
        },
    )
    square, crossed = cosine[..., rows[:, None], rows], cosine[..., rows[:, None], held_out]
    document_pairs.put(dataset, dims, "overall", stats.mean_of_pairs, square)
    document_pairs.put(dataset, dims, "held_out", stats.mean_of_crossed, crossed)
    document_pairs.put_places(dataset, dims, square, runs, rows, order)
    return dataset

"""Losses by age beside a control at equal age and equal time: gain on arrival, excess in
mid-wait, and their sum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import xarray as xr
from annotated_types import Gt, Lt

from recovery_probe import Analysis
from recovery_probe.analyze import ages, estimate, picture, plots

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from recovery_probe import Run


@dataclass(frozen=True)
class AgeCurve(Analysis):
    """a(s): the loss of a document at age s, s episodes after one on it, nats per token; s = T
    comes right before the next one in a cycle. T: the episodes of an epoch (attribute). Of every
    wait of at least T episodes, the n-th of a document under epoch n; shorter ones, about half of a
    shuffled run's, are left out. waits (end): the shortest and the longest that count in the run,
    both T in a cycle; where some are longer, a(T) is not that of arrival. p: mid-wait, `window` of
    T (attribute `middle`).

    score (run, reading, epoch): the share of the loss forgotten since s = 1 that is gone at s = T.
    `crossfitted`: each document read at the age at which the mean of the others has its top, sums
    over documents before the ratio. `curve`: of the mean over documents, at its own top, which in
    a cycle is the `curve` of `recovery`. `pooled`: each document at its own top, sums before the
    ratio.

    Of the documents that wait for at least T episodes in run and control (control, epoch):
    gain, a_control(T) - a_run(T), on arrival; excess, a_run(p) - a_control(p), in mid-wait;
    matched_fall, [a_run(p) - a_run(T)] - [a_control(p) - a_control(T)], their sum; forgotten,
    a_run(p) - a_run(1); document_gain, … (control, epoch, document) of each. Long waits begin early
    in a shuffled epoch, T/6 episodes before a cycle's: a_run is that of the control's time, on the
    line through the document's two waits nearest to it, so that a straight drift leaves all three
    at 0. share (part, control, epoch): in shares of what was forgotten; excess_of_fall (control,
    epoch): excess / matched_fall. loss (run, epoch, age), run_loss and control_loss (control,
    epoch, age): means over documents, the last two of those compared. counted (run, epoch) and
    paired (control, epoch): how many documents these are of.

    Raises `Missing` when no document has come back yet.
    """

    # mid-wait, where the loss is compared before it falls, as a share of the wait; as the run's
    # outcome declares it, when not given
    window: Annotated[float, Gt(0), Lt(1)] | None = None

    name = "age_curve"
    question = "Is a document better off when its turn comes than at equal age in the control?"
    null = """A loss that depends on age and time alone, also one that falls steadily with training,
    is the same at equal age and time: matched fall, gain and excess of 0, and a cross-fitted score
    near 0 where forgetting does not reverse. The `curve` and `pooled` scores are raised by noise,
    since a top is a maximum."""
    blind_spot = """Gain, excess and score do not say what makes them. Plain least squares, with no
    features to learn, has a score of .7 where its documents share a component, all of it excess,
    and a gain where they share none and next to nothing is forgotten: features that align (H1), a
    state that comes back (H2), savings whatever the order (H3) and relief of extra interference
    (H7) look alike but for the split into gain and excess. The control's documents
    that wait shorter than T are left out. A loss that falls ever more slowly with training is
    compared on straight lines between epochs, which lie too high, most in the first two. What all
    documents of a run share, a shock at one time, is in no interval over documents: take several
    seeds."""
    shown = ("gain", "gain on arrival, nats per token")
    paper = """The loss of a document peaks at .60 to .68 of the wait and falls before its turn
    (Pythia-1B, T = 25; section 3, read off its figures)."""

    def compute(self, *runs: Run) -> xr.Dataset:
        return ages.numbers(*runs, window=self.window)

    @plots.styled
    def plot(self, dataset: xr.Dataset) -> Figure:
        """Gain, excess and their sum by epoch; and the scores."""
        fig, panels = plots.mosaic([["parts", "score"]])
        left, right = panels["parts"], panels["score"]
        for i, (name, (label, colour)) in enumerate(picture.PARTS.items()):
            for c, control in enumerate(dataset.control.values):
                x = dataset.epoch + 0.09 * (i - 1) + 0.03 * c
                found = estimate.get(dataset, name, control=control)
                said = label if not c else None
                form = ("o-", "s--", "^:")[c % 3]
                plots.points(left, x, found, form, color=colour, label=said)
        if not dataset.sizes["control"]:
            plots.note(left, "no control to compare with")
        left.set(title="against the control at equal age and time", ylabel="nats/token")
        for name, part, colour in plots.by_run(dataset):
            for reading, form, fill in (("crossfitted", "o-", colour), ("curve", "s--", "white")):
                score = estimate.get(part, "score", reading=reading)
                label = f"{name}, {reading}"
                plots.points(right, part.epoch, score, form, color=colour, mfc=fill, label=label)
        right.set(title="recovery score", ylabel="share of forgotten loss")
        for axes in (left, right):
            plots.zero(axes)
            axes.set(xlabel="epoch", xticks=dataset.epoch.values)
            if axes.get_legend_handles_labels()[0]:
                axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.22), ncols=2)
        return fig

    def agrees(self, dataset: xr.Dataset) -> bool | None:
        """Whether it falls by more than in the first control."""
        if not dataset.sizes["control"]:
            return None
        fall = estimate.get(
            dataset,
            "matched_fall",
            control=dataset.control.values[0],
            epoch=ages.last_epoch(dataset),
        )
        return fall.agrees(1, 0.05)

    def verdict(self, dataset: xr.Dataset) -> str:
        return ages.headline(dataset)

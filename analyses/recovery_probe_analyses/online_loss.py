"""Prequential loss: the loss of the document about to be trained on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from recovery_probe import Analysis, stats
from recovery_probe.analyze import estimate, plots
from recovery_probe.analyze.needs import RUN, evenly

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from recovery_probe import Run

NATS = "nats per token"


@dataclass(frozen=True)
class OnlineLoss(Analysis):
    """First training loss of each episode, nats per token (paper, section 3 and its table of
    online losses, which averages epochs 2 to E).

    online (run, epoch, document); mean (run, epoch), over documents; later (run), the mean over
    epochs 2 to E, or to the last that the run and its controls have all finished (attribute
    `last_epoch`); difference (control), run minus control of that mean, paired by document.
    Intervals are 95% studentised bootstraps over documents. NaN where a run has not got to.
    """

    name = "online_loss"
    question = "Is a document easier, when its turn comes, because its turn could be foreseen?"
    null = """The same online loss as the shuffled control, which trains as often on the same
    documents."""
    blind_spot = """A shuffled document waits between 1 and 2T-1 episodes instead of T, and after a
    short wait it has forgotten less: the difference is too small, where forgetting goes on through
    the wait. Next to none of the control's waits is T episodes long, so that there is no online
    loss at equal wait; the loss of a waiting document at age T is that, and age_curve has the
    difference as its gain on arrival. Plain least squares is lower than its control too, where its
    documents share a component: no features or foresight are needed. Without several seeds the
    interval is over documents of one training run."""
    shown = ("later", "online loss from epoch 2, nats")
    paper = """Lower than shuffled: 1.03 ± .03 against 1.51 ± .04 nats (Pythia-1B, T = 100; table
    1)."""
    needs = (RUN, evenly)

    def compute(self, *runs: Run) -> xr.Dataset:
        dataset, (_, *controls) = super().compute(*runs), runs
        dataset = dataset.assign_coords(control=dataset.run.values[1:])
        online = dataset.online.transpose("document", "run", "epoch").values
        whole = np.where(np.isfinite(online).all(axis=0), online, np.nan)
        later = whole[..., 1 : dataset.attrs["last_epoch"]]
        later = later.mean(axis=-1) if later.size else np.full(later.shape[:-1], np.nan)
        for name, dims, values in (
            ("mean", ["run", "epoch"], whole),
            ("later", ["run"], later),
            ("difference", ["control"], later[:, :1] - later[:, 1:]),
        ):
            mean = estimate.of_mean(values, runs[0].rng("bootstrap"))
            if name == "difference":
                mean = replace(mean, null=np.zeros(len(controls)))
            estimate.put(dataset, name, dims, mean, units=NATS)
        return dataset

    def of_run(self, run: Run, episodes: int) -> xr.Dataset:
        online = stats.online_loss(run.train_loss.values, run.config.steps, run.schedule.values)
        epochs, T = online.shape
        return xr.Dataset(
            {"online": (("epoch", "document"), online, {"units": NATS})},
            coords={"epoch": np.arange(1, epochs + 1), "document": np.arange(T)},
            attrs={
                "unit": "documents",
                "interval": "95% studentised bootstrap over documents",
                "last_epoch": episodes // T,
            },
        )

    @plots.styled
    def plot(self, dataset: xr.Dataset) -> Figure:
        """Mean online loss by epoch, with intervals."""
        fig, (axes,) = plots.figure()
        for name, part, colour in plots.by_run(dataset):
            plots.points(axes, part.epoch, estimate.get(part, "mean"), color=colour, label=name)
        axes.set(xlabel="epoch", ylabel="online loss (nats/token)", xticks=dataset.epoch.values)
        axes.legend()
        return fig

    def agrees(self, dataset: xr.Dataset) -> bool | None:
        """Whether it is lower than in the first control."""
        if not dataset.sizes["control"]:
            return None
        return estimate.get(dataset, "difference")[0].agrees(-1, 0.05)

    def verdict(self, dataset: xr.Dataset) -> str:
        run, *controls = dataset.run.values
        later = estimate.get(dataset, "later", run=run)
        if np.isnan(later.value):
            second = "no second epoch was finished"
            return f"The online loss after the first epoch is not defined: {second}."
        last = dataset.attrs["last_epoch"]
        text = f"Over epochs 2 to {last} the online loss is {later} nats per token."
        for control in controls:
            difference = estimate.get(dataset, "difference", control=control)
            words = ("higher than the control", "lower than the control")
            said = difference.decided(*words, 0.05, "nats")
            theirs = estimate.get(dataset, "later", run=control)
            text += (
                f" The control {control} has {theirs}; run minus control is {difference}: {said}."
            )
        return text

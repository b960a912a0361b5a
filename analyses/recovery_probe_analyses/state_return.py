"""Whether a document's loss follows how far the network is from its state when the document was
last trained on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from recovery_probe import Analysis, Missing, stats
from recovery_probe.analyze import estimate, plots, words
from recovery_probe.analyze.estimate import Estimate
from recovery_probe.analyze.groups import beside, common
from recovery_probe.analyze.needs import RUN, recorded

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from recovery_probe import Run

# model -> how it is called
MODELS = {
    "age": "age",
    "state": "state",
    "both": "age, state",
    "expansion": "parabola",
    "linear": "linear",
}
RIVALS = [name for name in MODELS if name != "age"]
QUANTITIES = {
    "loss": "loss",
    "curvature": "ΔᵀGΔ",
    "expansion": "gᵀΔ + ½ΔᵀGΔ",
    "linear": "linear in the weights",
    "distance": "|Δ|²",
}


@dataclass(frozen=True)
class StateReturn(Analysis):
    """Δ = w(t) - w_j, the way of the weights since the end of document j's last episode, and ΔᵀGΔ
    with the Gauss-Newton matrix G of j there (recorder `state_return`): how far j's outputs have
    moved, in the metric of its softmax. Of every watched document's last whole wait that was
    recorded, at the ages 2 to T, l_j(t) - l_j(w_j) is foretold from all other documents:

    `age`        by their mean at that age
    `state`      by a number proportional to ΔᵀGΔ, the same for all
    `both`       by their mean at that age, and how ΔᵀGΔ differs from theirs there
    `expansion`  from nothing but the network at w_j: gᵀΔ + ½ΔᵀGΔ, with j's gradient g; exact for
                 least squares
    `linear`     from the network at w_j alone: the loss where the logits have moved by J·Δ, as in a
                 network that is linear in its weights

    r2 (run, reading): 1 - squared errors, as a share of those of the others' mean over all ages;
    0 tells nothing, 1 all. more_than_age (run, part): r2 of each minus that of age. score (run,
    quantity): cross-fitted, the share of each quantity's rise that is gone at age T, also of the
    squared distance of all weights. by_age (run, quantity, age): means, of the loss less that at
    age 1. Intervals: 95% percentile bootstraps over documents, each foretold once. counted (run):
    documents; each (run, quantity, document, age): of each, NaN of those that do not count.

    Raises `Missing` where no whole wait was recorded.
    """

    name = "state_return"
    question = """Does a document's loss fall because the network comes back to the state in which
    the document was last trained on?"""
    null = """Age tells all: what ΔᵀGΔ adds to age foretells nothing, `both` is as good as `age`.
    Where recovery is no return, ΔᵀGΔ goes on growing while the loss falls: its score is 0."""
    blind_spot = """That the loss follows the state does not say what brings the state back. In
    plain least squares with documents that share a component, where no feature can be learned, the
    expansion is exact. Where ΔᵀGΔ and age rise and fall together neither is told from the other.
    Far from w_j the loss is no parabola, and ΔᵀGΔ grows without bound where a loss does not: one
    factor for all documents then foretells badly although the state tells the order. In the
    control waits of T episodes or more count alone, and of a few documents. The regressions take a
    document's ages for as many cases; the intervals do not."""
    needs = (RUN, recorded("state_return", every_episode=True, epochs=2))

    def compute(self, *runs: Run) -> xr.Dataset:
        dataset = beside(
            runs,
            lambda run: self.of_run(run, common(runs)),
            unit="documents",
            interval="95% percentile bootstrap over documents",
        )
        if not dataset.counted.values[0]:
            raise Missing(
                f"{runs[0].path}: state_return has no whole wait of a document; with "
                "state_return.epochs = 0 it watches all epochs"
            )
        return dataset

    def of_run(self, run: Run, episodes: int) -> xr.Dataset:
        each = _waits(run, episodes)  # (quantity, document, age)
        counted = np.isfinite(each).all(axis=(0, 2))
        own = each[:, counted]
        dataset = xr.Dataset(
            {
                "each": (("quantity", "document", "age"), each, {"of_seeds": "the first"}),
                "by_age": (("quantity", "age"), stats.mean_of_counted(own, axis=1)),
                "counted": ((), int(counted.sum()), {"of_seeds": "sum"}),
            },
            coords={
                "quantity": list(QUANTITIES),
                "document": np.arange(each.shape[1]),
                "age": np.arange(1, each.shape[2] + 1),
                "reading": list(MODELS),
                "part": RIVALS,
            },
        )
        self._put_r2(dataset, own, run)
        scores = np.full((3, len(QUANTITIES)), np.nan)
        for q, curves in enumerate(own if counted.sum() > 1 else ()):
            scores[:, q] = _score(curves, run.rng("bootstrap"))
        units = "share of what is gained by the top"
        estimate.put(dataset, "score", "quantity", Estimate(*scores), units=units)
        return dataset

    def _put_r2(self, dataset: xr.Dataset, own: stats.Floats, run: Run) -> None:
        """r2 (reading) and more_than_age (part), of (quantity, document, age) with what counts."""
        change, state, *foretold = own[:4, :, 1:]
        usual, *errors = stats.left_out_errors(change, state)
        errors += [((change - each) ** 2).sum(axis=1) for each in foretold]
        wrong = np.stack(errors, axis=1)  # (document, model)

        def r2(drawn: stats.Ints) -> stats.Floats:
            total = usual[drawn].sum(axis=1)
            return 1 - wrong[drawn].sum(axis=1) / np.where(total > 0, total, np.nan)[:, None]

        def more(drawn: stats.Ints) -> stats.Floats:
            found = r2(drawn)
            return found[:, 1:] - found[:, :1]

        for name, of, dimension in (("r2", r2, "reading"), ("more_than_age", more, "part")):
            size = dataset.sizes[dimension]
            found = np.full((3, size), np.nan)
            if len(usual) > 2:
                (found[0],) = of(np.arange(len(usual))[None])
                found[1:] = stats.bootstrap_interval(of, len(usual), run.rng("bootstrap"))
            estimate.put(dataset, name, dimension, replace(Estimate(*found), null=np.zeros(size)))

    @plots.styled
    def plot(self, dataset: xr.Dataset) -> Figure:
        """Each case of loss against ΔᵀGΔ, by age; both by age; R² of the models; scores."""
        both = dataset.isel(run=slice(2))
        fig, panels, below = plots.above(both, "by age", "r2")
        for (name, part, _), axes in zip(plots.by_run(both), panels, strict=True):
            age = np.broadcast_to(part.age.values, part.each.shape[1:])
            x, y = (part.each.sel(quantity=q).values for q in ("curvature", "loss"))
            drawn = axes.scatter(x, y, c=age, s=5, cmap="viridis", vmin=1, vmax=age.max())
            axes.set(title=name, xlabel="ΔᵀGΔ (nats)", ylabel="loss since w_j (nats/token)")
            plots.zero(axes)
        fig.colorbar(drawn, ax=panels, label="age")
        by_age, r2 = below["by age"], below["r2"]
        for name, part, colour in plots.by_run(both):
            for quantity, style in (("loss", "-"), ("linear", "--"), ("expansion", ":")):
                line = part.by_age.sel(quantity=quantity)
                by_age.plot(
                    part.age, line, style, color=colour, label=f"{name}: {QUANTITIES[quantity]}"
                )
        by_age.set(title="means", xlabel="episodes since its own", ylabel="nats/token since w_j")
        by_age.locator_params(axis="x", integer=True)
        fig.legend(loc="outside lower center", ncols=both.sizes["run"])
        for r, (_, part, colour) in enumerate(plots.by_run(dataset)):
            x = np.arange(len(MODELS)) + 0.12 * r
            plots.points(r2, x, estimate.get(part, "r2"), "o", color=colour)
        plots.zero(r2)
        r2.set(title="R² from all other documents", ylabel="R²")
        r2.set_yscale("symlog", linthresh=1, linscale=2)  # below 0 without bound
        r2.yaxis.set_major_formatter("{x:g}")
        r2.set_xticks(range(len(MODELS)), list(MODELS.values()))
        return fig

    def verdict(self, dataset: xr.Dataset) -> str:
        def clause(part: xr.Dataset) -> str:
            def r2(model: str) -> Estimate:
                return estimate.get(part, "r2", reading=model)

            def score(quantity: str) -> Estimate:
                return estimate.get(part, "score", quantity=quantity)

            more = estimate.get(part, "more_than_age", part="both")
            said = more.decided("the state tells more than age", "age tells more", 0.05)
            return (
                f"R² from other documents is {r2('age')} by age, {r2('state')} by ΔᵀGΔ, "
                f"{r2('both')} by both ({more} beyond age: {said}), and "
                f"{r2('linear')} by the network at w_j, linear in its weights (its parabola "
                f"{r2('expansion')}); of its rise {score('curvature')} is "
                f"gone of ΔᵀGΔ at the last age, {score('loss')} of the loss, and "
                f"{score('distance')} of the weights' squared distance"
            )

        counts = ", ".join(
            words.by_run(dataset, lambda part: f"{int(part.counted)}", "{clause} in {run}")
        )
        return f"{'; '.join(words.by_run(dataset, clause))}. Documents that count: {counts}."


def _waits(run: Run, episodes: int) -> stats.Floats:
    """(quantity, document, age): of each document's last whole wait that was recorded."""
    recorded, T = run.recorder("state_return").load(), run.config.documents.count
    rows = recorded.episodes_done.values
    rows = rows[rows <= episodes]
    parts = recorded.sel(episodes_done=rows).isel(document=slice(T))
    curvature, slope, linear, distance = (
        parts[name].values for name in ("curvature", "slope", "linear", "distance")
    )
    loss = np.where(np.isfinite(curvature), run.losses.values[rows, :T], np.nan)
    found = []
    for values in (loss, curvature, slope + curvature / 2, linear, distance):
        whole = np.full((episodes + 1, T), np.nan)
        whole[rows] = values
        curves, _ = stats.by_age(whole, run.schedule.values, T, run.timeline.per_epoch)
        found.append(stats.last_waits(curves))
    found[0] = found[0] - found[0][:, :1]
    return np.stack(found)


def _score(curves: stats.Floats, rng: np.random.Generator) -> stats.Floats:
    """Value, low and high of the cross-fitted score of (document, age), which is of any units."""
    size = np.abs(curves).max()
    scaled = curves / size if size > 0 else curves

    def of(drawn: stats.Ints) -> stats.Floats:
        return stats.cross_fitted(scaled, drawn)

    (value,) = of(np.arange(len(curves))[None])
    return np.array([value, *stats.bootstrap_interval(of, len(curves), rng)])

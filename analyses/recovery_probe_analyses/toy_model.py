"""The paper's computational toy model: two maps in turn, and anticipatory recovery out of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import xarray as xr
from annotated_types import Ge

from recovery_probe import Analysis, stats
from recovery_probe.analyze import estimate, plots
from recovery_probe.analyze.estimate import Estimate

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from recovery_probe import Run

T = 25
RING_EPOCHS = (0, 1, 2, 4, 10)
# f, N = M, learning rate; the first is as printed in the paper, and diverges.
SETTINGS = (("w", 1000, 0.01), ("w", 1000, 0.001), ("w", 100, 0.01), ("y - w", 100, 0.01))


@dataclass(frozen=True)
class ToyModel(Analysis):
    """Tasks i = 0 … T-1 in turn: P ← P - α (P xᵢ - fᵢ(w)) xᵢᵀ on the loss ½|P xᵢ - fᵢ(w)|², then
    w ← fᵢ⁻¹(P xᵢ), with f(w) = w or fᵢ(w) = yᵢ - w; P ~ N(0, 1/N²), x, w, y ~ U(-1, 1)
    (paper, section 5, figures 10 and 11). One step for each task: after it its loss is 0, and more
    steps would change nothing. No run is needed, and none is looked at.

    loss (setting, step): of task 0, mean over seeds, row 0 before any step; score (setting, epoch):
    its recovery score, with a 95% t interval over seeds, score_sd and score_each (seed, …);
    diverged (setting). ring (setting, ring_epoch, task, axis): the points fᵢ⁻¹(P xᵢ) of one seed
    on their first two principal components; ring_order (setting, ring_epoch): |circular
    correlation| between their angle and their place in the cycle, with ring_order_p of random
    orders. NaN where a setting diverges.
    """

    # how many seeds to simulate
    seeds: Annotated[int, Ge(1)] = 5
    # passes over the tasks
    epochs: Annotated[int, Ge(2)] = 13

    name = "toy_model"
    question = "Does a linear map and a vector, fitted in turn to tasks in a cycle, show recovery?"
    null = """No recovery: the loss of task 0 stays at its largest until the task comes back, a
    score of 0. No ring: the points lie round their plane in no order, as with tasks shuffled."""
    blind_spot = """A model that recovers shows that recovery needs no more than this, not that
    networks do it for this reason. Scores differ much between seeds (score_sd): one seed's curve
    says little. The ring is of one seed, and two components of many."""
    needs = ()

    def compute(self, *runs: Run) -> xr.Dataset:
        parts = [_setting(*setting, self.seeds, self.epochs) for setting in SETTINGS]
        seeds = f"{self.seeds} seeds"
        return (
            xr.concat(parts, "setting")
            .assign_coords(
                setting=[f"f = {f}, N = {n}, α = {alpha:g}" for f, n, alpha in SETTINGS],
                epoch=np.arange(1, self.epochs),
                ring_epoch=list(RING_EPOCHS),
            )
            .assign_attrs(unit=seeds, interval=f"95% t interval over {seeds}")
        )

    @plots.styled
    def plot(self, dataset: xr.Dataset) -> Figure:
        """Loss of task 0, recovery by epoch, and the ring of each setting that settles."""
        settled = dataset.setting.values[~dataset.diverged.values]
        rings = [[f"{name} {e}" for e in RING_EPOCHS] for name in settled]
        top = [[name] * len(RING_EPOCHS) for name in ("loss", "score")]
        fig, panels = plots.mosaic([*top, *rings], height=1.7)
        loss, score = panels["loss"], panels["score"]
        for i, name in enumerate(dataset.setting.values):
            part, colour = dataset.isel(setting=i), plots.colour(i)
            label = f"{name}: diverges" if part.diverged else str(name)
            loss.semilogy(dataset.step, part.loss, color=colour, label=label, linewidth=0.9)
            if name in settled:
                plots.points(score, part.epoch, estimate.get(part, "score"), color=colour, ms=3)
                _draw_rings([panels[f"{name} {e}"] for e in RING_EPOCHS], part)
        loss.set(xlabel=f"step ({T} an epoch)", ylabel="loss of task 0", ylim=(1e-4, 1e5))
        fig.legend(loc="outside upper left", ncols=2)
        score.set(xlabel="epoch", ylabel="recovery score", ylim=(0, 1.02))
        score.set_xticks(dataset.epoch.values)
        return fig

    def summary(self, dataset: xr.Dataset) -> dict[str, Any]:
        """Scores by setting and epoch, which settings diverge, and the verdict."""
        diverged = dataset.setting.values[dataset.diverged.values].tolist()
        return {"diverged": diverged, **super().summary(dataset)}

    def verdict(self, dataset: xr.Dataset) -> str:
        clauses = []
        for (_, n, alpha), name in zip(SETTINGS, dataset.setting.values, strict=True):
            part = dataset.sel(setting=name)
            score, last = estimate.get(part, "score"), part.epoch.values[-1]
            first = ", ".join(f"{value:.2f}" for value in score.value[:5])
            clauses.append(
                f"{name}: diverges, for α|x|² is about {alpha * n / 3:.1f} and not below 2"
                if part.diverged
                else f"{name}: {first} in epochs 1 to 5, {score[-1]} in epoch {last}"
            )
        return f"Recovery score of task 0, mean of {dataset.attrs['unit']}. {'; '.join(clauses)}."


def _draw_rings(panels: list[Any], part: xr.Dataset) -> None:
    """The points of one setting, joined in the order of the cycle, at each epoch."""
    for axes, epoch, (x, y) in zip(
        panels, RING_EPOCHS, part.ring.values.swapaxes(1, 2), strict=True
    ):
        axes.plot([*x, x[0]], [*y, y[0]], color=plots.HELD_OUT, linewidth=0.4)
        axes.scatter(x, y, c=np.arange(T), cmap="twilight", s=8, zorder=3)
        axes.set(xticks=[], yticks=[], title=f"epoch {epoch}")
        axes.grid(False)
    panels[0].set_ylabel(part.setting.item().replace(", ", "\n"), fontsize=6)


def simulate(
    f: str, n: int, alpha: float, seed: int, epochs: int
) -> tuple[stats.Floats, list[stats.Floats]]:
    """(epochs · T + 1,) losses of task 0, NaN from where they diverge; and at each of
    `RING_EPOCHS` the points (T, n)."""
    rng = np.random.default_rng([seed, n])
    P = rng.normal(scale=1 / n, size=(n, n))
    x, y = rng.uniform(-1, 1, size=(2, T, n))
    w = rng.uniform(-1, 1, size=n)
    losses, rings = np.full(epochs * T + 1, np.nan), []
    for step in range(epochs * T + 1):
        error = P @ x[0] - (w if f == "w" else y[0] - w)
        losses[step] = error @ error / 2
        if not losses[step] <= 1e6 * losses[0]:  # nor is NaN
            losses[step:] = np.nan
            break
        if step % T == 0 and step // T in RING_EPOCHS:
            image = x @ P.T
            rings.append(image if f == "w" else y - image)
        i = step % T
        P -= np.outer(alpha * (P @ x[i] - (w if f == "w" else y[i] - w)), x[i])
        w = P @ x[i] if f == "w" else y[i] - P @ x[i]
    return losses, rings


def _setting(f: str, n: int, alpha: float, seeds: int, epochs: int) -> xr.Dataset:
    simulated = [simulate(f, n, alpha, seed, epochs) for seed in range(seeds)]
    losses = np.stack([loss for loss, _ in simulated])
    score, _ = stats.recovery_of_curve(losses, T, min_forgetting=0.0)
    score = score[:, : epochs - 1]
    planes = np.full((len(RING_EPOCHS), T, 2), np.nan)
    order, p = np.full((2, len(RING_EPOCHS)), np.nan)
    place = 2 * np.pi * np.arange(T) / T
    rng = np.random.default_rng(seeds)
    shuffled = np.stack([rng.permutation(place) for _ in range(999)])
    for e, points in enumerate(simulated[0][1]):
        centred = points - points.mean(axis=0)
        u, s, _ = np.linalg.svd(centred, full_matrices=False)
        planes[e] = u[:, :2] * s[:2]
        angle = np.arctan2(planes[e, :, 1], planes[e, :, 0])
        order[e] = abs(stats.circular_correlation(angle, place))
        null = np.abs(stats.circular_correlation(angle, shuffled))
        p[e] = stats.permutation_p(order[e], null)
    dataset = xr.Dataset(
        {
            "loss": ("step", stats.mean_of_counted(losses, axis=0)),
            "diverged": ((), bool(np.isnan(losses).any())),
            "ring": (("ring_epoch", "task", "axis"), planes),
        }
    )
    mean = Estimate(
        stats.mean_of_counted(score, axis=0),
        *stats.t_interval(score),
        sd=stats.sd_of_counted(score),
        each=score,
    )
    estimate.put(dataset, "score", "epoch", mean)
    estimate.put(dataset, "ring_order", "ring_epoch", Estimate(order, p=p))
    return dataset

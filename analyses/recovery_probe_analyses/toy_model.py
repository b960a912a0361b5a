"""The paper's computational toy model: two maps in turn, and anticipatory recovery out of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from recovery_probe.analysis import Analysis, estimates, with_interval

from recovery_probe import plots, stats

T = 25
RING_EPOCHS = (0, 1, 2, 4, 10)
# f, N = M, learning rate; the first is as printed in the paper, and diverges.
SETTINGS = (("w", 1000, 0.01), ("w", 1000, 0.001), ("w", 100, 0.01), ("y - w", 100, 0.01))


def compute(
    run: None = None, *, controls: tuple[()] = (), seeds: int = 5, epochs: int = 13
) -> xr.Dataset:
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
    parts = [_setting(*setting, seeds, epochs) for setting in SETTINGS]
    dataset = xr.concat(parts, dim="setting").assign_coords(
        setting=[f"f = {f}, N = {n}, α = {alpha:g}" for f, n, alpha in SETTINGS],
        epoch=np.arange(1, epochs),
        ring_epoch=list(RING_EPOCHS),
    )
    dataset.attrs |= {"unit": f"{seeds} seeds", "interval": f"95% t interval over {seeds} seeds"}
    return dataset


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
    found = [simulate(f, n, alpha, seed, epochs) for seed in range(seeds)]
    losses = np.stack([one[0] for one in found])
    score, _ = stats.recovery_of_curve(losses, T, min_forgetting=0.0)
    score = score[:, : epochs - 1]
    low, high = stats.t_interval(score)
    planes = np.full((len(RING_EPOCHS), T, 2), np.nan)
    order, order_p = np.full((2, len(RING_EPOCHS)), np.nan)
    place = 2 * np.pi * np.arange(T) / T
    rng = np.random.default_rng(seeds)
    shuffled = np.stack([rng.permutation(place) for _ in range(999)])
    for e, points in enumerate(found[0][1]):
        centred = points - points.mean(axis=0)
        u, s, _ = np.linalg.svd(centred, full_matrices=False)
        planes[e] = u[:, :2] * s[:2]
        angle = np.arctan2(planes[e, :, 1], planes[e, :, 0])
        order[e] = abs(stats.circular_correlation(angle, place))
        null = np.abs(stats.circular_correlation(angle, shuffled))
        order_p[e] = stats.permutation_p(order[e], null)
    return xr.Dataset(
        {
            "loss": ("step", stats.mean_of_counted(losses, axis=0)),
            "diverged": ((), bool(np.isnan(losses).any())),
            "score": ("epoch", stats.mean_of_counted(score, axis=0)),
            "score_low": ("epoch", low),
            "score_high": ("epoch", high),
            "score_sd": ("epoch", stats.sd_of_counted(score)),
            "score_each": (("seed", "epoch"), score),
            "ring": (("ring_epoch", "task", "axis"), planes),
            "ring_order": ("ring_epoch", order),
            "ring_order_p": ("ring_epoch", order_p),
        }
    )


@plots.styled
def plot(dataset: xr.Dataset) -> Figure:
    """Loss of task 0, recovery by epoch, and the ring of points of each setting that settles."""
    settled = [i for i, bad in enumerate(dataset.diverged.values) if not bad]
    rings = [[f"{i} {e}" for e in range(len(RING_EPOCHS))] for i in settled]
    wide = len(RING_EPOCHS)
    top = [["loss"] * wide, ["score"] * wide]
    fig, panels = plots.mosaic([*top, *rings], height=1.7)
    for i, name in enumerate(dataset.setting.values):
        part, colour = dataset.isel(setting=i), plots.colour(i)
        label = f"{name}: diverges" if part.diverged else str(name)
        panels["loss"].semilogy(dataset.step, part.loss, color=colour, label=label, linewidth=0.9)
        if i in settled:
            panels["score"].plot(part.epoch, part.score, "o-", color=colour, ms=3)
            panels["score"].vlines(part.epoch, part.score_low, part.score_high, color=colour)
    for i in settled:
        for e, epoch in enumerate(RING_EPOCHS):
            axes, (x, y) = panels[f"{i} {e}"], dataset.ring.values[i, e].T
            axes.plot([*x, x[0]], [*y, y[0]], color=plots.HELD_OUT, linewidth=0.4)
            axes.scatter(x, y, c=np.arange(T), cmap="twilight", s=8, zorder=3)
            axes.set(xticks=[], yticks=[], title=f"epoch {epoch}")
            axes.grid(False)
        panels[f"{i} 0"].set_ylabel(str(dataset.setting.values[i]).replace(", ", "\n"), fontsize=6)
    panels["loss"].set(xlabel=f"step ({T} an epoch)", ylabel="loss of task 0", ylim=(1e-4, 1e5))
    fig.legend(loc="outside upper left", ncols=2)
    panels["score"].set(xlabel="epoch", ylabel="recovery score", ylim=(0, 1.02))
    panels["score"].set_xticks(dataset.epoch.values)
    return fig


def summary(dataset: xr.Dataset) -> dict[str, Any]:
    """Scores by setting and epoch, which settings diverge, and the verdict."""
    told, diverged = [], []
    for (_, n, alpha), name in zip(SETTINGS, dataset.setting.values, strict=True):
        part = dataset.sel(setting=name)
        if part.diverged:
            diverged.append(str(name))
            told.append(f"{name}: diverges, for α|x|² is about {alpha * n / 3:.1f} and not below 2")
            continue
        first, last = part.score.isel(epoch=slice(5)), part.isel(epoch=-1)
        interval = with_interval(*(float(last["score" + s]) for s in ("", "_low", "_high")))
        scores = ", ".join(f"{float(s):.2f}" for s in first)
        told.append(f"{name}: {scores} in epochs 1 to 5, {interval} in epoch {int(last.epoch)}")
    text = f"Recovery score of task 0, mean of {dataset.attrs['unit']}. {'; '.join(told)}."
    return {"estimates": estimates(dataset), "diverged": diverged, "verdict": text}


ANALYSIS = Analysis(
    name="toy_model",
    question="Does a linear map and a vector, fitted in turn to tasks in a cycle, show recovery?",
    null="No recovery: the loss of task 0 stays at its largest until the task comes back, a score "
    "of 0. No ring: the points lie round their plane in no order, as with tasks shuffled.",
    blind_spot="A model that recovers shows that recovery needs no more than this, not that "
    "networks do it for this reason. Scores differ much between seeds (score_sd): one seed's curve "
    "says little. The ring is of one seed, and two components of many.",
    compute=compute,
    plot=plot,
    summary=summary,
    stand_alone=True,
)

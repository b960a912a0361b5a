"""What training on one document does to the loss of another: all pairs, from a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from recovery_probe.analysis import (
    Analysis,
    against_zero,
    check_unedited,
    common,
    compared,
    estimates,
    labels,
    unit,
    with_interval,
    with_test,
)

from recovery_probe import config, plots, stats
from recovery_probe.errors import Missing
from recovery_probe.record.folder import checkpoints
from recovery_probe.record.run import Run
from recovery_probe.seeds import generator


def compute(
    run: Run,
    *,
    controls: Sequence[Run] = (),
    episodes: Sequence[int] | None = None,
    from_checkpoint: bool = False,
) -> xr.Dataset:
    """From the checkpoint after each of `episodes` episodes (the last one when not given), M
    updates on document i, with the run's optimizer in a fresh state; then the drop of the loss of
    every document j, held-out ones too, in nats (paper, section 4.2 and figure 8b). The weights
    are put back in place between documents.

    loss_drop (run, episodes_done, document, other): document i is trained on, other j is looked at;
    held-out documents come last. And, all (run, episodes_done): own, mean drop of the document
    itself; others, of the other trained documents; held_out, of held-out ones; more_than_held_out,
    others minus held_out, the interval over both; near_minus_far, of a document's two neighbours
    minus of those half a cycle away; symmetry, correlation of drop(i, j) and
    drop(j, i), with the p-value of a Mantel test. lag_drop (run, episodes_done, lag): mean by
    signed cyclic lag j - i. Intervals are 95% percentile bootstraps over documents i.

    Raises `Missing` unless `from_checkpoint`, or without such a checkpoint.
    """
    runs = [run, *controls]
    if not from_checkpoint:
        raise Missing(
            f"{run.path}: pairwise_recovery runs the model again, {run.config.documents.count} "
            f"times {run.config.steps} steps for each checkpoint: pass --from-checkpoint"
        )
    done, told = common(runs)
    kept = {r: {time for time in checkpoints(r.path) if time <= done} for r in runs}
    for r in runs:
        check_unedited(r)
        if not kept[r]:
            raise Missing(f"{r.path}: no checkpoints; train again with --record checkpoints")
    known = sorted(set.intersection(*kept.values()))
    if not known:
        raise Missing(f"{run.path}: no checkpoint that the controls have too")
    times = known[-1:] if episodes is None else list(episodes)
    for time in times:
        if time not in known:
            raise Missing(
                f"{run.path}: no checkpoint after {time} episodes; there are some after "
                f"{', '.join(map(str, known))}"
            )
    parts = [
        xr.concat([_numbers(drops(r, time), r) for time in times], dim="episodes_done")
        for r in runs
    ]
    dataset = xr.concat(parts, dim="run").assign_coords(run=labels(runs), episodes_done=times)
    dataset.attrs |= {
        "unit": "documents",
        **told,
        "interval": "95% percentile bootstrap over documents; of more_than_held_out, over both",
        "p": "Mantel test, two-sided, 999 orders of the documents",
    }
    return dataset


def drops(run: Run, episodes_done: int) -> stats.Floats:
    """(T, T + H): drop of the loss of each document, nats, after M updates on each of the first T,
    always from the checkpoint after `episodes_done` episodes."""
    from types import SimpleNamespace

    import torch
    from tqdm import tqdm

    from recovery_probe.machine import reproducible
    from recovery_probe.train import batch, losses_of, make_optimizer

    model, settings = run.model_at(episodes_done), run.config
    docs: Any = SimpleNamespace(tokens=run.record.tokens.values, lengths=run.record.length.values)
    tokens, targets = batch(docs, model.device)
    weights = list(model.parameters.values())
    live: list[torch.Tensor] = [w.detach() for w in weights]
    start = [w.clone() for w in live]

    @torch.no_grad()
    def losses() -> torch.Tensor:
        model.train(False)
        size = settings.eval_batch
        pairs = zip(tokens.split(size), targets.split(size), strict=True)
        return torch.cat([losses_of(model, t, y) for t, y in pairs])

    rows = []
    with reproducible(model.device):
        before = losses()
        for i in tqdm(range(settings.documents.count), desc="pairwise recovery", disable=None):
            torch.manual_seed(config.torch_seed(settings.seed, f"dropout of document {i}"))
            optimizer = make_optimizer(settings, weights)
            model.train()
            for _ in range(settings.steps):
                optimizer.zero_grad()
                losses_of(model, tokens[i : i + 1], targets[i : i + 1])[0].backward()
                optimizer.step()
            rows.append(before - losses())
            torch._foreach_copy_(live, start)
    return torch.stack(rows).double().cpu().numpy()


def _numbers(drop: stats.Floats, run: Run) -> xr.Dataset:
    """What `compute` describes, of one (T, T + H) map."""
    T = len(drop)
    rng = generator(run.config.seed, "bootstrap")
    square, held = drop[:, :T], drop[:, T:]
    others = np.where(np.eye(T, dtype=bool), np.nan, square)
    half = (T - 1) // 2
    lags = np.array([lag for lag in range(-half, T // 2 + 1) if lag])
    by_lag = np.stack([stats.at_lag(square, lag) for lag in lags], axis=1)
    symmetry, symmetry_p = stats.mantel(others, others.T, rng)
    arrays: dict[str, Any] = {
        "loss_drop": (("document", "other"), drop),
        "symmetry": ((), symmetry),
        "symmetry_p": ((), symmetry_p),
    }

    def add(name: str, dims: tuple[str, ...], each: stats.Floats) -> None:
        """Mean over documents, the first axis, with its interval."""
        low, high = stats.bootstrap_interval(lambda i: each[i].mean(axis=1), T, rng)
        arrays[name] = (dims, each.mean(axis=0), {"units": "nats"})
        arrays[name + "_low"], arrays[name + "_high"] = (dims, low), (dims, high)

    add("own", (), np.diagonal(square).copy())
    add("others", (), stats.mean_of_counted(others))
    add("held_out", (), stats.mean_of_counted(held))
    add("lag_drop", ("lag",), by_lag)
    add("near_minus_far", (), stats.near_minus_far(square))

    def excess(i: stats.Ints) -> stats.Floats:
        j = rng.integers(max(1, held.shape[1]), size=(len(i), held.shape[1]))
        away = held[i[:, :, None], j[:, None, :]] if held.shape[1] else np.empty((*i.shape, 0))
        return stats.mean_of_counted(stats.mean_of_counted(others)[i] - stats.mean_of_counted(away))

    low, high = stats.bootstrap_interval(excess, T, rng)
    value = arrays["others"][1] - arrays["held_out"][1]
    few = held.shape[1] < 3  # no interval of two held-out documents
    arrays["more_than_held_out"] = ((), value, {"units": "nats"})
    arrays["more_than_held_out_low"] = ((), np.nan if few else low)
    arrays["more_than_held_out_high"] = ((), np.nan if few else high)
    coords = {
        "document": np.arange(T),
        "other": np.arange(drop.shape[1]),
        "is_held_out": ("other", np.arange(drop.shape[1]) >= T),
        "lag": lags,
    }
    return xr.Dataset(arrays, coords=coords)


@plots.styled
def plot(dataset: xr.Dataset) -> Figure:
    """At the last checkpoint: maps of drops, and drop by signed lag beside held-out documents."""
    last, runs = dataset.isel(episodes_done=-1), range(dataset.sizes["run"])
    T = dataset.sizes["document"]
    fig, panels = plots.mosaic(
        [[*runs] if len(runs) > 1 else [0, "."], ["lag"] * max(2, len(runs))], height=2.6
    )
    masked = last.loss_drop.where(last.document != last.other)
    top = float(abs(masked).max())
    for r in runs:
        image = panels[r].imshow(
            masked.isel(run=r), origin="lower", **{**plots.DIVERGING, "vmin": -top, "vmax": top}
        )
        panels[r].axvline(T - 0.5, color="black", linewidth=0.8)
        panels[r].set(
            title=dataset.run.values[r],
            xlabel="looked at (right of the line: held out)",
            ylabel="document trained on" if r == 0 else "",
        )
        panels[r].grid(False)
    fig.colorbar(image, ax=[panels[r] for r in runs], label="drop of the loss (nats)")
    axes = panels["lag"]
    for r in runs:
        part, colour = last.isel(run=r), plots.colour(r)
        axes.plot(dataset.lag, part.lag_drop, "o-", color=colour, ms=3, label=part.run.item())
        axes.vlines(dataset.lag, part.lag_drop_low, part.lag_drop_high, color=colour, linewidth=0.8)
        label = f"{part.run.item()}: held-out documents"
        axes.axhline(part.held_out, color=colour, linestyle="--", linewidth=0.9, label=label)
    axes.axhline(0, color=plots.HELD_OUT, linewidth=0.6)
    axes.set(
        xlabel="signed lag (documents): looked at minus trained on",
        ylabel="drop of the loss (nats)",
        title=f"after {int(last.episodes_done)} episodes; the diagonal is left out",
    )
    axes.locator_params(axis="x", integer=True)
    fig.legend(loc="outside lower center", ncols=2)
    return fig


def summary(dataset: xr.Dataset) -> dict[str, Any]:
    """Every number by run and time, and the verdict."""
    last, told = dataset.isel(episodes_done=-1), []
    for r, name in enumerate(dataset.run.values):
        part = last.isel(run=r)
        more, low, high = (float(part["more_than_held_out" + s]) for s in ("", "_low", "_high"))
        as_told = f"as far as {unit(dataset)} tell"
        said = against_zero(
            more,
            low,
            high,
            f"more than held-out ones, {as_told}",
            f"less than held-out ones, {as_told}",
            "no difference can be told",
        )
        near = [float(part["near_minus_far" + s]) for s in ("", "_low", "_high")]
        told.append(
            f"{name}: training on one trained document lowers the loss of another by "
            f"{with_interval(more, low, high)} nats more than that of a held-out one ({said}), and "
            f"those of its neighbours by {with_interval(*near)} nats more than half a cycle off; "
            "the map is symmetric with correlation "
            f"{with_test(float(part.symmetry), float(part.symmetry_p))}"
        )
    text = f"{compared(dataset)}After {int(last.episodes_done)} episodes. {'. '.join(told)}."
    return {"estimates": estimates(dataset), "verdict": text}


ANALYSIS = Analysis(
    name="pairwise_recovery",
    question="Does training on one document bring back another, and which?",
    null="What helps a trained document helps a held-out one as much, and the drop does not depend "
    "on the lag. For the symmetry: any order of the documents gives as strong a correlation.",
    blind_spot="To first order the drop is the learning rate times the inner product of two "
    "gradients, the same both ways: a symmetric map is expected of any network and small steps. "
    "Held-out documents were never learned and forgotten, so that they may have less to regain. "
    "The updates start at one checkpoint, where the last documents are still fresh.",
    compute=compute,
    plot=plot,
    summary=summary,
    from_checkpoint=True,
)

"""How alike a document's activations are between episodes; documents' geometry in the blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from numpy.typing import NDArray
from recovery_probe.analysis import Analysis, common, compared, estimates, labels, with_test

from recovery_probe import plots, stats
from recovery_probe.errors import InputError, Missing
from recovery_probe.record.run import Run
from recovery_probe.seeds import generator


def compute(
    run: Run, *, controls: Sequence[Run] = (), layer: int | None = None, permutations: int = 199
) -> xr.Dataset:
    """Of the focal document's residual stream after the last block (or at `layer`, when
    `residual_stream.focal_layers` recorded all of them), flattened (paper, figure 8d), and of all
    documents' streams as they were trained on.

    cosine (run, episodes_done, other), between all pairs of episodes; alike (run, epoch,
    other_epoch): its mean over pairs of an episode of one epoch and one of another, an episode
    with itself left out; growth (run): slope of alike within epochs against the epoch, with
    growth_p, two-sided, over all orders of the epochs.

    cka (run, epoch, layer, other_epoch, other_layer): linear CKA, debiased (HSIC₁ of Song et al.
    2012, as in Nguyen et al. 2021), over the T documents, each as it was at the first step of its
    episode, mean over positions. to_first (run, epoch, layer): that between an epoch and the first
    at one layer, NaN for the first itself, with to_first_p, one-sided, of giving the documents of
    one in random order.

    Raises `Missing` without `residual_stream`, or where it overflowed, and `InputError` for a layer
    that is not there.
    """
    runs = [run, *controls]
    done, told = common(runs)
    dataset = xr.concat([_one(r, done, layer, permutations) for r in runs], dim="run")
    dataset = dataset.assign_coords(run=labels(runs))
    dataset.attrs |= {
        "T": run.config.documents.count,
        "focal": run.config.residual_stream.focal,
        "layer": "last" if layer is None else layer,
        "unit": "one run",
        **told,
    }
    return dataset


def _one(run: Run, episodes: int, layer: int | None, permutations: int) -> xr.Dataset:
    T = run.config.documents.count
    recorded = run.recorder("residual_stream")
    epochs = episodes // T
    if not epochs:
        raise Missing(
            f"{run.path}: {episodes} episodes are done, by it or a run beside it; this needs an "
            "epoch"
        )
    stream, focal = _stream(run, recorded, layer)[: episodes + 1], run.config.residual_stream.focal
    # One at a time: float16 on disk.
    flat = np.stack([real(run, row.values, focal).astype("float32").ravel() for row in stream])
    cosine = stats.cosines((flat @ flat.T).astype("float64"))
    between = cosine[1 : epochs * T + 1, 1 : epochs * T + 1].copy()
    np.fill_diagonal(between, np.nan)
    alike = np.nanmean(between.reshape(epochs, T, epochs, T), axis=(1, 3)) if T > 1 else between
    growth, growth_p = stats.slope_with_p(np.diagonal(alike))
    grams = _grams(run, recorded, epochs)
    layers = grams.shape[1]
    cka = stats.debiased_cka(grams.reshape(-1, T, T)).reshape(epochs, layers, epochs, layers)
    rng = generator(run.config.seed, "permutations")
    to_first = np.stack([cka[:, k, 0, k] for k in range(layers)], axis=1)
    to_first[0] = np.nan  # itself
    null = np.empty((permutations, epochs, layers))
    for i in range(permutations):
        order = rng.permutation(T)
        null[i] = stats.cka_with(grams, grams[:1][..., order, :][..., order])
    return xr.Dataset(
        {
            "cosine": (("episodes_done", "other"), cosine),
            "alike": (("epoch", "other_epoch"), alike),
            "growth": ((), growth),
            "growth_p": ((), growth_p),
            "cka": (("epoch", "layer", "other_epoch", "other_layer"), cka),
            "to_first": (("epoch", "layer"), to_first),
            "to_first_p": (("epoch", "layer"), stats.permutation_p(to_first, null)),
        },
        coords={
            "episodes_done": np.arange(len(cosine)),
            "other": np.arange(len(cosine)),
            "epoch": np.arange(1, epochs + 1),
            "other_epoch": np.arange(1, epochs + 1),
            "layer": np.arange(layers),
            "other_layer": np.arange(layers),
        },
    )


def _stream(run: Run, recorded: xr.Dataset, layer: int | None) -> xr.DataArray:
    """(episodes_done, position, width) of the focal document."""
    if layer is None:
        return recorded.final
    if "focal" not in recorded:
        raise Missing(
            f"{run.path}: only the last layer of the focal document was recorded; train again "
            "with --residual_stream.focal_layers all"
        )
    if not 0 <= layer < recorded.sizes["layer"]:
        raise InputError(f"layer = {layer}: the layers are 0 to {recorded.sizes['layer'] - 1}")
    return recorded.focal.isel(layer=layer)


def real(run: Run, stream: NDArray[Any], document: int) -> NDArray[Any]:
    """A document's (…, position, width) without what is past its end. Raises `Missing` where what
    is left is not finite: float16 holds no more than 65504."""
    kept = stream[..., : int(run.record.length[document]), :]
    if not np.isfinite(kept).all():
        raise Missing(
            f"{run.path}: the recorded residual stream of document {document} is not finite: its "
            "values do not fit float16, in which it is stored"
        )
    return kept


def _grams(run: Run, recorded: xr.Dataset, epochs: int) -> stats.Floats:
    """(epoch, layer, T, T): inner products of the documents' streams at the first step of their
    episodes, with a zero diagonal and centred without bias (Székely and Rizzo 2014)."""
    T, M = run.config.documents.count, run.config.steps
    first = np.flatnonzero(np.isin(recorded.step.values, np.arange(epochs * T) * M))
    if len(first) < epochs * T:
        raise Missing(
            f"{run.path}: residual_stream.every = {run.config.residual_stream.every!r} leaves out "
            "the first step of some episodes; train again with --residual_stream.every episode"
        )
    grams = []
    for epoch in range(epochs):
        rows = first[epoch * T : (epoch + 1) * T]
        streams = recorded.residual[rows[0] : rows[-1] + 1].values[rows - rows[0]]
        document = run.schedule.values[epoch * T : (epoch + 1) * T]
        if streams.ndim == 4:  # all positions
            pairs = zip(streams, document.tolist(), strict=True)
            streams = np.stack([real(run, s, d).astype("float32").mean(axis=1) for s, d in pairs])
        by_document = streams[np.argsort(document)].transpose(1, 0, 2).astype("float64")
        grams.append(by_document @ by_document.transpose(0, 2, 1))
    return stats.u_centred(np.stack(grams))


@plots.styled
def plot(dataset: xr.Dataset) -> Figure:
    """The focal document's map for each run, its mean by epoch, and CKA with the first epoch."""
    runs = range(dataset.sizes["run"])
    fig, panels = plots.mosaic(
        [[*runs] if len(runs) > 1 else [0, "."], ["alike", "cka"]]
        if len(runs) <= 2
        else [[*runs], ["alike", "cka"] + ["."] * (len(runs) - 2)],
        height=2.7,
    )
    low = float(np.nanmin(dataset.cosine))
    for r in runs:
        axes, part = panels[r], dataset.isel(run=r)
        image = axes.imshow(part.cosine, origin="lower", cmap="viridis", vmin=low, vmax=1)
        axes.set(title=dataset.run.values[r], xlabel="episodes done", ylabel="episodes done")
        axes.grid(False)
        within = np.diagonal(part.alike.values)
        panels["alike"].plot(part.epoch, within, "o-", color=plots.colour(r), label=part.run.item())
    fig.colorbar(image, ax=[panels[r] for r in runs], label="cosine of activations")
    first = dataset.isel(run=0)
    for e, epoch in enumerate(first.epoch.values[1:], start=1):
        panels["cka"].plot(
            first.layer,
            first.to_first[e],
            "o-",
            ms=3,
            color=plots.by_epoch(len(first.epoch))[e],
            label=f"epoch {epoch}",
        )
    panels["alike"].set(
        xlabel="epoch", ylabel="mean cosine within the epoch", xticks=dataset.epoch.values
    )
    panels["cka"].set(
        xlabel="layer (0: before block 0)",
        ylabel="CKA with epoch 1",
        title=f"{first.run.item()}, all documents",
    )
    panels["alike"].legend()
    if len(first.epoch) > 1:
        panels["cka"].legend()
    return fig


def summary(dataset: xr.Dataset) -> dict[str, Any]:
    """Likeness by epoch, its growth, CKA with the first epoch, and the verdict."""
    told = []
    for r, name in enumerate(dataset.run.values):
        part = dataset.isel(run=r)
        within = np.diagonal(part.alike.values)
        first, last = (
            "not defined" if np.isnan(value) else f"{value:.3f}" for value in within[[0, -1]]
        )
        why = "it takes three epochs"
        growth = with_test(float(part.growth), float(part.growth_p), "+.3f", why)
        told.append(
            f"{name}: {first} in epoch 1, {last} in epoch {len(within)}, growth by epoch {growth}"
        )
    text = (
        f"{compared(dataset)}Mean cosine of document {dataset.attrs['focal']}'s activations within "
        "an epoch. " + "; ".join(told) + "."
    )
    return {"estimates": estimates(dataset), "verdict": text}


ANALYSIS = Analysis(
    name="activation_similarity",
    question="Do a document's activations settle by epoch, and do documents keep their geometry?",
    null="Likeness within epochs that does not grow: all orders of the epochs fit as well. For "
    "CKA, documents given in random order: 0 for the debiased estimate.",
    blind_spot="Smaller updates late in training make neighbours alike in any schedule; the "
    "control shows how much. Cosines of raw activations are dominated by directions that all "
    "positions share. CKA compares documents at the time each was trained on, up to an epoch "
    "apart, and with T documents it is noisy. Activations are stored in float16.",
    compute=compute,
    plot=plot,
    summary=summary,
)

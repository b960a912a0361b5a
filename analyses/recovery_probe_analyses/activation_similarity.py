"""How alike a document's activations are between episodes; documents' geometry in the blocks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from einops import rearrange, reduce
from numpy.typing import NDArray

from recovery_probe import Analysis, InputError, Missing, stats
from recovery_probe.analyze import estimate, plots, words
from recovery_probe.analyze.needs import RUN, epochs, once_an_epoch, recorded
from recovery_probe.analyze.trajectory import differences, minus_controls, untested

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from recovery_probe import Run


@dataclass(frozen=True)
class ActivationSimilarity(Analysis):
    """Of the focal document's residual stream after the last block (or at `layer`, when
    `residual_stream.focal_layers` recorded all of them), flattened (paper, figure 8d), and of all
    documents' streams as they were trained on.

    cosine (run, episodes_done, other), between all pairs of episodes; alike (run, epoch,
    other_epoch): its mean over pairs of an episode of one epoch and one of another, an episode
    with itself left out; within (run, epoch): the same of one epoch; growth (run): slope of within
    against the epoch; growth_difference (control): run minus control.

    cka (run, epoch, layer, other_epoch, other_layer): linear CKA, debiased (HSIC₁ of Song et al.
    2012, as in Nguyen et al. 2021), over the T documents, each as it was at the first step of its
    episode, mean over positions. to_first (run, epoch, layer): that between an epoch and the first
    at one layer, NaN for the first itself; of documents in random order it is 0 on average.

    Raises `Missing` where the stream overflowed or was recorded at the last layer alone, and
    `InputError` for a layer that is not there.
    """

    # of the focal document's stream; the last when not given
    layer: int | None = None

    name = "activation_similarity"
    question = "Do a document's activations settle by epoch, and do documents keep their geometry?"
    null = """Nothing is tested. Likeness within epochs grows wherever updates shrink, and documents
    stay themselves from epoch to epoch in any run: what to hold both against is the control.
    Debiased CKA of documents given in random order is 0 on average."""
    blind_spot = """Smaller updates late in training make neighbours alike in any schedule; the
    control shows how much. So likeness that grows tells neither features that training aligns (H1)
    nor a state that comes back under a fixed kernel (H2). Cosines of raw activations are dominated
    by directions that all positions share. CKA compares documents at the time each was trained on,
    up to an epoch apart, and with T documents it is noisy. Activations are stored in float16. A
    difference from the control has no interval from one run."""
    shown = ("growth", "growth of the mean cosine by epoch")
    paper = """The activations of document 1 grow more alike within every epoch (figure 8d)."""
    needs = (RUN, recorded("residual_stream", every_episode=True), once_an_epoch, epochs(1))

    def compute(self, *runs: Run) -> xr.Dataset:
        return minus_controls(super().compute(*runs), "growth")

    def of_run(self, run: Run, episodes: int) -> xr.Dataset:
        T = run.config.documents.count
        epochs = np.arange(1, episodes // T + 1)
        # One at a time: float16 on disk.
        rows = (row.values for row in self._stream(run)[: episodes + 1])
        focal = focal_document(run)
        flat = np.stack([real(run, row, focal).astype("float32").ravel() for row in rows])
        cosine = stats.cosines((flat @ flat.T).astype("float64"))
        between = cosine[1 : len(epochs) * T + 1, 1 : len(epochs) * T + 1].copy()
        np.fill_diagonal(between, np.nan)
        by_epoch = "(epoch episode) (other_epoch other) -> epoch other_epoch"
        alike = reduce(between, by_epoch, np.nanmean, episode=T, other=T) if T > 1 else between
        within = np.diagonal(alike).copy()
        cka = stats.debiased_cka(_grams(run, len(epochs)))
        layers = np.arange(cka.shape[1])
        to_first = cka[:, layers, 0, layers]  # (epoch, layer)
        to_first[0] = np.nan
        dataset = xr.Dataset(
            {
                "cosine": (("episodes_done", "other"), cosine),
                "alike": (("epoch", "other_epoch"), alike),
                "within": ("epoch", within),
                "cka": (("epoch", "layer", "other_epoch", "other_layer"), cka),
            },
            coords={
                "episodes_done": np.arange(len(cosine)),
                "other": np.arange(len(cosine)),
                "epoch": epochs,
                "other_epoch": epochs,
                "layer": layers,
                "other_layer": layers,
            },
            attrs={
                "focal": focal,
                "layer": "last" if self.layer is None else self.layer,
                "unit": "one run",
            },
        )
        estimate.put(dataset, "growth", (), untested(np.array(stats.slope(within))))
        estimate.put(dataset, "to_first", ("epoch", "layer"), untested(to_first))
        return dataset

    def _stream(self, run: Run) -> xr.DataArray:
        """(episodes_done, position, width) of the focal document."""
        recorded = run.recorder("residual_stream")
        if self.layer is None:
            return recorded.final
        if "focal" not in recorded:
            raise Missing(
                f"{run.path}: only the last layer of the focal document was recorded; train again "
                "with --residual_stream.focal_layers all"
            )
        if not 0 <= self.layer < recorded.sizes["layer"]:
            last = recorded.sizes["layer"] - 1
            raise InputError(f"layer = {self.layer}: the layers are 0 to {last}")
        return recorded.focal.isel(layer=self.layer)

    @plots.styled
    def plot(self, dataset: xr.Dataset) -> Figure:
        """The focal document's map for each run, its mean by epoch; CKA with the first epoch."""
        fig, panels, below = plots.above(dataset, "alike", "cka", height=2.7)
        plots.maps(
            fig,
            panels,
            dataset.cosine.values,
            dataset.run.values,
            label="cosine of activations",
            x="episodes done",
            y="episodes done",
            cmap="viridis",
            vmin=float(dataset.cosine.min()),
        )
        for name, part, colour in plots.by_run(dataset):
            below["alike"].plot(part.epoch, part.within, "o-", color=colour, label=name)
        first, colours = dataset.isel(run=0), plots.by_epoch(dataset.sizes["epoch"])
        for epoch, colour in zip(dataset.epoch.values[1:], colours[1:], strict=True):
            line = {"color": colour, "label": f"epoch {epoch}"}
            below["cka"].plot(first.layer, first.to_first.sel(epoch=epoch), "o-", ms=3, **line)
        below["alike"].set(xlabel="epoch", ylabel="mean cosine within the epoch")
        below["alike"].set_xticks(dataset.epoch.values)
        below["alike"].legend()
        below["cka"].set(xlabel="layer (0: before block 0)", ylabel="CKA with epoch 1")
        below["cka"].set_title(f"{first.run.item()}, all documents")
        if len(colours) > 1:
            below["cka"].legend()
        return fig

    def agrees(self, dataset: xr.Dataset) -> bool | None:
        """Whether likeness within epochs grows."""
        return estimate.get(dataset.isel(run=0), "growth").agrees(1, 0.005)

    def verdict(self, dataset: xr.Dataset) -> str:
        def clause(part: xr.Dataset) -> str:
            first, last = (
                "not defined" if np.isnan(value) else f"{value:.3f}"
                for value in part.within.values[[0, -1]]
            )
            later = f", {last} in epoch {part.sizes['epoch']}" * (part.sizes["epoch"] > 1)
            return f"{first} in epoch 1{later}"

        growth = words.by_run(
            dataset,
            lambda part: "not defined" if np.isnan(part.growth) else f"{part.growth.item():+.3f}",
            "{clause} in {run}",
        )
        return (
            f"Mean cosine of document {dataset.attrs['focal']}'s activations within an epoch. "
            f"{'; '.join(words.by_run(dataset, clause))}. Growth by epoch, as wherever "
            f"updates shrink: {', '.join(growth)}."
            f"{differences(dataset, 'growth', 'growth', '+.3f')}"
        )


def focal_document(run: Run) -> int:
    """The document whose stream was recorded after every episode."""
    return int(run.recorder("residual_stream").attrs["focal"])


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


def _grams(run: Run, epochs: int) -> stats.Floats:
    """(epoch, layer, T, T): inner products of the documents' streams at the first step of their
    episodes, U-centred."""
    T, M = run.config.documents.count, run.config.steps
    recorded, schedule = run.recorder("residual_stream"), run.schedule.values
    first = np.flatnonzero(np.isin(recorded.step.values, np.arange(epochs * T) * M))
    grams = []
    for epoch in range(epochs):
        here = slice(epoch * T, (epoch + 1) * T)
        rows, document = first[here], schedule[here]
        streams = recorded.residual[rows[0] : rows[-1] + 1].values[rows - rows[0]]
        if streams.ndim == 4:  # all positions
            pairs = zip(streams, document.tolist(), strict=True)
            streams = np.stack([real(run, s, d).astype("float32").mean(axis=1) for s, d in pairs])
        by_document = streams[np.argsort(document)].astype("float64")
        layers = rearrange(by_document, "document layer width -> layer document width")
        grams.append(layers @ rearrange(layers, "layer document width -> layer width document"))
    return stats.u_centred(np.stack(grams))

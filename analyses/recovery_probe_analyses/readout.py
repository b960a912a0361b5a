"""Whether what comes back is inside the network, or in the temperature and the bias of its
logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from recovery_probe import Analysis, Missing, stats
from recovery_probe.analyze import estimate, plots, words
from recovery_probe.analyze.estimate import Estimate
from recovery_probe.analyze.groups import beside, common
from recovery_probe.analyze.needs import RUN, recorded
from recovery_probe.stats.scores import MIN_FORGETTING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from recovery_probe import Run

# reading -> how it is called
READINGS = {
    "loss": "loss",
    "tempered": "own temperature",
    "biased": "shared bias",
    "both": "both",
    "log_rank": "log rank",
    "error": "error",
}
NATS = ("tempered", "biased", "both")
UNITS = {"units": "nats per token; error: share of tokens"}
SHARE = {"units": "share of what the loss regains"}


@dataclass(frozen=True)
class Readout(Analysis):
    """Of every document's last whole wait that was recorded, by age (as in `age_curve`), readings
    of its logits (recorder `readout`): `loss`; `tempered`, min over τ of CE(z/τ), τ the document's
    own at each time; `biased`, after the bias over the vocabulary that fits all other documents
    best at that time; `both`, with that bias and the document's own temperature; `log_rank`, mean
    log rank of the right tokens; `error`, 1 - accuracy.

    by_age (run, reading, age): means over documents; temperature (run, age): of τ. regained (run,
    reading): how far each falls up to the last age, from the age at which the mean loss of the
    other documents has its top. left (run, reading): that of a reading in nats, as a share of the
    loss's; 0 where all that comes back is in temperature or bias, 1 where nothing is. score (run,
    reading): cross-fitted, what a reading regains from its own top as a share of what it forgot;
    score_left (run, reading): that, as a share of the loss's score. Intervals: 95% percentile
    bootstraps over documents, both parts of a ratio drawn together; studentised for regained. No
    ratio where the loss regains less than 0.01 nats. counted (run): documents.

    Raises `Missing` where no whole wait was recorded.
    """

    name = "readout"
    question = """Is what comes back in the network's inside, or only in the temperature or a bias
    of its logits?"""
    null = """Nothing of it is temperature or bias: as many nats come back with these set right,
    left = 1. Were it all temperature, or a bias that documents share, nothing would: left = 0."""
    blind_spot = """What temperature and bias do not explain may still be in the last layer: a bias
    that depends on the context is left. A bias is fitted to other documents, with a prior of about
    a nat, over few tokens: one that is large, or of tokens that no other document has, is found in
    part, and left is too large. It is fitted at the logits' own temperature: `both` is not the best
    of all pairs. A document's temperature takes in whatever makes its right tokens less likely
    together, also where the cause lies deep, and a bias what documents have in common: left is no
    bound from below. Ranks and errors are no nats: they fall only where tokens change places.
    Temperature and the scale of the last norm are one thing here. Of what is left, features that
    align (H1), a state that comes back (H2) and savings (H3) are alike."""
    needs = (RUN, recorded("readout", every_episode=True, epochs=2))

    def compute(self, *runs: Run) -> xr.Dataset:
        dataset = beside(
            runs,
            lambda run: self.of_run(run, common(runs)),
            unit="documents",
            interval="95% bootstrap over documents, studentised for `regained`, percentile for "
            "ratios",
        )
        if not dataset.counted.values[0]:
            raise Missing(
                f"{runs[0].path}: readout has no whole wait of a document; with readout.epochs = 0 "
                "it records all epochs"
            )
        return dataset

    def of_run(self, run: Run, episodes: int) -> xr.Dataset:
        curves, temperature = _waits(run, episodes)  # (document, age, reading), (document, age)
        rng = run.rng
        loss, T = curves[..., 0], curves.shape[1]
        dataset = xr.Dataset(
            {
                "by_age": (("reading", "age"), stats.mean_of_counted(curves, axis=0).T, UNITS),
                "temperature": ("age", stats.mean_of_counted(temperature, axis=0)),
                "counted": ((), len(curves), {"of_seeds": "sum"}),
            },
            coords={"reading": list(READINGS), "age": np.arange(1, T + 1)},
        )

        def falls(drawn: stats.Ints) -> stats.Floats:
            """(resamples, reading)"""
            return stats.falls_together(loss, curves, drawn)

        def scores(drawn: stats.Ints) -> stats.Floats:
            each = np.moveaxis(curves, -1, 0)
            return np.stack([stats.cross_fitted(one, drawn) for one in each], axis=-1)

        def left(drawn: stats.Ints) -> stats.Floats:
            nats = falls(drawn)
            return nats / np.where(nats[:, :1] >= MIN_FORGETTING, nats[:, :1], np.nan)

        def score_left(drawn: stats.Ints) -> stats.Floats:
            each, regains = scores(drawn), falls(drawn)[:, :1] >= MIN_FORGETTING
            return each / np.where(regains & (each[:, :1] > 0), each[:, :1], np.nan)

        def put(name: str, of: Any, null: float | None = None, **attrs: str) -> None:
            found = np.full((3, len(READINGS)), np.nan)
            if len(curves) > 1:
                (found[0],) = of(np.arange(len(curves))[None])
                found[1:] = stats.bootstrap_interval(of, len(curves), rng("bootstrap"))
            beyond = None if null is None else np.full(len(READINGS), null)
            estimate.put(dataset, name, "reading", Estimate(*found, null=beyond), **attrs)

        put("score", scores, units="share of what is forgotten")
        put("left", lambda drawn: np.where(_IN_NATS, left(drawn), np.nan), 1.0, **SHARE)
        put("score_left", score_left, 1.0, units="share of the loss's score")
        each = _falls_of_each(loss, curves)
        estimate.put(
            dataset, "regained", "reading", estimate.of_mean(each, rng("bootstrap")), **UNITS
        )
        return dataset

    @plots.styled
    def plot(self, dataset: xr.Dataset) -> Figure:
        """Readings in nats by age, of the run and its first control; and what is left of each."""
        both = dataset.isel(run=slice(2))
        fig, panels, below = plots.above(both, "left", "score")
        styles = dict(zip(("loss", *NATS), ("-", "--", "-.", ":"), strict=True))
        for (name, part, colour), axes in zip(plots.by_run(both), panels, strict=True):
            for reading, style in styles.items():
                label = READINGS[reading]
                nats = part.by_age.sel(reading=reading)
                axes.plot(part.age, nats, style, color=colour, label=label)
            axes.set(title=name, xlabel="episodes since its own", ylabel="nats/token")
            axes.locator_params(axis="x", integer=True)
            axes.legend(ncols=2)
        left, score = below["left"], below["score"]
        for r, (name, part, colour) in enumerate(plots.by_run(dataset)):
            for axes, what, shown in ((left, "left", list(NATS)), (score, "score", list(READINGS))):
                found = estimate.get(part.sel(reading=shown), what)
                x = np.arange(len(shown)) + 0.12 * r
                plots.points(axes, x, found, "o", color=colour, label=name)
        for axes, shown in ((left, list(NATS)), (score, list(READINGS))):
            plots.zero(axes)
            axes.set_xticks(
                range(len(shown)), [READINGS[name].replace(" ", "\n") for name in shown]
            )
            axes.set_xlim(-0.5, len(shown) - 0.3)
        left.axhline(1, color=plots.HELD_OUT, linewidth=0.6, linestyle="--")
        left.set(title="nats that come back, with it set right", ylabel="share of the loss's")
        score.set(title="recovery score of each reading", ylabel="share of what is forgotten")
        left.legend()
        return fig

    def verdict(self, dataset: xr.Dataset) -> str:
        def clause(part: xr.Dataset) -> str:
            def said(name: str, reading: str) -> Estimate:
                return estimate.get(part, name, reading=reading)

            return (
                f"{said('regained', 'loss')} nats per token come back up to the last age; of them "
                f"{said('left', 'tempered')} with each document's temperature set right, "
                f"{said('left', 'biased')} with a shared bias set right, {said('left', 'both')} "
                f"with both; the score is {said('score', 'loss')} of the loss, "
                f"{said('score', 'both')} with both set right, "
                f"{said('score', 'log_rank')} of the right tokens' log rank, "
                f"{said('score', 'error')} of the share of wrong ones"
            )

        counts = ", ".join(
            words.by_run(dataset, lambda part: f"{int(part.counted)}", "{clause} in {run}")
        )
        return (
            f"{'; '.join(words.by_run(dataset, clause))}. Of what comes back 1 is left if nothing "
            "of it is temperature or bias, 0 if all is. Documents with a whole wait: "
            f"{counts}."
        )


_IN_NATS = np.array([name == "loss" or name in NATS for name in READINGS])


def _waits(run: Run, episodes: int) -> tuple[stats.Floats, stats.Floats]:
    """(document, age, reading) and (document, age) of temperatures: of each document's last whole
    wait that was recorded, of those that have one."""
    recorded, T = run.recorder("readout").load(), run.config.documents.count
    recorded = recorded.assign(error=1 - recorded.accuracy)
    rows = recorded.episodes_done.values
    kept = rows <= episodes
    found = []
    for name in (*READINGS, "temperature"):
        values = np.full((episodes + 1, T), np.nan)
        values[rows[kept]] = recorded[name].values[kept, :T]
        curves, _ = stats.by_age(values, run.schedule.values, T, run.timeline.per_epoch)
        found.append(stats.last_waits(curves))
    each = np.stack(found, axis=-1)
    each = each[np.isfinite(each).all(axis=(1, 2))]
    return each[..., :-1], each[..., -1]


def _falls_of_each(loss: stats.Floats, curves: stats.Floats) -> stats.Floats:
    """(document, reading): of each document what `stats.falls_together` has means of."""
    found = np.full((max(1, len(loss)), curves.shape[-1]), np.nan)
    for document in range(len(loss)) if len(loss) > 1 else ():
        top = np.delete(loss, document, axis=0).mean(axis=0).argmax()
        found[document] = curves[document, top] - curves[document, -1]
    return found

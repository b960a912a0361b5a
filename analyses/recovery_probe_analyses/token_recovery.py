"""Which tokens of a document are forgotten, and which come back before its turn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from recovery_probe.analysis import (
    Analysis,
    common,
    compared,
    estimates,
    labels,
    number,
    with_interval,
)

from recovery_probe import plots, stats
from recovery_probe.errors import InputError, Missing
from recovery_probe.record.run import Run
from recovery_probe.seeds import generator

STRETCHES = 32  # of positions, at most
SHOWN = 12  # words in the figure
BY = ("forgotten", "regained")
# Byte-level and SentencePiece tokenizers write a space as Ġ or ▁, a line's end as Ċ.
VISIBLE = str.maketrans(
    {" ": "␣", "Ġ": "␣", "▁": "␣", "\n": "⏎", "Ċ": "⏎", "\t": "⇥", "ĉ": "⇥", "\r": "␍"}
)


def compute(run: Run, *, controls: Sequence[Run] = (), words: int = 30) -> xr.Dataset:
    """Of every token of a document, between two episodes on it, three losses (nats): right after
    the first, at the time of the document's own top (its largest mean loss), right before the
    second. Forgotten is top minus after, regained top minus before: no token chooses its own
    maximum, so that their means over positions are the document's, exactly. Waits in which a
    document's loss only fell have nothing forgotten, and are left out and counted.

    total_forgotten, total_regained (run): mean over positions, epochs and documents; forgotten,
    regained (run, position): by stretch of positions, named by its first. concentration (run): the
    share of the regained nats at the tenth of a document's tokens that regained most in the other
    epochs. correlation (run): over a document's tokens, of the forgotten of the other epochs with
    the regained of one, since those of the same epoch share the loss at the top. All with 95%
    bootstraps over documents. left_out (run): waits.

    word, word_count (by, rank): the `words` that the run forgets and regains most, spaces made
    visible, and how often they stand in the documents; word_forgotten, word_regained (run, by,
    rank): nats, sums over those places, mean over epochs; word_share (run, by, rank): of the sum
    over all tokens of what the list is by.

    Raises `Missing` without `token_losses` after every episode, or before a document came back.
    """
    if words < 1:
        raise InputError(f"words = {words}: at least 1")
    runs = [run, *controls]
    done, told = common(runs)
    waits = [_waits(r, done) for r in runs]
    if not np.isfinite(waits[0][0]).any():
        raise Missing(
            f"{run.path}: {run.episodes_done} episodes: no document has come back after having "
            "been forgotten"
        )
    parts = [
        _numbers(forgotten, regained, generator(r.config.seed, "bootstrap"))
        for r, (forgotten, regained, _) in zip(runs, waits, strict=True)
    ]
    dataset = xr.concat(parts, "run").assign_coords(run=labels(runs))
    dataset = dataset.merge(_words(run, waits, words))
    dataset["left_out"] = ("run", [left for _, _, left in waits], {"of_seeds": "sum"})
    for name in ("total_forgotten", "total_regained", *BY):
        dataset[name].attrs["units"] = "nats per token"
    for name in ("word_forgotten", "word_regained"):
        dataset[name].attrs["units"] = "nats"
    for name in map(str, dataset.data_vars):
        if name.startswith("word"):
            dataset[name].attrs["of_seeds"] = "the first"
    interval = "95% percentile bootstrap over documents"
    dataset.attrs = {"unit": "documents", "interval": interval} | told
    return dataset


def _waits(run: Run, episodes: int) -> tuple[stats.Floats, stats.Floats, int]:
    """Forgotten and regained, (document, epoch, position), of waits that end within the first
    `episodes`, NaN otherwise; and how many are left out since the loss only fell."""
    losses = run.recorder("token_losses").loss
    T, done = run.config.documents.count, losses.episodes_done.values
    if not np.array_equal(done, np.arange(len(done))):
        raise Missing(
            f"{run.path}: token_losses.every leaves out some episodes; train again with "
            "--token_losses.every episode"
        )
    values = losses[: episodes + 1, :T].values  # float16, (row, document, position)
    return stats.token_waits(values, run.schedule.values)


def _numbers(
    forgotten: stats.Floats, regained: stats.Floats, rng: np.random.Generator
) -> xr.Dataset:
    """What `compute` describes, of one run."""
    dataset = xr.Dataset()

    def add(name: str, dims: tuple[str, ...], statistic: Callable[[Any], stats.Floats]) -> None:
        """A statistic of documents (resamples, T) -> (resamples, …), with its interval."""
        bounds = stats.bootstrap_interval(statistic, len(regained), rng)
        values = (statistic(np.arange(len(regained))[None])[0], *bounds)
        for suffix, value in zip(("", "_low", "_high"), values, strict=True):
            dataset[name + suffix] = (dims, value)

    def mean(each: stats.Floats) -> Callable[[Any], stats.Floats]:
        return lambda i: stats.mean_of_counted(each[i], axis=1)

    width = -(-(regained.shape[-1] - 1) // STRETCHES)
    starts = np.arange(1, regained.shape[-1], width)  # nothing foretells position 0
    for name, values in zip(BY, (forgotten, regained), strict=True):
        tokens = stats.mean_of_counted(values, axis=1)  # (document, position)
        stretches = [stats.mean_of_counted(tokens[:, s : s + width]) for s in starts]
        add(name, ("position",), mean(np.stack(stretches, axis=1)))
        whole = stats.mean_of_counted(values)  # (document, epoch)
        add(f"total_{name}", (), mean(stats.mean_of_counted(whole)))
    tenth, all_, r = stats.between_waits(forgotten, regained)

    def share(i: Any) -> stats.Floats:
        total = all_[i].sum(axis=1)
        return tenth[i].sum(axis=1) / np.where(total > 0, total, np.nan)

    add("concentration", (), share)
    add("correlation", (), mean(r))
    return dataset.assign_coords(position=starts)


def _words(run: Run, waits: Sequence[tuple[Any, ...]], count: int) -> xr.Dataset:
    """The words of the first run's largest sums, and every run's sums of them."""
    T = run.config.documents.count
    text = run.recorder("token_losses").token[:T].values.astype(object)
    known, which = np.unique(text, return_inverse=True)
    which = which.reshape(text.shape)
    counted = np.isfinite(waits[0][1]).any(axis=1)
    places = np.bincount(which[counted], minlength=len(known))
    sums = np.stack(  # (run, forgotten and regained, word)
        [[stats.sums_by_word(values, which, len(known)) for values in one[:2]] for one in waits]
    )
    ranks = np.argsort(-sums[0], axis=-1, kind="stable")[:, :count]  # (by, rank)
    lists = sums[:, :, ranks]  # (run, forgotten and regained, by, rank)
    own = lists[:, range(2), range(2)]
    shape = ((0, 0), (0, count - ranks.shape[1]))  # as many for every seed
    pad: dict[str, Any] = {"constant_values": np.nan}
    words = np.array([[known[w].translate(VISIBLE) for w in row] for row in ranks])
    return xr.Dataset(
        {
            "word": (("by", "rank"), np.pad(words.astype(object), shape, constant_values="")),
            "word_count": (("by", "rank"), np.pad(places[ranks], shape)),
            "word_forgotten": (("run", "by", "rank"), np.pad(lists[:, 0], ((0, 0), *shape), **pad)),
            "word_regained": (("run", "by", "rank"), np.pad(lists[:, 1], ((0, 0), *shape), **pad)),
            "word_share": (
                ("run", "by", "rank"),
                np.pad(own / sums.sum(axis=-1)[..., None], ((0, 0), *shape), **pad),
            ),
        },
        coords={"by": list(BY), "rank": np.arange(1, count + 1)},
    )


@plots.styled
def plot(dataset: xr.Dataset) -> Figure:
    """Forgotten and regained by position, and the words of which most is forgotten, regained."""
    fig, panels = plots.mosaic([["at", "at"], list(BY)], height=2.6)
    runs = range(min(2, dataset.sizes["run"]))
    for r in runs:
        part, colour = dataset.isel(run=r), plots.colour(r)
        for name, style in zip(BY, ("--", "-"), strict=True):
            label = f"{part.run.item()}, {name}"
            panels["at"].plot(part.position, part[name], style, color=colour, label=label)
            bounds = part[name + "_low"], part[name + "_high"]
            panels["at"].fill_between(part.position, *bounds, color=colour, alpha=0.12, lw=0)
    panels["at"].axhline(0, color=plots.HELD_OUT, linewidth=0.6)
    panels["at"].set(xlabel="position in the document", ylabel="nats/token")
    fig.legend(loc="outside upper center", ncols=4)
    for name in BY:
        _bars(panels[name], dataset.sel(by=name).isel(run=runs, rank=slice(SHOWN)), name)
    return fig


def _bars(axes: Axes, part: xr.Dataset, name: str) -> None:
    rank, height = part["rank"].values, 0.8 / part.sizes["run"]
    for r in range(part.sizes["run"]):
        at = rank - 0.4 + height * (r + 0.5)
        axes.barh(at, part[f"word_{name}"].isel(run=r), height, color=plots.colour(r))
    known = zip(part.word.values, part.word_count.values, strict=True)
    axes.set_yticks(rank, [f"{drawable(str(w))} ×{int(n)}" if n else "" for w, n in known])
    for label in axes.get_yticklabels():
        label.set_parse_math(False)
    axes.set(xlabel=f"nats {name}, all its places", title=f"tokens of which most is {name}")
    axes.grid(False, axis="y")
    axes.invert_yaxis()


def drawable(word: str) -> str:
    """At most 16 characters, those that the figures' font lacks by their code."""
    plain = (c in "␣⏎⇥␍" or (c.isprintable() and ord(c) < 0x530) for c in word)
    text = "".join(c if shown else ascii(c)[1:-1] for c, shown in zip(word, plain, strict=True))
    return text if len(text) <= 16 else text[:15] + "…"


def summary(dataset: xr.Dataset) -> dict[str, Any]:
    """Every number by run, the words, and the verdict."""
    told = [_told(dataset.isel(run=r)) for r in range(dataset.sizes["run"])]
    lists = {}
    for name in BY:
        part = dataset.sel(by=name).isel(run=0)
        lists[name] = [
            {
                "word": str(part.word.values[i]),
                "count": int(part.word_count[i]),
                "forgotten": number(part.word_forgotten[i]),
                "regained": number(part.word_regained[i]),
                "share": number(part.word_share[i]),
            }
            for i in range(part.sizes["rank"])
            if part.word_count[i]
        ]
    first = ", ".join(f"{w['word']} (×{w['count']})" for w in lists["regained"][:5])
    text = (
        compared(dataset) + "; ".join(told) + f". {dataset.run.values[0]} regains most at {first}."
    )
    return {"estimates": estimates(dataset), "words": lists, "verdict": text}


def _told(part: xr.Dataset) -> str:
    def interval(name: str) -> str:
        return with_interval(*(float(part[name + s]) for s in ("", "_low", "_high")))

    return (
        f"{part.run.item()}: {interval('total_forgotten')} nats per token are forgotten up to a "
        f"document's top and {interval('total_regained')} regained before its turn, "
        f"{interval('concentration')} of that by the tenth of the tokens that regained most in "
        f"the other epochs; what a token forgets in them correlates with what it regains by "
        f"{interval('correlation')}"
    )


ANALYSIS = Analysis(
    name="token_recovery",
    question="Which tokens are forgotten, and which come back before their document's turn?",
    null="Tokens are alike: the tenth that regained most in other epochs holds a tenth of what is "
    "regained, and what a token forgot in other epochs tells nothing of what it regains: a "
    "correlation of 0. Within one epoch noise alone correlates them, since both hold the loss at "
    "the top, and the largest of noisy tokens seem to hold much: that is why epochs are crossed. "
    "Without anticipation as much is regained as in the control.",
    blind_spot="The top is a maximum of the document's mean: noise in that mean alone makes a "
    "little of the regained. A token's fall may be general improvement, or belong to words that "
    "the documents in between have too. Tokens with more to lose both forget and regain more. "
    "The list of words is ranked by the numbers it shows: those of the first places are too "
    "large. Losses are recorded in float16, with a relative error up to 0.0005. In a shuffled "
    "control waits differ in length.",
    compute=compute,
    plot=plot,
    summary=summary,
)

"""Which tokens of a document are forgotten, and which come back before its turn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import numpy as np
import xarray as xr
from annotated_types import Ge

from recovery_probe import Analysis, Missing, stats
from recovery_probe.analyze import estimate, plots, words
from recovery_probe.analyze.estimate import Estimate
from recovery_probe.analyze.groups import beside, common
from recovery_probe.analyze.needs import RUN, recorded

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from recovery_probe import Run

STRETCHES = 32  # of positions, at most
SHOWN = 12  # words in the figure
BY = ("forgotten", "regained")
NATS, PER_TOKEN, FIRST = {"units": "nats"}, {"units": "nats per token"}, {"of_seeds": "the first"}
Waits: TypeAlias = tuple[stats.Floats, stats.Floats, int]  # of `stats.token_waits`
# Byte-level and SentencePiece tokenizers write a space as Ġ or ▁, a line's end as Ċ.
VISIBLE = str.maketrans(
    {" ": "␣", "Ġ": "␣", "▁": "␣", "\n": "⏎", "Ċ": "⏎", "\t": "⇥", "ĉ": "⇥", "\r": "␍"}
)


@dataclass(frozen=True)
class TokenRecovery(Analysis):
    """Of every token of a document, between two episodes on it, three losses (nats): right after
    the first, at the time of the document's own top (its largest mean loss), right before the
    second. Forgotten is top minus after, regained top minus before: no token chooses its own
    maximum, so that their means over positions are the document's, exactly. Waits in which a
    document's loss only fell have nothing forgotten, and are left out and counted.

    total_forgotten, total_regained (run): mean over positions, epochs and documents; forgotten,
    regained (run, position): by stretch of positions, named by its first. concentration (run): the
    share of the regained nats at the tenth of a document's tokens that regained most in the other
    epochs. correlation (run): over a document's tokens, of the forgotten of the other epochs with
    the regained of one, since those of the same epoch share the loss at the top.
    total_regained_difference, concentration_difference, correlation_difference (control): run minus
    control, paired by document. All with 95% bootstraps over documents, studentised for means,
    percentile for the concentration. left_out (run): waits.

    word, word_count (by, rank): the `words` that the run forgets and regains most, spaces made
    visible, and how often they stand in the documents; word_forgotten, word_regained (run, by,
    rank): nats, sums over those places, mean over epochs; word_share (run, by, rank): of the sum
    over all tokens of what the list is by.

    Raises `Missing` before a document came back.
    """

    # how many words are listed
    words: Annotated[int, Ge(1)] = 30

    name = "token_recovery"
    question = "Which tokens are forgotten, and which come back before their document's turn?"
    null = """Tokens are alike: the tenth that regained most in other epochs holds a tenth of what
    is regained, and what a token forgot in other epochs tells nothing of what it regains: a
    correlation of 0. Within one epoch noise alone correlates them, since both hold the loss at the
    top, and the largest of noisy tokens seem to hold much: that is why epochs are crossed. Without
    anticipation as much is regained as in the control."""
    blind_spot = """The top is a maximum of the document's mean: noise in that mean alone makes a
    little of the regained. A token's fall may be general improvement, or belong to words that the
    documents in between have too. Tokens with more to lose both forget and regain more. The list of
    words is ranked by the numbers it shows: those of the first places are too large. Losses are
    recorded in float16, with a relative error up to 0.0005. In a shuffled control waits differ in
    length, and the top is one of as many noisy means: what it regains is not at equal age. Which
    tokens come back does not say why: documents of plain least squares that share a component
    regain what they share."""
    needs = (RUN, recorded("token_losses", every_episode=True))

    def compute(self, *runs: Run) -> xr.Dataset:
        done = common(runs)
        waits = {run: _waits(run, done) for run in runs}
        if not np.isfinite(waits[runs[0]][0]).any():
            raise Missing(
                f"{runs[0].path}: {runs[0].episodes_done} episodes: no document has come back "
                "after having been forgotten"
            )
        dataset = beside(
            runs,
            lambda run: _numbers(*waits[run], run.rng("bootstrap")),
            unit="documents",
            interval="95% bootstrap over documents, studentised for means, percentile for the "
            "concentration",
        )
        dataset = dataset.assign_coords(control=dataset.run.values[1:])
        if len(runs) > 1:
            _put_differences(dataset, list(waits.values()), runs[0].rng("bootstrap"))
        return dataset.merge(_words(runs[0], list(waits.values()), self.words))

    @plots.styled
    def plot(self, dataset: xr.Dataset) -> Figure:
        """Forgotten and regained by position, and the words of which most is."""
        fig, panels = plots.mosaic([["position", "position"], list(BY)], height=2.6)
        axes, both = panels["position"], dataset.isel(run=slice(2))
        for run, part, colour in plots.by_run(both):
            for name, style in zip(BY, ("--", "-"), strict=True):
                nats = estimate.get(part, name)
                axes.plot(part.position, nats.value, style, color=colour, label=f"{run}, {name}")
                axes.fill_between(
                    part.position, nats.low, nats.high, color=colour, alpha=0.12, lw=0
                )
        plots.zero(axes)
        axes.set(xlabel="position in the document", ylabel="nats/token")
        fig.legend(loc="outside upper center", ncols=4)
        for name in BY:
            _bars(panels[name], both.sel(by=name).isel(rank=slice(SHOWN)), name)
        return fig

    def summary(self, dataset: xr.Dataset) -> dict[str, Any]:
        """Every number by run, the words of the first, and the verdict."""
        lists = {name: _list(dataset.isel(run=0).sel(by=name)) for name in BY}
        return {**super().summary(dataset), "words": lists}

    def verdict(self, dataset: xr.Dataset) -> str:
        def clause(part: xr.Dataset) -> str:
            names = ("total_forgotten", "total_regained", "concentration", "correlation")
            forgotten, regained, tenth, r = (estimate.get(part, name) for name in names)
            return (
                f"{forgotten} nats per token are forgotten up to a document's top and {regained} "
                f"regained before its turn, {tenth} of that by the tenth of the tokens that "
                "regained most in the other epochs; what a token forgets in them correlates with "
                f"what it regains by {r}"
            )

        top = dataset.isel(run=0, rank=slice(5)).sel(by="regained")
        counts = zip(top.word.values, top.word_count.values, strict=True)
        most = ", ".join(f"{word} (×{count})" for word, count in counts if count)
        text = "; ".join(words.by_run(dataset, clause)) + "."
        for control in dataset.control.values:
            more, r = (
                estimate.get(dataset, f"{name}_difference", control=control)
                for name in ("total_regained", "correlation")
            )
            said = more.decided(
                "more is regained than there", "less is regained than there", 0.05, "nats"
            )
            text += (
                f" {top.run.item()} minus {control}: {more} nats regained ({said}), {r} in that "
                "correlation."
            )
        return f"{text} {top.run.item()} regains most at {most}."


def _waits(run: Run, episodes: int) -> Waits:
    """`stats.token_waits` of those that end within the first `episodes`."""
    losses = run.recorder("token_losses").loss  # float16, (row, document, position)
    trained = losses[: episodes + 1, : run.config.documents.count].values
    return stats.token_waits(trained, run.schedule.values)


def _numbers(
    forgotten: stats.Floats, regained: stats.Floats, left_out: int, rng: np.random.Generator
) -> xr.Dataset:
    """What `TokenRecovery` describes, of one run."""
    width = -(-(regained.shape[-1] - 1) // STRETCHES)
    starts = np.arange(1, regained.shape[-1], width)  # nothing foretells position 0
    left = {"left_out": ((), left_out, {"of_seeds": "sum"})}
    dataset = xr.Dataset(left, coords={"position": starts})
    for name, values in zip(BY, (forgotten, regained), strict=True):
        tokens = stats.mean_of_counted(values, axis=1)  # (document, position)
        stretches = [stats.mean_of_counted(tokens[:, s : s + width]) for s in starts]
        by_stretch = estimate.of_mean(np.stack(stretches, axis=1), rng)
        estimate.put(dataset, name, "position", by_stretch, **PER_TOKEN)
        whole = stats.mean_of_counted(stats.mean_of_counted(values))  # (document,)
        estimate.put(dataset, f"total_{name}", (), estimate.of_mean(whole, rng), **PER_TOKEN)
    tenth, whole, even, r = stats.between_waits(forgotten, regained)
    value, null = _share(tenth, whole), _share(even, whole)
    bounds = stats.bootstrap_interval(
        lambda drawn: _share(tenth[drawn], whole[drawn]), len(whole), rng
    )
    estimate.put(dataset, "concentration", (), Estimate(value, *bounds, null=null))
    estimate.put(dataset, "correlation", (), replace(estimate.of_mean(r, rng), null=0.0))
    return dataset


def _share(part: stats.Floats, whole: stats.Floats) -> stats.Floats:
    """Of sums over documents, the last axis; NaN where nothing is regained."""
    total = whole.sum(axis=-1)
    return part.sum(axis=-1) / np.where(total > 0, total, np.nan)


def _put_differences(dataset: xr.Dataset, waits: Sequence[Waits], rng: np.random.Generator) -> None:
    """Run minus each control, paired by document, of what has a null of 0."""
    each = [stats.between_waits(forgotten, regained) for forgotten, regained, _ in waits]
    regained = [stats.mean_of_counted(stats.mean_of_counted(own)) for _, own, _ in waits]
    null = np.zeros(len(waits) - 1)

    def put(name: str, found: Estimate, **attrs: str) -> None:
        name = f"{name}_difference"
        estimate.put(dataset, name, "control", replace(found, null=null), **attrs)

    for name, values, attrs in (
        ("total_regained", regained, PER_TOKEN),
        ("correlation", [own[-1] for own in each], {}),
    ):
        paired = np.stack([values[0] - other for other in values[1:]], axis=1)
        put(name, estimate.of_mean(paired, rng), **attrs)

    def share(drawn: Any) -> stats.Floats:  # (…, control)
        tenths = [_share(tenth[drawn], whole[drawn]) for tenth, whole, *_ in each]
        return np.stack([tenths[0] - other for other in tenths[1:]], axis=-1)

    bounds = stats.bootstrap_interval(share, len(regained[0]), rng)
    put("concentration", Estimate(share(slice(None)), *bounds))


def _words(run: Run, waits: Sequence[Waits], count: int) -> xr.Dataset:
    """The words of the first run's largest sums, and every run's sums of them."""
    text = run.recorder("token_losses").token[: run.config.documents.count].values.astype(object)
    known, which = np.unique(text, return_inverse=True)
    counted = np.isfinite(waits[0][1]).any(axis=1)
    places = np.bincount(which[counted], minlength=len(known))
    sums = np.array([[stats.sums_by_word(v, which, len(known)) for v in w[:2]] for w in waits])
    # sums: (run, forgotten and regained, word); ranks: (by, rank)
    ranks = np.argsort(-sums[0], axis=-1, kind="stable")[:, :count]
    lists = sums[:, :, ranks]  # (run, forgotten and regained, by, rank)
    total = sums.sum(axis=-1)[..., None]
    own = lists[:, range(2), range(2)] / np.where(total, total, np.nan)
    visible = [[known[w].translate(VISIBLE) for w in row] for row in ranks]
    by_rank, by_run = ("by", "rank"), ("run", "by", "rank")
    dataset = xr.Dataset(
        {
            "word": (by_rank, np.array(visible, dtype=object), FIRST),
            "word_count": (by_rank, places[ranks], FIRST),
            "word_forgotten": (by_run, lists[:, 0], FIRST | NATS),
            "word_regained": (by_run, lists[:, 1], FIRST | NATS),
            "word_share": (by_run, own, FIRST),
        },
        coords={"by": list(BY), "rank": np.arange(ranks.shape[1]) + 1},
    )
    # As many ranks for every seed.
    nothing = {"word": "", "word_count": 0}
    return dataset.reindex(rank=np.arange(count) + 1, fill_value=nothing)


def _list(part: xr.Dataset) -> list[dict[str, Any]]:
    """The words of one run and list, as JSON can hold them."""
    return [
        {"word": str(part.word.values[i]), "count": int(part.word_count[i])}
        | {name: words.number(part[f"word_{name}"].values[i]) for name in (*BY, "share")}
        for i in range(part.sizes["rank"])
        if part.word_count[i]
    ]


def _bars(axes: Axes, part: xr.Dataset, name: str) -> None:
    rank, height = part["rank"].values, 0.8 / part.sizes["run"]
    for r, (_, own, colour) in enumerate(plots.by_run(part)):
        axes.barh(rank - 0.4 + height * (r + 0.5), own[f"word_{name}"], height, color=colour)
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

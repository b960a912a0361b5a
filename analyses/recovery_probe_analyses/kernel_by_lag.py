"""The network's kernel between documents, beside the cosines of their loss gradients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import xarray as xr
from annotated_types import Ge

from recovery_probe import Analysis, Missing, stats
from recovery_probe.analyze import document_pairs, estimate, groups, plots, words
from recovery_probe.analyze.needs import RUN, checkpoints, once_an_epoch
from recovery_probe.saying import along, say

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

    from recovery_probe import Run
    from recovery_probe.training import Training

UNDEFINED = document_pairs.UNDEFINED
LOSS = "loss_"  # begins the names of the same numbers of loss gradients
KERNEL = ("overall", "held_out", "near_minus_far", "growth", "distance_r")


@dataclass(frozen=True)
class KernelByLag(Analysis):
    """At checkpoints, K_ij = mean over u of ⟨∇(u·z̄_i), ∇(u·z̄_j)⟩: z̄_i are the logits of document
    i, a mean over its positions that a token follows, u are vectors of random signs over the
    vocabulary, the same of all documents, times and runs. The mean over all u would be the trace of
    the kernel's block of i and j (Hutchinson): what two documents share in features, whatever their
    losses. Beside it the inner products of loss gradients, from the same weights: K weighted with
    what is wrong in each document, which changes under a fixed kernel too. Gradients are exact, of
    all parameters, in eval mode.

    cosine (run, episodes_done, document, other): K_ij / √(K_ii K_jj), of the documents trained on,
    numbered in the order of the cycle (of a run without one, as they are); by_lag (run,
    episodes_done, lag): mean over documents a cyclic lag apart; strength (run, episodes_done): mean
    K_ii. And, all (run, episodes_done):

    - overall: mean kernel of two documents; held_out, of a document and a held-out one. The
      intervals are over documents, as rows and as columns;
    - near_minus_far: neighbours minus documents half a cycle apart, after document effects: the
      mean of each and the product of two strengths a_i a_j. The interval is over pairs;
    - distance_r: correlation of kernel and cyclic distance after document effects, the straight
      lag |i - j| and how far apart the documents were last trained on; with a p-value over orders
      of the documents (Mantel, Freedman and Lane), and distance_r_before: as it is;
    - growth (run): near_minus_far at the last time minus that at the first, over pairs.

    Run minus control, of the same documents: NAME_difference (control, …) of overall,
    near_minus_far, distance_r and growth. loss_NAME: the same of loss gradients (nats).
    left_out: how many documents, held-out ones too, have a gradient of 0 somewhere.

    Raises `Missing` unless `from_checkpoint`, or without such a checkpoint.
    """

    # after how many episodes, of those that have a checkpoint; when not given, all that end an
    # epoch
    episodes: tuple[int, ...] = ()
    # vectors of random signs: of few, K has noise, which all pairs share
    signs: Annotated[int, Ge(1)] = 8
    # run the model again from checkpoints, which takes torch and time
    from_checkpoint: bool = False

    name = "kernel_by_lag"
    question = "Do neighbours in the cycle come to share features, or their errors alone?"
    null = """The kernel knows nothing of the cycle: but for what each document has with all others,
    it does not depend on the distance between two turns, at no time. After document effects
    neighbours exceed documents half a cycle apart by 0, any order of the documents gives as strong
    a correlation with the distance, and neither grows. Run minus control is 0. Linear documents
    that share a component keep a kernel of .5 at all lags while their loss gradients fall from .37
    to .08."""
    blind_spot = """A kernel that rises for neighbours says that features came to be shared (H1),
    not that recovery needs them: `linearised` asks that. One that stays flat leaves a state that
    comes back (H2), savings whatever the order (H3) and relief of interference (H7). It is of
    logits averaged over a document's positions: what positions share one by one, or what cancels in
    the mean, is not seen, and a few u leave noise. Where what documents share turns in a plane, the
    product of strengths is one of its two directions: document effects take half of it. Cosines
    hide a change of scale, which `strength` shows. Documents of one text are alike whatever the
    cycle: the start shows how much, and so do held-out documents. The documents of one run share
    its weights: intervals say how much documents differ."""
    tested = "distance_r"
    needs = (RUN, once_an_epoch, checkpoints())

    def compute(self, *runs: Run) -> xr.Dataset:
        times, T = self._times(runs), runs[0].config.documents.count
        order = stats.cycle(runs[0].schedule.values, T)
        inner = _products(runs, times, self.signs)  # (kernel or loss, run, time, T + H, T + H)
        maps = document_pairs.in_order(stats.cosines(inner), order)
        strength = np.diagonal(inner, axis1=-2, axis2=-1)[..., :T].mean(axis=-1)
        return numbers(maps, strength, runs, times)

    def _times(self, runs: Sequence[Run]) -> list[int]:
        known, T = groups.shared_checkpoints(runs), runs[0].config.documents.count
        for time in self.episodes:
            if time not in known:
                raise Missing(
                    f"{runs[0].path}: no checkpoint after {time} episodes; there are some after "
                    f"{', '.join(map(str, known))}"
                )
        return list(self.episodes) or [t for t in known if t % T == 0] or known

    @plots.styled
    def plot(self, dataset: xr.Dataset) -> Figure:
        """Maps of the kernel at the last time; kernel and loss gradients by lag, at the first and
        the last; how far neighbours exceed others, by time."""
        last = dataset.isel(episodes_done=-1)
        fig, panels, below = plots.above(dataset, "lag", "near", height=2.6)
        top = plots.largest(last.cosine)
        plots.maps(
            fig,
            panels,
            last.cosine,
            [f"{run}, after {last.episodes_done.item()} episodes" for run in dataset.run.values],
            label="kernel of two documents",
            x="document",
            y="document",
            extend="max",
            vmin=-top,
            vmax=top,
        )
        step = 0.05 * dataset.attrs["T"]  # so that no interval hides another
        for r, (run, part, colour) in enumerate(plots.by_run(dataset)):
            for k, (prefix, style, what) in enumerate(
                (("", "-", "kernel"), (LOSS, "--", "loss gradients"))
            ):
                label, fill = f"{run}, {what}", "white" if prefix else colour
                line: dict[str, Any] = {"color": colour, "linestyle": style}
                by_lag = part[f"{prefix}by_lag"]
                below["lag"].plot(part.lag, by_lag.isel(episodes_done=0), alpha=0.4, **line)
                below["lag"].plot(part.lag, by_lag.isel(episodes_done=-1), label=label, **line)
                near = estimate.get(part, f"{prefix}near_minus_far")
                x = part.episodes_done + step * (2 * r + k)
                plots.points(below["near"], x, near, f"o{style}", color=colour, mfc=fill)
        below["lag"].set(
            xlabel="cyclic lag (documents)",
            ylabel="mean cosine",
            title=f"pale: after {dataset.episodes_done[0].item()} episodes, full: at the last time",
        )
        below["lag"].locator_params(axis="x", integer=True)
        plots.zero(below["near"])
        below["near"].set(
            xlabel="episodes done",
            ylabel="near minus far",
            title="neighbours less half a cycle off, after effects",
        )
        fig.legend(loc="outside lower center", ncols=2)
        return fig

    def verdict(self, dataset: xr.Dataset) -> str:
        last = dataset.isel(episodes_done=-1)
        text = f"After {int(last.episodes_done)} episodes. "
        text += ". ".join(words.by_run(last, _clause)) + "."
        for control in dataset.control.values:
            near, growth, r = (
                estimate.get(last, f"{name}_difference", control=control)
                for name in ("near_minus_far", "growth", "distance_r")
            )
            text += (
                f" Run minus control {control}, the kernel: neighbours {near}, their growth "
                f"{growth}, correlation {r.with_test(undefined=UNDEFINED)}."
            )
        return text + document_pairs.said_of(dataset)


def _clause(part: xr.Dataset) -> str:
    overall, held_out, near, growth, r = (estimate.get(part, name) for name in KERNEL)
    of_loss, their_growth, their_r = (estimate.get(part, f"{LOSS}{name}") for name in KERNEL[2:])
    return (
        f"the kernel of two documents is {overall} of their own, that with held-out ones "
        f"{held_out}; after document effects neighbours exceed documents half a cycle apart by "
        f"{near}, which is {growth} above what it was at the first time; it correlates with the "
        f"distance by {r.with_test(undefined=UNDEFINED)}. Of loss gradients these are {of_loss}, "
        f"{their_growth} and {their_r.with_test(undefined=UNDEFINED)}"
    )


def _products(runs: Sequence[Run], times: Sequence[int], signs: int) -> stats.Floats:
    """(2, run, time, T + H, T + H): of mean logits, K, and of losses."""
    from recovery_probe.machine import threads

    places = [(run, time) for run in runs for time in times]
    found: list[stats.Floats] = []
    for run, time in along(places, "kernel by lag", len(places), "checkpoints"):
        with threads(run.config.threads):
            found.append(inner_products(run, time, signs, 0 if found else len(places)))
    stacked = np.stack(found, axis=1)
    return stacked.reshape(2, len(runs), len(times), *stacked.shape[2:])


def inner_products(run: Run, episodes_done: int, signs: int, tell: int = 0) -> stats.Floats:
    """(2, T + H, T + H): K, and the inner products of loss gradients (nats²), at the checkpoint
    after so many episodes. `tell`: of how many such to say at the first u how long they take."""
    import torch

    from recovery_probe.gradient_products import GradientProducts
    from recovery_probe.machine import reproducible
    from recovery_probe.recorders.recording import clock
    from recovery_probe.training import Training

    training = Training.at(run, episodes_done)
    device, products = training.model.device, GradientProducts(training)
    with reproducible(device):
        of_losses = products().sum(dim=0)
        with torch.no_grad():
            vocabulary = training.model.logits(training.batch(slice(1))).shape[-1]
        drawn = run.rng("signs").choice([-1.0, 1.0], size=(signs, vocabulary))
        kernel = torch.zeros_like(of_losses)
        for n, u in enumerate(torch.tensor(drawn, device=device)):
            started = clock(device)
            kernel += products(of=partial(mean_logits, training, u)).sum(dim=0)
            if tell and not n:
                seconds = (clock(device) - started) * (signs + 1) * tell
                say(f"{run.path}: its kernel takes about {seconds:.0f} s")
    return torch.stack([kernel / signs, of_losses]).cpu().numpy()


def mean_logits(training: Training, u: Tensor, which: slice) -> Tensor:
    """(documents,): u·z̄ of some documents, z̄ their logits, a mean over positions that a token
    follows, as the loss is."""
    import torch

    inputs = training.batch(which)
    logits = training.model.logits(inputs)[:, :-1]
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    each, followed = logits @ u.to(logits.dtype), inputs["mask"][:, 1:]
    return (each * followed).sum(dim=1) / followed.sum(dim=1)


def numbers(
    cosine: stats.Floats, strength: stats.Floats, runs: Sequence[Run], times: Sequence[int]
) -> xr.Dataset:
    """Of (2, run, episodes_done, T, T + H) cosines in the order of the cycle, of the kernel and of
    loss gradients, and the (2, run, episodes_done) mean of what they were divided by."""
    T = cosine.shape[-2]
    rows, held_out, left_out = document_pairs.counted(cosine)
    dataset = xr.Dataset(
        {"left_out": ((), left_out, {"of_seeds": "sum"})},
        coords={
            "run": groups.labels(runs),
            "control": groups.labels(runs)[1:],
            "episodes_done": list(times),
            "document": np.arange(T),
            "other": np.arange(T),
            "lag": np.arange(T // 2) + 1,
        },
        attrs={
            "T": T,
            "unit": "documents",
            "interval": f"{document_pairs.INTERVALS}, and of growth",
            "p": document_pairs.TEST.format("orders of the documents", "times"),
            **groups.compared(runs),
        },
    )
    of_kernel, of_loss = (
        _of_kind(dataset.drop_vars("left_out"), *each, runs, rows, held_out)
        for each in zip(cosine, strength, strict=True)
    )
    of_loss = of_loss.rename({name: f"{LOSS}{name}" for name in of_loss.data_vars})
    for variable in of_loss.data_vars.values():
        if beside := variable.attrs.get("ancillary_variables"):
            names = " ".join(f"{LOSS}{name}" for name in beside.split())
            variable.attrs["ancillary_variables"] = names
    return xr.merge([dataset, of_kernel, of_loss], combine_attrs="override")


def _of_kind(
    dataset: xr.Dataset,
    cosine: stats.Floats,
    strength: stats.Floats,
    runs: Sequence[Run],
    rows: stats.Ints,
    held_out: stats.Ints,
) -> xr.Dataset:
    """Of (run, episodes_done, T, T + H) cosines, and the documents that count."""
    T, dims = cosine.shape[-2], ("episodes_done",)
    dataset = dataset.assign(
        cosine=(("run", *dims, "document", "other"), cosine[..., :T]),
        by_lag=(("run", *dims, "lag"), stats.by_cyclic_lag(cosine[..., :T])),
        strength=(("run", *dims), strength),
    )
    square, crossed = cosine[..., rows[:, None], rows], cosine[..., rows[:, None], held_out]
    document_pairs.put(dataset, dims, "overall", stats.mean_of_pairs, square)
    document_pairs.put(dataset, dims, "held_out", stats.mean_of_crossed, crossed)
    order = stats.cycle(runs[0].schedule.values, T)
    document_pairs.put_places(dataset, dims, square, runs, rows, order)
    apart, rest = stats.distances(T)[np.ix_(rows, rows)], stats.without_effects(square)
    grown = rest[:, -1] - rest[:, 0] if rest.shape[1] > 1 else np.full_like(rest[:, 0], np.nan)

    def nearer(rest: stats.Floats) -> stats.Interval:
        return stats.near_minus_far(rest, apart)

    document_pairs.put(dataset, (), "growth", nearer, grown, null=True)
    return dataset

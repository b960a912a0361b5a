"""Cosines between the gradients of all documents."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from numpy.typing import NDArray
from recovery_probe.analysis import (
    Analysis,
    check_unedited,
    common,
    compared,
    estimates,
    labels,
    module_groups,
    with_interval,
    with_test,
)

from recovery_probe import plots, stats
from recovery_probe.errors import InputError, Missing
from recovery_probe.record.folder import checkpoints
from recovery_probe.record.labels import Labels
from recovery_probe.record.run import Run
from recovery_probe.seeds import generator


def compute(
    run: Run,
    *,
    controls: Sequence[Run] = (),
    block: int | None = None,
    episodes: Sequence[int] | None = None,
    modules: bool = False,
    from_checkpoint: bool = False,
) -> xr.Dataset:
    """Gradients of each document's loss, in eval mode, at every time recorded (after `episodes`
    episodes when given): exact, from `document_gradients`, or worked out again from the
    checkpoints with `from_checkpoint` (paper, section 4.1 and figure 8a).

    cosine (run, episodes_done, group, document, other), of the documents trained on, in the order
    of the cycle; group: the kinds of modules, every block, all together (`total`) and the
    attention of one block (`block`, the middle one when not given), and with `modules` each module
    by its name. And, all (run, episodes_done,
    group), with 95% bootstraps over documents:

    - held_out: mean cosine with held-out documents, beside overall, that with the other documents;
    - near_minus_far: mean cosine of neighbours minus that of documents half a cycle apart;
    - peak: where in the cycle (0 first, 1 last document) the document stands whose mean cosine
      with the others is largest; its interval resamples the others;
    - distance_r: correlation of cosine and cyclic distance, with the p-value of a Mantel test.

    by_lag (run, episodes_done, group, lag): mean over documents a cyclic lag apart.

    Raises `Missing` without the recorder or checkpoints, `InputError` for times that are not there.
    """
    runs = [run, *controls]
    done, told = common(runs)
    if episodes is None and told:
        every = [{t for t in _source(r, from_checkpoint)[0] if t <= done} for r in runs]
        episodes = sorted(set.intersection(*every))
    dataset = xr.concat(
        [_one(r, block, episodes, modules, from_checkpoint) for r in runs], dim="run"
    )
    dataset = dataset.assign_coords(run=labels(runs))
    dataset.attrs |= {
        "T": run.config.documents.count,
        **told,
        "unit": "documents",
        "interval": "95% percentile bootstrap over documents",
        "p": "Mantel test, two-sided, 499 orders of the documents",
    }
    return dataset


def _one(
    run: Run,
    block: int | None,
    episodes: Sequence[int] | None,
    modules: bool,
    from_checkpoint: bool,
) -> xr.Dataset:
    T = run.config.documents.count
    known, products = _source(run, from_checkpoint)
    times = known if episodes is None else list(episodes)
    absent = [t for t in times if t not in known]
    if absent:
        raise InputError(
            f"{run.path}: no gradients after {absent[0]} episodes; there are some after "
            f"{', '.join(map(str, known))}"
        )
    parts = []
    for time in times:
        inner = products(time)  # one time in memory
        groups = _groups(inner.module, block)
        if modules:
            names = inner.module["name"].values.astype(str)
            groups |= {name: names == name for name in names.tolist()}
        maps = [stats.cosines(inner.values[which].sum(axis=0)) for which in groups.values()]
        parts.append(_numbers(np.stack(maps), T, run.config.seed))
    dataset = xr.concat(parts, dim="episodes_done")
    dataset.attrs["attention"] = next(g for g in groups if g.endswith(" attention"))
    return dataset.assign_coords(
        episodes_done=times,
        group=list(groups),
        document=np.arange(T),
        other=np.arange(T),
        lag=np.arange(1, T // 2 + 1),
    )


def _source(run: Run, from_checkpoint: bool) -> tuple[list[int], Callable[[int], xr.DataArray]]:
    """The times there are, and what gives the inner products (module, document, other) at one."""
    if "document_gradients" in run.recorders:
        inner = run.recorder("document_gradients").inner
        return inner.episodes_done.values.tolist(), lambda time: inner.sel(episodes_done=time)
    if not from_checkpoint:
        raise Missing(
            f"{run.path}: recorder document_gradients was off: train again with --record "
            "document_gradients, or pass --from-checkpoint"
        )
    check_unedited(run)
    known = [time for time in checkpoints(run.path) if time <= run.episodes_done]
    if not known:
        raise Missing(f"{run.path}: no checkpoints; train again with --record checkpoints")
    return known, lambda time: _again(run, time)


def _again(run: Run, time: int) -> xr.DataArray:
    """(module, document, other), worked out from the checkpoint as the recorder does."""
    from types import SimpleNamespace

    from recovery_probe.recorders import RunInfo
    from recovery_probe.recorders.document_gradients import DocumentGradients
    from recovery_probe.sketch import ModuleSketches
    from recovery_probe.train import batch

    model, record = run.model_at(time), run.record
    docs: Any = SimpleNamespace(tokens=record.tokens.values, lengths=record.length.values)
    tokens, targets = batch(docs, model.device)
    sketches = ModuleSketches(model.parameters, 1)
    recorder = DocumentGradients()
    layout = recorder.start(
        RunInfo(
            run.config,
            model,
            tokens,
            targets,
            docs.lengths,
            run.schedule.values,
            run.path,
            sketches,
        )
    )
    coords = xr.Coordinates(layout.coords)
    inner = xr.DataArray(
        recorder.products().cpu().numpy(), dims=("module", "document", "other"), coords=coords
    )
    return inner.set_xindex(["name", "kind", "block"], Labels)


def _groups(modules: xr.DataArray, block: int | None) -> dict[str, NDArray[np.bool_]]:
    groups = module_groups(modules, blocks=True)
    blocks = [g for g in groups if g.startswith("block ")]
    chosen = blocks[len(blocks) // 2] if block is None else f"block {block}"
    if chosen not in groups:
        raise InputError(f"block = {block}: the blocks are 0 to {len(blocks) - 1}")
    return groups | {f"{chosen} attention": groups[chosen] & groups["attention"]}


def _numbers(cosine: stats.Floats, T: int, seed: int) -> xr.Dataset:
    """Of (group, T + H, T + H) cosines, at one time."""
    rng = generator(seed, "bootstrap")
    found = [_of_map(one, T, rng) for one in cosine]
    names = ("held_out", "overall", "near_minus_far", "peak", "distance_r")
    arrays: dict[str, Any] = {
        "cosine": (("group", "document", "other"), cosine[:, :T, :T]),
        "by_lag": (("group", "lag"), np.stack([stats.by_cyclic_lag(m[:T, :T]) for m in cosine])),
        "distance_r_p": ("group", np.array([f["distance_r_p"][0] for f in found])),
    }
    for name in names:
        value, *interval = zip(*[f[name] for f in found], strict=True)
        arrays[name] = ("group", np.array(value))
        for suffix, bound in zip(("_low", "_high"), interval, strict=False):
            arrays[name + suffix] = ("group", np.array(bound))
    return xr.Dataset(arrays)


def _of_map(cosine: stats.Floats, T: int, rng: np.random.Generator) -> dict[str, Any]:
    """What `compute` describes, as (value, low, high), of one (T + H, T + H) map."""
    trained = np.where(np.eye(T, dtype=bool), np.nan, cosine[:T, :T])
    r, p = stats.mantel(trained, stats.distances(T), rng, 499)

    def of_documents(each: stats.Floats) -> tuple[Any, ...]:
        return stats.mean_interval(each, rng, 1000)

    def peaks(i: stats.Ints) -> stats.Floats:
        return stats.peaks(trained, i)

    return {
        "held_out": of_documents(stats.mean_of_counted(cosine[:T, T:])),
        "overall": of_documents(stats.mean_of_counted(trained)),
        "near_minus_far": of_documents(stats.near_minus_far(trained)),
        "peak": (
            peaks(np.arange(T)[None])[0],
            *stats.bootstrap_interval(peaks, T, rng, resamples=1000),
        ),
        "distance_r": (r,),
        "distance_r_p": (p,),
    }


@plots.styled
def plot(dataset: xr.Dataset) -> Figure:
    """At the last time: maps of a block's attention and of all modules; cosine by lag."""
    last = dataset.isel(episodes_done=-1)
    shown, runs = [dataset.attrs["attention"], "total"], list(range(min(2, dataset.sizes["run"])))
    fig, panels = plots.mosaic(
        [[f"{r} {g}" for g in shown] for r in runs] + [["lag", "lag"]], height=2.8
    )
    maps = last.cosine.sel(group=shown).isel(run=runs).values
    top = float(np.nanmax(np.abs(maps[..., ~np.eye(maps.shape[-1], dtype=bool)])))
    for r, group in ((r, g) for r in runs for g in shown):
        axes, part = panels[f"{r} {group}"], last.isel(run=r).sel(group=group)
        image = axes.imshow(
            part.cosine, origin="lower", **{**plots.DIVERGING, "vmin": -top, "vmax": top}
        )
        axes.set(title=f"{dataset.run.values[r]}, {group}", xlabel="document")
        axes.set_ylabel("document" if group == shown[0] else "")
        axes.locator_params(integer=True)
        axes.grid(False)
    where = [panels[f"{r} {g}"] for r in runs for g in shown]
    fig.colorbar(image, ax=where, label="cosine of gradients", extend="max")
    blocks = [g for g in dataset.group.values if re.fullmatch(r"block \d+", g)]
    colours, lag = plots.by_epoch(len(blocks)), panels["lag"]
    for r in runs:
        part, style = last.isel(run=r), "-" if r == 0 else ":"
        for i, group in enumerate(blocks):
            label = group if r == 0 and (i in (0, len(blocks) - 1) or len(blocks) <= 8) else None
            line = part.by_lag.sel(group=group)
            lag.plot(dataset.lag, line, style, color=colours[i], label=label, linewidth=0.9)
        total = part.by_lag.sel(group="total")
        lag.plot(dataset.lag, total, style, color="black", label=f"{part.run.item()}, all modules")
    lag.set(xlabel="cyclic lag (documents)", ylabel="mean cosine of gradients")
    fig.legend(loc="outside lower center", ncols=4)
    fig.suptitle(f"after {int(last.episodes_done)} episodes", fontsize=8)
    return fig


def summary(dataset: xr.Dataset) -> dict[str, Any]:
    """Every number by run, time and group, and the verdict."""
    last = dataset.isel(episodes_done=-1).sel(group="total")
    told = []
    for r, name in enumerate(dataset.run.values):
        part = last.isel(run=r)

        def interval(what: str, part: xr.Dataset = part) -> str:
            return with_interval(*(float(part[what + s]) for s in ("", "_low", "_high")))

        told.append(
            f"{name}: mean cosine {interval('overall')} with other documents, "
            f"{interval('held_out')} with held-out ones; neighbours exceed documents half a cycle "
            f"apart by {interval('near_minus_far')}; cosine and distance correlate by "
            f"{with_test(float(part.distance_r), float(part.distance_r_p))}; the largest mean "
            f"lies at {interval('peak')} of the cycle"
        )
    text = (
        f"{compared(dataset)}After {int(last.episodes_done)} episodes, gradients of all modules. "
    )
    return {"estimates": estimates(dataset), "verdict": text + ". ".join(told) + "."}


ANALYSIS = Analysis(
    name="gradient_similarity",
    question="Do documents' gradients agree, and with which neighbours in the cycle?",
    null="Gradients know nothing of the cycle: cosines do not depend on the distance between two "
    "documents' turns (any order of the documents gives as strong a correlation), and no "
    "position has a larger mean than others: an interval of the peak that spans the cycle.",
    blind_spot="Gradients are taken in eval mode and at a few times. Small gradients of documents "
    "just learned are compared by direction alone. Documents of one text are alike whatever the "
    "cycle: held-out documents show how much. A peak is a maximum: some document always has it. "
    "The documents of one run share its weights: intervals say how much documents differ.",
    compute=compute,
    plot=plot,
    summary=summary,
    from_checkpoint=True,
)

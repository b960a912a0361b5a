"""The page of a sweep: each factor drawn, with what was published beside it."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from recovery_probe import config, stats
from recovery_probe.analyze import plots, report
from recovery_probe.analyze.groups import same_weights
from recovery_probe.record import store
from recovery_probe.record.folder import is_run
from recovery_probe.record.run import open_run
from recovery_probe.sweep.compare import (
    DRAWN,
    OF_PAIR,
    OF_RUN,
    along,
    as_csv,
    directions,
    numbers,
)
from recovery_probe.sweep.spec import Axis, Job, Sweep

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def write(spec: Sweep, jobs: Sequence[Job], messages: Mapping[Path, str], out: Path) -> xr.Dataset:
    """`sweep.zarr`, `sweep.csv`, a figure for each axis and `sweep.html`, in `out`."""
    dataset = numbers(spec, jobs)
    verdicts = [verdict for axis in spec.axes for verdict in directions(dataset, spec, axis)]
    dataset.attrs["verdicts"] = [verdict.text for verdict in verdicts]
    there = [open_run(job.path) for job in jobs if is_run(job.path)]
    dataset.attrs["warnings"] = same_weights(there)
    shutil.rmtree(out / "sweep.zarr", ignore_errors=True)
    store.write_zarr(dataset, out / "sweep.zarr")
    store.write_text(out / "sweep.csv", as_csv(dataset))
    folder = out / "figures"
    folder.mkdir(exist_ok=True)
    for axis in spec.axes:
        plots.write(draw(dataset, spec, axis), folder / axis.name)
    page = report.render(
        "sweep.html.jinja",
        title=f"Sweep {spec.name}",
        about=spec.about,
        warnings=dataset.attrs["warnings"],
        axes=[
            {
                "name": axis.name,
                "figure": report.inline(folder, axis.name),
                "table": _table(dataset, spec, axis),
                "verdicts": [v.text for v in verdicts if v.axis == axis.name],
                "paper": [p for p in spec.paper if p.axis == axis.name],
            }
            for axis in spec.axes
        ],
        seeds=len(spec.seeds),
        runs=[
            [str(job.path.relative_to(out)), job.point.role, *_how(job, messages)] for job in jobs
        ],
        settings=config.to_toml(spec.base),
    )
    store.write_text(out / "sweep.html", page)
    return dataset


def _how(job: Job, messages: Mapping[Path, str]) -> tuple[str, str]:
    if not is_run(job.path):
        return "planned", messages.get(job.path, "")
    run = open_run(job.path)
    return run.status, messages.get(job.path) or str(run.provenance.get("message", ""))


def _mean(values: stats.Floats) -> tuple[float, float, float, int]:
    """Mean, 95% t interval, count."""
    low, high = stats.t_interval(values[:, None])
    return (
        float(stats.mean_of_counted(values, axis=0)),
        float(low[0]),
        float(high[0]),
        int(np.isfinite(values).sum()),
    )


def _table(dataset: xr.Dataset, spec: Sweep, axis: Axis) -> dict[str, Any]:
    """A row for each point of an axis: mean [95% interval over series], n; what was published."""
    columns = [
        (name, side, f"{name.replace('_', ' ')}, {label}")
        for name, dim in (
            ("recovery", "run"),
            ("gain", "control"),
            ("excess", "control"),
            ("online", "run"),
        )
        for side, label in enumerate(dataset[dim].values)
    ]
    rows = []
    for level, label in enumerate(axis.at):
        row = [str(label)]
        for name, side, _ in columns:
            mean, low, high, n = _mean(along(dataset, name, axis, side)[:, level])
            span = f" [{low:.2f}, {high:.2f}]" if np.isfinite(low) else ""
            row.append(f"{mean:.2f}{span}, n = {n}" if n else "none")
        rows.append(row)
    return {"columns": [axis.name, *(c for *_, c in columns)], "rows": rows, "count": len(rows)}


@plots.styled
def draw(dataset: xr.Dataset, spec: Sweep, axis: Axis) -> Figure:
    """Recovery, gain and online loss along an axis: every seed a point, their mean and its 95% t
    interval, the controls beside; published values as open diamonds."""
    names = [n for n in DRAWN if n not in OF_PAIR or dataset.sizes["control"]]
    fig, panels = plots.mosaic([names], height=2.6)
    paper = [p for p in spec.paper if p.axis == axis.name and p.values]
    everywhere = [*axis.at, *(label for one in paper for label in one.at)]
    for name in names:
        axes: Axes = panels[name]
        x = _positions(axes, everywhere)
        dim = "control" if name in OF_PAIR else "run"
        for side, label in enumerate(dataset[dim].values):
            colour = plots.colour(side + (dim == "control"))
            shown = f"run minus {label}" if dim == "control" else str(label)
            _line(axes, x, axis, along(dataset, name, axis, side), colour, shown)
        for one in (p for p in paper if p.quantity == name):
            at = [x[str(label)] for label in one.at]
            axes.plot(at, one.values, "D:", color=plots.HELD_OUT, mfc="none", ms=5, label="paper")
        if name in OF_PAIR:
            plots.zero(axes)
        units = OF_PAIR[name][0] if name in OF_PAIR else OF_RUN[name][0]
        axes.set(xlabel=axis.name, ylabel=f"{name}\n{units}")
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, columnspacing=1)
    return fig


def _line(
    axes: Axes,
    x: Mapping[str, float],
    axis: Axis,
    blocks: stats.Floats,
    colour: str,
    label: str,
) -> None:
    at = np.array([x[str(value)] for value in axis.at])
    for block in blocks:
        axes.plot(at, block, ".", color=colour, ms=4, alpha=0.5)
    low, high = stats.t_interval(blocks)
    axes.vlines(at, low, high, color=colour, linewidth=1)
    axes.plot(at, stats.mean_of_counted(blocks, axis=0), "-", color=colour, label=label)


def _positions(axes: Axes, labels: Sequence[Any]) -> dict[str, float]:
    """Where each point of an axis is drawn: numbers where they are, on a logarithmic scale where
    they span a decade; others one after the other."""
    numeric = all(isinstance(v, int | float) and not isinstance(v, bool) for v in labels)
    x = {str(v): float(v) if numeric else i for i, v in enumerate(dict.fromkeys(labels))}
    if numeric and min(x.values()) > 0 and max(x.values()) >= 10 * min(x.values()):
        axes.set_xscale("log")
    axes.set_xticks(list(x.values()), list(x), minor=False)
    axes.minorticks_off()
    return x

"""One style for every figure. Figures draw numbers they are given and compute none."""

from __future__ import annotations

import functools
import io
import math
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec

import numpy as np
import xarray as xr

from recovery_probe.analyze.estimate import Estimate
from recovery_probe.analyze.groups import apart

if TYPE_CHECKING:  # half a second of start-up
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.transforms import Bbox

P = ParamSpec("P")

# Okabe and Ito's colours, told apart with any kind of colour vision and in grey.
RUN, CONTROL, THIRD, FOURTH = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
COLOURS = (RUN, CONTROL, THIRD, FOURTH)
HELD_OUT = "#777777"
COLUMN = 3.5  # inches, the width of a paper's column
KINDS: tuple[str, ...] = ("png", "svg", "pdf")  # of file; pages show the svg

# For maps of cosines: white at 0, and no red beside green.
DIVERGING: dict[str, Any] = {"cmap": "RdBu_r", "vmin": -1, "vmax": 1, "interpolation": "nearest"}

STYLE: dict[Any, Any] = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "legend.fontsize": 7,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "lines.linewidth": 1.2,
    "figure.dpi": 120,
    "savefig.dpi": 220,
    "svg.fonttype": "none",  # text stays text
    "font.sans-serif": ["DejaVu Sans"],  # without the list of ten that would stand at every text
    "pdf.fonttype": 42,
    "svg.hashsalt": "recovery_probe",  # the same figure, the same file
    "axes.grid": True,
    "grid.linewidth": 0.4,
    "grid.alpha": 0.4,
}


@functools.cache
def _shown() -> type[Figure]:
    """A figure that a notebook shows wherever it is returned. One made without pyplot has no image
    there, unless pyplot happened to be imported in an earlier cell."""
    from matplotlib.figure import Figure

    class Shown(Figure):
        def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
            width, height = (int(inches * STYLE["figure.dpi"]) for inches in self.get_size_inches())
            return _as(self, "png"), {"width": width, "height": height}

    return Shown


def styled(plot: Callable[P, Figure]) -> Callable[P, Figure]:
    """Make a plot function draw in the shared style, wherever it is called from."""

    @functools.wraps(plot)
    def inner(*args: P.args, **kwargs: P.kwargs) -> Figure:
        import matplotlib as mpl

        with mpl.rc_context(STYLE):
            return plot(*args, **kwargs)

    return inner


def figure(
    rows: int = 1, width: float = COLUMN, height: float = 2.4, **options: Any
) -> tuple[Figure, Sequence[Axes]]:
    """A figure of `rows` panels, one above the other, in the shared style; sizes in inches per
    panel. Made without pyplot: no global state, no window."""
    fig = _shown()(figsize=(width, height * rows), layout="constrained")
    axes = fig.subplots(rows, 1, squeeze=False, **options)
    return fig, [panel[0] for panel in axes]


def mosaic(
    layout: Sequence[Sequence[Any]], height: float = 2.4, **options: Any
) -> tuple[Figure, dict[Any, Any]]:
    """A figure two columns wide whose panels `layout` names, row by row; one named twice spans
    both places. `height` is that of a row, inches."""
    fig = _shown()(figsize=(2 * COLUMN, height * len(layout)), layout="constrained")
    return fig, fig.subplot_mosaic([list(row) for row in layout], **options)


def above(
    dataset: xr.Dataset, *below: str, height: float = 2.4
) -> tuple[Figure, list[Axes], dict[str, Axes]]:
    """A panel for each run of a dataset, side by side, and beneath them the panels `below`."""
    runs = [*range(dataset.sizes["run"])]
    places = [*runs, *["."] * (len(runs) == 1)]
    columns = math.lcm(len(places), len(below))
    rows = [[name for name in row for _ in range(columns // len(row))] for row in (places, below)]
    fig, panels = mosaic(rows, height=height)
    return fig, [panels[r] for r in runs], {name: panels[name] for name in below}


def by_run(dataset: xr.Dataset) -> Iterator[tuple[str, xr.Dataset, str]]:
    """Name, numbers and colour of each run of a dataset."""
    for r, part in enumerate(apart(dataset)):
        yield str(part.run.item()), part, colour(r)


def points(
    axes: Axes, x: Any, estimate: Estimate, form: str = "o-", *, color: str, **line: Any
) -> None:
    """A line of estimates with a stroke for each interval, and of several seeds each as a small
    point; `form` and `line` as matplotlib's."""
    axes.vlines(x, estimate.low, estimate.high, color=color, linewidth=1)
    for each in () if estimate.each is None else estimate.each:
        axes.plot(x, each, ".", color=color, ms=2.5, alpha=0.5)
    axes.plot(x, estimate.value, form, color=color, **{"ms": 4, **line})


def line(axes: Axes, x: Any, values: xr.DataArray, color: Any, label: str, width: float) -> None:
    """A line; of several seeds their mean, the seeds thin behind it."""
    each = with_seeds(values)
    if each.sizes["seed"] > 1:
        axes.plot(x, each.T, color=color, linewidth=0.6, alpha=0.35)
    axes.plot(x, each.mean("seed"), color=color, linewidth=width, label=label)


def with_seeds(array: xr.DataArray) -> xr.DataArray:
    """(seed, …), also of one."""
    return array if "seed" in array.dims else array.expand_dims("seed")


def band(axes: Axes, x: Any, estimate: Estimate, **options: Any) -> None:
    """The interval of a line of estimates, as an area."""
    axes.fill_between(x, estimate.low, estimate.high, linewidth=0, **options)


def zero(axes: Axes) -> None:
    """A thin line at 0."""
    axes.axhline(0, color=HELD_OUT, linewidth=0.6)


def maps(
    fig: Figure,
    panels: Sequence[Axes],
    values: Sequence[Any],
    titles: Sequence[str],
    *,
    label: str,
    x: str,
    y: str,
    extend: str = "neither",
    **options: Any,
) -> None:
    """A map in each panel, all on one scale, that of the colour bar with its `label`, which says by
    `extend` that some entries are beyond; `options` of `imshow` go before those of `DIVERGING`."""
    for axes, array, title in zip(panels, values, titles, strict=True):
        image = axes.imshow(array, **{"origin": "lower", **DIVERGING, **options})
        axes.set(title=title, xlabel=x)
        axes.locator_params(integer=True)
        axes.grid(False)
        place = axes.get_subplotspec()
        if place and place.is_first_col():
            axes.set_ylabel(y)
    fig.colorbar(image, ax=panels, label=label, extend=extend)


def largest(maps: xr.DataArray) -> float:
    """Of the sizes of all entries off the diagonal, beyond which the diagonal's colours end."""
    other = np.arange(maps.shape[-1]) != np.arange(maps.shape[-2])[:, None]
    return float(np.nanmax(np.abs(maps.values[..., other])))


def colour(index: int) -> str:
    """Of a run among several: the run itself comes first, then its controls."""
    return COLOURS[index % len(COLOURS)]


def by_epoch(epochs: int) -> list[Any]:
    """A colour for each epoch, dark to light."""
    import matplotlib as mpl

    return [mpl.colormaps["viridis"](0.85 * e / max(1, epochs - 1)) for e in range(epochs)]


def note(axes: Axes, text: str) -> None:
    """Say in the panel itself why it is empty."""
    axes.text(0.5, 0.5, text, ha="center", va="center", transform=axes.transAxes, wrap=True)


def write(fig: Figure, path: Path) -> None:
    """PATH.png, PATH.svg and PATH.pdf (`KINDS`), each put in place when whole."""
    # Laid out once: that takes as long as drawing, and "none" would still lay out, in vain.
    if engine := fig.get_layout_engine():
        engine.execute(fig)
        fig.set_layout_engine(None)
    # Whatever its layout left outside: letters are wider in one format than in another.
    box = fig.get_tightbbox().padded(0.04)
    for kind in KINDS:
        aside = path.with_name(f"{path.name}.{kind}.partial")
        aside.write_bytes(_as(fig, kind, box))
        os.replace(aside, path.with_name(f"{path.name}.{kind}"))


def _as(fig: Figure, kind: str, box: Bbox | None = None) -> bytes:
    """The figure, or what of it a box in inches holds, as a file of that kind, in the shared style
    and undated."""
    undated = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
    import matplotlib as mpl

    buffer = io.BytesIO()
    with mpl.rc_context(STYLE):
        fig.savefig(buffer, format=kind, metadata=undated.get(kind), bbox_inches=box)
    return buffer.getvalue()

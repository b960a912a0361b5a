"""The charts of the explorer, in Altair, compiled to Vega.

Their parameters: `document`, the one that was chosen; `first` and `last`, epochs; `align`, whether
each turn of a document is put in one place; `turn` and `tilt`, degrees from which the helix is
seen. The page sets their width (`explorer.js`).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

import altair as alt  # a third of a second: for `explorer` alone, when it draws

from recovery_probe.analyze.plots import COLOURS

WAITS = "waits"  # the losses, in pieces between turns
WIDTH = 720  # pixels, until the page says otherwise
HELIX = 170  # pixels, its height
CHOSEN = "#D55E00"  # around the chosen document
INK = "currentColor"  # the page's own, in daylight and in the dark
THIN: dict[str, Any] = {"aria": False, "strokeWidth": 0.7, "opacity": 0.4}  # a seed
AXIS: dict[str, Any] = {"minExtent": 34, "maxExtent": 34}  # charts stand above one another


@dataclasses.dataclass(frozen=True)
class Data:
    """What is drawn. `ends`: episodes done when each epoch begins, and when the last ends."""

    runs: Sequence[str]
    seeds: int
    T: int
    ends: Sequence[int]
    step: int
    cyclic: bool  # whether documents have neighbours
    documents: Sequence[dict[str, Any]]
    waits: Sequence[dict[str, Any]]
    paths: Sequence[dict[str, Any]]


def compiled(data: Data) -> dict[str, Any]:
    """All charts, one above the other, as Vega."""
    charts = [_strip(data), *(_heat(data, run) for run in data.runs), _curve(data)]
    helices = {path["run"] for path in data.paths}
    charts += [_helix(data, run) for run in data.runs if run in helices]
    whole = (
        alt.VConcatChart(
            vconcat=charts,
            data=alt.Data(values=[], name=WAITS),
            transform=_transforms(data),
            spacing=14,
        )
        .add_params(*_params(data))
        .configure(font="system-ui, sans-serif", background="transparent")
        .configure_axis(
            grid=False,
            domainColor=INK,
            tickColor=INK,
            labelColor=INK,
            titleColor=INK,
            titleFontWeight="normal",
        )
        .configure_title(anchor="start", fontSize=12, color=INK, fontWeight="bold", offset=6)
        .configure_legend(labelColor=INK, titleColor=INK, titleFontWeight="normal", orient="top")
        .configure_view(stroke=None)
    )
    with alt.data_transformers.enable("default", max_rows=None, consolidate_datasets=False):
        spec: dict[str, Any] = whole.to_dict(format="vega")
    # Afterwards: Altair copies a chart, with its values, for every change of it.
    (source,) = (each for each in spec["data"] if each["name"] == WAITS)
    source["values"] = list(data.waits)
    return {**spec, "usermeta": {"ends": list(data.ends)}}


def _params(data: Data) -> list[Any]:
    epochs = max(1, len(data.ends) - 1)
    names = [f"{d['document']}: {d['name']}"[:60] for d in data.documents]
    numbers = [d["document"] for d in data.documents]
    trained = [d["document"] for d in data.documents if d["place"] >= 0]

    def slider(name: str, value: int, low: int, high: int, label: str, place: str) -> Any:
        bind = alt.binding_range(min=low, max=high, step=1, name=label, element=place)
        return alt.param(name=name, value=value, bind=bind)

    controls, angles = "#explorer-controls", "#explorer-angles"
    chosen = alt.binding_select(options=numbers, labels=names, name="Document", element=controls)
    aligned = alt.binding_checkbox(name="Align by age", element=controls)
    ends, T = list(data.ends), data.T
    bounds = f"{ends}[min(first, last) - 1]", f"{ends}[max(first, last)]"
    turned = [slider("turn", 20, 0, 360, "Turn", angles), slider("tilt", 25, 0, 90, "Tilt", angles)]
    return [
        alt.param(name="document", value=trained[len(trained) // 2], bind=chosen),
        slider("first", 1, 1, epochs, "From epoch", controls),
        slider("last", epochs, 1, epochs, "to epoch", controls),
        alt.param(name="align", value=False, bind=aligned),
        *(turned if data.paths else []),
        alt.param(name="begin", expr=bounds[0]),
        alt.param(name="end", expr=bounds[1]),
        alt.param(name="left", expr=f"align ? (min(first, last) - 1) * {T} : begin"),
        alt.param(name="right", expr=f"align ? max(first, last) * {T} : end"),
        alt.param(
            name="place",
            expr=f"{[d['place'] for d in data.documents]}[indexof({numbers}, document)]",
        ),
    ]


def _transforms(data: Data) -> list[Any]:
    """From pieces between turns to one row for each loss: `done`, `age` (null before the first
    turn) and `x`, where it is drawn."""
    names = ["place", "name", "begins"]
    table = alt.LookupData(data=alt.Data(values=list(data.documents)), key="document", fields=names)
    piece = ["run", "seed", "document", "n"]
    chain = (
        alt.Chart()
        .transform_flatten(["losses"], ["loss"])
        .transform_window(k="row_number()", groupby=piece)
        .transform_calculate(done=f"datum.start + (datum.k - 1) * {data.step}")
        .transform_calculate(age="datum.n ? datum.done - datum.turn : null")
        .transform_calculate(x=f"align ? (datum.n - 1) * {data.T} + datum.age : datum.done")
        .transform_lookup(lookup="document", from_=table)
    )
    return list(chain.transform)


def _inside(data: Data) -> str:
    """Of the chosen epochs; aligned, of the whole waits between turns."""
    aligned = f"(!align || (datum.n && datum.age <= {data.T}))"
    return f"datum.x >= left && datum.x <= right && {aligned}"


def _x(data: Data, field: str = "x") -> Any:
    """The axis of the chosen epochs."""
    half = data.step / 2
    low, high = alt.ExprRef(f"left - {half}"), alt.ExprRef(f"right + {half}")
    scale = alt.Scale(domainMin=low, domainMax=high, nice=False, zero=False)
    title = "episodes done; aligned: age, one wait after the other"
    return alt.X(f"{field}:Q", scale=scale, axis=alt.Axis(title=title, tickMinStep=1))


def _by_run(data: Data) -> Any:
    """A colour for each run. In a channel of its own: channels share a scale and a legend among
    all charts, and `color` is the loss's."""
    colours = [COLOURS[i % len(COLOURS)] for i in range(len(data.runs))]
    scale = alt.Scale(domain=list(data.runs), range=colours)
    return alt.Stroke("run:N", scale=scale, legend=alt.Legend(title=None, symbolType="stroke"))


def _strip(data: Data) -> Any:
    """The mean of the documents trained on, over all epochs; a brush chooses some."""
    # Unseen: what is chosen is drawn below, whoever chose it. Never empty, which a new width of the
    # page would trip over; a drag always begins a new one.
    brush = alt.selection_interval(
        name="brush",
        encodings=["x"],
        value={"x": [0, data.ends[-1]]},
        mark=alt.BrushConfig(fillOpacity=0, strokeOpacity=0),
        translate=False,
        zoom=False,
        clear=False,
    )
    x = alt.X(
        "done:Q",
        scale=alt.Scale(domain=[0, data.ends[-1]], nice=False),
        axis=alt.Axis(title="episodes done", tickMinStep=1),
    )
    y = alt.Y("mean(loss):Q", axis=alt.Axis(title="nats", tickCount=3, **AXIS))
    base = alt.Chart().transform_filter("datum.place >= 0").encode(x=x, y=y, stroke=_by_run(data))
    chosen = (
        alt.Chart(alt.Data(values=[{}]))
        .mark_rect(color=INK, opacity=0.12, aria=False)
        .transform_calculate(from_="begin", to="end")
        .encode(x=alt.X("from_:Q"), x2="to:Q")
    )
    lines = [base.mark_line(aria=False, clip=True).add_params(brush)]
    if data.seeds > 1:
        lines.insert(0, base.mark_line(**THIN).encode(detail="seed:N"))
    return alt.layer(chosen, *lines).properties(
        width=WIDTH, height=60, title="Mean loss of the documents trained on"
    )


def _heat(data: Data, run: str) -> Any:
    """Documents × episodes."""
    numbers = [d["document"] for d in data.documents]
    every = max(1, round(len(numbers) / 8))
    y = alt.Y(
        "document:O",
        sort=numbers,
        axis=alt.Axis(values=numbers[::every], title="document", **AXIS),
        scale=alt.Scale(domain=numbers, padding=0),
    )
    half = data.step / 2
    cells = (
        alt.Chart()
        .transform_filter(f"datum.run === {json.dumps(run)} && {_inside(data)}")
        .transform_aggregate(
            loss="mean(loss)",
            done="min(done)",
            age="min(age)",
            groupby=["document", "name", "begins", "x"],
        )
        .transform_calculate(a=f"datum.x - {half}", b=f"datum.x + {half}")
        .mark_rect(aria=False, clip=True, cursor="pointer")
        .encode(
            x=_x(data, "a"),
            x2="b:Q",
            y=y,
            color=alt.Color(
                "loss:Q",
                scale=alt.Scale(scheme="viridis", type="sqrt"),
                legend=alt.Legend(title="loss (nats/token)", gradientLength=140, tickCount=4),
            ),
            tooltip=_tooltip(data),
        )
    )
    row = (
        alt.Chart(alt.Data(values=[{}]))
        .transform_calculate(document="document", a="left", b="right")
        .mark_rect(aria=False, filled=False, stroke=CHOSEN, strokeWidth=2)
        .encode(x="a:Q", x2="b:Q", y=y)
    )
    height = len(numbers) * min(16, max(6, 220 // len(numbers)))
    return alt.layer(cells, row).properties(width=WIDTH, height=height, title=f"Loss, {run}")


def _tooltip(data: Data) -> list[Any]:
    mean = f" (mean of {data.seeds} seeds)" if data.seeds > 1 else ""
    return [
        alt.Tooltip("document:O", title="document"),
        alt.Tooltip("name:N", title="name"),
        alt.Tooltip("begins:N", title="begins"),
        alt.Tooltip("loss:Q", title=f"loss{mean}", format=".4f"),
        alt.Tooltip("done:Q", title="episodes done"),
        alt.Tooltip("age:Q", title="episodes since its own"),
    ]


def _curve(data: Data) -> Any:
    """The chosen document in each run, its turns, and those before and after it in the cycle."""
    y = alt.Y(
        "mean(loss):Q",
        scale=alt.Scale(zero=False),
        axis=alt.Axis(title="nats/token", tickCount=5, **AXIS),
    )
    base = (
        alt.Chart()
        .transform_filter(_inside(data))
        .transform_calculate(piece="align ? datum.n : 0")
        .encode(x=_x(data), y=y, stroke=_by_run(data), detail="piece:O")
    )
    own = base.transform_filter("datum.document === document")
    places = max(d["place"] for d in data.documents) + 1
    of_run = f"datum.run === {json.dumps(data.runs[0])} && place >= 0 && datum.place >= 0"
    layers = []
    for offset, dash in ((-1, [5, 3]), (1, [1, 2])) if data.cyclic else ():
        beside = f"datum.place === (place + {offset % places}) % {places}"
        neighbour = base.transform_filter(f"{of_run} && {beside}")
        layers.append(neighbour.mark_line(aria=False, strokeWidth=1, strokeDash=dash, opacity=0.7))
    if data.seeds > 1:
        layers.append(own.mark_line(**THIN).encode(detail=["piece:O", "seed:N"]))
    layers.append(own.mark_line(aria=False, strokeWidth=2, clip=True))
    points = (
        own.transform_aggregate(
            loss="mean(loss)",
            done="min(done)",
            age="min(age)",
            groupby=["run", "document", "name", "begins", "x", "piece"],
        )
        .mark_circle(aria=False, size=40, opacity=0, clip=True)
        .encode(
            x=_x(data), y="loss:Q", tooltip=[alt.Tooltip("run:N", title="run"), *_tooltip(data)]
        )
    )
    layers.append(points)
    turns = (
        alt.Chart(alt.Data(name="waits"))
        .transform_filter("datum.n && datum.document === document")
        .transform_calculate(x=f"align ? (datum.n - 1) * {data.T} : datum.turn")
        .transform_filter("datum.x >= left && datum.x <= right")
        .mark_rule(aria=False, strokeDash=[2, 2], opacity=0.7)
        .encode(x=_x(data), stroke=_by_run(data))
    )
    title = alt.TitleParams(text=alt.ExprRef("'Loss of document ' + document"))
    return alt.layer(turns, *layers).properties(width=WIDTH, height=220, title=title)


def _helix(data: Data, run: str) -> Any:
    """The weights' path seen from a side: its axis is time, its plane the two leading components
    of the weight residuals. Large: where the chosen document was trained on last."""
    radius = max(abs(p[c] or 0) for p in data.paths for c in "uv") or 1.0
    length, ratio = 0.85 * radius, f"width / {HELIX}"
    chain = (
        alt.Chart(alt.Data(values=[p for p in data.paths if p["run"] == run]))
        .transform_calculate(
            axis=f"(2 * datum.done / {data.ends[-1]} - 1) * {length} * {ratio}",
            up="datum.u * cos(turn * PI / 180) - datum.v * sin(turn * PI / 180)",
            deep="datum.u * sin(turn * PI / 180) + datum.v * cos(turn * PI / 180)",
        )
        .transform_calculate(
            across="datum.axis * cos(tilt * PI / 180) + datum.deep * sin(tilt * PI / 180)"
        )
        .transform_filter("datum.done >= begin && datum.done <= end")
    )
    x = alt.X(
        "across:Q",
        axis=None,
        scale=alt.Scale(
            domainMin=alt.ExprRef(f"-{radius} * {ratio}"),
            domainMax=alt.ExprRef(f"{radius} * {ratio}"),
            nice=False,
            zero=False,
        ),
    )
    y = alt.Y("up:Q", axis=None, scale=alt.Scale(domain=[-radius, radius], nice=False))
    line = chain.mark_line(aria=False, color="#999999", strokeWidth=0.8).encode(
        x=x, y=y, order="done:Q"
    )
    bright = alt.SchemeParams(name="viridis", extent=[0.25, 1])  # to be seen in the dark too
    scale = alt.Scale(scheme=bright, domain=[0, data.ends[-1]])
    dots = chain.mark_circle(aria=False, opacity=1, stroke=CHOSEN).encode(
        x=x,
        y=y,
        fill=alt.Fill("done:Q", scale=scale, legend=None),
        size=alt.condition("datum.document === document", alt.value(110), alt.value(16)),
        strokeWidth=alt.condition("datum.document === document", alt.value(2), alt.value(0)),
        tooltip=[
            alt.Tooltip("done:Q", title="episodes done"),
            alt.Tooltip("document:O", title="trained on last"),
        ],
    )
    return alt.layer(line, dots).properties(
        width=WIDTH, height=HELIX, title=alt.TitleParams(f"Path of the weights, {run}", dx=-42)
    )

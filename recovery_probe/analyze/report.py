"""One self-contained page: what was found, with its null and blind spot beside it."""

from __future__ import annotations

import base64
import functools
from collections import defaultdict
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xarray as xr

from recovery_probe import config
from recovery_probe.analyze import estimate, picture, plots
from recovery_probe.errors import Missing
from recovery_probe.record.run import Run

if TYPE_CHECKING:  # start-up
    import jinja2

ROWS = 120  # a longer table is left to NAME.zarr
Groups = Sequence[tuple[Run, list[Run]]]


def html(groups: Groups, summary: dict[str, Any], folder: Path) -> str:
    """The page for runs and their controls, from their `summary` and the figures in `folder`,
    into which the picture (`picture.draw`) is drawn.

    Nothing on it is fetched from elsewhere, and every text of a document is escaped.
    """
    return _render("report.html.jinja", groups, summary, folder, lambda name: _inline(folder, name))


def markdown(groups: Groups, summary: dict[str, Any], folder: Path) -> str:
    """The same as Markdown, with the PNG figures beside it."""
    return _render(
        "report.md.jinja", groups, summary, folder, lambda name: f"{folder.name}/{name}.png"
    )


WRITERS: dict[str, Callable[[Groups, dict[str, Any], Path], str]] = {"html": html, "md": markdown}


def tables(dataset: xr.Dataset) -> list[dict[str, Any]]:
    """The estimates of a dataset as text: a table for each set of dimensions, a column for each
    estimate, `value [low, high], p`. One of more than `ROWS` rows says only how many there are."""
    by_dims: dict[tuple[Any, ...], list[str]] = defaultdict(list)
    for name in estimate.names(dataset):
        by_dims[dataset[name].dims].append(name)
    made = []
    for dims, names in sorted(by_dims.items(), key=lambda item: len(item[0])):
        count = dataset[names[0]].size
        if not count:
            continue
        columns = [_words(d) for d in dims] + [_heading(dataset, n) for n in names]
        places = [list(estimate.points(dataset, n)) for n in names] if count <= ROWS else []
        rows = [
            [_words(label) for label in row[0][0].values()] + [e.cell for _, e in row]
            for row in zip(*places, strict=True)
        ]
        made.append({"columns": columns, "rows": rows, "count": count})
    return made


def _heading(dataset: xr.Dataset, name: str) -> str:
    units = dataset[name].attrs.get("units", "1")
    return _words(name) + (f" ({units})" if units != "1" else "")


def _words(name: Any) -> str:
    return str(name).replace("_", " ")


def _render(
    template: str,
    groups: Groups,
    summary: dict[str, Any],
    folder: Path,
    figure: Callable[[str], str],
) -> str:
    runs = [run for run, _ in groups]
    drawn, reading = _picture(groups, folder) if runs else (False, "")
    return _template(template).render(
        title=_title(runs) if runs else ", ".join(map(_words, summary["analyses"])),
        picture=figure("picture") if drawn else None,
        reading=reading,
        runs=runs,
        controls=[c for _, own in groups for c in own],
        summary=runs[0].summary() if runs else {},
        analyses=[{**a, "figure": figure(name)} for name, a in summary["analyses"].items()],
        not_done=summary["not_done"],
        documents=[_documents(run) for run in runs],
        settings=config.to_toml(runs[0].config) if runs else "",
    )


def _picture(groups: Groups, folder: Path) -> tuple[bool, str]:
    """Draw it as `folder/picture`; whether it could be, and how to read it or why it is not."""
    try:
        dataset = picture.of_seeds(groups)
    except Missing as missing:
        return False, str(missing)
    folder.mkdir(parents=True, exist_ok=True)
    plots.write(picture.draw(dataset), folder / "picture")
    seeds = f" The mean of {len(groups)} seeds; faint: each." if len(groups) > 1 else ""
    return True, picture.reading(dataset) + seeds


def _title(runs: Sequence[Run]) -> str:
    """`quickstart/cyclic: gpt_neox, 6 blocks, …`, of several runs the first."""
    name = "/".join(runs[0].path.resolve().parts[-2:]).lstrip("/")
    return (
        f"{name}{f' and {len(runs) - 1} more seeds' if len(runs) > 1 else ''}: "
        + (runs[0].summary()["model"])
    )


def _flat(facts: dict[str, Any], before: str = "") -> list[tuple[str, Any]]:
    """(dotted name, value) of facts within facts."""
    rows: list[tuple[str, Any]] = []
    for name, value in facts.items():
        inner = isinstance(value, dict) and value
        rows += _flat(value, f"{before}{name}.") if inner else [(before + name, _listed(value))]
    return rows


def _listed(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value)) or "none"
    return "none" if value in (None, {}, "") else value


def _documents(run: Run) -> list[dict[str, Any]]:
    record = run.record
    names = ("name", "length", "digest", "excerpt", "held_out")
    columns = [record[name].values for name in names]
    return [
        {"name": str(n), "tokens": int(t), "digest": str(d)[:12], "excerpt": str(e), "held_out": h}
        for n, t, d, e, h in zip(*columns, strict=True)
    ]


@functools.cache
def _template(name: str) -> jinja2.Template:
    import jinja2

    text = (resources.files("recovery_probe.analyze") / name).read_text(encoding="utf-8")
    env = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    env.filters["flat"] = _flat
    # One line of a Markdown table: no bar, no line break, nothing that starts code.
    env.filters["cell"] = lambda text: " ".join(
        str(text).replace("|", "¦").replace("`", "'").split()
    )
    return env.from_string(text)


def _inline(folder: Path, name: str) -> str:
    """The figure as a data address. As an image, its ids cannot clash with another figure's."""
    svg = (folder / f"{name}.svg").read_bytes()
    return "data:image/svg+xml;base64," + base64.b64encode(svg).decode()

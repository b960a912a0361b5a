"""One self-contained page: what was found, with its null and blind spot beside it."""

from __future__ import annotations

import functools
import re
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import xarray as xr

from recovery_probe import config
from recovery_probe.analyze import ages, calibration, estimate, explorer, picture, plots
from recovery_probe.analyze.analysis import Analysis
from recovery_probe.errors import Missing
from recovery_probe.record.run import Run

if TYPE_CHECKING:  # start-up
    import jinja2

ROWS = 120  # a longer table is left to NAME.zarr
# Whether the seeds agree with the paper: the mark, and what it says.
MARKS = {True: ("✓", "agrees"), None: ("–", "cannot be told"), False: ("✗", "disagrees")}
Groups = Sequence[tuple[Run, list[Run]]]


def html(groups: Groups, summary: dict[str, Any], folder: Path, reload: int = 0) -> str:
    """The page for runs and their controls, from their `summary` and the figures in `folder`,
    into which the picture (`picture.draw`) is drawn.

    Nothing on it is fetched from elsewhere, and every text of a document is escaped.
    """

    def figure(name: str) -> str:
        return inline(folder, name)

    return _render("report.html.jinja", groups, summary, folder, figure, reload)


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


def row(analysis: Analysis, dataset: xr.Dataset) -> dict[str, Any]:
    """Of the table of verdicts: `of`, the number's name, `run` and `control`, its values as text,
    `paper`, what the paper found, and `agrees`, whether the seeds agree with it; null where they
    cannot tell."""
    own, other = analysis.main(dataset), analysis.main(dataset, side=1)
    return {
        "of": _words(own[0]) if own else "",
        "run": own[1].cell if own else "",
        "control": other[1].cell if other else "",
        "paper": analysis.paper,
        "agrees": analysis.agrees(dataset),
    }


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
    reload: int = 0,
) -> str:
    runs = [run for run, _ in groups]
    dataset, why = _picture(groups, folder) if runs else (None, "")
    return render(
        template,
        reload=reload,
        title=_title(runs) if runs else ", ".join(map(_words, summary["analyses"])),
        picture=None if dataset is None else figure("picture"),
        lead="" if dataset is None else ages.lead(dataset),
        caption="" if dataset is None else picture.caption(dataset),
        reading=why if dataset is None else picture.reading(dataset),
        numbers=[] if dataset is None else ages.three_numbers(dataset),
        primary=summary.get("primary"),
        near_twin=summary.get("near_twin", []),
        least_squares=_with_figure(summary.get("least_squares"), "least_squares", figure),
        calibration=_with_figure(_calibration(groups, folder), "calibration", figure),
        explorer=explorer.explorer(groups) if runs and template.endswith("html.jinja") else None,
        runs=runs,
        controls=[c for _, own in groups for c in own],
        twins=[twin for run in runs for twin in run.twins],
        summary=runs[0].summary() if runs else {},
        analyses=[{**a, "figure": figure(name)} for name, a in summary["analyses"].items()],
        marks=MARKS,
        not_done=summary["not_done"],
        documents=[_documents(run) for run in runs],
        settings=config.to_toml(runs[0].config) if runs else "",
    )


def _picture(groups: Groups, folder: Path) -> tuple[xr.Dataset | None, str]:
    """Draw it as `folder/picture`; its numbers, or why there are none."""
    try:
        dataset = picture.of_seeds(groups)
    except Missing as missing:
        return None, str(missing)
    folder.mkdir(parents=True, exist_ok=True)
    plots.write(picture.draw(dataset), folder / "picture")
    return dataset, ""


def _with_figure(
    part: dict[str, Any] | None, name: str, figure: Callable[[str], str]
) -> dict[str, Any] | None:
    """A part of the page, with its figure where it has one."""
    return part and {**part, "figure": figure(name) if part.get("drawn") else None}


def _calibration(groups: Groups, folder: Path) -> dict[str, Any] | None:
    """The stored calibration, drawn as `folder/calibration`; nothing beside no run."""
    if not groups:
        return None
    scratch, table = _drawn_calibration()
    for figure in Path(scratch.name).glob("calibration.*"):
        shutil.copy(figure, folder / figure.name)
    return calibration.told(table, groups[0][0])


@functools.cache
def _drawn_calibration() -> tuple[tempfile.TemporaryDirectory[str], dict[str, Any]]:
    """The stored one and its figure, drawn once in a process."""
    scratch, table = tempfile.TemporaryDirectory(), calibration.stored()
    plots.write(calibration.draw(table), Path(scratch.name) / "calibration")
    return scratch, table


def _title(runs: Sequence[Run]) -> str:
    """`quickstart/cyclic: gpt_neox, 6 blocks, …`, of several runs the first."""
    name = "/".join(runs[0].path.resolve().parts[-2:]).lstrip("/")
    return (
        f"{name}{f' and {len(runs) - 1} more seeds' if len(runs) > 1 else ''}: "
        + (runs[0].summary()["model"])
    )


def _with_code(text: str) -> Any:
    """Escaped, and what stands between backticks as code."""
    from markupsafe import Markup, escape

    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


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


def render(template: str, **values: Any) -> str:
    """A page from one of the templates here, every text escaped."""
    return _environment().get_template(template).render(**values)


@functools.cache
def _environment() -> jinja2.Environment:
    import jinja2

    files = resources.files("recovery_probe.analyze")
    env = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: (files / name).read_text(encoding="utf-8")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.filters["flat"] = _flat
    env.filters["code"] = _with_code
    # One line of a Markdown table: no bar, no line break, nothing that starts code.
    env.filters["cell"] = lambda text: " ".join(
        str(text).replace("|", "¦").replace("`", "'").split()
    )
    return env


def inline(folder: Path, name: str) -> str:
    """A figure in `folder` as a data address. As an image, its ids cannot clash with another
    figure's."""
    svg = (folder / f"{name}.svg").read_text("utf-8").replace("\n", " ")
    # A fifth shorter than base64.
    return "data:image/svg+xml," + quote(svg, safe=" =:/;,'()*!$?@+-._~[]{}|^`")

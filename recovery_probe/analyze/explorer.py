"""The explorer of a report: the loss of every document at every episode, in one page that asks for
nothing from elsewhere.

What stands here is its data, its words and its table; `explorer_charts` has the charts. They are
compiled when the report is written, so that the page carries Vega alone and no compiler.
"""

from __future__ import annotations

import base64
import functools
import gzip
import io
import math
from collections.abc import Sequence
from importlib import resources
from typing import TYPE_CHECKING, Any

import numpy as np

from recovery_probe import stats
from recovery_probe.analyze.groups import common, labels
from recovery_probe.analyze.trajectory import updates, vectors

if TYPE_CHECKING:
    from recovery_probe.record.run import Run

Groups = Sequence[tuple["Run", Sequence["Run"]]]
# What a browser draws at once without a pause, and what leaves the page below 3 MB.
DOCUMENTS, CELLS, NUMBERS = 60, 16_000, 60_000
COLUMNS = 8  # epochs in the table
LONGEST = 2000  # episodes of a path: its principal components are cubic in them
Record = dict[str, Any]


def explorer(groups: Groups) -> Record | None:
    """What the template shows of runs and their controls: `spec` (Vega), `bundle` (its library),
    `script`, `notes`, `table`, `picture` (a data address, for where no script runs), and whether
    there is a `helix` and the run is `cyclic`. None of runs that have not done an episode."""
    from recovery_probe.analyze import explorer_charts

    episodes = min(common([run, *own]) for run, own in groups)
    if not episodes:
        return None
    run, names = groups[0][0], labels([groups[0][0], *groups[0][1]])
    shown, step = _thinned(run, groups, len(names), episodes)
    documents = _documents(groups, shown)
    waits = [
        wait
        for seed, (main, own) in enumerate(groups)
        for name, one in zip(names, [main, *own], strict=True)
        for document in shown
        for wait in _waits(one, document, episodes, step, {"run": name, "seed": seed})
    ]
    paths = [p for n, one in zip(names, [run, *groups[0][1]], strict=True) for p in helix(one, n)]
    data = explorer_charts.Data(
        runs=names,
        seeds=len(groups),
        T=run.timeline.per_epoch,
        ends=[int(end) for end in run.timeline.boundaries if end < episodes] + [episodes],
        step=step,
        cyclic=stats.is_periodic(run.schedule.values, run.config.documents.count),
        documents=documents,
        waits=waits,
        paths=paths,
    )
    spec = explorer_charts.compiled(data)
    return {
        "spec": spec,
        "bundle": bundle(),
        "script": script(),
        "picture": _still(spec),
        "notes": _notes(groups, len(shown), step, episodes, paths),
        "table": _table(groups[0], names, episodes, shown),
        "helix": bool(paths),
        "cyclic": data.cyclic,
    }


@functools.cache
def bundle() -> str:
    """Vega Embed as one script, packed (gzip, base64) to less than half; made once in a process,
    which takes a second or two."""
    import vl_convert

    # `vega` alone would be a third smaller, and is null there (1.9).
    code = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    return base64.b64encode(gzip.compress(code.encode(), mtime=0)).decode()


def script() -> str:
    """What brings the charts to life."""
    file = resources.files("recovery_probe.analyze") / "explorer.js"
    return file.read_text(encoding="utf-8")


def helix(run: Run, name: str) -> list[Record]:
    """The path of all weights where it was recorded, from half an epoch on: `done`, episodes done;
    `u` and `v`, the two leading principal components of the weight residuals (w minus its mean
    over the cycle around it); `document`, trained on last."""
    T = run.config.documents.count
    whole = run.episodes_done // T * T
    if not (
        "weight_deltas" in run.recorders
        and 2 * T <= whole <= LONGEST
        and T > 2
        and stats.once_an_epoch(run.schedule.values, T)
    ):
        return []
    moved = updates(run, whole)
    if len(moved) < whole:  # recorded more rarely than once an episode
        return []
    residual, rows = stats.episode_residuals(
        vectors(moved, np.ones(moved.sizes["module"], bool)), T
    )
    plane, _ = stats.components(residual, 2)
    return [
        {"run": name, "done": int(done), "u": _short(u), "v": _short(v), "document": int(last)}
        for done, (u, v), last in zip(rows, plane, run.schedule.values[rows - 1], strict=True)
    ]


def _short(number: float) -> float | None:
    """Four digits after the point; None for NaN."""
    return None if math.isnan(number) else round(float(number), 4)


def _thinned(run: Run, groups: Groups, kinds: int, episodes: int) -> tuple[list[int], int]:
    """Which documents are shown, and every how many episodes."""
    count = run.losses.sizes["document"]
    shown = np.unique(np.linspace(0, count - 1, min(count, DOCUMENTS)).astype(int)).tolist()
    cells = kinds * len(shown) * (episodes + 1)
    return shown, max(1, math.ceil(cells / CELLS), math.ceil(cells * len(groups) / NUMBERS))


def _documents(groups: Groups, shown: Sequence[int]) -> list[Record]:
    """Name, first words, and place in the cycle (-1 of one held out) of each; where seeds have
    documents of their own there is no one name."""
    run = groups[0][0]
    record, T = run.record, run.config.documents.count
    place = {int(d): p for p, d in enumerate(stats.cycle(run.schedule.values, T))}
    own = any(list(r.record.digest.values) != list(record.digest.values) for r, _ in groups[1:])
    return [
        {
            "document": d,
            "place": place.get(d, -1),
            "name": "each seed's own" if own else str(record.name.values[d]),
            "begins": "" if own else str(record.excerpt.values[d])[:80],
        }
        for d in shown
    ]


def _waits(run: Run, document: int, episodes: int, step: int, of: Record) -> list[Record]:
    """The losses of a document, in pieces between its turns: `n`, how many turns it has had;
    `turn`, the episodes done right before the last of them; `start`, the episodes done at the first
    of `losses`, which are `step` apart."""
    turns = np.flatnonzero(run.schedule.values[:episodes] == document)
    ends = [*turns.tolist(), episodes]
    pieces = []
    for n, end in enumerate(ends):
        turn = ends[n - 1] if n else None
        first = 0 if turn is None else turn + 1
        start = math.ceil(first / step) * step
        values = run.losses.values[start : end + 1 : step, document]
        piece = {"document": document, "n": n, "turn": turn, "start": start}
        pieces.append({**of, **piece, "losses": [_short(v) for v in values]})
    return pieces


def _still(spec: Record) -> str:
    """The charts as they are at first, as an image of 256 colours."""
    import vl_convert
    from PIL import Image

    image = Image.open(io.BytesIO(vl_convert.vega_to_png(spec, scale=1.2))).convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    small = io.BytesIO()
    Image.alpha_composite(white, image).convert("RGB").quantize(256).save(small, "PNG")
    return "data:image/png;base64," + base64.b64encode(small.getvalue()).decode()


def _notes(
    groups: Groups, shown: int, step: int, episodes: int, paths: Sequence[Record]
) -> list[str]:
    """What the page does not show, or shows otherwise than one may think."""
    run, notes = groups[0][0], []
    documents, T = run.losses.sizes["document"], run.config.documents.count
    if documents > T:
        notes.append(f"Documents {T} to {documents - 1} are held out, never trained on.")
    if shown < documents:
        notes.append(
            f"{shown} of {documents} documents are shown, evenly chosen, and of neighbours "
            "those that are."
        )
    if step > 1:
        notes.append(f"One episode in {step} is shown, of {episodes}.")
    if any(one.episodes_done > episodes for run, own in groups for one in (run, *own)):
        notes.append(f"As far as all runs have got: {episodes} episodes.")
    if len(groups) > 1:
        notes.append(
            f"Colours and bold lines are means of {len(groups)} seeds, thin lines the seeds; each "
            "seed's control has an order of its own, so align by age to compare. Helix: the first "
            "seed's."
        )
    if not paths:
        notes.append(
            "No path of the weights: that needs the recorder weight_deltas at every episode, each "
            f"document once an epoch, and 2 epochs, at most {LONGEST} episodes."
        )
    return notes


def _table(
    group: tuple[Run, Sequence[Run]], names: Sequence[str], episodes: int, shown: Sequence[int]
) -> Record:
    """For each document its loss right before and right after its turn, by epoch; of several seeds
    the first one's."""
    run, own = group
    turns = {
        name: stats.turns(one.schedule.values[:episodes], one.losses.sizes["document"])
        for name, one in zip(names, [run, *own], strict=True)
    }
    most = max(len(of) for each in turns.values() for of in each)
    epochs = np.unique(np.linspace(0, most - 1, min(most, COLUMNS)).astype(int)).tolist()
    losses = {n: one.losses.values for n, one in zip(names, [run, *own], strict=True)}

    def cell(name: str, document: int, epoch: int) -> str:
        own = turns[name][document]
        if epoch >= len(own):
            return "–"
        before, after = losses[name][own[epoch] : own[epoch] + 2, document]
        return f"{before:.2f} → {after:.2f}"

    rows = [
        [str(d), str(run.record.name.values[d])]
        + [cell(name, d, e) for name in names for e in epochs]
        for d in shown
    ]
    columns = ["document", "name", *(f"{name}, turn {e + 1}" for name in names for e in epochs)]
    return {"columns": columns, "rows": rows, "count": len(rows)}

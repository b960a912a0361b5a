"""A run that is watched: its report while it is being written, as a file and in a notebook."""

from __future__ import annotations

import html
import tempfile
import time
from pathlib import Path
from typing import Any

from recovery_probe.analyze import report
from recovery_probe.errors import InputError
from recovery_probe.record.run import Run, open_run, open_runs
from recovery_probe.record.store import write_text

RELOAD = 10  # seconds after which the page loads itself again


def write(path: Path) -> Path:
    """Write the report of the run at `path`, or of the one whose control that is; returns where."""
    main = _watched(path)
    place = main.path / "report.html"
    write_text(place, page(main, RELOAD))
    return place


def page(run: Run, reload: int = 0) -> str:
    """The picture and the explorer of a run and its controls, as far as they have got, and none of
    the analyses, which take longer than an epoch; it loads itself again every so many seconds."""
    nothing: dict[str, Any] = {"analyses": {}, "not_done": {}}
    with tempfile.TemporaryDirectory() as scratch:  # somebody else writes the run
        return report.html([(run, run.controls)], nothing, Path(scratch), reload=reload)


def _watched(path: Path) -> Run:
    try:
        main, *_ = open_runs(path.parent)
    except InputError:  # other runs lie there too
        return open_run(path)
    beside = {run.path.resolve() for run in (main, *main.controls)}
    return main if path.resolve() in beside else open_run(path)


def watch(run: Run, seconds: float = 5) -> None:
    """Show the page in a notebook, anew whenever an epoch has come, until the run ends or the cell
    is interrupted. The run is trained by another process, or kernel."""
    from IPython.display import HTML, display

    shown = display(HTML(_frame(run)), display_id=True)
    epoch = run.timeline.place(run.episodes_done)[0]
    try:
        while run.status == "running":
            time.sleep(seconds)
            if (now := run.refresh().timeline.place(run.episodes_done)[0]) != epoch:
                epoch = now
                shown.update(HTML(_frame(run)))
    except KeyboardInterrupt:
        return
    shown.update(HTML(_frame(run.refresh())))


def _frame(run: Run) -> str:
    """The page in a frame of its own, whose scripts see nothing of the notebook."""
    inside = html.escape(page(run), quote=True)
    return (
        f'<iframe sandbox="allow-scripts" srcdoc="{inside}" title="{html.escape(str(run.path))}" '
        'style="width:100%;height:900px;border:0"></iframe>'
    )

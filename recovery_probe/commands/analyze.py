"""`analyze`: questions put to recorded runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, make_dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from recovery_probe import flags, plugins
from recovery_probe.commands import tell, words
from recovery_probe.errors import InputError
from recovery_probe.record.folder import as_path


@dataclass(frozen=True)
class Analyze:
    """Put questions to a recorded run: numbers, figures and a report, written beside it.

    python -m recovery_probe.analyze runs/quickstart --analysis recovery --analysis loss_curves
    """

    # runs that differ in their seed alone, and controls (their own when none is given); or the
    # directory of one run and its control
    runs: Annotated[tyro.conf.Positional[tuple[Path, ...]], words("RUN")] = ()
    # analyses to do, from --list or file.py:NAME; when not given, all installed ones that need a
    # run
    analysis: Annotated[tuple[str, ...], words("NAME")] = ()
    # let analyses run the model again from checkpoints, which takes torch and time
    from_checkpoint: tyro.conf.FlagCreatePairsOff[bool] = False
    # where to write; the run's own directory when there is one run
    out: Path | None = None
    # the report: html (one page), md (Markdown with PNG figures)
    format: tuple[Literal["html", "md"], ...] = ("html",)
    # list the installed analyses and stop
    list: tyro.conf.FlagCreatePairsOff[bool] = False


def run(argv: Sequence[str]) -> None:
    """`python -m recovery_probe.analyze [RUN …] [CONTROL …] [--analysis NAME …] [--list]`"""
    names = dict.fromkeys([*flags.given(argv, "analysis"), *plugins.ours("analyses")])
    known = {plugins.key_of(name): plugins.find("analyses", name) for name in names}
    tables = [table for key, kind in known.items() for table in flags.of_plugin(kind, key, {})]
    options = make_dataclass("Options", tables)
    named = dict.fromkeys(map(plugins.key_of, flags.given(argv, "analysis")))
    first = [f.name for f in fields(Analyze)]
    first += [f"{key}.{f.name}" for key in named for f in plugins.own_fields(known[key])]
    command, values = flags.parse(Analyze, options, argv, prog="analyze", first=first)
    if command.list:
        _list()
        return

    from recovery_probe.analyze.groups import seeds_and_controls
    from recovery_probe.analyze.perform import analyze as analyze_runs
    from recovery_probe.record.run import open_runs

    chosen = [
        plugins.made(plugins.find("analyses", name), values.get(key, {}), key)
        for name in command.analysis
        for key in [plugins.key_of(name)]
    ]
    runs, controls = seeds_and_controls([r for path in command.runs for r in open_runs(path)])
    summary = analyze_runs(
        runs,
        controls or [control for run in runs for control in run.controls],
        chosen,
        options=values,
        out=command.out and as_path(command.out),
        from_checkpoint=command.from_checkpoint,
        formats=command.format,
    )
    asked = [analysis.name for analysis in chosen]
    tell(summary, command.out or runs[0].path, command.format, asked)


def _list() -> None:
    """The installed analyses and their questions."""
    names = sorted(plugins.installed("analyses"))
    for name in names:
        try:
            question = plugins.find("analyses", name).question
        except InputError as error:
            question = str(error)
        print(f"{name:<{max(map(len, names)) + 2}}{question}")

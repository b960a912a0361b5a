"""`calibrate`: how often the analyses err."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, make_dataclass
from pathlib import Path
from typing import Annotated

import tyro

from recovery_probe import flags
from recovery_probe.commands import words
from recovery_probe.errors import InputError
from recovery_probe.record.folder import as_path


@dataclass(frozen=True)
class Calibrate:
    """Measure how often the analyses err: put them to processes in which the truth is known, over
    and over. Interrupted, the same command goes on.

    python -m recovery_probe.calibrate runs/quickstart/cyclic --runs 100 --out runs/calibration
    """

    # a run, whose documents, epochs and steps are taken; the quickstart's when not given
    run: Annotated[tyro.conf.Positional[Path | None], tyro.conf.arg(metavar="RUN")] = None
    # draws of each process; at least 2
    runs: int = 100
    # where to write calibration.json and the figure
    out: Path | None = None
    # analyses to put to them, from analyze --list or file.py:NAME; all when not given
    analysis: Annotated[tuple[str, ...], words("NAME")] = ()


def run(argv: Sequence[str]) -> None:
    """`python -m recovery_probe.calibrate [RUN] [--runs N] --out DIR [--analysis NAME …]`"""
    command, _ = flags.parse(Calibrate, make_dataclass("Nothing", []), argv, prog="calibrate")
    if command.out is None:
        raise InputError("calibrate needs --out DIR")
    if command.runs < 2:
        raise InputError(f"--runs {command.runs}: at least 2 draws")

    from recovery_probe.analyze import calibration
    from recovery_probe.analyze.perform import instance
    from recovery_probe.record.run import open_run

    shape = calibration.Shape.of(open_run(command.run)) if command.run else calibration.Shape()
    chosen = [instance(name) for name in command.analysis]
    table = calibration.calibrate(shape, command.runs, as_path(command.out), chosen)
    for row in table["rows"]:
        if row["role"]:
            print(calibration.in_words(row))
    print(f"table and figure: {command.out / 'calibration.json'}, .png, .svg, .pdf")

"""`experiment`: questions that are answered by training on from a run's checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, make_dataclass
from pathlib import Path
from typing import Annotated

import tyro

from recovery_probe import flags, plugins
from recovery_probe.commands import tell, words
from recovery_probe.errors import InputError
from recovery_probe.record.folder import as_path


@dataclass(frozen=True)
class Conduct:
    """Train on from checkpoints of a run and its controls, in other ways, and say what that shows.
    The same command goes on with what is not done; its runs lie in RUN/experiments.

      python -m recovery_probe.experiment clock_or_cue runs/quickstart
    """

    # the experiment: an installed name, or file.py:CLASS
    experiment: Annotated[tyro.conf.Positional[str | None], tyro.conf.arg(metavar="NAME")] = None
    # runs that differ in their seed alone, and controls (their own when none is given); or the
    # directory of one run and its control
    runs: Annotated[tyro.conf.Positional[tuple[Path, ...]], words("RUN")] = ()
    # where to write what was found; the run's own directory when there is one run
    out: Path | None = None
    # say what there is to train, and how long it takes, and stop
    plan: tyro.conf.FlagCreatePairsOff[bool] = False


def run(argv: Sequence[str]) -> None:
    """`python -m recovery_probe.experiment NAME RUN … [--plan] [--SETTING VALUE …]`"""
    if argv[:1] in ([], ["-h"], ["--help"]):
        print("experiments (python -m recovery_probe.experiment NAME RUN; more by NAME --help):")
        names = plugins.installed("experiments")
        for name in names:
            print(f"  {name:<{max(map(len, names)) + 2}}{_question(name)}")
        return
    if argv[0].startswith("-"):
        known = ", ".join(plugins.installed("experiments"))
        raise InputError(f"experiment needs one ({known}) as its first word")
    kind = plugins.find("experiments", argv[0])
    options = flags.of_one(kind) if plugins.own_fields(kind) else make_dataclass("Options", [])
    command, values = flags.parse(Conduct, options, argv, prog=f"experiment {kind.name}")
    experiment = plugins.made(kind, values, kind.name)
    if not command.runs:
        raise InputError(f"experiment {kind.name} needs a run directory; train one first")

    from recovery_probe.analyze.groups import match, seeds_and_controls
    from recovery_probe.experiments import conduct
    from recovery_probe.record.run import open_runs

    runs, controls = seeds_and_controls([r for path in command.runs for r in open_runs(path)])
    controls = controls or [control for run in runs for control in run.controls]
    if command.plan:
        conduct.tell([experiment], match(runs, controls))
        return
    out = command.out and as_path(command.out)
    if len(runs) > 1 and out is None:
        raise InputError(f"{len(runs)} runs, one report: say where it goes with --out DIR")
    summary = conduct.conduct([experiment], runs, controls, out=out)
    tell(summary, out or runs[0].path, asked=[experiment.name])


def _question(name: str) -> str:
    try:
        question: str = plugins.find("experiments", name).question
    except InputError as error:
        return str(error)
    return question

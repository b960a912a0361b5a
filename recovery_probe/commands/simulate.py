"""`simulate`: planted truths as run directories."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from recovery_probe import flags, plugins
from recovery_probe.errors import InputError


@dataclass(frozen=True)
class Simulate:
    """Draw a process in which the truth is known, and write it as a run and its control.

    Nothing is trained: what every analysis finds on it shows what that analysis can tell.
    Settings are flags of their own names:

      python -m recovery_probe.simulate linear_documents --out runs/linear --share 0.5
    """

    # the simulation: an installed name, or file.py:CLASS
    simulation: Annotated[tyro.conf.Positional[str | None], tyro.conf.arg(metavar="NAME")] = None
    # the directory to write; runs/NAME when not given
    out: Path | None = None
    # replace runs that are there already, and all that lies in their folders
    overwrite: tyro.conf.FlagCreatePairsOff[bool] = False


def run(argv: Sequence[str]) -> None:
    """`python -m recovery_probe.simulate [NAME] [--out DIR] [--SETTING VALUE …]`"""
    if argv[:1] in ([], ["-h"], ["--help"]):
        print(
            "simulations (python -m recovery_probe.simulate NAME --out DIR; more by NAME --help):"
        )
        for name in plugins.installed("simulations"):
            print(f"  {name:<20}{_first_sentence('simulations', name)}")
        return
    if argv[0].startswith("-"):
        known = ", ".join(plugins.installed("simulations"))
        raise InputError(f"simulate needs a simulation ({known}) as its first word")
    kind = plugins.find("simulations", argv[0])
    command, values = flags.parse(Simulate, flags.of_one(kind), argv, prog=f"simulate {kind.name}")

    from recovery_probe.simulations.writing import simulate as simulate_run

    out = command.out or Path("runs") / kind.name
    written = simulate_run(kind, out, overwrite=command.overwrite, **values)
    print(f"{kind.name}: {written.path}, and its control {written.controls[0].path}")


def _first_sentence(group: str, name: str) -> str:
    """Of what a plug-in says of itself; why it cannot be loaded, where it cannot."""
    try:
        about = " ".join((plugins.find(group, name).__doc__ or "").split())
    except InputError as error:
        return str(error)
    return about.partition(". ")[0].rstrip(".") + "."

"""`verify`: what is damaged in a run, and what can be made again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, make_dataclass
from pathlib import Path
from typing import Annotated

import tyro

from recovery_probe import flags
from recovery_probe.errors import Damaged, InputError
from recovery_probe.record import mends
from recovery_probe.record.folder import as_path, is_run


@dataclass(frozen=True)
class Verify:
    """Read a run whole, and compare it with its checksums: settings, provenance, every array and
    every checkpoint. Exit code 2 where something is damaged."""

    # the run
    run: Annotated[tyro.conf.Positional[Path | None], tyro.conf.arg(metavar="RUN")] = None
    # train again what is damaged, from the nearest checkpoint that is whole
    mend: tyro.conf.FlagCreatePairsOff[bool] = False


def run(argv: Sequence[str]) -> None:
    """`python -m recovery_probe.verify RUN [--mend]`"""
    command, _ = flags.parse(Verify, make_dataclass("Nothing", []), argv, prog="verify")
    if command.run is None:
        raise InputError("verify needs the directory of a run")
    path = as_path(command.run)
    if not is_run(path):
        raise InputError(f"{path}: no run: it has no config.toml, provenance.json and record.zarr")

    from recovery_probe.record.verify import verify

    flaws = verify(path)
    for flaw in flaws:
        print(flaw)
    if flaws and command.mend:
        from recovery_probe.train.mend import mend

        flaws = mend(path, flaws)
        for flaw in flaws:
            print(f"still: {flaw}")
    if flaws:
        raise Damaged(f"{path}: {len(flaws)} damaged; {mends.verify(path)}")
    print(f"{path}: whole")

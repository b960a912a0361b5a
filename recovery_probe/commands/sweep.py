"""`sweep`: many runs as one plan."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, make_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from recovery_probe import flags
from recovery_probe.commands import words
from recovery_probe.errors import InputError
from recovery_probe.record.folder import as_path
from recovery_probe.sweep import spec as specs

if TYPE_CHECKING:
    from recovery_probe.sweep.engines import Engine


@dataclass(frozen=True)
class Sweep:
    """Train many runs that differ in a few settings, here or on a cluster, and compare them.

    python -m recovery_probe.sweep depth-laptop --out runs/depth

    The same command goes on with what is not done.
    """

    # a sweep by name, or a TOML file
    sweep: Annotated[tyro.conf.Positional[str | None], tyro.conf.arg(metavar="SWEEP")] = None
    # the directory to write; sweeps/NAME when not given
    out: Path | None = None
    # changes of its base, such as epochs=4 'model.source="mine"'
    set: Annotated[tuple[str, ...], words("NAME=VALUE")] = ()
    # where runs are trained: here one by one, in processes of this machine, on a Ray cluster, on
    # SLURM
    engine: Literal["in-process", "processes", "ray", "slurm"] = "in-process"
    # processes: how many; as many as there are cores when not given
    workers: int | None = None
    # ray: the address of the cluster; one is started here when not given
    address: str | None = None
    # ray: cores of each run
    cpus: float = 1
    # ray: GPUs of each run
    gpus: float = 0
    # slurm: submitit's parameters, such as timeout_min=240 slurm_partition=gpu gpus_per_node=1
    slurm: Annotated[tuple[str, ...], words("NAME=VALUE")] = ()
    # slurm: submitit's cluster; local: processes of this machine
    cluster: str | None = None
    # stop at the first run that fails
    fail_fast: tyro.conf.FlagCreatePairsOff[bool] = False
    # say what there is to do, and how long it takes, and stop
    plan: tyro.conf.FlagCreatePairsOff[bool] = False


def run(argv: Sequence[str]) -> None:
    """`python -m recovery_probe.sweep NAME|FILE.toml --out DIR`"""
    if not argv:
        print("sweeps (python -m recovery_probe.sweep NAME --out DIR):")
        for name, about in specs.named().items():
            print(f"  {name:<20}{about}")
        return
    command, _ = flags.parse(Sweep, make_dataclass("Options", []), argv, prog="sweep")
    if command.sweep is None:
        raise InputError(f"sweep needs one by name ({', '.join(specs.named())}), or a TOML file")
    out = as_path(command.out or Path("sweeps") / Path(command.sweep).stem)
    spec = specs.read(command.sweep, _values(command.set, "--set"))
    jobs = specs.planned(spec, out)
    engine = _engine(command, out)

    from recovery_probe.sweep.running import State, sweep, tell_beforehand

    if command.plan:
        tell_beforehand(jobs, State(jobs, out).todo(), out)
        return
    found = sweep(spec, out, engine, fail_fast=command.fail_fast)
    for line in (*found.attrs["warnings"], *found.attrs["verdicts"]):
        print(line)
    print(f"page: {out / 'sweep.html'}")


def _engine(command: Sweep, out: Path) -> Engine:
    from recovery_probe.sweep import engines

    match command.engine:
        case "processes":
            return engines.processes(command.workers)
        case "ray":
            return engines.ray(command.address, command.cpus, command.gpus)
        case "slurm":
            parameters = _values(command.slurm, "--slurm")
            return engines.slurm(out / "slurm", parameters, command.cluster)
    return engines.in_process()


def _values(pairs: Sequence[str], flag: str) -> dict[str, Any]:
    """`NAME=VALUE` as TOML has values; what is none is text."""
    found = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not (name and equals):
            raise InputError(f"{flag} {pair}: expected NAME=VALUE")
        try:
            found[name] = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            found[name] = text
    return found

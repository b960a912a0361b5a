"""`simulate`: what a simulation draws, written as a run and its control."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np

from recovery_probe import config, plugins
from recovery_probe.documents import Documents
from recovery_probe.errors import InputError
from recovery_probe.record.folder import as_path, is_run
from recovery_probe.record.layout import TRAINING, Timeline
from recovery_probe.record.run import Run, open_run
from recovery_probe.record.writer import Writer, check_vacant
from recovery_probe.settings import Settings
from recovery_probe.simulations import SCHEDULES, Drawn, Simulation

# The settings of a simulation that are a run's own too, and stand among them.
SHARED = ("documents", "held_out", "epochs", "steps", "seed", "lr")


def simulate(
    simulation: str | type[Simulation] | Simulation,
    out: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    **changes: Any,
) -> Run:
    """Draw a process in which the truth is known and write it in the format of a trained run, with
    its control: `out/cyclic`, which is returned, and `out/shuffled`, in `run.controls`.

    `simulation`: an installed name (`linear_documents`), `file.py:CLASS`, a class, or an instance;
    `changes` are of its fields: `simulate("linear_documents", out, share=0.5, documents=25)`.

    Raises `InputError`, before anything is written, for settings that cannot be, a process that
    diverges, or an `out` that is taken (`overwrite` replaces runs, and nothing else).
    """
    started, made = time.monotonic(), instance(simulation, changes)
    folder = as_path(out)
    if is_run(folder):
        raise InputError(f"{folder}: holds a run already; choose another --out")
    paths = {schedule.name: folder / schedule.name for schedule in SCHEDULES}
    for path in paths.values():
        check_vacant(path, overwrite)
    drawn = made.draw()
    for one in drawn.values():
        if not (np.isfinite(one.losses).all() and np.isfinite(one.train_loss).all()):
            lr = f" at lr = {made.lr:g}: lower lr" if hasattr(made, "lr") else ""
            raise InputError(f"{made.name}: its losses do not stay finite{lr}")
    first, *others = drawn
    for kind, one in drawn.items():
        settings = _settings(made, kind, one)
        facts = {
            "role": "run" if kind == first else "control",
            "controls": [os.path.join("..", other) for other in others if kind == first],
            "simulated": {"name": made.name, "settings": plugins.settings_of(made)},
            "outcome": config.declared(settings),
        }
        _write(paths[kind], made, settings, one, facts, overwrite, started)
    return open_run(paths[first])


def instance(
    simulation: str | type[Simulation] | Simulation, settings: dict[str, Any] | None = None
) -> Simulation:
    """A simulation with these settings, checked. Raises `InputError`."""
    own: dict[str, Any] = {}
    if isinstance(simulation, Simulation):
        own, simulation = plugins.settings_of(simulation), type(simulation)
    kind: type[Simulation] = plugins.find("simulations", simulation)
    return plugins.made(kind, own | (settings or {}), kind.name)


def _settings(made: Simulation, kind: str, drawn: Drawn) -> Settings:
    """What a run of it says that it is: what every run has, and the simulation's own settings as
    the table of its name."""
    (schedule,) = (s for s in SCHEDULES if s.name == kind)
    source = f"simulation:{made.name}"
    optimizer = {"name": "sgd", "lr": made.lr} if hasattr(made, "lr") else {"name": "none"}
    values = plugins.settings_of(made)
    recorders = {
        name: dict(config.checked(plugins.find("recorders", name), recorded.settings, name))
        for name, recorded in drawn.recorded.items()
    }
    sketches = [
        array.shape[-1]
        for recorded in drawn.recorded.values()
        for array, _ in recorded.rows.values()
        if array.dims[-1:] == ("sketch",)
    ]
    return config.as_written(
        {
            "seed": made.seed,
            "epochs": made.epochs,
            "steps": made.steps,
            "sketch": max(sketches, default=1),
            "recorders": list(drawn.recorded),
            "documents": {
                "source": source,
                "count": made.documents,
                "held_out": made.held_out,
                "tokens": made.positions,
            },
            "model": {"source": source},
            "schedule": {"kind": kind, **plugins.settings_of(schedule)},
            "optimizer": optimizer,
            **recorders,
            made.name: {n: v for n, v in values.items() if n not in SHARED},
        },
        made.name,
    )


def _write(
    path: Path,
    made: Simulation,
    settings: Settings,
    drawn: Drawn,
    facts: dict[str, Any],
    overwrite: bool,
    started: float,
) -> None:
    timeline = Timeline(drawn.schedule, made.documents, made.steps, made.documents)
    count = made.documents + made.held_out
    own = {n: value for n, value in plugins.settings_of(made).items() if n != "seed"}
    about = f"{made.name} (seed {made.seed}, {', '.join(plugins.in_words(own))})"
    documents = Documents(
        inputs={"mask": np.ones((count, made.positions), dtype=bool)},
        names=tuple(f"document {i}" for i in range(count)),
        texts=tuple(f"document {i} of {about}" for i in range(count)),
        trained=made.documents,
        left_out={},
    )
    with Writer.create(path, settings, documents, timeline, provenance=facts) as writer:
        for name, recorded in drawn.recorded.items():
            table = settings.tables[name]
            arrays = {n: array for n, (array, _) in recorded.rows.items()}
            due = {
                a.time: timeline.due(table.get("every", "episode"), a.time) for a in arrays.values()
            }
            due = {time: times[times >= recorded.since] for time, times in due.items()}
            writer.add_group(name, arrays, recorded.coords, due, table)
        writer.put_in_place(overwrite)
        for name, recorded in drawn.recorded.items():
            for array, (_, rows) in recorded.rows.items():
                writer.write(name, array, 0, rows)
        writer.write(TRAINING, "losses", 0, drawn.losses)
        writer.write(TRAINING, "train_loss", 0, drawn.train_loss)
        writer.commit(timeline.episodes, drawn.losses[-1])
        writer.finish("complete", seconds=round(time.monotonic() - started, 3))

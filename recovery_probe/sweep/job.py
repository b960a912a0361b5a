"""What is done of a sweep wherever there is a machine: a function of two paths."""

from __future__ import annotations

import gc
import tomllib
from pathlib import Path
from typing import Any

import tomli_w

from recovery_probe import config
from recovery_probe.errors import Diverged, HookError, InputError
from recovery_probe.record import store
from recovery_probe.sweep.spec import Job
from recovery_probe.train.plan import Point

PLAN = "sweep"  # the table that says what the run is in its plan


def write(job: Job, links: dict[str, Any]) -> None:
    """The TOML of a run, `links` beside its settings."""
    values = config.to_dict(job.point.settings) | {PLAN: links}
    job.config.parent.mkdir(parents=True, exist_ok=True)
    store.write_text(job.config, tomli_w.dumps(values))


def train(toml: str, out: str) -> str:
    """Train the run of a TOML file in a directory, or go on with it where it was left. Returns
    nothing, or the message of what went wrong."""
    from recovery_probe.machine import threads
    from recovery_probe.train.fitting import check_same, fit_point

    try:
        values = tomllib.loads(Path(toml).read_text("utf-8"))
        links = values.pop(PLAN)
        settings = config.from_dict(values, toml)
        point = Point(Path(out), settings, links["role"])
        if Path(out).exists():
            check_same(point, [])
        with threads(settings.threads):
            fit_point(point, links, resume=True)
    except (InputError, Diverged, HookError) as error:
        return str(error)
    finally:
        gc.collect()  # networks are cycles of references: not from one run into the next
    return ""

"""`replay`: what was not recorded, seen by training again."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, make_dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from recovery_probe import flags, plugins
from recovery_probe.commands import words
from recovery_probe.errors import InputError


@dataclass(frozen=True)
class Replay:
    """Train episodes of a run once more, from the nearest checkpoint, and add what new hooks and
    recorders see to its record. Losses must come out as they were recorded.

      python -m recovery_probe.replay runs/quickstart/cyclic --record attention_patterns
    """

    # the run
    run: Annotated[tyro.conf.Positional[Path | None], tyro.conf.arg(metavar="RUN")] = None
    # hook functions, such as 'mine.py:f@blocks.*.attn.hook_pattern', where * stands for anything
    hook: Annotated[tuple[str, ...], words("FILE:FUNCTION@PATTERN")] = ()
    # the passes that hooks see; training when not given
    hook_during: Literal["training", "evaluation", "both"] | None = None
    # recorders: installed names, or file.py:CLASS; their settings are flags too
    record: Annotated[tuple[str, ...], words("NAME")] = ()
    # the episodes, such as 50:75, the last not among them; all when not given
    episodes: str | None = None
    # replace what the run has of these names
    overwrite: tyro.conf.FlagCreatePairsOff[bool] = False


def run(argv: Sequence[str]) -> None:
    """`python -m recovery_probe.replay RUN [--hook …] [--record NAME …] [--episodes 50:75]`"""
    known = {plugins.key_of(n): plugins.find("recorders", n) for n in flags.given(argv, "record")}
    tables = [table for key, kind in known.items() for table in flags.of_plugin(kind, key, {})]
    command, values = flags.parse(Replay, make_dataclass("Options", tables), argv, prog="replay")
    if command.run is None:
        raise InputError("replay needs the directory of a run")

    from recovery_probe.functions import split
    from recovery_probe.record.run import open_run
    from recovery_probe.train.replay import replay

    replay(
        open_run(command.run),
        hooks=[split(text) for text in command.hook],
        hook_during=command.hook_during,
        record=[plugins.made(kind, values.get(key, {}), key) for key, kind in known.items()],
        episodes=_range(command.episodes),
        overwrite=command.overwrite,
    )


def _range(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    found = re.fullmatch(r"(\d+):(\d+)", text)
    if not found:
        raise InputError(f"--episodes {text}: expected two numbers, such as 50:75")
    return int(found[1]), int(found[2])

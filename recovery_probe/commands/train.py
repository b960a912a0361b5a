"""`train`: runs, begun or gone on with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from recovery_probe import config, flags, plugins
from recovery_probe.commands import tell, words
from recovery_probe.errors import InputError
from recovery_probe.record.folder import as_path
from recovery_probe.settings import Seed, Settings

if TYPE_CHECKING:
    from recovery_probe.record.run import Run

# What people change first.
FIRST = (
    *("out", "control", "record", "resume", "epochs", "steps", "documents.source"),
    *("documents.count", "documents.tokens", "model.source", "model.depth"),
    *("optimizer.name", "optimizer.lr", "schedule.kind"),
)


@dataclass(frozen=True)
class Train:
    """Fine-tune a network on the same documents, over and over, and record what it forgets.

    Starts from a preset or a TOML file; every setting has a dotted name; --seed sets all seeds:

      python -m recovery_probe.train quickstart --out runs/long --epochs 12 --optimizer.lr 0.05
    """

    # the preset to start from
    preset: Annotated[tyro.conf.Positional[str | None], tyro.conf.arg(metavar="PRESET")] = None
    # a TOML file to start from instead, such as the config.toml of a run
    config: Path | None = None
    # the directory to write; runs/PRESET when not given
    out: Path | None = None
    # other schedules, in which the matched run is trained too (shuffled, when not given, of a
    # cyclic preset); shuffled:keep_first=true; twin: the run again, from weights changed by one
    # unit in the last place; none: one run, straight in the directory, as with --config
    control: Annotated[tuple[str, ...], words("SCHEDULE")] = ()
    # recorders to add: installed names, or file.py:CLASS
    record: Annotated[tuple[str, ...], words("NAME")] = ()
    # recorders to leave out
    no_record: Annotated[tuple[str, ...], words("NAME")] = ()
    # interventions to add: installed names, or file.py:CLASS
    intervene: Annotated[tuple[str, ...], words("NAME")] = ()
    # hook functions to record, such as 'mine.py:f@blocks.*.attn.hook_pattern', where * stands for
    # anything
    hook: Annotated[tuple[str, ...], words("FILE:FUNCTION@PATTERN")] = ()
    # write the report at every epoch, as a page that loads itself again; as --record live_report
    live: tyro.conf.FlagCreatePairsOff[bool] = False
    # the passes that hooks see; training when not given
    hook_during: Literal["training", "evaluation", "both"] | None = None
    # train although the record may not fit on the disk
    force: tyro.conf.FlagCreatePairsOff[bool] = False
    # replace a run that is there already, and all that lies in its folder
    overwrite: tyro.conf.FlagCreatePairsOff[bool] = False
    # go on with what is there of these runs, from their newest checkpoints, and begin what is not;
    # with more epochs, go on from their ends. `train --resume RUN` alone takes the settings of RUN
    resume: tyro.conf.FlagCreatePairsOff[bool] = False


def run(argv: Sequence[str]) -> None:
    """`python -m recovery_probe.train [PRESET] [--config FILE] [--out DIR] [--SETTING VALUE …]`,
    or `--resume RUN`"""
    if not argv:
        print("presets (python -m recovery_probe.train PRESET --out DIR):")
        for name, about in config.presets().items():
            print(f"  {name:<12}{about}")
        return
    if argv[0] == "--resume":
        trained, *_ = [_trained(each) for each in _resumed(argv[1:])]
    else:
        trained = _trained(argv)

    from recovery_probe.analyze.perform import analyze as analyze_run

    tell(analyze_run(trained, trained.controls), trained.path)


def _resumed(argv: Sequence[str]) -> list[list[str]]:
    """What `--resume RUN …` is short for, of each run that lies there: the run itself first."""
    from recovery_probe.record.run import open_runs

    if not argv or argv[0].startswith("-"):
        raise InputError("--resume needs the directory of a run; or a preset before it, and --out")
    runs = open_runs(as_path(argv[0]))
    each = [*runs, *(runs[0].twins if len(runs) > 1 else [])]
    return [
        ["--config", str(run.path / "config.toml"), "--out", str(run.path), "--resume", *argv[1:]]
        for run in each
    ]


def _trained(argv: Sequence[str]) -> Run:
    """The run that a command line asks for."""
    start = _start(argv)
    named = "PRESET" if argv[0].startswith("-") else argv[0]
    settings_flags = flags.of_settings(started := start or config.resolved(Settings()))
    argv = flags.spread(argv, "seed", [f"seed.{f.name}" for f in fields(Seed)])
    command, values = flags.parse(
        Train, settings_flags, argv, prog=f"train {named}", first=[*FIRST, *_named(argv, started)]
    )
    if start is None:
        raise InputError(
            f"train needs a preset ({', '.join(config.presets())}) as its first word, or --config"
        )
    settings = config.from_dict(_switched(values, start, command))
    _check_on(argv, settings)
    if command.out is None and command.preset is None:
        raise InputError("--config needs --out DIR too")
    out = as_path(command.out or Path("runs") / str(command.preset))
    control = command.control
    if not control and command.preset and settings.schedule.kind == "cyclic":
        control = ("shuffled",)

    from recovery_probe.functions import split as split_hook
    from recovery_probe.train.fitting import fit

    return fit(
        settings,
        out,
        control=control,
        hooks=[split_hook(text) for text in command.hook],
        hook_during=command.hook_during,
        overwrite=command.overwrite,
        resume=command.resume,
        force=command.force,
    )


def _start(argv: Sequence[str]) -> Settings | None:
    """The settings that the preset or file in `argv` gives, with the plug-ins that `argv` chooses
    and none of their settings yet; None for neither a preset nor a file."""
    files = flags.given(argv, "config")
    named = not argv[0].startswith("-")
    if named and files:
        raise InputError(
            f"start from preset {argv[0]!r} or from --config {files[0]}, not from both"
        )
    if not (named or files):
        return None
    start = config.preset(argv[0]) if named else config.load(Path(files[-1]))
    changes: dict[str, Any] = {}
    for part, (_, selector) in config.CHOICES.items():
        if words := flags.given(argv, f"{part}.{selector}"):
            changes[f"{part}.{selector}"] = words[-1]
    for group, adding in (("recorders", "record"), ("interventions", "intervene")):
        listed = flags.given(argv, group) or getattr(start, group)
        live = ["live_report"] if group == "recorders" and "--live" in argv else []
        changes[group] = list(dict.fromkeys([*listed, *flags.given(argv, adding), *live]))
    return config.changed(start, **changes)


def _named(argv: Sequence[str], settings: Settings) -> Iterator[str]:
    """The settings of plug-ins that the words name."""
    for group, flag in (("recorders", "record"), ("interventions", "intervene")):
        for spec in dict.fromkeys(flags.given(argv, flag)):
            for f in plugins.own_fields(plugins.find(group, spec)):
                yield f"{plugins.key_of(spec)}.{f.name}"
    for part, (_, selector) in config.CHOICES.items():
        if flags.given(argv, f"{part}.{selector}"):
            for f in plugins.own_fields(config.chosen(settings, part)[0]):
                if (name := f"{part}.{f.name}") not in FIRST:
                    yield name


def _check_on(argv: Sequence[str], settings: Settings) -> None:
    """Raise `InputError` for a setting of a recorder or an intervention that is off."""
    names = [word[2:].partition("=")[0] for word in argv if word.startswith("--")]
    for group, flag in (("recorders", "--record"), ("interventions", "--intervene")):
        on = [plugins.key_of(spec) for spec in getattr(settings, group)]
        for name in names:
            key, dot, _ = name.partition(".")
            if dot and key in plugins.ours(group) and key not in on:
                raise InputError(f"--{name}: {key} is off; add {flag} {key}")


def _switched(values: dict[str, Any], start: Settings, command: Train) -> dict[str, Any]:
    """Nested settings, with recorders and interventions as the flags switch them."""
    for name in command.no_record:
        if name not in start.recorders:
            raise InputError(f"--no-record {name}: not on; on are {', '.join(start.recorders)}")
    values["recorders"] = [n for n in start.recorders if n not in command.no_record]
    values["interventions"] = list(start.interventions)
    return values

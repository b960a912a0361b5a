"""The command line: `recovery-probe train …`, `analyze …`, `simulate …`, `calibrate …`, and the
same as modules.

A mistake of the user's is one line on standard error and exit code 2, never a traceback.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, make_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from recovery_probe import config, flags, plugins
from recovery_probe.errors import Diverged, HookError, InputError
from recovery_probe.record.folder import as_path
from recovery_probe.settings import Seed, Settings
from recovery_probe.spelling import nearest

PATIENCE = 5  # seconds


def _words(metavar: str) -> Any:
    """A flag that takes several words, and may come several times."""
    return tyro.conf.arg(metavar=f"{metavar} …", help_behavior_hint="")


@dataclass(frozen=True)
class Train:
    """Fine-tune a network on the same documents, over and over, and record what it forgets.

    Starts from a preset or a TOML file; every setting can be changed by its dotted name:

      python -m recovery_probe.train quickstart --out runs/long --epochs 12 --optimizer.lr 0.05
    """

    # the preset to start from
    preset: Annotated[tyro.conf.Positional[str | None], tyro.conf.arg(metavar="PRESET")] = None
    # a TOML file to start from instead, such as the config.toml of a run
    config: Path | None = None
    # the directory to write; runs/PRESET when not given
    out: Path | None = None
    # other schedules, in which the matched run is trained too (shuffled, or
    # shuffled:keep_first=true); twin: the run again, from weights changed by one unit in the last
    # place; none: one run, straight in the directory. shuffled when not given, of a cyclic preset;
    # none with --config
    control: Annotated[tuple[str, ...], _words("SCHEDULE")] = ()
    # recorders to add: installed names, or file.py:CLASS
    record: Annotated[tuple[str, ...], _words("NAME")] = ()
    # recorders to leave out
    no_record: Annotated[tuple[str, ...], _words("NAME")] = ()
    # interventions to add: installed names, or file.py:CLASS
    intervene: Annotated[tuple[str, ...], _words("NAME")] = ()
    # hook functions to record, such as 'mine.py:f@blocks.*.attn.hook_pattern', where * stands for
    # anything
    hook: Annotated[tuple[str, ...], _words("FILE:FUNCTION@PATTERN")] = ()
    # the passes that hooks see; training when not given
    hook_during: Literal["training", "evaluation", "both"] | None = None
    # train although the record may not fit on the disk
    force: tyro.conf.FlagCreatePairsOff[bool] = False
    # replace a run that is there already, and all that lies in its folder
    overwrite: tyro.conf.FlagCreatePairsOff[bool] = False


@dataclass(frozen=True)
class Analyze:
    """Put questions to a recorded run: numbers, figures and a report, written beside it.

    python -m recovery_probe.analyze runs/quickstart --analysis recovery --analysis loss_curves
    """

    # runs that differ in their seed alone, and controls (their own when none is given); or the
    # directory of one run and its control
    runs: Annotated[tyro.conf.Positional[tuple[Path, ...]], _words("RUN")] = ()
    # analyses to do, from --list or file.py:NAME; when not given, all installed ones that need a
    # run
    analysis: Annotated[tuple[str, ...], _words("NAME")] = ()
    # let analyses run the model again from checkpoints, which takes torch and time
    from_checkpoint: tyro.conf.FlagCreatePairsOff[bool] = False
    # where to write; the run's own directory when there is one run
    out: Path | None = None
    # the report: html (one page), md (Markdown with PNG figures)
    format: tuple[Literal["html", "md"], ...] = ("html",)
    # list the installed analyses and stop
    list: tyro.conf.FlagCreatePairsOff[bool] = False


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
    analysis: Annotated[tuple[str, ...], _words("NAME")] = ()


def train(argv: Sequence[str]) -> None:
    """`python -m recovery_probe.train [PRESET] [--config FILE] [--out DIR] [--SETTING VALUE …]`"""
    if not argv:
        print("presets (python -m recovery_probe.train PRESET --out DIR):")
        for name, about in config.presets().items():
            print(f"  {name:<12}{about}")
        return
    start = _start(argv)
    named = "PRESET" if argv[0].startswith("-") else argv[0]
    settings_flags = flags.of_settings(start or config.resolved(Settings()))
    argv = flags.spread(argv, "seed", [f"seed.{f.name}" for f in fields(Seed)])
    command, values = flags.parse(Train, settings_flags, argv, prog=f"train {named}")
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

    from recovery_probe.analyze.perform import analyze as analyze_run
    from recovery_probe.functions import split as split_hook
    from recovery_probe.train.fitting import fit

    run = fit(
        settings,
        out,
        control=control,
        hooks=[split_hook(text) for text in command.hook],
        hook_during=command.hook_during,
        overwrite=command.overwrite,
        force=command.force,
    )
    _tell(analyze_run(run, run.controls), run.path)


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
        changes[group] = list(dict.fromkeys([*listed, *flags.given(argv, adding)]))
    return config.changed(start, **changes)


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


def analyze(argv: Sequence[str]) -> None:
    """`python -m recovery_probe.analyze [RUN …] [CONTROL …] [--analysis NAME …] [--list]`"""
    names = dict.fromkeys([*flags.given(argv, "analysis"), *plugins.ours("analyses")])
    known = {plugins.key_of(name): plugins.find("analyses", name) for name in names}
    tables = [table for key, kind in known.items() for table in flags.of_plugin(kind, key, {})]
    options = make_dataclass("Options", tables)
    command, values = flags.parse(Analyze, options, argv, prog="analyze")
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
    _tell(summary, command.out or runs[0].path, command.format)


def _list() -> None:
    """The installed analyses and their questions."""
    names = sorted(plugins.installed("analyses"))
    for name in names:
        try:
            question = plugins.find("analyses", name).question
        except InputError as error:
            question = str(error)
        print(f"{name:<{max(map(len, names)) + 2}}{question}")


def simulate(argv: Sequence[str]) -> None:
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
    run = simulate_run(kind, out, overwrite=command.overwrite, **values)
    print(f"{kind.name}: {run.path}, and its control {run.controls[0].path}")


def calibrate(argv: Sequence[str]) -> None:
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


def _first_sentence(group: str, name: str) -> str:
    """Of what a plug-in says of itself; why it cannot be loaded, where it cannot."""
    try:
        about = " ".join((plugins.find(group, name).__doc__ or "").split())
    except InputError as error:
        return str(error)
    return about.partition(". ")[0].rstrip(".") + "."


def main(argv: Sequence[str] | None = None) -> None:
    """Run one sub-command and exit."""
    commands: dict[str, Callable[[Sequence[str]], None]] = {
        "train": train,
        "analyze": analyze,
        "simulate": simulate,
        "calibrate": calibrate,
    }
    words = list(sys.argv[1:] if argv is None else argv)
    with _stoppable() as stopped:
        try:
            if words[:1] in ([], ["-h"], ["--help"]):
                names = ",".join(commands)
                print(f"usage: recovery-probe {{{names}}} …   (--help after each tells more)")
            elif words[0] in commands:
                commands[words[0]](words[1:])
            else:
                raise InputError(
                    f"no command {words[0]!r}{nearest(words[0], commands)}; commands: "
                    + ", ".join(commands)
                )
        except InputError as error:
            _stop(error, 2)
        except BrokenPipeError:  # whoever read our output has read enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        except OSError as error:
            _stop(f"{error.filename or 'input and output'}: {error.strerror or error}", 2)
        except (Diverged, HookError) as error:
            _stop(error, 1)
        except KeyboardInterrupt as told:
            _stop(str(told) or "interrupted", 143 if signal.SIGTERM in stopped else 130)


@contextlib.contextmanager
def _stoppable() -> Iterator[dict[int, float]]:
    """SIGTERM, with which schedulers and containers end a job, ends it as an interrupt does. More
    of either are ignored while the run says how it ended, and end the process after `PATIENCE`.
    Yields what has come -> when."""
    came: dict[int, float] = {}

    def stop(number: int, _: object) -> None:
        if not came:
            came[number] = time.monotonic()
            raise KeyboardInterrupt
        if time.monotonic() - next(iter(came.values())) > PATIENCE:
            os._exit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield came
        return
    before = {s: signal.signal(s, stop) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield came
    finally:
        if not came:  # otherwise the process is about to end
            for number, handler in before.items():
                signal.signal(number, handler)


def _tell(summary: dict[str, Any], path: Path, formats: Sequence[str] = ("html",)) -> None:
    for name, found in summary["analyses"].items():
        if "verdict" in found:
            print(f"{name}: {found['verdict']}")
    for name, reason in summary["not_done"].items():
        print(f"{name}: not done: {reason}")
    for kind in formats:
        print(f"report: {path / f'report.{kind}'}")


def _stop(message: object, code: int) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(code)

"""The command line: `recovery-probe train …`, `recovery-probe analyze …`, and the same as modules.

A mistake of the user's is one line on standard error and exit code 2, never a traceback.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import tyro

from recovery_probe import config
from recovery_probe.errors import Diverged, HookError, InputError
from recovery_probe.store import as_path

C = TypeVar("C")
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

    # the settings of the run, each by its own name
    settings: Annotated[config.Settings, tyro.conf.arg(name=""), tyro.conf.FlagConversionOff]
    # the preset to start from
    preset: Annotated[tyro.conf.Positional[str | None], tyro.conf.arg(metavar="PRESET")] = None
    # a TOML file to start from instead, such as the config.toml of a run
    config: Path | None = None
    # the directory to write; runs/PRESET when not given
    out: Path | None = None
    # recorders to add: installed names, or file.py:CLASS
    record: Annotated[tuple[str, ...], _words("NAME")] = ()
    # recorders to leave out
    no_record: Annotated[tuple[str, ...], _words("NAME")] = ()
    # hook functions to record, such as 'mine.py:f@blocks.*.attn.hook_pattern', where * stands for
    # anything
    hook: Annotated[tuple[str, ...], _words("FILE:FUNCTION@PATTERN")] = ()
    # the passes that hooks see; training when not given, both for hooks that may edit
    hook_during: Literal["training", "evaluation", "both"] | None = None
    # let hooks replace activations, which changes training
    hook_may_edit: tyro.conf.FlagCreatePairsOff[bool] = False
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
    # analyses to do, from --list or file.py:NAME; all installed ones when not given
    analysis: Annotated[tuple[str, ...], _words("NAME")] = ()
    # let analyses run the model again from checkpoints, which takes torch and time
    from_checkpoint: tyro.conf.FlagCreatePairsOff[bool] = False
    # where to write; the run's own directory when there is one run
    out: Path | None = None
    # the report: html (one page), md (Markdown with PNG figures)
    format: tuple[Literal["html", "md"], ...] = ("html",)
    # list the installed analyses and stop
    list: tyro.conf.FlagCreatePairsOff[bool] = False


def train(argv: Sequence[str]) -> None:
    """`python -m recovery_probe.train [PRESET] [--config FILE] [--out DIR] [--SETTING VALUE …]`"""
    if not argv:
        print("presets (python -m recovery_probe.train PRESET --out DIR):")
        for name, about in config.presets().items():
            print(f"  {name:<12}{about}")
        return
    start = _start(argv)
    named = "PRESET" if argv[0].startswith("-") else argv[0]
    default = Train(settings=start or config.Settings())
    command = parse(Train, argv, prog=f"train {named}", default=default)
    if start is None:
        raise InputError(
            f"train needs a preset ({', '.join(config.presets())}) as its first word, or --config"
        )
    settings = config.check(command.settings)
    for name in command.no_record:
        if name not in settings.recorders:
            raise InputError(f"--no-record {name}: not on; on are {', '.join(settings.recorders)}")
    kept = [n for n in settings.recorders if n not in command.no_record]
    recorders = tuple(dict.fromkeys([*kept, *command.record]))
    settings = replace(settings, recorders=recorders)
    if command.out is None and command.preset is None:
        raise InputError("--config needs --out DIR too")
    out = as_path(command.out or Path("runs") / str(command.preset))

    from recovery_probe.analyze import analyze as analyze_run
    from recovery_probe.recorders.hook import split as split_hook
    from recovery_probe.train import fit

    hooks = [split_hook(text) for text in command.hook]
    run = fit(
        settings,
        out,
        hooks=hooks,
        hook_may_edit=command.hook_may_edit,
        hook_during=command.hook_during,
        overwrite=command.overwrite,
        force=command.force,
    )
    for control in run.controls:
        analyze_run(control)
    _tell(analyze_run(run, run.controls), run.path)


def analyze(argv: Sequence[str]) -> None:
    """`python -m recovery_probe.analyze RUN [RUN …] [CONTROL …] [--analysis NAME …] [--list]`"""
    from recovery_probe import plugins
    from recovery_probe.analyze import analyze as analyze_runs
    from recovery_probe.analyze.groups import seeds_and_controls
    from recovery_probe.analyze.perform import instance
    from recovery_probe.run import open_runs

    command = parse(Analyze, argv, prog="analyze", default=Analyze())
    if command.list:
        names = sorted(plugins.installed("analyses"))
        for name in names:
            question = instance(name).question
            print(f"{name:<{max(map(len, names)) + 2}}{question}")
        return
    chosen = [instance(name) for name in command.analysis]
    runs, controls = seeds_and_controls([r for path in command.runs for r in open_runs(path)])
    summary = analyze_runs(
        runs,
        controls or [control for run in runs for control in run.controls],
        chosen,
        out=command.out and as_path(command.out),
        from_checkpoint=command.from_checkpoint,
        formats=command.format,
    )
    _tell(summary, command.out or runs[0].path, command.format)


def main(argv: Sequence[str] | None = None) -> None:
    """Run one sub-command and exit."""
    commands: dict[str, Callable[[Sequence[str]], None]] = {"train": train, "analyze": analyze}
    words = list(sys.argv[1:] if argv is None else argv)
    with _stoppable() as stopped:
        try:
            if words[:1] in ([], ["-h"], ["--help"]):
                print("usage: recovery-probe {train,analyze} …   (--help after either tells more)")
            elif words[0] in commands:
                commands[words[0]](words[1:])
            else:
                raise InputError(
                    f"no command {words[0]!r}{config.nearest(words[0], commands)}; commands: "
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


def parse(command: type[C], argv: Sequence[str], *, prog: str, default: C) -> C:
    """The command tyro reads from `argv`; an `InputError` of one line where it cannot."""
    told = io.StringIO()
    try:
        with contextlib.redirect_stderr(told):
            parsed, unknown = tyro.cli(
                command,
                prog=f"recovery-probe {prog}",
                args=_gathered(argv, default),
                default=default,
                return_unknown_args=True,
                use_underscores=True,
                config=(tyro.conf.DisallowNone,),
                registry=_registry(),
            )
    except SystemExit as stop:
        if stop.code:
            raise InputError(_one_line(told.getvalue())) from None
        raise
    for word in unknown:
        if word.startswith("--"):
            name = word.removeprefix("--").partition("=")[0]
            known = [*config.names(), *(f.name for f in fields(command))]  # type: ignore[arg-type]
            raise InputError(f"unknown setting --{name}{config.nearest(name, known)}")
        raise InputError(f"unexpected argument {word!r}")
    return parsed


def _gathered(argv: Sequence[str], default: object) -> list[str]:
    """The words, with all values of a flag that takes several behind its one occurrence: argument
    parsers keep the last occurrence alone, without a word."""
    several = {f.name for f in fields(default) if isinstance(getattr(default, f.name), tuple)}  # type: ignore[arg-type]
    several.add("recorders")
    values: dict[str, list[str]] = {}
    others: list[str] = []
    to = others
    for word in argv:
        name, equals, value = word.removeprefix("--").partition("=")
        if not word.startswith("--"):
            to.append(word)
        elif (key := name.replace("-", "_")) in several:
            to = values.setdefault(key, [])
            to += [value] if equals else []
        else:
            to = others
            to.append(word)
    return [*others, *(w for name, given in values.items() for w in (f"--{name}", *given))]


def _start(argv: Sequence[str]) -> config.Settings | None:
    """The settings that the preset or file in `argv` gives, before any change; None for neither."""
    files = [b for a, b in itertools.pairwise(argv) if a == "--config"]
    files += [a.removeprefix("--config=") for a in argv if a.startswith("--config=")]
    named = not argv[0].startswith("-")
    if named and files:
        raise InputError(
            f"start from preset {argv[0]!r} or from --config {files[0]}, not from both"
        )
    if files:
        return config.load(Path(files[-1]))
    return config.preset(argv[0]) if named else None


def _registry() -> tyro.constructors.ConstructorRegistry:
    """`true` and `false` as TOML writes them."""
    registry = tyro.constructors.ConstructorRegistry()

    @registry.primitive_rule
    def _(info: tyro.constructors.PrimitiveTypeInfo) -> Any:
        if info.type is not bool:
            return None
        return tyro.constructors.PrimitiveConstructorSpec(
            nargs=1,
            metavar="{true,false}",
            instance_from_str=lambda words: {"true": True, "false": False}[words[0].lower()],
            is_instance=lambda value: isinstance(value, bool),
            str_from_instance=lambda value: [str(value).lower()],
            choices=("true", "false", "True", "False"),
        )

    return registry


def _one_line(box: str) -> str:
    """What tyro drew in a box, without its title, its frame and its hints: they stand between
    rules, of plain dashes where the terminal knows no others."""
    frame = re.compile(r"[│╭╮╰╯|]")
    parts = re.split(r"─{5,}|-{5,}", frame.sub(" ", box))
    said = parts[1] if len(parts) > 1 else box
    return " ".join(said.split()).removeprefix("Error parsing ")


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

"""Flags made from settings: those of a run, and of the plug-ins' own classes.

A third party's plug-in is imported only when it is named; ours are known beforehand, so that their
settings stand in `--help`.
"""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, field, fields, is_dataclass, make_dataclass
from typing import Annotated, Any, TypeVar

import tyro

from recovery_probe import config, plugins
from recovery_probe.errors import InputError
from recovery_probe.saying import be_quiet
from recovery_probe.settings import Settings
from recovery_probe.spelling import nearest

C = TypeVar("C")
QUIET = Annotated[
    tyro.conf.FlagCreatePairsOff[bool],
    tyro.conf.arg(help="show no progress; say what is wrong, and what was found"),
]


def of_settings(settings: Settings) -> type:
    """A dataclass with a field for each setting, and their values as defaults."""
    parts: list[tuple[str, Any, Any]] = []
    hints, comments = plugins.hints(Settings), plugins.comments(Settings)
    for name in config.core_names():
        value = getattr(settings, name)
        if name in config.PARTS:
            kinds = [type(value)]
            if name in config.CHOICES:
                kinds.append(config.chosen(settings, name)[0])
            parts.append(_table(name, kinds, config.flat_part(value), comments[name]))
        else:
            hint: Any = Annotated[hints[name], tyro.conf.arg(help=comments[name])]
            parts.append((name, hint, field(default=value)))
    for group in config.LISTS:
        named = getattr(settings, group)
        for spec in dict.fromkeys([*named, *plugins.ours(group)]):
            kind, key = plugins.find(group, spec), plugins.key_of(spec)
            parts += of_plugin(kind, key, settings.tables.get(key, {}))
    return make_dataclass("Settings", parts)


def of_plugin(kind: type, key: str, values: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """The field that holds a plug-in's settings; none, when it has none."""
    about = (kind.__doc__ or "").strip().split("\n\n")[0]
    return [_table(key, [kind], values, " ".join(about.split()))] if _own(kind) else []


def of_one(kind: type) -> type:
    """A dataclass with a field for each setting of a plug-in that is all there is to set."""
    return _table(kind.__name__, [kind], {}, "settings")[1]


def _table(
    name: str, kinds: Sequence[type], values: Mapping[str, Any], about: str
) -> tuple[str, Any, Any]:
    """A field that is a table of the settings of several classes."""
    own: list[tuple[str, Any, Any]] = []
    for kind in kinds:
        hints, comments = plugins.hints(kind), plugins.comments(kind)
        for f in _own(kind):
            value = values.get(f.name, plugins.default_of(f))
            value = tuple(value) if isinstance(value, list) else value
            help_ = tyro.conf.arg(help=comments.get(f.name, ""))
            hint: Any = Annotated[hints[f.name], help_]
            own.append((f.name, hint, field(default=value)))
    made = make_dataclass(name, own)
    made.__doc__ = about
    return name, made, field(default_factory=made)


def _own(kind: type) -> list[Any]:
    """The settings of a class that a word can stand for."""
    return [f for f in plugins.own_fields(kind) if f.name != "own"]


def given(argv: Sequence[str], *names: str) -> list[str]:
    """The words behind every occurrence of a flag, up to the next flag."""
    found: list[str] = []
    taking = False
    for word in argv:
        if word.startswith("--"):
            name, equals, value = word.removeprefix("--").partition("=")
            taking = name.replace("-", "_") in names
            found += [value] if taking and equals else []
        elif taking:
            found.append(word)
    return found


def spread(argv: Sequence[str], flag: str, others: Sequence[str]) -> list[str]:
    """The words with a flag's value given to each of several others, before what is said of these
    themselves."""
    words, rest = iter(argv), []
    values: list[str] = []
    for word in words:
        name, equals, value = word.partition("=")
        if name == f"--{flag}":
            values.append(value if equals else next(words, ""))
        else:
            rest.append(word)
    return [f"--{other}={value}" for value in values for other in others] + rest


def parse(
    command: type[C],
    settings: type,
    argv: Sequence[str],
    *,
    prog: str,
    first: Sequence[str] | None = None,
) -> tuple[C, dict[str, Any]]:
    """The command that tyro reads from `argv`, and nested settings, each of which has a flag of its
    own name; an `InputError` of one line where it cannot. `first`: the flags that `--help` tells
    of, each in a few words, and `--help-all` of all; all when not said."""
    if first is not None and {"-h", "--help"} & set(argv):
        _print_brief(command, settings, first, prog)
        raise SystemExit(0)
    argv = ["--help" if word in ("--help-all", "--help_all") else word for word in argv]
    flat = tyro.conf.arg(name="")
    whole = make_dataclass(
        command.__name__,
        [
            ("command", Annotated[command, flat], field(default_factory=command)),
            (
                "settings",
                Annotated[settings, flat, tyro.conf.FlagConversionOff],
                field(default_factory=settings),
            ),
            ("quiet", QUIET, field(default=False)),
        ],
    )
    whole.__doc__ = command.__doc__
    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box):
            parsed: Any
            parsed, unknown = tyro.cli(
                whole,
                prog=f"recovery-probe {prog}",
                args=_gathered(argv, _several(command) | _several(settings)),
                return_unknown_args=True,
                use_underscores=True,
                config=(tyro.conf.DisallowNone,),
                registry=_registry(),
            )
    except SystemExit as stop:
        if stop.code:
            raise InputError(_one_line(box.getvalue())) from None
        raise
    for word in unknown:
        if word.startswith("--"):
            name = word.removeprefix("--").partition("=")[0]
            known = [*_names(command), *_names(settings), "quiet"]
            owners = config.owners(name.replace("-", "_"))
            mend = f"; it is a setting of {', '.join(owners)}" if owners else nearest(name, known)
            raise InputError(f"unknown setting --{name}{mend}")
        raise InputError(f"unexpected argument {word!r}")
    if parsed.quiet:
        be_quiet()
    return parsed.command, asdict(parsed.settings)


def _print_brief(command: type, settings: type, first: Sequence[str], prog: str) -> None:
    """The help of a few flags in one box."""
    every = _arguments(command) | _arguments(settings)
    shown: list[tuple[str, Any, Any]] = []
    for i, name in enumerate(first):
        hint, default, about = every[name]
        words = re.split(r"[;.] ", about)[0]
        arg = tyro.conf.arg(name=name, help=words)
        kind: Any = Annotated[hint, arg]
        if "." in name:
            kind = Annotated[kind, tyro.conf.FlagConversionOff]
        shown.append((f"flag{i}", kind, field(default=default)))
    shown.append(("quiet", QUIET, field(default=False)))
    brief = make_dataclass(command.__name__, shown)
    brief.__doc__ = command.__doc__
    prog = f"recovery-probe {prog}"
    with contextlib.suppress(SystemExit):
        tyro.cli(
            brief,
            prog=prog,
            args=["--help"],
            use_underscores=True,
            config=(tyro.conf.DisallowNone,),
            registry=_registry(),
        )
    print(f"{len(every) - len(first)} more settings: {prog} --help-all")


def _arguments(kind: type, before: str = "") -> dict[str, tuple[Any, Any, str]]:
    """Flag -> its type, its default, what is said of it."""
    found: dict[str, tuple[Any, Any, str]] = {}
    hints, comments = plugins.hints(kind), plugins.comments(kind)
    for f in fields(kind):
        if isinstance(f.default_factory, type) and is_dataclass(f.default_factory):
            found |= _arguments(f.default_factory, f"{before}{f.name}.")
        else:
            said = [getattr(m, "help", None) for m in getattr(hints[f.name], "__metadata__", ())]
            about = next((text for text in said if text), comments.get(f.name, ""))
            found[before + f.name] = (hints[f.name], f.default, about)
    return found


def _gathered(argv: Sequence[str], several: set[str]) -> list[str]:
    """The words, with all values of a flag that takes several behind its one occurrence: argument
    parsers keep the last occurrence alone, without a word."""
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
    return [*others, *(w for name, words in values.items() for w in (f"--{name}", *words))]


def _names(command: type, before: str = "") -> dict[str, Any]:
    """Flag -> its default."""
    names: dict[str, Any] = {}
    for f in fields(command):
        if isinstance(f.default_factory, type) and is_dataclass(f.default_factory):
            names |= _names(f.default_factory, f"{before}{f.name}.")
        else:
            names[before + f.name] = f.default
    return names


def _several(command: type) -> set[str]:
    """The flags that take any number of words."""
    return {name for name, default in _names(command).items() if isinstance(default, tuple)}


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
    said = " ".join(said.split()).removeprefix("Error parsing ")
    said = re.sub(r"invalid literal for int\(\) with base 10: (.*)", r"\1 is no whole number", said)
    return re.sub(r"could not convert string to float: (.*)", r"\1 is no number", said)

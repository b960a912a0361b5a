"""The one door for plug-ins, and the settings that each of them owns.

A plug-in is a class, found by an installed name (an entry point in the group
`recovery_probe.GROUP`), by `file.py:CLASS`, or given itself. The class *is* its settings: a
dataclass whose fields, typed, commented and with defaults, are its table in TOML, its flags on the
command line, and their help.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import inspect
import json
import sys
import sysconfig
import textwrap
import traceback
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, TypeVar, get_type_hints

import pydantic

from recovery_probe.errors import InputError
from recovery_probe.spelling import nearest

STRICT: pydantic.ConfigDict = {"extra": "forbid", "strict": True, "allow_inf_nan": False}
AUTHORS = (Exception, SystemExit)  # what the code of a plug-in may raise, whoever wrote it


class Plugin:
    """The base of every plug-in's class."""

    group: ClassVar[str] = ""  # of entry points: recorders, interventions, schedules, …
    name: str

    __pydantic_config__: ClassVar[pydantic.ConfigDict] = STRICT


P = TypeVar("P", bound=Plugin)


@functools.cache
def installed(group: str) -> dict[str, EntryPoint]:
    """Name -> entry point of every installed plug-in of a group, ours and others' alike.

    Raises `InputError` when two packages offer the same name.
    """
    found: dict[str, EntryPoint] = {}
    for point in entry_points(group=f"recovery_probe.{group}"):
        if point.name in found and found[point.name].value != point.value:
            raise InputError(
                f"two installed packages offer {group} {point.name!r}: {found[point.name].value} "
                f"and {point.value}; uninstall one"
            )
        found[point.name] = point
    return found


def ours(group: str) -> list[str]:
    """The installed plug-ins that came with this package: they import in no time."""
    points = installed(group).items()
    return [name for name, point in points if point.value.startswith("recovery_probe")]


def key_of(spec: str) -> str:
    """The name of a plug-in's table: an installed name itself, `CLASS` of `file.py:CLASS`."""
    return spec.rpartition(":")[2]


def find(group: str, plugin: str | type) -> type[Any]:
    """The class of the plug-in of a group that `plugin` names or is.

    A file is run only because the user names it. Raises `InputError` when there is no such
    plug-in, its file cannot be run, or it is of another group.
    """
    found = load(group, plugin) if isinstance(plugin, str) else plugin
    if not (isinstance(found, type) and issubclass(found, Plugin) and found.group == group):
        what = found.__name__ if isinstance(found, type) else f"of type {type(found).__name__}"
        raise InputError(f"{plugin!r} is {what}, and not a class of {group}")
    if not isinstance(getattr(found, "name", None), str):
        raise InputError(f"{plugin!r}: class {found.__name__} has no name: name = '...'")
    return found


def load(group: str, spec: str) -> object:
    """What an installed name of a group, or `file.py:NAME`, stands for. Raises `InputError`."""
    file, colon, attribute = spec.rpartition(":")
    return _from_file(Path(file), attribute) if colon else _installed(group, spec)


def made(kind: type[P], values: Mapping[str, Any], where: str) -> P:
    """A plug-in with these settings, given as plain data; what is missing takes its default.

    `where` is the name of its table, for the `InputError` that a setting it does not have, or one
    that cannot be, raises.
    """
    known = [f.name for f in own_fields(kind)]
    for name in values:
        if name not in known:
            near = nearest(name, known, where)
            raise InputError(f"unknown setting {where}.{name}{near or _others(kind, name)}")
    try:
        if not is_dataclass(kind):
            return kind()
        # As JSON: strict about numbers and strings, and content to make tuples of lists.
        return _adapter(kind).validate_json(as_json(values, where))
    except pydantic.ValidationError as error:
        raise InputError("; ".join(explained(e, where) for e in error.errors())) from None
    except InputError:
        raise
    except AUTHORS as error:
        raise InputError(f"{where}: {kind.__name__} cannot be made: {reason(error)}") from error


def as_json(values: Mapping[str, Any], where: str = "") -> str:
    """Settings as JSON. Raises `InputError` for a text that is none, such as bytes of a command
    line that are no UTF-8."""
    for name, value in values.items():
        dotted = f"{where}.{name}" if where else name
        if isinstance(value, Mapping):
            as_json(value, dotted)
            continue
        try:
            json.dumps(value, default=str, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError:
            raise InputError(f"{dotted} = {value!r}: cannot be written as UTF-8") from None
    return json.dumps(dict(values), default=str)


def _others(kind: type[Plugin], name: str) -> str:
    """Which of our plug-ins have a setting that this one has not, and what it has instead."""
    having = [
        other
        for other in sorted(ours(kind.group))
        if name in {f.name for f in own_fields(find(kind.group, other))}
    ]
    own = ", ".join(f.name for f in own_fields(kind)) or "none"
    return (f": it belongs to {', '.join(having)}" if having else "") + f"; {kind.name} has {own}"


def own_fields(kind: type) -> list[Any]:
    """The fields of a plug-in's class that are its settings."""
    return [f for f in fields(kind) if f.init] if is_dataclass(kind) else []


def settings_of(plugin: Plugin) -> dict[str, Any]:
    """A plug-in's settings, as plain data."""
    values = {f.name: getattr(plugin, f.name) for f in own_fields(type(plugin))}
    return {n: list(v) if isinstance(v, tuple) else v for n, v in values.items()}


def in_words(settings: Mapping[str, Any]) -> list[str]:
    """`lr 0.1`: each of a plug-in's settings that says something."""
    return [f"{n} {v:g}" if isinstance(v, float) else f"{n} {v}" for n, v in settings.items() if v]


def explained(error: Any, where: str = "") -> str:
    """What pydantic found wrong, with the setting's dotted name and the value it was given."""
    # Where a setting may be of two types, pydantic adds the type it tried.
    parts = [str(part) for part in error["loc"]]
    name = ".".join([where, *parts[:1]] if where else parts)
    return f"{name} = {error['input']!r}: {error['msg'].replace('Input s', 's')}"


def hints(kind: type) -> dict[str, Any]:
    """Field -> its type, of those that are settings alone: others may be of types that are only
    there for type checkers."""
    found: dict[str, Any] = {}
    for f in own_fields(kind):
        home = next(c for c in kind.__mro__ if f.name in inspect.get_annotations(c))
        namespace = vars(sys.modules[home.__module__])
        own = SimpleNamespace(__annotations__={f.name: f.type})
        found |= get_type_hints(own, namespace, include_extras=True)
    return found


@functools.cache
def comments(kind: type) -> dict[str, str]:
    """Field -> the comment above or beside it, in a class or those it is derived from."""
    found: dict[str, str] = {}
    for part in reversed(kind.__mro__):
        try:
            lines = textwrap.dedent(inspect.getsource(part)).splitlines()
            (body,) = ast.parse("\n".join(lines)).body
        except (OSError, TypeError, SyntaxError, ValueError):  # made in a session, or built in
            continue
        for node in getattr(body, "body", ()):
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                found[node.target.id] = _comment(lines, node.lineno - 1, (node.end_lineno or 1) - 1)
    return found


def _comment(lines: list[str], first: int, last: int) -> str:
    above: list[str] = []
    while first and lines[first - 1].strip().startswith("#"):
        first -= 1
        above.insert(0, lines[first].strip().lstrip("# "))
    beside = lines[last].partition("  # ")[2]
    return " ".join(above or [beside]).strip()


def default_of(field: Any) -> Any:
    """A field's default. Raises `InputError` for a setting without one."""
    if field.default is not MISSING:
        return field.default
    if field.default_factory is not MISSING:
        return field.default_factory()
    raise InputError(f"setting {field.name!r} has no default; give it one")


def reason(error: BaseException) -> str:
    """`ValueError: what it says (mine.py:17)`: with the innermost line that is neither this
    package's nor a library's."""
    places = [f"{Path(f.filename).name}:{f.lineno}" for f in _frames(error)]
    return f"{type(error).__name__}: {error}" + (f" ({places[-1]})" if places else "")


def _frames(error: BaseException) -> list[traceback.FrameSummary]:
    paths = sysconfig.get_paths()
    libraries = (paths[name] for name in ("stdlib", "purelib", "platlib"))
    theirs = [Path(__file__).parent, *map(Path, libraries)]
    return [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith("<")
        and not any(Path(frame.filename).is_relative_to(place) for place in theirs)
    ]


@functools.cache
def _adapter(kind: type[P]) -> pydantic.TypeAdapter[P]:
    return pydantic.TypeAdapter(kind)


def _installed(group: str, name: str) -> object:
    known = installed(group)
    if name not in known:
        raise InputError(
            f"no {group} plug-in {name!r}{nearest(name, known)}; installed: "
            f"{', '.join(sorted(known))}; your own: file.py:NAME"
        )
    try:
        return known[name].load()
    except AUTHORS as error:
        raise InputError(
            f"{group} plug-in {name!r} ({known[name].value}) fails when imported: {reason(error)}"
        ) from error


def _from_file(file: Path, attribute: str) -> object:
    if not file.is_file():
        raise InputError(f"{file}:{attribute}: no such file as {file}")
    module = _run(file.resolve(), file.stat().st_mtime_ns)
    if not hasattr(module, attribute):
        names = [n for n in vars(module) if not n.startswith("_")]
        raise InputError(f"{file} defines no {attribute!r}{nearest(attribute, names)}")
    return getattr(module, attribute)


@functools.cache
def _run(file: Path, _: int) -> object:
    """The module of a file as it was last changed; run once, however often it is named."""
    # A name of its own, so that no other module is hidden.
    name = f"recovery_probe_user_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise InputError(f"{file} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up there
    try:
        spec.loader.exec_module(module)
    except AUTHORS as error:
        raise InputError(f"{file}: fails when run: {reason(error)}") from error
    return module

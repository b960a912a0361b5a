"""The one door for plug-ins: an installed name, `file.py:NAME`, or the object itself."""

from __future__ import annotations

import importlib.util
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TypeVar, cast

from recovery_probe.config import nearest
from recovery_probe.errors import InputError

T = TypeVar("T")


def installed(kind: str) -> dict[str, EntryPoint]:
    """Name -> entry point of every installed plug-in of a kind, ours and others' alike.

    Raises `InputError` when two packages offer the same name.
    """
    found: dict[str, EntryPoint] = {}
    for point in entry_points(group=f"recovery_probe.{kind}"):
        if point.name in found and found[point.name].value != point.value:
            raise InputError(
                f"two installed packages offer {kind} {point.name!r}: {found[point.name].value} "
                f"and {point.value}; uninstall one"
            )
        found[point.name] = point
    return found


def find(kind: str, plugin: str | T, expected: type[T]) -> T:
    """The plug-in of a kind (`analyses`) that `plugin` names or is.

    A file is run only because the user names it here. Raises `InputError` when there is no such
    plug-in, its file cannot be run, or it is not an `expected`.
    """
    if isinstance(plugin, str):
        file, colon, attribute = plugin.rpartition(":")
        found = _from_file(Path(file), attribute) if colon else _installed(kind, plugin)
    else:
        found = plugin
    if not isinstance(found, expected):
        raise InputError(f"{plugin!r} is a {type(found).__name__}, not a {expected.__name__}")
    return found


def _installed(kind: str, name: str) -> object:
    known = installed(kind)
    if name not in known:
        raise InputError(
            f"no {kind} plug-in {name!r}{nearest(name, known)}; installed: "
            f"{', '.join(sorted(known))}; your own: file.py:NAME"
        )
    return cast(object, known[name].load())


def _from_file(file: Path, attribute: str) -> object:
    if not file.is_file():
        raise InputError(f"{file}:{attribute}: no such file as {file}")
    spec = importlib.util.spec_from_file_location(file.stem, file)
    if spec is None or spec.loader is None:
        raise InputError(f"{file}:{attribute}: {file} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise InputError(f"{file}: fails when run: {type(error).__name__}: {error}") from error
    if not hasattr(module, attribute):
        names = [n for n in vars(module) if not n.startswith("_")]
        raise InputError(f"{file} defines no {attribute!r}{nearest(attribute, names)}")
    return cast(object, getattr(module, attribute))

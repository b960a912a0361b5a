"""Settings read, checked, changed and written; presets.

`resolved` checks the settings of plug-ins against the plug-ins' classes and fills in what is
missing.
"""

from __future__ import annotations

import functools
import hashlib
import json
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields, is_dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

import pydantic
import tomli_w

from recovery_probe import plugins
from recovery_probe.errors import InputError
from recovery_probe.plugins import Plugin
from recovery_probe.settings import Documents, Seed, Settings, Table
from recovery_probe.spelling import nearest

PRESETS = resources.files("recovery_probe") / "presets"
# Part of the settings that chooses a plug-in -> the group it is of, and the setting that names it.
CHOICES = {
    "documents": ("documents", "source"),
    "schedule": ("schedules", "kind"),
    "optimizer": ("optimizers", "name"),
}
LISTS = ("recorders", "interventions")  # settings that name any number of plug-ins, and groups
MOST_STEPS = 10**8  # a year at three a second; the record is laid out for all of them beforehand
_ADAPTER = pydantic.TypeAdapter(Settings)


def from_dict(values: Mapping[str, Any], origin: str = "settings") -> Settings:
    """Checked settings from nested values; whatever is missing takes its default.

    `origin` says where the values come from, for the message of the `InputError` that an
    unknown name, a wrong type or an impossible value raises.
    """
    return resolved(as_written(values, origin), origin)


def as_written(values: Mapping[str, Any], origin: str = "settings") -> Settings:
    """The same without asking plug-ins: their settings are taken as they stand, and none of their
    code is run. For reading what was checked when it was written."""
    known = {f.name for f in fields(Settings)}
    core: dict[str, Any] = {n: v for n, v in values.items() if n in known}
    tables = {n: Table(v) for n, v in values.items() if n not in known and isinstance(v, dict)}
    strangers = [n for n in values if n not in known and n not in tables] + (
        ["tables"] if "tables" in values else []
    )
    if strangers:
        raise InputError(f"{origin}: unknown setting {strangers[0]}{_near(strangers[0])}")
    core |= {"seed": seeds(core["seed"])} if "seed" in core else {}
    core |= {"optimizer": _of_before(core["optimizer"])} if "optimizer" in core else {}
    own: dict[str, Table] = {}
    for part in CHOICES:
        if isinstance(core.get(part), dict):
            names = core_names(part)
            own[part] = Table({n: v for n, v in core[part].items() if n not in names})
            core[part] = {n: v for n, v in core[part].items() if n in names}
    try:
        # As JSON: strict about numbers and strings, and content to build dataclasses from tables.
        settings = _ADAPTER.validate_json(plugins.as_json(core))
    except InputError as error:
        raise InputError(f"{origin}: {error}") from None
    except pydantic.ValidationError as error:
        raise InputError(f"{origin}: " + "; ".join(map(_explain, error.errors()))) from None
    parts = {part: replace(getattr(settings, part), own=table) for part, table in own.items()}
    return replace(settings, tables=tables, **parts)


def _of_before(optimizer: Any) -> Any:
    """Of runs that were written when `reset` was true (each episode) or false."""
    if isinstance(optimizer, Mapping) and isinstance(optimizer.get("reset"), bool):
        return {**optimizer, "reset": "episode" if optimizer["reset"] else "never"}
    return optimizer


def resolved(settings: Settings, origin: str = "settings") -> Settings:
    """Settings with those of the plug-ins that they name checked by the plug-ins' own classes, and
    every default filled in; tables of what is not named are left out. Raises `InputError`."""
    try:
        parts: dict[str, Any] = {}
        for part in CHOICES:
            kind, own = chosen(settings, part)[0], getattr(settings, part).own
            parts[part] = replace(getattr(settings, part), own=checked(kind, own, part))
        tables: dict[str, Table] = {}
        for group in LISTS:
            for spec in getattr(settings, group):
                kind, key = plugins.find(group, spec), plugins.key_of(spec)
                if key in tables or key in core_names():
                    raise InputError(f"{group}: {spec}: the name {key!r} is taken")
                tables[key] = checked(kind, settings.tables.get(key, {}), key)
        for name in settings.tables.keys() - tables.keys():
            _check_unused(name, settings.tables[name])
    except InputError as error:
        raise InputError(f"{origin}: {error}") from error
    steps = settings.epochs * settings.documents.count * settings.steps
    if steps > MOST_STEPS:
        raise InputError(
            f"{origin}: epochs = {settings.epochs}, documents.count = {settings.documents.count} "
            f"and steps = {settings.steps} make {steps:.2g} gradient steps, more than "
            f"{MOST_STEPS:.0e}: ask for fewer"
        )
    if wrong := _misfit(settings.documents):
        raise InputError(f"{origin}: {wrong}")
    return replace(settings, tables=tables, **parts)


def _misfit(part: Documents) -> str:
    """Why documents cannot have the window or the overlap that is asked for, if so."""
    T, C, overlap, window = part.count, part.tokens, part.overlap, part.window
    if window != "none" and window > C // 2:
        return f"documents.window = {window}: expected 0 to {C // 2}, half of documents.tokens"
    if overlap and window != "none":
        return (
            f"documents.overlap = {overlap} and documents.window = {window}: a window would move "
            "onto its neighbours' tokens: one of the two"
        )
    if (T - 1) * (C - part.shared) < C:
        return (
            f"documents.overlap = {overlap}: neighbours in a ring of {T} documents share "
            f"{100 * (T - 2) // (T - 1) / 100} at most, or they would meet at both ends: lower it, "
            "or raise documents.count"
        )
    return ""


def checked(kind: type[Plugin], values: Mapping[str, Any], where: str) -> Table:
    """A plug-in's settings, checked and complete. `where` is the table they stand in."""
    if taken := [f.name for f in plugins.own_fields(kind) if f.name in core_names(where)]:
        raise InputError(f"{kind.__name__}: its setting {taken[0]!r} is one of [{where}] already")
    return Table(plugins.settings_of(plugins.made(kind, values, where)))


def chosen(settings: Settings, part: str) -> tuple[type[Any], str]:
    """The plug-in that a part of the settings names, and what stands behind the name: an address,
    where documents come from."""
    spec, address = _named(settings, part)
    return plugins.find(CHOICES[part][0], spec), address


def _named(settings: Settings, part: str) -> tuple[str, str]:
    group, selector = CHOICES[part]
    spec = getattr(getattr(settings, part), selector)
    if part != "documents" or ".py:" in spec:
        return spec, ""
    name, _, rest = spec.partition(":")
    return (name, rest) if name in plugins.installed(group) else ("files", spec)


def made(settings: Settings, part: str) -> Any:
    """The plug-in that a part of the settings chooses, ready to use."""
    return plugins.made(chosen(settings, part)[0], getattr(settings, part).own, part)


def _check_unused(name: str, table: Table) -> None:
    """Raise `InputError` for a table of no plug-in, or one that its plug-in could not have."""
    for group in LISTS:
        if name in plugins.ours(group):
            checked(plugins.find(group, name), table, name)
        if name in plugins.installed(group):
            return
    wrong = [f"{name}.{setting}" for setting in table] or [name]
    raise InputError(f"unknown setting {wrong[0]}{_near(wrong[0])}")


def merged(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Nested values with changes, by name or dotted name. Where another plug-in is chosen, the
    settings of the one before go."""
    result = {n: dict(v) if isinstance(v, dict) else v for n, v in values.items()}
    for name, change in changes.items():
        table, dot, setting = name.partition(".")
        if dot:
            change = {setting: change}
        before = result.get(table, {})
        if table == "seed":
            before, change = seeds(before), seeds(change)
        if not (isinstance(change, Mapping) and isinstance(before, dict)):
            result[table] = change
            continue
        selector = CHOICES.get(table, ("", ""))[1]
        if selector in change and change[selector] != before.get(selector):
            before = {n: v for n, v in before.items() if n in core_names(table)}
        result[table] = {**before, **change}
    return result


def declared(settings: Settings) -> str:
    """SHA-256 of what was declared beforehand: names and values of `outcome`, in order."""
    text = json.dumps(asdict(settings.outcome), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def seeds(value: Any) -> Any:
    """The three seeds that one number sets; a table of them as it is."""
    whole = not isinstance(value, Mapping)
    return {f.name: value for f in fields(Seed)} if whole else dict(value)


def check(settings: Settings) -> Settings:
    """The same settings, checked and complete; for settings built by hand."""
    return from_dict(to_dict(settings))


def changed(settings: Settings, **changes: Any) -> Settings:
    """Settings with other values, by name or dotted name: `changed(s, **{"optimizer.lr": .05})`.

    Raises `InputError` for a setting that is not there, or cannot be.
    """
    return from_dict(merged(to_dict(settings), changes))


def load(path: Path) -> Settings:
    """Settings from a TOML file, such as the `config.toml` of a run."""
    return from_dict(_read(path), str(path))


def read(path: Path) -> Settings:
    """The settings of a run as it wrote them: checked then, and complete. What plug-ins of ours
    have had since is at its default, which is what they did before."""
    settings = as_written(_read(path), str(path))
    parts: dict[str, Any] = {}
    for part, (group, _) in CHOICES.items():
        before = getattr(settings, part)
        parts[part] = replace(before, own=_completed(group, _named(settings, part)[0], before.own))
    tables = dict(settings.tables)
    for group in LISTS:
        for spec in getattr(settings, group):
            key = plugins.key_of(spec)
            tables[key] = _completed(group, spec, tables.get(key, {}))
    return replace(settings, tables=tables, **parts)


def _completed(group: str, spec: str, values: Mapping[str, Any]) -> Table:
    """The settings that a plug-in wrote, and the defaults of others it has; nobody else's code is
    run."""
    if spec not in plugins.ours(group):
        return Table(values)
    kind = plugins.find(group, spec)
    return Table(plugins.settings_of(plugins.made(kind, {}, spec)) | dict(values))


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"{path}: cannot be read as TOML: {error}") from None


def to_dict(settings: Settings) -> dict[str, Any]:
    """Nested plain values, as `from_dict` takes them."""
    values: dict[str, Any] = {}
    for f in fields(Settings):
        value = getattr(settings, f.name)
        if f.name == "tables":
            values |= {name: dict(table) for name, table in value.items()}
        elif is_dataclass(value):
            values[f.name] = flat_part(value)
        else:
            values[f.name] = list(value) if isinstance(value, tuple) else value
    return values


def flat_part(part: Any) -> dict[str, Any]:
    """The settings of one part, its plug-in's own beside the others."""
    values = {f.name: getattr(part, f.name) for f in fields(part)}
    return values | values.pop("own", {})


def to_toml(settings: Settings) -> str:
    """The settings as TOML text that `load` reads back to the same settings."""
    return tomli_w.dumps(to_dict(settings))


@functools.cache
def presets() -> dict[str, str]:
    """Name of every preset, with the first comment line of its file."""
    files = sorted((f for f in PRESETS.iterdir() if f.name.endswith(".toml")), key=lambda f: f.name)
    return {
        f.name.removesuffix(".toml"): f.read_text(encoding="utf-8").split("\n", 1)[0].lstrip("# ")
        for f in files
    }


def preset(name: str, **changes: Any) -> Settings:
    """A named preset, with changes: `preset("quickstart", epochs=3, optimizer={"lr": 0.05})`, or
    by dotted names, `preset("quickstart", **{"optimizer.lr": 0.05})`.

    Raises `InputError` for an unknown name (with the nearest one) or an impossible change.
    """
    if name not in presets():
        raise InputError(
            f"unknown preset {name!r}{nearest(name, presets())}; presets: {', '.join(presets())}"
        )
    values = tomllib.loads((PRESETS / f"{name}.toml").read_text(encoding="utf-8"))
    return from_dict(merged(values, changes), f"preset {name}")


def core_names(part: str = "") -> list[str]:
    """The settings that are nobody's own: of the run, or of one of its parts."""
    kind = type(_default(part)) if part in PARTS else None if part else Settings
    return [f.name for f in fields(kind) if f.name not in ("own", "tables")] if kind else []


PARTS = ("seed", "documents", "model", "schedule", "optimizer", "outcome")


def _default(part: str) -> Any:
    return getattr(Settings(), part)


def names() -> Iterator[str]:
    """Dotted name of every setting: of the run, and of the plug-ins that came with it."""
    for name in core_names():
        if name not in PARTS:
            yield name
    for part in PARTS:
        yield from (f"{part}.{name}" for name in core_names(part))
        for plugin in plugins.ours(CHOICES[part][0]) if part in CHOICES else ():
            kind = plugins.find(CHOICES[part][0], plugin)
            yield from (f"{part}.{f.name}" for f in plugins.own_fields(kind))
    for group in LISTS:
        for plugin in plugins.ours(group):
            kind = plugins.find(group, plugin)
            yield from (f"{plugin}.{f.name}" for f in plugins.own_fields(kind))


def owners(name: str) -> list[str]:
    """The plug-ins that came with this package and have a setting of this dotted name, among those
    of which a run has one."""
    part, _, setting = name.partition(".")
    group = CHOICES[part][0] if part in CHOICES else ""
    return [
        plugin
        for plugin in (plugins.ours(group) if group else [])
        if setting in [f.name for f in plugins.own_fields(plugins.find(group, plugin))]
    ]


def differences(
    a: Settings, b: Settings, roles: tuple[str, ...] = ("numbers", "watch", "execution")
) -> dict[str, tuple[Any, Any]]:
    """Dotted name -> the two values, for every setting of one of these roles in which two settings
    differ: what decides the numbers, what is watched, how it is executed."""
    left, right = flat(a), flat(b)
    return {
        name: (left.get(name), right.get(name))
        for name in {**left, **right}
        if left.get(name) != right.get(name) and _role(name, a, b) in roles
    }


def flat(settings: Settings) -> dict[str, Any]:
    """Dotted name -> value of every setting."""
    values: dict[str, Any] = {}
    for name, value in to_dict(settings).items():
        inner = isinstance(value, dict)
        values |= {f"{name}.{n}": v for n, v in value.items()} if inner else {name: value}
    return values


def _role(name: str, *settings: Settings) -> str:
    top = name.partition(".")[0]
    if top in {plugins.key_of(recorder) for s in settings for recorder in s.recorders}:
        return "watch"
    metadata: dict[str, Any] = {f.name: f.metadata for f in fields(Settings)}
    return str(metadata.get(top, {}).get("role", "numbers"))


def _near(name: str) -> str:
    return nearest(name, names())


def _explain(error: Any) -> str:
    name = ".".join(str(part) for part in error["loc"])
    # Where a setting may be of two types, pydantic adds the type it tried.
    name = next((known for known in names() if name.startswith(f"{known}.")), name)
    if error["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        return f"unknown setting {name}{_near(name)}"
    return f"{name} = {error['input']!r}: {error['msg'].replace('Input s', 's')}"

"""A sweep as data: a base and axes, from a TOML file.

# The first comment line says what it is.
base = "quickstart"              # a preset, or a TOML file beside this one
control = ["shuffled"]           # beside every run
seeds = [0, 1, 2]                # an axis

[set]                            # changes of the base
recorders = []

[axes]
"model.depth" = [1, 2, 4, 6]     # one setting: the grid of all axes is trained
[axes.size]                      # several settings that change together
"model.width" = [64, 128]
"model.heads" = [2, 4]

[[paper]]                        # what was published of one axis
axis = "model.depth"
quantity = "recovery"            # or online
direction = "up"                 # along the axis, in the order it has here
source = "figure 4, width 2048"
at = [4, 8, 12, 16]
values = [0.03, 0.08, 0.15, 0.21]
"""

from __future__ import annotations

import itertools
import json
import re
import tomllib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import pydantic

from recovery_probe import config
from recovery_probe.errors import InputError
from recovery_probe.plugins import STRICT
from recovery_probe.settings import Settings
from recovery_probe.spelling import nearest
from recovery_probe.train.plan import Point, check_plan, with_controls

NAMED = resources.files("recovery_probe") / "sweeps"
SEED = "seed"
Value = bool | int | float | str


@dataclass(frozen=True)
class Axis:
    """Values that settings take together, point by point."""

    name: str
    settings: Mapping[str, Sequence[Any]]  # dotted name -> (points,)
    at: tuple[Value, ...]  # (points,): what each point is called

    def changes(self, point: int) -> dict[str, Any]:
        return {name: values[point] for name, values in self.settings.items()}


@dataclass(frozen=True)
class Paper:
    """What was published of one axis."""

    axis: str
    source: str
    quantity: Literal["recovery", "online"] = "recovery"
    # along the axis in the order in which the sweep has it; none: hardly any change
    direction: Literal["up", "down", "none"] | None = None
    at: tuple[Value, ...] = ()  # on the axis' own scale
    values: tuple[float, ...] = ()

    __pydantic_config__ = STRICT


@dataclass(frozen=True)
class Sweep:
    """A base and what is changed of it."""

    name: str
    about: str
    base: Settings
    axes: tuple[Axis, ...]
    seeds: tuple[int, ...] = (0,)
    control: tuple[str, ...] = ()
    paper: tuple[Paper, ...] = ()
    # the wait that recovery is taken from, after the n-th episode on a document; 0 for the last
    epoch: int = 0

    @property
    def dims(self) -> dict[str, tuple[Value, ...]]:
        """Dimension -> its labels: the axes, then the seed."""
        return {**{axis.name: axis.at for axis in self.axes}, SEED: self.seeds}


@dataclass(frozen=True)
class Job:
    """A run of a sweep: where on its axes, where on the disk, what of its plan."""

    place: tuple[int, ...]  # index along each of `Sweep.dims`
    point: Point
    plan: tuple[Point, ...]  # the run and its controls

    @property
    def path(self) -> Path:
        return self.point.path

    @property
    def config(self) -> Path:
        """The TOML that it is trained from, beside its directory."""
        return self.path.parent / f"{self.path.name}.toml"


def named() -> dict[str, str]:
    """Name of every sweep that comes with the package, with its first comment line."""
    files = sorted((f for f in NAMED.iterdir() if f.name.endswith(".toml")), key=lambda f: f.name)
    return {f.name.removesuffix(".toml"): _about(f.read_text("utf-8")) for f in files}


def _about(text: str) -> str:
    first = text.split("\n", 1)[0]
    return first.lstrip("# ") if first.startswith("#") else ""


def read(source: str | Path, changes: Mapping[str, Any] | None = None) -> Sweep:
    """A sweep by its name, or from a TOML file; `changes` of its base, by dotted names, go before
    its own. Raises `InputError`, with the name of what is wrong, before anything is trained."""
    path = Path(source)
    if str(source) in named():
        text, folder, origin = (NAMED / f"{source}.toml").read_text("utf-8"), None, str(source)
    elif path.suffix == ".toml":
        try:
            text, folder, origin = path.read_text("utf-8"), path.parent, str(path)
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{path}: cannot be read: {error}") from None
    else:
        raise InputError(
            f"no sweep {str(source)!r}{nearest(str(source), named())}; sweeps: "
            f"{', '.join(named())}, or a file that ends in .toml"
        )
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{origin}: cannot be read as TOML: {error}") from None
    try:
        return _made(values, path.stem if folder else origin, _about(text), folder, changes or {})
    except InputError as error:
        raise InputError(f"{origin}: {error}") from None


def _made(
    values: dict[str, Any],
    name: str,
    about: str,
    folder: Path | None,
    changes: Mapping[str, Any],
) -> Sweep:
    known = ("base", "control", "seeds", "epoch", "set", "axes", "paper")
    if strangers := [key for key in values if key not in known]:
        raise InputError(f"unknown {strangers[0]!r}{nearest(strangers[0], known)}")
    base = str(values.get("base", "quickstart"))
    file = (folder or Path()) / base
    settings = config.load(file) if base.endswith(".toml") else config.preset(base)
    table = config.merged(config.to_dict(settings), _dotted(values.get("set", {})))
    settings = config.from_dict(config.merged(table, changes), "set")
    axes = tuple(_axis(key, given) for key, given in values.get("axes", {}).items())
    if not axes:
        raise InputError("no axes: expected settings and their values under [axes]")
    seeds = _of_type(tuple[int, ...], values.get("seeds", [0]), "seeds")
    if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise InputError(f"seeds = {list(seeds)}: expected different whole numbers from 0")
    paper = _of_type(tuple[Paper, ...], values.get("paper", []), "paper")
    for one in paper:
        if one.axis not in [axis.name for axis in axes]:
            raise InputError(f"paper: no axis {one.axis!r}")
        if len(one.at) != len(one.values):
            raise InputError(f"paper: {len(one.at)} places and {len(one.values)} values")
    return Sweep(
        name,
        about,
        settings,
        axes,
        seeds,
        _of_type(tuple[str, ...], values.get("control", []), "control"),
        paper,
        _of_type(int, values.get("epoch", 0), "epoch"),
    )


def _of_type(kind: Any, value: Any, name: str) -> Any:
    try:
        return pydantic.TypeAdapter(kind).validate_json(json.dumps(value))
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, [name, *first["loc"]]))
        raise InputError(f"{where} = {first['input']!r}: {first['msg']}") from None


def _dotted(tables: Mapping[str, Any]) -> dict[str, Any]:
    """`{"model": {"depth": 2}}` as `{"model.depth": 2}`; dotted names as they are."""
    flat: dict[str, Any] = {}
    for name, value in tables.items():
        inner = isinstance(value, dict)
        flat |= {f"{name}.{n}": v for n, v in value.items()} if inner else {name: value}
    return flat


def _axis(name: str, given: Any) -> Axis:
    """A list of values of a setting, or a table of lists of the same length."""
    settings = _dotted(given) if isinstance(given, dict) else {name: given}
    at = settings.pop("at", None)
    for setting, values in settings.items():
        if not isinstance(values, list) or not values:
            raise InputError(f"axes: {setting} = {values!r}: expected a list of values")
    lengths = {setting: len(values) for setting, values in settings.items()}
    if len(set(lengths.values())) != 1:
        said = ", ".join(f"{n} of {setting}" for setting, n in lengths.items()) or "nothing"
        raise InputError(f"axes: {name}: expected as many values of each setting; got {said}")
    names = at if at is not None else _names(list(settings.values()))
    if len(names) != next(iter(lengths.values())):
        raise InputError(f"axes: {name}: {len(names)} names in `at` of {max(lengths.values())}")
    if len({str(label) for label in names}) < len(names):
        raise InputError(f"axes: {name}: twice the same value among {', '.join(map(str, names))}")
    return Axis(name, settings, tuple(names))


def _names(columns: Sequence[Sequence[Any]]) -> list[Value]:
    """What the points of an axis are called: the values of its first setting that tells them
    apart; of several settings, where none does, all of them."""
    for values in columns:
        plain = all(isinstance(value, bool | int | float | str) for value in values)
        if plain and len({str(value) for value in values}) == len(values):
            return list(values)
    return [" ".join(str(v) for v in values) for values in zip(*columns, strict=True)]


def planned(spec: Sweep, out: Path) -> list[Job]:
    """Every run of a sweep, its settings checked, in the order in which they are trained: seed by
    seed, so that what is there after a while says something of the whole axis. Raises `InputError`
    for a point whose settings cannot be, by its place."""
    base = config.to_dict(spec.base)
    jobs = []
    sizes = [range(len(axis.at)) for axis in spec.axes]
    for s, seed in enumerate(spec.seeds):
        for place in itertools.product(*sizes):
            changes = {SEED: seed}
            for axis, point in zip(spec.axes, place, strict=True):
                changes |= axis.changes(point)
            folder = out.joinpath(*(_folder(a, p) for a, p in zip(spec.axes, place, strict=True)))
            try:
                settings = config.from_dict(config.merged(base, changes))
                plan = with_controls(settings, folder / f"seed={seed}", spec.control)
                check_plan(plan)
            except InputError as error:
                said = ", ".join(f"{n} = {v!r}" for n, v in changes.items())
                raise InputError(f"the point {said}: {error}") from None
            jobs += [Job((*place, s), point, tuple(plan)) for point in plan]
    counted = Counter(job.path for job in jobs)
    if twice := [path for path, count in counted.items() if count > 1]:
        raise InputError(f"two runs would lie in {twice[0]}: name the points of the axis with `at`")
    return jobs


def _folder(axis: Axis, point: int) -> str:
    """`depth=2`."""
    name = axis.name.rpartition(".")[2]
    return re.sub(r"[^\w.=+-]+", "-", f"{name}={axis.at[point]}")

"""Settings: checked on every way in, written so that they read back, owned by their plug-ins."""

from __future__ import annotations

import math
import tomllib
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from conftest import tiny
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

import recovery_probe as rp
from recovery_probe import config, plugins, seeds
from recovery_probe.settings import Table

KINDS = {  # group -> the installed classes, by name
    group: {name: plugins.find(group, name) for name in plugins.ours(group)}
    for group in ("documents", "schedules", "optimizers", "recorders", "interventions")
}
FEW = hypothesis_settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.mark.parametrize("name", list(config.presets()))
def test_every_preset_loads_and_reads_back(name: str, tmp_path: Path) -> None:
    settings = rp.preset(name)
    path = tmp_path / "config.toml"
    path.write_text(config.to_toml(settings))
    assert config.load(path) == settings


def test_paper_preset_is_the_papers_protocol() -> None:
    s = rp.preset("paper")
    assert (s.documents.count, s.documents.tokens, s.steps, s.epochs) == (25, 256, 10, 5)
    assert (s.optimizer.name, s.optimizer.lr, s.optimizer.momentum) == ("sgd", 1e-3, 0.0)
    assert s.model.source == "EleutherAI/pythia-1b"
    assert "cnn_dailymail" in s.documents.source


def test_the_names_are_those_of_the_toml() -> None:
    """Of all tables that some choice of plug-ins gives."""
    flat: set[str] = set()
    for part, (group, selector) in config.CHOICES.items():
        for name in KINDS[group]:
            lists = {lists: list(KINDS[lists]) for lists in config.LISTS}
            settings = rp.preset("quickstart", **{f"{part}.{selector}": name}, **lists)
            values = tomllib.loads(config.to_toml(settings))
            for k, v in values.items():
                flat |= {f"{k}.{i}" for i in v} if isinstance(v, dict) else {k}
    assert set(config.names()) == flat


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"epoch": 3}, "unknown setting epoch; did you mean 'epochs'?"),
        ({"optimizer": {"learning_rate": 1}}, "unknown setting optimizer.learning_rate"),
        ({"optimizer": {"lr": 0}}, "optimizer.lr = 0: should be greater than 0"),
        ({"optimizer": {"lr": -1.0}}, "optimizer.lr = -1.0: should be greater than 0"),
        ({"optimizer": {"lr": float("inf")}}, "finite"),
        ({"epochs": "six"}, "epochs = 'six': should be a valid integer"),
        ({"epochs": 2.5}, "epochs = 2.5"),
        ({"epochs": True}, "epochs = True"),
        ({"documents": {"count": 1}}, "documents.count = 1"),
        ({"schedule": {"kind": "unheard"}}, "'unheard'; installed: block, cyclic, fresh"),
        ({"schedule": {"kind": "shufled"}}, "did you mean 'shuffled'?"),
        ({"model": "pythia"}, "model = 'pythia'"),
        # A table belongs to its plug-in.
        ({"optimizer": {"name": "adam", "momentum": 0.9}}, "optimizer.momentum: it belongs to sgd"),
        ({"schedule": {"keep_first": False}}, "schedule.keep_first: it belongs to shuffled"),
        ({"documents": {"field": "body"}}, "documents.field: it belongs to files, hf"),
        ({"optimizer": {"nesterov": True}}, "optimizer.nesterov wants optimizer.momentum above 0"),
        (
            {"optimizer": {"momentum": 0.5, "dampening": 2.0}},
            "optimizer.dampening = 2.0: should be",
        ),
        (
            {"optimizer": {"momentum": 0.5, "dampening": 0.1, "nesterov": True}},
            "optimizer.nesterov wants optimizer.momentum above 0, and optimizer.dampening 0",
        ),
        ({"optimizer": {"reset": "weekly"}}, "optimizer.reset = 'weekly': should be 'never', 'epi"),
        ({"optimizer": {"decay": "linear"}}, "optimizer.decay = 'linear': should be 'none' or 'co"),
        ({"optimizer": {"per": "epoch"}}, "optimizer.per = 'epoch': should be 'step' or 'episode'"),
        ({"optimizer": {"name": "adam", "amsgrad": 1}}, "optimizer.amsgrad = 1: should be"),
        ({"optimizer": {"lrr": 1}}, "optimizer.lrr; did you mean 'optimizer.lr'?"),
        ({"gradients": {"evry": "step"}}, "gradients.evry; did you mean 'gradients.every'?"),
        ({"gradients": {"every": 3}}, "gradients.every = 3: should be a valid string"),
        ({"attention_patterns": {"evry": "epoch"}}, "did you mean 'attention_patterns.every'?"),
        ({"gradient": {"every": "step"}}, "gradient.every; did you mean 'gradients.every'?"),
        ({"edit": {"during": "always"}}, "edit.during = 'always'"),
        ({"recorders": ["gradients", "gradients"]}, "the name 'gradients' is taken"),
        ({"recorders": ["gradient"]}, "'gradient'; did you mean 'gradients'?"),
        ({"interventions": ["gradients"]}, "no interventions plug-in 'gradients'"),
        ({"tables": {}}, "unknown setting tables"),
        # As bytes that are no UTF-8 arrive from a command line.
        ({"outcome": {"stop": "\udcff"}}, r"outcome.stop = '\udcff': cannot be written as UTF-8"),
        ({"checkpoints": {"every": "\udcff"}}, r"checkpoints.every = '\udcff'"),
    ],
)
def test_wrong_settings_are_named(changes: dict[str, object], said: str) -> None:
    with pytest.raises(rp.InputError) as error:
        rp.preset("quickstart", **changes)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("part", "own", "said"),
    [
        ("", {"epochs": 0}, r"epochs = 0"),
        ("optimizer", {"lr": -1.0}, r"optimizer\.lr = -1\.0"),
        ("optimizer", {"keep_first": True}, r"unknown setting optimizer\.keep_first"),
    ],
)
def test_settings_made_by_hand_are_checked_too(
    part: str, own: dict[str, Any], said: str, tmp_path: Path
) -> None:
    settings = rp.preset("quickstart")
    changes = {part: replace(getattr(settings, part), own=Table(own))} if part else own
    with pytest.raises(rp.InputError, match=said):
        rp.fit(replace(settings, **changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def own_settings(kind: type) -> st.SearchStrategy[dict[str, Any]]:
    """Any settings that a plug-in's class allows, by their types and together, all of them or a
    few."""
    hints = get_type_hints(kind, include_extras=True)
    values = {f.name: st.from_type(hints[f.name]) for f in plugins.own_fields(kind)}
    finite = {name: value.filter(is_finite) for name, value in values.items()}

    def go_together(own: dict[str, Any]) -> bool:
        try:
            return bool(kind(**own))
        except ValueError:
            return False

    return st.fixed_dictionaries({}, optional=finite).filter(go_together)


def is_finite(value: Any) -> bool:
    several = value if isinstance(value, tuple) else (value,)
    return all(not isinstance(v, float) or math.isfinite(v) for v in several)


@st.composite
def changes(draw: st.DrawFn) -> dict[str, Any]:
    """Any choice of our plug-ins, with any settings of theirs."""
    made: dict[str, Any] = {"seed": draw(st.integers(0, 2**70))}
    for part, (group, selector) in config.CHOICES.items():
        name = draw(st.sampled_from(list(KINDS[group])))
        made[part] = {selector: name, **draw(own_settings(KINDS[group][name]))}
    for group in config.LISTS:
        names = st.lists(st.sampled_from(list(KINDS[group])), unique=True)
        made[group] = draw(names)
        made |= {name: draw(own_settings(KINDS[group][name])) for name in made[group]}
    return made


@FEW
@given(changes())
def test_any_settings_are_written_and_read_back(tmp_path: Path, changes: dict[str, Any]) -> None:
    """Also without asking a plug-in, and complete: to check them again changes nothing."""
    settings = rp.preset("quickstart", **changes)
    path = tmp_path / "config.toml"
    path.write_text(config.to_toml(settings), encoding="utf-8")
    assert config.load(path) == config.read(path) == config.check(settings) == settings
    assert config.differences(settings, config.read(path)) == {}
    for name, value in changes.items():
        got = getattr(settings, name)
        for setting, v in value.items() if isinstance(value, dict) else ():
            assert getattr(got, setting) == (list(v) if isinstance(v, tuple) else v)
    for group, chosen in ((g, getattr(settings, g)) for g in config.LISTS):
        for name in chosen:
            assert set(settings.tables[name]) == {
                f.name for f in plugins.own_fields(KINDS[group][name])
            }
    assert set(settings.tables) == {*settings.recorders, *settings.interventions}


@FEW
@given(changes(), st.sampled_from(list(config.CHOICES)), st.data())
def test_another_plug_in_takes_its_own_defaults(
    changes: dict[str, Any], part: str, data: st.DataObject
) -> None:
    """And leaves those of the one before, and nothing else, behind."""
    group, selector = config.CHOICES[part]
    settings = rp.preset("quickstart", **changes)
    before = getattr(settings, part)
    other = data.draw(st.sampled_from(list(KINDS[group])))
    after = config.changed(settings, **{f"{part}.{selector}": other})
    own = KINDS[group][other]()
    if other == getattr(before, selector):
        assert after == settings
    else:
        assert getattr(after, part).own == plugins.settings_of(own)
    for name in config.core_names(part):
        if name != selector:
            assert getattr(getattr(after, part), name) == getattr(before, name)
    rest = [f.name for f in fields(settings) if f.name != part]
    assert [getattr(after, n) for n in rest] == [getattr(settings, n) for n in rest]


def test_a_plug_ins_settings_may_come_with_it() -> None:
    adam = rp.changed(rp.preset("quickstart"), optimizer={"name": "adam", "eps": 1e-6})
    own = {"lr": 1e-3, "betas": [0.9, 0.999], "eps": 1e-6, "weight_decay": 0, "amsgrad": False}
    assert adam.optimizer.own == own
    back = rp.changed(adam, **{"optimizer.name": "sgd", "optimizer.lr": 0.3})
    rest = {"momentum": 0, "dampening": 0, "nesterov": False, "weight_decay": 0}
    assert back.optimizer.own == {"lr": 0.3} | rest
    both = rp.preset("quickstart", optimizer={"name": "adam", "lr": 0.01})
    assert rp.changed(both, **{"optimizer.reset": "episode"}).optimizer.lr == 0.01


@pytest.mark.parametrize(("before", "now"), [("true", "episode"), ("false", "never")])
def test_a_reset_of_before_is_read(before: str, now: str, tmp_path: Path) -> None:
    (tmp_path / "old.toml").write_text(f"[optimizer]\nname = 'adam'\nreset = {before}\n")
    assert config.load(tmp_path / "old.toml").optimizer.reset == now
    assert config.read(tmp_path / "old.toml").optimizer.reset == now


def test_tables_of_what_is_not_named_are_checked_and_left_out() -> None:
    settings = rp.preset("quickstart", recorders=["gradients"], weight_deltas={"every": "epoch"})
    assert list(settings.tables) == ["gradients"]
    assert settings.gradients.every == "step"
    with pytest.raises(AttributeError, match="no settings called 'weight_deltas'"):
        settings.weight_deltas  # noqa: B018
    with pytest.raises(AttributeError, match=r"no setting 'evry'; there are every"):
        settings.gradients.evry  # noqa: B018


MINE = """
from dataclasses import dataclass
from typing import Annotated
from annotated_types import Le
from recovery_probe import Optimizer, Recorder, Schedule

@dataclass
class Mine(Schedule):
    name = "mine"
    # how far it goes
    stride: Annotated[int, Le(4)] = 2

class Plain(Schedule):
    name = "plain"

class Nameless(Schedule):
    pass

@dataclass
class Kind(Schedule):
    name = "kinds"
    kind: str = "mine"

@dataclass
class Bare(Schedule):
    name = "bare"
    stride: int

@dataclass
class Refuses(Schedule):
    name = "refuses"
    low: int = 0
    high: int = 1

    def __post_init__(self):
        if self.low >= self.high:
            raise ValueError("low is not below high")

class NoPlugIn:
    pass

@dataclass
class epochs(Recorder):
    name = "epochs"
"""


@pytest.mark.parametrize(
    ("name", "table", "said"),
    [
        ("Mine", {"stride": 5}, "schedule.stride = 5: should be less than or equal to 4"),
        ("Mine", {"stide": 1}, "schedule.stide; did you mean 'schedule.stride'?"),
        ("Plain", {"stride": 1}, "unknown setting schedule.stride; plain has none"),
        ("Kind", {}, "Kind: its setting 'kind' is one of [schedule] already"),
        ("Bare", {}, "schedule.stride"),
        ("Refuses", {"low": 1}, "low is not below high"),
        ("NoPlugIn", {}, "and not a class of schedules"),
        ("Nameless", {}, "class Nameless has no name: name = '...'"),
        ("Mines", {}, "defines no 'Mines'; did you mean 'Mine'?"),
    ],
)
def test_a_file_of_ones_own_is_held_to_the_same(
    name: str, table: dict[str, Any], said: str, tmp_path: Path
) -> None:
    file = tmp_path / "mine.py"
    file.write_text(MINE)
    with pytest.raises(rp.InputError) as error:
        tiny(schedule={"kind": f"{file}:{name}", **table})
    assert said in str(error.value)
    assert "\n" not in str(error.value)
    with pytest.raises(rp.InputError, match=r"mine\.py:epochs: the name 'epochs' is taken"):
        tiny(recorders=[f"{file}:epochs"])
    assert tiny(schedule={"kind": f"{file}:Mine"}).schedule.stride == 2


def test_differences_are_told_by_their_role() -> None:
    watched = {"recorders": ["gradients"], "gradients": {"every": "epoch"}, "sketch": 9}
    executed = {"device": "cpu", "threads": 1, "eval_batch": 3}
    decisive = {"seed": 1, "optimizer": {"name": "adam"}, "interventions": ["edit"]}
    plain = rp.preset("quickstart")
    for role, changes in (("watch", watched), ("execution", executed), ("numbers", decisive)):
        other = rp.preset("quickstart", **changes)
        roles = {r: set(config.differences(plain, other, (r,))) for r in ROLES}
        named = {n.partition(".")[0] for n in roles[role]}
        dropped = {*plain.recorders} - {"gradients"} if role == "watch" else set()
        added = {"edit"} if role == "numbers" else set()
        assert named == {*changes} | added | dropped
        assert not any(roles[r] for r in ROLES if r != role), role
        both = config.differences(plain, other)
        assert set(both) == roles[role]
        turned = config.differences(other, plain, (role,))
        assert turned == {name: (b, a) for name, (a, b) in both.items()}
    adam = config.differences(plain, rp.preset("quickstart", **decisive), ("numbers",))
    assert adam["optimizer.lr"] == (0.1, 1e-3)
    assert adam["optimizer.momentum"] == (0.0, None)
    assert adam["edit.during"] == (None, "both")


ROLES = ("numbers", "watch", "execution")


def test_purposes_draw_independent_numbers() -> None:
    draws = {p: seeds.generator(0, p).integers(2**60) for p in ("documents", "schedule", "x")}
    assert len(set(draws.values())) == 3
    assert draws["x"] == seeds.generator(0, "x").integers(2**60)
    assert draws["x"] != seeds.generator(1, "x").integers(2**60)

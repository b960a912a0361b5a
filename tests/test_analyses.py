"""Analyses through the plug-in door: each conforms; which runs belong together, what is refused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from conftest import cut, planted, tiny, twinned
from matplotlib.figure import Figure
from recovery_probe_analyses import recovery
from recovery_probe_analyses.online_loss import OnlineLoss
from recovery_probe_analyses.recovery import Recovery

import recovery_probe as rp
from recovery_probe import plugins
from recovery_probe.analyze import analyze, estimate, plots
from recovery_probe.analyze.groups import match, seeds_and_controls
from recovery_probe.analyze.perform import instance
from recovery_probe.cli import main
from recovery_probe.config import changed, to_toml

INSTALLED = sorted(plugins.installed("analyses"))


def again(name: str) -> rp.Analysis:
    """An installed analysis that may run the model again."""
    analysis = instance(name)
    known = {f.name for f in fields(analysis)}
    few = {"documents": 2, "orders": 4} if name == "transplant" else {}  # of 400 passes each
    return (
        replace(analysis, from_checkpoint=True, **few) if "from_checkpoint" in known else analysis
    )


def test_a_figure_is_three_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plots, "KINDS", ("png", "svg", "pdf"))
    fig, (axes,) = plots.figure()
    axes.plot([1, 2])
    plots.write(fig, tmp_path / "it")
    starts = {f.suffix: f.read_bytes()[:5] for f in tmp_path.iterdir()}
    assert starts == {".png": b"\x89PNG\r", ".svg": b"<?xml", ".pdf": b"%PDF-"}


def test_every_file_is_an_entry_point() -> None:
    files = {f.stem for f in Path(recovery.__file__).parent.glob("*.py")} - {"__init__"}
    assert files == {*INSTALLED, *plugins.installed("experiments")}


@pytest.mark.parametrize("name", INSTALLED)
@pytest.mark.parametrize("controls", [0, 1])
def test_conforms(name: str, controls: int, pair: rp.Run, tmp_path: Path) -> None:
    analysis = again(name)
    run, others = pair, pair.controls
    if name == "twin_distance":
        run = twinned(pair, tmp_path)
        others = [run]
    assert analysis.name == name
    assert analysis.question.endswith("?")
    assert len(analysis.null) > 40
    assert len(analysis.blind_spot) > 40
    for runs in ([run, *pair.controls[:controls]], others) if analysis.needs else [()]:
        dataset = analysis(*runs)
        assert isinstance(dataset, xr.Dataset)
        assert dataset.sizes
        assert not [d for d in dataset.dims if str(d).startswith("dim_")]
        assert {"unit", "interval", "p"} & set(dataset.attrs), "says what its numbers are over"
        for number in estimate.names(dataset):
            for part in estimate.companions(dataset, number).values():
                assert set(dataset[number].dims) <= set(dataset[part].dims)
        before = dataset.copy(deep=True)
        assert isinstance(analysis.plot(dataset), Figure)
        assert dataset.identical(before), "a plot changed its numbers"
        json.dumps(analysis.summary(dataset), allow_nan=False)


def test_a_control_must_match(pair: rp.Run, tmp_path: Path) -> None:
    other = rp.fit(tiny(optimizer={"lr": 0.05}), tmp_path / "other")
    with pytest.raises(rp.InputError, match=r"they differ in optimizer\.lr \(0\.1, 0\.05\)"):
        analyze(pair, [other])


def test_a_users_own_analysis(pair: rp.Run, tmp_path: Path) -> None:
    shutil.copytree(pair.path, tmp_path / "run")
    file = tmp_path / "mine.py"
    file.write_text(
        """
import xarray as xr
from dataclasses import dataclass
from recovery_probe import Analysis
from recovery_probe.analyze.plots import figure

@dataclass(frozen=True)
class Top(Analysis):
    # how many times
    times: int = 1

    name, question, null, blind_spot = "top", "What is the largest loss?", "none", "all"

    def compute(self, *runs):
        return xr.Dataset({"top": self.times * runs[0].losses.max("document")})

    def plot(self, dataset):
        fig, (axes,) = figure()
        axes.plot(dataset.top)
        return fig

    def summary(self, dataset):
        return {"top": float(dataset.top.max())}
"""
    )
    run = rp.open_run(tmp_path / "run")
    top = float(pair.losses.max())
    assert analyze(run, run.controls, [f"{file}:Top"])["top"]["top"] == top
    Top = plugins.find("analyses", f"{file}:Top")
    assert analyze(run, run.controls, [Top(times=2)])["top"]["top"] == 2 * top
    assert (run.path / "analyses" / "top.svg").stat().st_size > 1000
    analyze(run, (), [Recovery])
    kept = json.loads((run.path / "analyses" / "summary.json").read_text())
    assert {"top", "recovery"} <= set(kept)


def test_two_packages_with_one_name_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib.metadata import EntryPoint

    group = "recovery_probe.analyses"
    points = [EntryPoint("x", "one:A", group), EntryPoint("x", "two:A", group)]
    monkeypatch.setattr(plugins, "entry_points", lambda group: points)
    with pytest.raises(rp.InputError, match="two installed packages offer analyses 'x'"):
        plugins.installed.__wrapped__("analyses")  # as nobody asked before


TOP = """
import sys
import xarray as xr
from recovery_probe import Analysis
from recovery_probe.analyze.plots import figure

class Top(Analysis):
    name, question, null, blind_spot = "{name}", "?", "none", "all"

    def compute(self, *runs):
        {does}
        return xr.Dataset({{"top": runs[0].losses.max("document")}})

    def plot(self, dataset):
        return figure()[0]

    def summary(self, dataset):
        return {{}}
"""


@pytest.mark.parametrize("does", ["raise KeyError('nothing')", "sys.exit(0)"])
def test_a_broken_analysis_stops_none_but_itself(
    does: str,
    pair: rp.Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "mine.py"
    file.write_text(TOP.format(name="broken", does=does))
    broken = plugins.find("analyses", f"{file}:Top")
    known = {"broken": broken, "online_loss": OnlineLoss}
    found_by_door = plugins.find

    def find(group: str, name: str) -> object:
        if group != "analyses":
            return found_by_door(group, name)
        if name == "unloadable":
            raise ImportError("no module named nothing")
        return known[name]

    def installed(group: str) -> dict[str, None]:
        assert group == "analyses"
        return dict.fromkeys([*known, "unloadable"])

    with monkeypatch.context() as patched:
        patched.setattr(plugins, "installed", installed)
        patched.setattr(plugins, "find", find)
        found = analyze(pair, out=tmp_path / "out")
    assert "online loss" in found["online_loss"]["verdict"]
    assert found["not_done"]["broken"].startswith("failed: ")
    assert found["not_done"]["unloadable"] == "failed: ImportError: no module named nothing"
    # Asked for by name it is an error: one line, and no traceback.
    words = ["analyze", str(pair.path), "--analysis", f"{file}:Top"]
    with pytest.raises(SystemExit) as stop:
        main([*words, "--out", str(tmp_path / "named")])
    assert stop.value.code == 1
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert told.startswith("error: analysis broken failed: ")


def test_a_file_that_exits_is_named(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("import sys\nsys.exit(0)")
    with pytest.raises(rp.InputError, match=r"mine\.py: fails when run: SystemExit"):
        plugins.find("analyses", f"{file}:Top")


@pytest.mark.parametrize("name", ["runs", "controls", "not_done", "analyses"])
def test_a_name_of_the_summarys_own_is_refused(name: str, pair: rp.Run, tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(TOP.format(name=name, does="pass"))
    with pytest.raises(rp.InputError, match=f"cannot be named '{name}'"):
        analyze(pair, (), [f"{file}:Top"], out=tmp_path / "out")


@pytest.mark.parametrize(
    "damage", ['{"analyses": {"top": {}}, "not', "[]", "{}", '{"analyses": 3}']
)
def test_a_damaged_summary_is_said_and_written_anew(
    damage: str, pair: rp.Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "analyses").mkdir()
    (tmp_path / "analyses" / "summary.json").write_text(damage)
    found = analyze(pair, (), [OnlineLoss], out=tmp_path)
    assert "summary.json: damaged" in capsys.readouterr().err
    assert json.loads((tmp_path / "analyses" / "summary.json").read_text()) == found


def test_what_another_call_finds_meanwhile_is_kept(pair: rp.Run, tmp_path: Path) -> None:
    class Slow(OnlineLoss):
        name = "slow"

        def compute(self, *runs: rp.Run) -> xr.Dataset:
            analyze(pair, (), [Recovery], out=tmp_path)
            return super().compute(*runs)

    found = analyze(pair, (), [Slow()], out=tmp_path)
    assert set(found["analyses"]) == {"slow", "recovery"}


def test_controls_and_seeds_that_are_none_are_refused(pair: rp.Run, tmp_path: Path) -> None:
    twin = planted(pair, tmp_path / "twin", pair.losses.values)
    with pytest.raises(rp.InputError, match="its schedule is the same, cyclic"):
        match([pair], [twin])
    with pytest.raises(rp.InputError, match="two of the runs have one seed"):
        match([pair, twin], [])
    with pytest.raises(rp.InputError, match=r"not another seed.*schedule\.kind"):
        match([pair, pair.controls[0]], [])
    other = reseeded(pair, tmp_path / "other")
    with pytest.raises(rp.InputError, match=r"as many controls as the others: .*\(1\).*\(0\)"):
        match([pair, other], pair.controls)
    assert seeds_and_controls([pair, other, twin]) == ([pair, other], [twin])


def reseeded(run: rp.Run, path: Path, **schedule: object) -> rp.Run:
    """A copy of a run that says it has seed 1, and another schedule if given."""
    shutil.copytree(run.path, path)
    settings = run.config
    settings = changed(settings, seed=1, schedule=schedule)
    (path / "config.toml").write_text(to_toml(settings))
    return rp.open_run(path)


def test_controls_of_every_seed_come_in_one_order(pair: rp.Run, tmp_path: Path) -> None:
    (control,) = pair.controls
    free = planted(control, tmp_path / "free", control.losses.values)
    free.config = changed(free.config, schedule={"keep_first": True})
    seed = reseeded(pair, tmp_path / "seed")
    others = [
        reseeded(control, tmp_path / "kept1"),
        reseeded(control, tmp_path / "free1", keep_first=True),
    ]
    groups = match([pair, seed], [control, free, *others])
    for _, own in groups:
        assert [c.config.schedule.keep_first for c in own] == [False, True]
    with pytest.raises(rp.InputError, match="same schedules as the others"):
        match([pair, seed], [control, others[1]])


def test_an_interrupted_control_is_compared_where_it_got(pair: rp.Run, tmp_path: Path) -> None:
    """Every verdict is of the last time that both have, as if both had stopped there."""
    control = cut(pair.controls[0], tmp_path / "control", 12)
    whole = cut(pair, tmp_path / "run", 12)
    for analysis in map(again, INSTALLED):
        if not analysis.needs or analysis.name == "loss_curves":
            continue
        try:
            expected = analysis.summary(analysis(whole, control))
        except rp.InputError as error:
            with pytest.raises(type(error)):  # three epochs are needed, of both
                analysis(pair, control)
            continue
        dataset = analysis(pair, control)
        analysis.plot(dataset)
        said = f"The runs are compared as far as {control.path} has got: 12 episodes. "
        verdict = analysis.summary(dataset)["verdict"]
        assert verdict.startswith(said), analysis.name
        if analysis.name != "recovery":  # counts the documents that the longer run has reached
            same = verdict.removeprefix(said) == expected["verdict"].removeprefix(said)
            assert same, analysis.name


@pytest.mark.parametrize("name", INSTALLED)
def test_no_verdict_comes_of_nothing(name: str, pair: rp.Run, tmp_path: Path) -> None:
    """All numbers missing: no verdict shows one, or says that there is no cycle, no difference."""
    analysis = again(name)
    if not analysis.needs or name == "loss_curves":
        return
    run = twinned(pair, tmp_path) if name == "twin_distance" else pair
    dataset = analysis(run, *pair.controls)
    for variable in dataset.data_vars.values():
        if variable.dtype.kind == "f":
            variable[:] = np.nan
    told = analysis.summary(dataset)["verdict"]
    assert "nan" not in told.lower().replace("nanoseconds", "")
    assert "not defined" in told or "there is no score" in told
    for claim in ("can be told", "chance does not give", "more than", "less than the"):
        assert claim not in told.replace("nats more than", ""), told


def test_one_without_a_run(tmp_path: Path, pair: rp.Run) -> None:
    """A simulation is an analysis like others, and the page is about it alone."""
    words = ["--analysis", "toy_model", "--format", "html", "md", "--out", str(tmp_path)]
    main(["analyze", *words])
    summary = json.loads((tmp_path / "analyses" / "summary.json").read_text())
    assert list(summary["analyses"]) == ["toy_model"]
    assert summary["runs"] == {}
    for kind in ("html", "md"):
        text = (tmp_path / f"report.{kind}").read_text()
        assert summary["toy_model"]["verdict"] in text
        assert "No picture" not in text
        assert "Controls" not in text
        assert "What it was made of" not in text
    with pytest.raises(rp.Missing, match="recovery needs a run directory"):
        analyze([], analyses=["recovery"], out=tmp_path)
    with pytest.raises(rp.InputError, match="needs a run directory; train one first, or see"):
        analyze([], out=tmp_path)
    with pytest.raises(rp.InputError, match="a control of no run"):
        analyze([], [pair], out=tmp_path)


def test_a_class_that_is_no_whole_analysis_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from recovery_probe import Analysis\n"
        "class Mute(Analysis):\n    name = 'mute'\n"
        "class Blind(Analysis):\n    name = question = null = blind_spot = 'blind'\n"
        "other = 3\n"
    )
    for name, why in (
        ("Mute", "its class says no question, no null, no blind_spot"),
        ("Blind", "abstract.* plot"),
        ("other", "and not a class of analyses"),
    ):
        with pytest.raises(rp.InputError, match=f"{name}.*{why}"):
            instance(f"{file}:{name}")


def test_their_settings_are_read_without_what_draws_and_computes() -> None:
    """So that --help and --list are fast."""
    code = (
        "import sys; from recovery_probe import plugins\n"
        "for name in plugins.installed('analyses'): plugins.find('analyses', name)\n"
        "slow = {'torch', 'transformers', 'scipy', 'matplotlib', 'jinja2', 'zarr'}\n"
        "print(slow & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"

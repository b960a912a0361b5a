"""Analyses through the plug-in door: each conforms, and the numbers are the kernels'."""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from conftest import cut, planted, tiny, training
from matplotlib.figure import Figure
from recovery_probe_analyses import recovery
from recovery_probe_analyses.loss_curves import LossCurves
from recovery_probe_analyses.online_loss import OnlineLoss
from recovery_probe_analyses.recovery import Recovery

import recovery_probe as rp
from recovery_probe import plugins, stats
from recovery_probe.analyze import analyze, estimate
from recovery_probe.analyze.groups import match, seeds_and_controls
from recovery_probe.analyze.perform import instance
from recovery_probe.cli import main
from recovery_probe.config import generator, to_toml

INSTALLED = sorted(plugins.installed("analyses"))


def again(name: str) -> rp.Analysis:
    """An installed analysis that may run the model again."""
    analysis = instance(name)
    known = {f.name for f in fields(analysis)}
    return replace(analysis, from_checkpoint=True) if "from_checkpoint" in known else analysis


def test_every_file_is_an_entry_point() -> None:
    files = {f.stem for f in Path(recovery.__file__).parent.glob("*.py")} - {"__init__"}
    assert files == set(INSTALLED)


def values(found: dict[str, Any], name: str, **places: object) -> list[float | None]:
    """Of an estimate of a summary, at these labels."""
    records = found["estimates"][name]
    return [r["value"] for r in records if places.items() <= r.items()]


@pytest.fixture
def forgetful(pair: rp.Run, tmp_path: Path) -> rp.Run:
    """A run in which every document is forgotten between any two episodes on it: noise, but
    lowest right after the document's own episode."""
    losses = np.random.default_rng(0).uniform(2, 3, pair.losses.shape)
    for episode, document in enumerate(pair.schedule.values):
        losses[episode + 1, document] = 1.0
    return planted(pair, tmp_path / "forgetful", losses)


@pytest.mark.parametrize("name", INSTALLED)
@pytest.mark.parametrize("controls", [0, 1])
def test_conforms(name: str, controls: int, pair: rp.Run) -> None:
    analysis = again(name)
    assert analysis.name == name
    assert analysis.question.endswith("?")
    assert len(analysis.null) > 40
    assert len(analysis.blind_spot) > 40
    for runs in ([pair, *pair.controls[:controls]], pair.controls) if analysis.needs else [()]:
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


def test_recovery_by_hand(forgetful: rp.Run) -> None:
    """The scores again, from the paper's words alone."""
    T, losses = 5, forgetful.losses.values
    numbers = Recovery()(forgetful)
    per_document = []
    for n in (1, 2):
        scores = []
        for d in range(T):
            between = losses[(n - 1) * T + d + 1 : n * T + d + 1, d]
            scores.append((between.max() - between[-1]) / (between.max() - between[0]))
        per_document.append(np.mean(scores))
    score = numbers.score.isel(run=0)
    np.testing.assert_allclose(score.sel(reading="per_document"), per_document)
    averaged = [np.mean([losses[x + d, d] for d in range(T)]) for x in range(2 * T + 2)]
    curve = [
        (max(c) - c[-1]) / (max(c) - c[0])
        for c in (averaged[1 : T + 1], averaged[T + 1 : 2 * T + 1])
    ]
    np.testing.assert_allclose(score.sel(reading="curve"), curve)
    assert (
        ((numbers.score_low <= numbers.score) & (numbers.score <= numbers.score_high))
        .isel(run=0)
        .all()
    )


def test_intervals_are_those_of_resampled_documents(forgetful: rp.Run) -> None:
    """Every resample laid out, document by document."""
    T, losses = 5, forgetful.losses.values[:, :5]
    drawn = generator(0, "bootstrap").integers(T, size=(2000, T))
    each = np.array([losses[d : d + 2 * T + 2, d] for d in range(T)])  # (document, row)
    curves = each[drawn].mean(axis=1)
    found = LossCurves()(forgetful).isel(run=0)
    bounds = np.quantile(curves, [0.025, 0.975], axis=0)
    np.testing.assert_allclose([found.aligned_low, found.aligned_high], bounds)
    between = [curves[:, 1 : T + 1], curves[:, T + 1 : 2 * T + 1]]
    scores = [(b.max(axis=1) - b[:, -1]) / (b.max(axis=1) - b[:, 0]) for b in between]
    numbers = Recovery()(forgetful).isel(run=0)
    curve, mean = numbers.sel(reading="curve"), numbers.sel(reading="per_document")
    bounds = np.quantile(scores, [0.025, 0.975], axis=1)
    np.testing.assert_allclose([curve.score_low, curve.score_high], bounds)
    means = numbers.document_score.values.T[drawn].mean(axis=1)
    bounds = np.quantile(means, [0.025, 0.975], axis=0)
    np.testing.assert_allclose([mean.score_low, mean.score_high], bounds)


def test_a_negative_interval_is_drawn_whole(pair: rp.Run) -> None:
    numbers = Recovery()(pair)
    numbers["score_low"] = numbers.score_low - 2
    (axes,) = Recovery().plot(numbers).axes
    assert axes.get_ylim()[0] <= float(numbers.score_low.min())


def test_curve_reading_of_a_shuffled_run_is_refused_in_words(pair: rp.Run) -> None:
    numbers = Recovery()(pair.controls[0])
    assert np.isnan(numbers.score.sel(reading="curve")).all()
    assert np.isfinite(numbers.score.sel(reading="per_document")).any()
    found = Recovery().summary(numbers)
    assert "no common period" in found["left_out"]["shuffled"]["curve"]
    assert values(found, "score", reading="curve") == [None, None]


def test_left_out_documents_are_counted_with_their_reason(
    forgetful: rp.Run, tmp_path: Path
) -> None:
    losses = forgetful.losses.values.copy()
    losses[:, 1] = np.linspace(5, 1, len(losses))  # document 1 only ever falls
    found = Recovery().summary(Recovery()(planted(forgetful, tmp_path / "run", losses)))
    for reasons in found["left_out"]["cyclic"]["per_document"]:
        assert list(reasons.values()) == [1]
        assert "only fell" in next(iter(reasons))
    assert "4 of 5 documents count" in found["verdict"]


def test_nothing_forgotten_has_no_score(pair: rp.Run, tmp_path: Path) -> None:
    losses = np.repeat(np.linspace(5, 1, len(pair.losses))[:, None], 7, axis=1)
    dataset = Recovery()(planted(pair, tmp_path / "run", losses))
    found = Recovery().summary(dataset)
    assert values(found, "score") == [None] * 4
    assert [list(r.values()) for r in found["left_out"]["cyclic"]["per_document"]] == [[5], [5]]
    assert "no score" in found["verdict"]
    Recovery().plot(dataset)


def test_no_difference_is_said_to_be_none(pair: rp.Run, tmp_path: Path) -> None:
    """A run held against itself: the difference is 0, and the verdict claims nothing."""
    twin = planted(pair, tmp_path / "twin", pair.losses.values)
    found = Recovery().summary(Recovery()(pair, twin))
    differences = [(r["control"], r["value"]) for r in found["estimates"]["difference"]]
    assert differences == [("cyclic (twin)", 0.0)] * 2
    assert "no difference from the control can be told" in found["verdict"]


def test_online_loss_by_hand(pair: rp.Run) -> None:
    numbers = OnlineLoss()(pair, *pair.controls)
    for r, run in enumerate([pair, *pair.controls]):
        first = run.train_loss.values[::3]
        by_epoch = first.reshape(3, 5).mean(axis=1)
        np.testing.assert_allclose(numbers["mean"].values[r], by_epoch)
        np.testing.assert_allclose(numbers.later.values[r], by_epoch[1:].mean())


def test_loss_curves_by_hand(pair: rp.Run) -> None:
    numbers = LossCurves(focal=2)(pair, *pair.controls)
    assert numbers.focal.values[0].tolist() == pair.losses.values[:, 2].tolist()
    assert numbers.before.values[0].tolist() == [2, 7, 12]
    np.testing.assert_allclose(numbers.held_out.values[0], pair.losses.values[:, 5:].mean(axis=1))
    assert np.isnan(numbers.aligned.values[1]).all()
    with pytest.raises(rp.InputError, match="0 to 4"):
        LossCurves(focal=5)(pair)


@pytest.mark.parametrize("changes", [{"epochs": 1}, {"documents": {"count": 2, "held_out": 0}}])
def test_smallest_runs(changes: dict[str, object], tmp_path: Path) -> None:
    run = rp.fit(tiny(**changes), tmp_path / "run")
    summary = analyze(run)
    assert (run.path / "report.html").exists()
    assert len(summary["recovery"]["estimates"]["score"]) == 2 * (run.config.epochs - 1)


def test_unfinished_run(forgetful: rp.Run, tmp_path: Path) -> None:
    found = analyze(cut(forgetful, tmp_path / "cut", 7))["recovery"]
    # 7 episodes done: documents 0, 1 and 2 stand right before, or after, their second.
    left_out = found["left_out"]["cyclic"]["per_document"]
    assert [sum(reasons.values()) for reasons in left_out] == [2, 5]
    assert values(found, "score", reading="curve") == [None, None]
    assert "not reached" in next(iter(left_out[1]))


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
    Top = plugins.find("analyses", f"{file}:Top", type)
    assert analyze(run, run.controls, [Top(times=2)])["top"]["top"] == 2 * top
    assert (run.path / "analyses" / "top.png").stat().st_size > 1000
    analyze(run, (), [Recovery])
    kept = json.loads((run.path / "analyses" / "summary.json").read_text())
    assert {"top", "recovery"} <= set(kept)


def test_two_packages_with_one_name_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib.metadata import EntryPoint

    group = "recovery_probe.analyses"
    points = [EntryPoint("x", "one:A", group), EntryPoint("x", "two:A", group)]
    monkeypatch.setattr(plugins, "entry_points", lambda group: points)
    with pytest.raises(rp.InputError, match="two installed packages offer analyses 'x'"):
        plugins.installed("analyses")


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
    broken = plugins.find("analyses", f"{file}:Top", type)
    known = {"broken": broken, "online_loss": OnlineLoss}

    def find(kind: str, name: str, expected: type) -> object:
        if name == "unloadable":
            raise ImportError("no module named nothing")
        return known[name]

    with monkeypatch.context() as patched:
        patched.setattr(plugins, "installed", lambda kind: dict.fromkeys([*known, "unloadable"]))
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
        plugins.find("analyses", f"{file}:Top", rp.Analysis)


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
    settings = replace(settings, seed=1, schedule=replace(settings.schedule, **schedule))
    (path / "config.toml").write_text(to_toml(settings))
    return rp.open_run(path)


def test_controls_of_every_seed_come_in_one_order(pair: rp.Run, tmp_path: Path) -> None:
    (control,) = pair.controls
    free = planted(control, tmp_path / "free", control.losses.values)
    free.config = replace(free.config, schedule=replace(free.config.schedule, keep_first=False))
    seed = reseeded(pair, tmp_path / "seed")
    others = [
        reseeded(control, tmp_path / "kept1"),
        reseeded(control, tmp_path / "free1", keep_first=False),
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
def test_no_verdict_comes_of_nothing(name: str, pair: rp.Run) -> None:
    """All numbers missing: no verdict shows one, or says that there is no cycle, no difference."""
    analysis = again(name)
    if not analysis.needs or name == "loss_curves":
        return
    dataset = analysis(pair, *pair.controls)
    for variable in dataset.data_vars.values():
        if variable.dtype.kind == "f":
            variable[:] = np.nan
    told = analysis.summary(dataset)["verdict"]
    assert "nan" not in told.lower().replace("nanoseconds", "")
    assert "not defined" in told or "there is no score" in told
    for claim in ("can be told", "chance does not give", "more than", "less than the"):
        assert claim not in told.replace("nats more than", ""), told


@pytest.fixture(scope="module")
def uneven(pair: rp.Run, tmp_path_factory: pytest.TempPathFactory) -> rp.Run:
    """A run whose schedule has document 0 five times, and document 4 once."""
    path = tmp_path_factory.mktemp("uneven") / "run"
    shutil.copytree(pair.path, path)
    training(path)["document_of_episode"][:] = [0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 0, 2, 4, 3, 0]
    return rp.open_run(path)


def test_an_uneven_schedule_has_its_losses_and_says_what_it_lacks(
    uneven: rp.Run, pair: rp.Run, tmp_path: Path
) -> None:
    summary = analyze(uneven, pair.controls, out=tmp_path)
    assert {"recovery", "loss_curves", "token_recovery"} <= set(summary["analyses"])
    assert "equally often" in summary["not_done"]["online_loss"]
    assert not [why for why in summary["not_done"].values() if why.startswith("failed")]
    assert "No picture yet" not in (tmp_path / "report.html").read_text()
    dataset = xr.open_zarr(tmp_path / "analyses" / "recovery.zarr")
    schedule, losses = uneven.schedule.values, uneven.losses.values
    turns = np.flatnonzero(schedule == 2)
    for n, (this, following) in enumerate(itertools.pairwise(turns)):
        wait = losses[this + 1 : following + 1, 2]
        forgotten = wait.max() - wait[0]
        expected = (wait.max() - wait[-1]) / forgotten if forgotten > 0.01 else np.nan
        np.testing.assert_allclose(dataset.document_score[0, n, 2], expected)
    assert (dataset.reason.values[0, :, 4] == stats.NO_TURN).all(), "it does not come back"
    assert (dataset.reason.values[1, 2:] == stats.NO_TURN).all(), "the control has two waits"


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
        ("other", "neither an Analysis nor a class of them"),
    ):
        with pytest.raises(rp.InputError, match=f"{name}.*{why}"):
            instance(f"{file}:{name}")


def test_their_settings_are_read_without_what_draws_and_computes() -> None:
    """So that --help and --list are fast."""
    code = (
        "import sys; from recovery_probe import plugins\n"
        "for name in plugins.installed('analyses'): plugins.find('analyses', name, type)\n"
        "slow = {'torch', 'transformers', 'scipy', 'matplotlib', 'jinja2', 'zarr'}\n"
        "print(slow & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"

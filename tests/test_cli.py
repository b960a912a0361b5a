"""The command line as its user meets it: every mistake is one line and exit code 2."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import tiny
from recovery_probe_analyses.recovery import Recovery

import recovery_probe as rp
from recovery_probe import config, plugins
from recovery_probe.cli import COMMANDS, main

SMALL = [
    f"--{name}={value}"
    for name, value in {
        "epochs": 3,
        "steps": 2,
        "documents.count": 4,
        "documents.tokens": 24,
        "documents.held_out": 2,
        "model.depth": 1,
        "model.width": 32,
        "model.heads": 2,
        "model.vocabulary": 512,
    }.items()
]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory with the mistakes of a user in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.gguf").write_text("junk")
    (tmp_path / "bad.toml").write_text("epochs = [")
    (tmp_path / "wrong.toml").write_text("[optimizer]\nlearn = 0.1\n")
    (tmp_path / "short.txt").write_text("a\nb\nc\nd\ne\nf\ng\nh\n")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("years of work")
    (tmp_path / "mine.py").write_text("NOT_ONE = 3\n")
    (tmp_path / "broken.py").write_text("raise RuntimeError('half done')\n")
    return tmp_path


def fails(capsys: pytest.CaptureFixture[str], argv: list[str]) -> str:
    before = sorted(os.listdir())
    with pytest.raises(SystemExit) as stop:
        main(argv)
    errors = capsys.readouterr().err
    assert stop.value.code == 2
    assert errors.startswith("error: ")
    assert errors.count("\n") == 1, errors
    assert sorted(os.listdir()) == before, "something was written"
    return errors


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("quikstart", "did you mean 'quickstart'"),
        ("--epochs 3", "needs a preset (paper, quickstart, smollm2)"),
        ("quickstart extra", "unexpected argument 'extra'"),
        ("quickstart --optimizer.lrr 3", "--optimizer.lrr; did you mean 'optimizer.lr'"),
        ("quickstart --epoch 3", "--epoch; did you mean 'epochs'"),
        ("quickstart --epochs six", "--epochs"),
        ("quickstart --epochs 0", "epochs = 0: should be greater than or equal to 1"),
        ("quickstart --optimizer.lr 0", "optimizer.lr = 0.0: should be greater than 0"),
        ("quickstart --optimizer.lr -0.1", "optimizer.lr = -0.1: should be greater than 0"),
        ("quickstart --optimizer.name rmsprop", "'rmsprop'; installed: adam, adamw, sgd"),
        ("quickstart --optimizer.name adm", "did you mean 'adam'"),
        ("quickstart --optimizer.betas 0.9 0.9", "--optimizer.betas; it is a setting of adam"),
        ("quickstart --schedule.keep_first true", "it is a setting of shuffled"),
        ("quickstart --control shufled", "did you mean 'shuffled'"),
        ("quickstart --control cyclic", "compare a cyclic run with itself; use --control none"),
        ("quickstart --record gradient", "did you mean 'gradients'"),
        ("quickstart --intervene gradients", "no interventions plug-in 'gradients'"),
        ("quickstart --no-record attention_patterns", "not on; on are token_losses"),
        ("quickstart --mask.p 0.5", "--mask.p: mask is off; add --intervene mask"),
        ("quickstart --no-record gradients --gradients.every epoch", "gradients is off; add"),
        ("quickstart --optimizer.reset maybe", "maybe"),
        ("quickstart --out", "--out"),
        ("quickstart --documents.count 500", "need 505 documents"),
        ("quickstart --documents.source short.txt", "8 are shorter than 64 tokens"),
        ("quickstart --documents.source nowhere.txt", "no such file or folder"),
        ("quickstart --documents.tokens 4096", "more than the 2048 positions"),
        ("quickstart --model.source bad.gguf", "cannot be loaded"),
        ("quickstart --model.source missing.gguf", "no such file"),
        ("quickstart --model.source nobody/nothing", "is there a network"),
        ("quickstart --documents.source hf:nobody/nothing", "hf:nobody/nothing"),
        ("quickstart --out full --control none", "exists and is not a run"),
        ("quickstart --out full/thesis.tex --control none", "exists and is not a run"),
        ("quickstart --config bad.toml", "not from both"),
        ("--config missing.toml --out x", "no such file"),
        ("--config bad.toml --out x", "cannot be read as TOML"),
        ("--config wrong.toml --out x", "unknown setting optimizer.learn"),
    ],
)
def test_wrong_train(here: Path, capsys: pytest.CaptureFixture[str], words: str, said: str) -> None:
    assert said in fails(capsys, ["train", *words.split()])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("", "needs a run directory"),
        ("nowhere", "no such run directory"),
        ("full", "not a run"),
        ("RUN --analysis recoverry", "did you mean 'recovery'"),
        ("RUN --analysis nowhere.py:ANALYSIS", "no such file"),
        ("RUN --analysis mine.py:ANALYSIS", "defines no 'ANALYSIS'"),
        ("RUN --analysis mine.py:NOT_ONE", "is of type int, and not a class of analyses"),
        ("RUN --analysis broken.py:ANALYSIS", "half done"),
        ("TWO", "it holds the runs one, two"),
        ("RUN --lst", "unknown setting --lst; did you mean 'list'"),
    ],
)
def test_wrong_analyze(
    here: Path, pair: rp.Run, capsys: pytest.CaptureFixture[str], words: str, said: str
) -> None:
    for name in ("one", "two"):
        shutil.copytree(pair.path, here / "TWO" / name)
    argv = [{"RUN": str(pair.path)}.get(w, w) for w in words.split()]
    assert said in fails(capsys, ["analyze", *argv])


def test_a_run_is_not_written_over(
    pair: rp.Run, capsys: pytest.CaptureFixture[str], here: Path
) -> None:
    argv = ["train", "quickstart", "--out", str(pair.path.parent)]
    assert "add --overwrite" in fails(capsys, argv)
    argv = ["train", "quickstart", "--control", "none", "--out", str(pair.path)]
    assert "add --overwrite" in fails(capsys, argv)


def test_unknown_command(capsys: pytest.CaptureFixture[str], here: Path) -> None:
    assert "did you mean 'train'" in fails(capsys, ["trian"])


def test_train_without_a_word_lists_the_presets(capsys: pytest.CaptureFixture[str]) -> None:
    main(["train"])
    out = capsys.readouterr().out
    assert "quickstart" in out
    assert "paper" in out


def test_help_names_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["train", "quickstart", "--help-all"])
    assert not stop.value.code
    out = capsys.readouterr().out
    every = {group: plugins.ours(group) for group in config.LISTS}
    assert all(f"--{name}" in out for name in config.flat(rp.preset("quickstart", **every)))
    assert "usage: recovery-probe train quickstart" in out
    assert "python -m recovery_probe.train quickstart --out" in out, "an example"
    plain = " ".join(out.replace("│", " ").split())
    assert "T, documents trained on; at least 2" in plain, "ranges"
    assert "{None}" not in plain


@pytest.mark.parametrize("command", COMMANDS)
def test_help_fits_a_screen(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And says how many more settings there are, with what each begins as."""
    monkeypatch.setenv("COLUMNS", "80")
    words = {"train": ["quickstart"], "experiment": ["clock_or_cue"]}.get(command, [])
    with contextlib.suppress(SystemExit):
        main([command, *words, "--help"])
    out = capsys.readouterr().out
    assert 3 < len(out.splitlines()) <= 40
    assert "{None}" not in out
    if command == "train":
        assert "--optimizer.lr FLOAT" in out
        assert "(default: 0.1)" in out
        more = len(config.flat(rp.preset("quickstart")))
        found = re.search(r"(\d+) more settings: recovery-probe train quickstart --help-all", out)
        assert found
        assert int(found[1]) > more - 16


def test_the_readmes_command_end_to_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [sys.executable, "-W", "error::UserWarning", "-m", "recovery_probe.train"]
    command += ["quickstart", "--out", "out", *SMALL]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert sorted(os.listdir(tmp_path / "out")) == ["cyclic", "shuffled"]
    lead, recovery, gain, excess, count, report = done.stdout.splitlines()
    assert lead.startswith("Anticipatory recovery: does a document that was forgotten come back")
    assert recovery.startswith("  Recovery: ")
    assert (gain[:19], excess[:22]) == ("  Gain on arrival: ", "  Excess in mid-wait: ")
    assert report == "report: out/cyclic/report.html"
    announced = ("record ", "documents: ")
    lines = [line for line in done.stderr.splitlines() if not line.startswith(announced)]
    assert len(lines) == 6, "a plain line an epoch, and what will be recorded, and no more"
    kinds = ("zarr", "png", "svg", "pdf")
    names = set(plugins.installed("analyses"))
    names -= {"toy_model", "pairwise_recovery", "linearised", "kernel_by_lag", "twin_distance"}
    names -= {"readout", "state_return", "allocation", "transplant"}
    expected = {f"{n}.{e}" for n in names for e in kinds} | {"summary.json"}
    beside = ("picture", "least_squares", "calibration")
    expected |= {f"{name}.{e}" for name in beside for e in kinds[1:]}
    assert set(os.listdir(tmp_path / "out" / "cyclic" / "analyses")) == expected
    assert not (tmp_path / "out" / "shuffled" / "analyses").exists(), "one report has both"
    summary = json.loads((tmp_path / "out/cyclic/analyses/summary.json").read_text())
    done_and_not = (len(summary["analyses"]), len(summary["not_done"]))
    assert count == "{} analyses done, {} not; the report says why".format(*done_and_not)
    assert summary["headline"]["lead"] == lead
    for reading in ("curve", "per_document"):
        assert len(summary["recovery"]["left_out"]["cyclic"][reading]) == 2
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    main(["analyze", "out/cyclic", "out/shuffled", "--analysis", "recovery"])
    verdict = f"recovery: {summary['recovery']['verdict']}"
    assert capsys.readouterr().out.splitlines() == [verdict, report], "what was asked for"
    assert json.loads((tmp_path / "out/cyclic/analyses/summary.json").read_text()) == summary


def test_a_control_with_settings_of_its_own(tmp_path: Path, pair: rp.Run) -> None:
    """Trained by itself, it is put beside the run that it is for."""
    (tmp_path / "run.toml").write_text(config.to_toml(pair.config))
    base = ["train", "--config", str(tmp_path / "run.toml"), "--recorders", "token_losses"]
    other = ["--schedule.kind", "shuffled", "--schedule.keep_first", "true"]
    main([*base, "--out", str(tmp_path / "free"), *other])
    free = rp.open_run(tmp_path / "free")
    assert free.config.schedule.own == {"keep_first": True}
    assert (free.schedule.values[::5] == 0).all()
    main(
        [
            "analyze",
            str(pair.path),
            str(free.path),
            "--analysis",
            "recovery",
            "--out",
            str(tmp_path),
        ]
    )
    summary = json.loads((tmp_path / "analyses" / "summary.json").read_text())
    assert summary["controls"] == [str(free.path)]


def test_config_of_a_run_starts_another(pair: rp.Run, tmp_path: Path) -> None:
    out = tmp_path / "again"
    words = ["--out", str(out), "--epochs", "2", "--recorders", "checkpoints"]
    main(["train", "--config", str(pair.path / "config.toml"), *words])
    assert rp.open_run(out).config.epochs == 2
    assert rp.open_run(out).losses[:3].equals(pair.losses[:3])


def test_divergence_has_its_own_exit_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(
            ["train", "quickstart", *SMALL, "--optimizer.lr", "1e30", "--out", str(tmp_path / "x")]
        )
    assert stop.value.code == 1
    assert "try a smaller learning rate (optimizer.lr)" in capsys.readouterr().err
    assert rp.open_run(tmp_path / "x" / "cyclic").status == "diverged"


def test_console_script_is_installed() -> None:
    script = shutil.which("recovery-probe", path=str(Path(sys.executable).parent))
    assert script is not None
    done = subprocess.run([script, "analyze", "--list"], capture_output=True, text=True)
    assert "recovery " in done.stdout


def test_several_seeds_make_one_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in (0, 1, 2):
        few = tiny(seed=seed, recorders=["token_losses", "weight_deltas"])
        rp.fit(few, tmp_path / f"seed{seed}", control="shuffled")
    runs = [str(tmp_path / f"seed{seed}" / "cyclic") for seed in (0, 1, 2)]
    with pytest.raises(SystemExit) as stop:
        main(["analyze", *runs])
    assert stop.value.code == 2
    assert "3 runs, one report: say where it goes with --out DIR" in capsys.readouterr().err
    together = tmp_path / "together"
    main(["analyze", *runs, "--out", str(together), "--format", "html", "md"])
    summary = json.loads((together / "analyses" / "summary.json").read_text())
    assert len(summary["runs"]) == len(summary["controls"]) == 3
    assert summary["analyses"]["age_curve"]["unit"] == "3 seeds"
    assert "Brackets: 95% over 3 seeds" in summary["age_curve"]["verdict"]
    single = [rp.open_run(path) for path in runs]
    scores = [Recovery()(r).score for r in single]
    mean = sum(float(s.sel(reading="per_document").isel(run=0, epoch=1)) for s in scores) / 3
    where = {"run": "cyclic", "reading": "per_document", "epoch": 2}
    score = next(r for r in summary["recovery"]["estimates"]["score"] if where.items() <= r.items())
    assert score["value"] == pytest.approx(mean, abs=1e-5)
    text = (together / "report.md").read_text()
    assert "![Figure of weight_cyclicity" in text
    assert (together / "analyses" / "weight_cyclicity.svg").exists()
    assert "pass --from-checkpoint" in text, "what was not done, and how to get it"


def test_options_of_analyses(
    pair: rp.Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = ["analyze", str(pair.path), "--analysis", "weight_residuals", "--out", str(tmp_path)]
    main([*base, "--weight_residuals.permutations", "19"])
    summary = json.loads((tmp_path / "analyses" / "summary.json").read_text())
    assert "19 rotations" in summary["analyses"]["weight_residuals"]["p"]
    capsys.readouterr()
    for words, message in (
        ("weight_residuals.permutation=9", "did you mean 'weight_residuals.permutations'"),
        ("weight_residual.permutations=9", "did you mean 'weight_residuals.permutations'"),
        ("permutations=9", "did you mean 'weight_residuals.permutations'"),
        ("weight_residuals.permutations=many", "--weight_residuals.permutations"),
        ("weight_residuals.permutations=0", "weight_residuals.permutations = 0"),
    ):
        with pytest.raises(SystemExit) as stop:
            main([*base, f"--{words}"])
        assert stop.value.code == 2
        assert message in capsys.readouterr().err


def test_toy_model_needs_no_run(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["analyze", "--analysis", "toy_model", "--out", "toy", "--toy_model.seeds", "2"])
    told = capsys.readouterr().out
    assert "diverges" in told
    kinds = {f"toy_model.{kind}" for kind in ("svg", "zarr")}
    assert {*kinds, "summary.json"} <= set(os.listdir("toy/analyses"))
    assert (here / "toy" / "report.html").exists()
    assert "--out DIR" in fails(capsys, ["analyze", "--analysis", "toy_model"])


def test_a_users_own_folder_called_analyses_is_in_nobodys_way(here: Path) -> None:
    (here / "analyses").mkdir()
    (here / "analyses" / "__init__.py").write_text("")
    command = [sys.executable, "-m", "recovery_probe.analyze", "--list"]
    done = subprocess.run(command, cwd=here, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "recovery " in done.stdout


def test_the_list_is_aligned(capsys: pytest.CaptureFixture[str]) -> None:
    main(["analyze", "--list"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(plugins.installed("analyses"))
    starts = {len(line) - len(line.split(maxsplit=1)[1]) for line in lines}
    assert len(starts) == 1
    assert all(line.endswith("?") for line in lines)


def test_dotted_names_and_near_misses() -> None:
    assert rp.preset("quickstart", **{"optimizer.lr": 0.05}).optimizer.lr == 0.05
    both = rp.preset("quickstart", optimizer={"name": "adam"}, **{"optimizer.lr": 0.01})
    assert (both.optimizer.name, both.optimizer.lr) == ("adam", 0.01)
    with pytest.raises(rp.InputError, match=r"did you mean 'optimizer\.lr'"):
        rp.preset("quickstart", learning_rate=0.1)
    with pytest.raises(rp.InputError, match=r"did you mean 'optimizer\.lr'"):
        rp.preset("quickstart", **{"optimizer.learning_rate": 0.1})


TINY = ["train", "quickstart", "--control", "none", "--no-record", "document_gradients", *SMALL]


def test_quiet_says_what_was_found_and_what_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main([*TINY, "--out", str(tmp_path / "run"), "--quiet"])
    said = capsys.readouterr()
    assert not said.err
    assert said.out.splitlines()[-1] == f"report: {tmp_path / 'run' / 'report.html'}"
    with pytest.raises(SystemExit):
        main([*TINY, "--out", str(tmp_path / "run"), "--quiet"])
    assert capsys.readouterr().err.startswith("error: ")
    main(["replay", str(tmp_path / "run"), "--record", "readout"])
    assert "trained again" in capsys.readouterr().err, "the next command says what it does"


def test_a_terminal_gets_a_bar(tmp_path: Path) -> None:
    """Documents, loss, recovery and the time left, in one line that is drawn again."""
    run = f"from recovery_probe.cli import main; main({[*TINY, '--out', str(tmp_path / 'run')]!r})"
    code = f"import pty; pty.spawn([{sys.executable!r}, '-c', {run!r}])"
    environment = os.environ | {"COLUMNS": "120", "TERM": "xterm"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment
    )
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", done.stdout)
    last = [line for line in re.split(r"[\r\n]+", shown) if "12/12" in line][-1]
    found = re.search(
        r"12/12\s+documents\s+loss (\d\.\d{3}), recovery (none yet|\S+)\s+0:00:\d\d", last
    )
    assert found, shown
    run_ = rp.open_run(tmp_path / "run")
    assert found[1] == f"{run_.losses.values[12, :4].mean():.3f}"
    assert found[2] == (f"{run_.recovery:.2f}" if np.isfinite(run_.recovery) else "none yet")
    assert (tmp_path / "run" / "report.html").exists()

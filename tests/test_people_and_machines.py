"""What people and machines do to a run: two trainers, signals, links, odd names, doubled flags."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from commands import LONG, start, wait_for
from conftest import cut, tiny

import recovery_probe as rp
from recovery_probe import config
from recovery_probe.cli import main


def refused(capsys: pytest.CaptureFixture[str], argv: list[str]) -> str:
    with pytest.raises(SystemExit) as stop:
        main(argv)
    said = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2
    assert said[-1].startswith("error: ")
    assert not [line for line in said if "Traceback" in line]
    return said[-1]


def test_one_trainer_in_a_directory(tmp_path: Path) -> None:
    """The second is refused, with --overwrite too, and the first is none the worse for it."""
    out = tmp_path / "run"
    first = start(out)
    try:
        assert wait_for(out, 3).status == "running"
        for words in ([], ["--overwrite", "--seed", "1"]):
            second = start(out, *words)
            code, said = second.ended()
            assert code == 2
            assert "Traceback" not in said
        assert f"is being written by process {first.pid} on " in said
        assert first.poll() is None
    finally:
        first.send_signal(signal.SIGTERM)
        code, said = first.ended()
    assert code == 143
    assert re.search(
        r"error: .*/run: stopped after \d+ of 2000 episodes; to go on from its checkpoint after",
        said,
    )
    run = rp.open_run(out)
    assert run.status == "interrupted"
    assert str(run.config.seed) == "0"
    assert not (out / "lock").exists()
    assert os.listdir(tmp_path) == ["run"]
    run.check()


def test_an_interrupt_is_told_and_keeps_the_record(tmp_path: Path) -> None:
    process = start(tmp_path / "run")
    wait_for(tmp_path / "run", 2)
    process.send_signal(signal.SIGINT)
    code, said = process.ended()
    assert code == 130
    assert "Traceback" not in said
    assert rp.open_run(tmp_path / "run").status == "interrupted"


def test_a_killed_run_is_called_so_and_can_be_replaced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    process = start(out)
    wait_for(out, 1)
    process.kill()
    process.ended()
    assert rp.open_run(out).status == "killed"
    rp.fit(tiny(epochs=1), out, overwrite=True)
    assert f"was left by process {process.pid} on " in capsys.readouterr().err
    assert rp.open_run(out).status == "complete"


@pytest.mark.parametrize("seconds", [0.0, 0.2, 1.0, 2.0])
def test_an_interrupt_while_libraries_load_is_one_line(tmp_path: Path, seconds: float) -> None:
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", "import recovery_probe"])
    up = time.monotonic() - began  # about when Python itself is, on a machine as busy as this
    command = [sys.executable, "-m", "recovery_probe.train", "quickstart", *LONG.split()]
    command += ["--out", str(tmp_path / "run")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    time.sleep((2 * up if seconds else up) + seconds)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    if seconds:
        assert process.returncode == 130
        assert "Traceback" not in said
        assert said.splitlines()[-1].startswith("error: ")
    assert not [f for f in os.listdir(tmp_path) if f != "run"], "something is left aside"


def test_an_interrupt_that_a_library_drops_is_heard_all_the_same(tmp_path: Path) -> None:
    """As where it comes inside an import that is tried, or in a callback of C code."""
    (tmp_path / "mine.py").write_text(
        "import os, signal\n"
        "try:\n    os.kill(os.getpid(), signal.SIGINT)\nexcept BaseException:\n    pass\n"
        "def norm(tensor, *, hook):\n    return tensor.norm()\n"
    )
    process = start(tmp_path / "run", "--hook", f"{tmp_path / 'mine.py'}:norm@hook_embed")
    code, said = process.ended()
    assert code == 130
    assert said.splitlines()[-1].startswith("error: ")
    assert rp.open_run(tmp_path / "run").episodes_done == 0


@pytest.mark.parametrize(
    "door", ["recovery_probe", "recovery_probe.train", "recovery_probe.analyze"]
)
def test_nothing_slow_is_imported_before_the_door_is_open(door: str) -> None:
    """Before that an interrupt is a traceback."""
    code = (
        f"import sys; before = set(sys.modules); import {door}; print(*set(sys.modules) - before)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert "recovery_probe" in loaded
    assert not loaded - sys.stdlib_module_names - {"recovery_probe"}
    assert "recovery_probe.config" not in done.stdout.split()


def test_a_folder_of_the_users_beside_the_run_stays(tmp_path: Path) -> None:
    (tmp_path / "run.partial").mkdir()
    (tmp_path / "run.partial" / "thesis.tex").write_text("years of work")
    rp.fit(tiny(epochs=1), tmp_path / "run")
    assert sorted(os.listdir(tmp_path)) == ["run", "run.partial"]
    assert os.listdir(tmp_path / "run.partial") == ["thesis.tex"]


def test_groups_are_there_before_the_run_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in the middle of being laid out, a run leaves nothing at all."""
    from recovery_probe.record.writer import Writer

    def stops(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Writer, "add_group", stops)
    with pytest.raises(KeyboardInterrupt):
        rp.fit(tiny(epochs=1, recorders=["gradients"]), tmp_path / "run")
    assert not os.listdir(tmp_path)


def test_a_burst_of_interrupts_leaves_a_whole_record(tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = start(out)
    wait_for(out, 2)
    for _ in range(6):
        process.send_signal(signal.SIGINT)
        time.sleep(0.01)
    process.ended()
    run = rp.open_run(out)
    assert run.status == "interrupted"
    run.check()
    assert run.record.losses.sizes["episodes_done"] == 2001


def test_links_and_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    rp.fit(tiny(epochs=1), tmp_path / "link")
    assert rp.open_run(tmp_path / "real").status == "complete"
    rp.fit(tiny(epochs=1, seed=3), tmp_path / "link", overwrite=True)
    assert str(rp.open_run(tmp_path / "link").config.seed) == "3"
    assert (tmp_path / "link").is_symlink()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path)
    run = rp.fit(tiny(epochs=1), "~/mine")
    assert run.path == tmp_path / "home" / "mine"
    assert rp.open_run("~/mine").status == "complete"
    assert not (tmp_path / "~").exists()


@pytest.mark.parametrize(
    "out", ["/dev/null/x", "file/sub", "n" * 300, "nul\0l", "dangling", "file", "\udcff"]
)
def test_places_where_no_run_can_be(
    out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    (tmp_path / "dangling").symlink_to("nowhere/at/all")
    said = refused(capsys, ["train", "quickstart", "--control", "none", "--out", out])
    assert "record " not in said
    assert sorted(os.listdir()) == ["dangling", "file"]


def test_absurd_lengths_are_refused_before_anything(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for word in ("--epochs", "--steps"):
        said = refused(
            capsys, ["train", "quickstart", word, "1000000000", "--out", str(tmp_path / "x")]
        )
        assert "gradient steps, more than 1e+08" in said


def test_flags_given_several_times_are_all_meant(tmp_path: Path) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text(
        "from recovery_probe import Array, Layout, Recorder\n"
        "class Mine(Recorder):\n"
        "    name = 'mine'\n"
        "    def start(self, run):\n"
        "        return Layout({'one': Array('step', (), (), 'one', '1')})\n"
        "    def after_step(self, step):\n        return {'one': 1.0}\n"
        "def f(tensor, *, hook):\n    return 1.0\n"
        "def g(tensor, *, hook):\n    return 2.0\n"
    )
    (tmp_path / "run.toml").write_text(
        config.to_toml(tiny(epochs=1, recorders=["gradients", "weight_deltas"]))
    )
    out = tmp_path / "run"
    argv = ["train", "--config", str(tmp_path / "run.toml"), "--out", str(out)]
    argv += ["--record", "attention_patterns", f"--record={mine}:Mine"]
    argv += ["--hook", f"{mine}:f@blocks.0.hook_out", "--hook", f"{mine}:g@blocks.1.hook_out"]
    main([*argv, "--no-record", "gradients", "--no_record", "weight_deltas"])
    run = rp.open_run(out)
    assert {"attention_patterns", "mine", "f", "g"} <= set(run.recorders)
    assert not {"gradients", "weight_deltas"} & set(run.recorders)
    shutil.rmtree(out / "analyses")
    main(["analyze", str(out), "--analysis", "loss_curves", "--analysis", "recovery"])
    found = {f.stem for f in (out / "analyses").glob("*.zarr")}
    assert found == {"loss_curves", "recovery"}


def test_a_run_and_its_control_by_their_directory(
    pair: rp.Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(pair.path.parent, tmp_path / "both")
    main(["analyze", str(tmp_path / "both"), "--analysis", "recovery"])
    assert "The control shuffled" in capsys.readouterr().out
    assert (tmp_path / "both" / "cyclic" / "report.html").exists()


def test_a_plug_in_that_exits_is_an_error(
    pair: rp.Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "leaves.py").write_text("import sys\nsys.exit(0)\n")
    plug_in = f"{tmp_path / 'leaves.py'}:X"
    out = str(tmp_path / "run")
    for argv in (
        ["train", "quickstart", "--out", out, "--record", plug_in],
        ["train", "quickstart", "--out", out, "--hook", f"{plug_in}@*"],
        ["analyze", str(pair.path), "--analysis", plug_in],
    ):
        assert "leaves.py: fails when run: SystemExit: 0" in refused(capsys, argv)
    assert not (tmp_path / "run").exists()


def test_a_plug_in_file_may_hold_dataclasses(pair: rp.Run, tmp_path: Path) -> None:
    from recovery_probe import plugins

    (tmp_path / "mine.py").write_text(
        "from __future__ import annotations\n"
        "from dataclasses import dataclass\n"
        "@dataclass\nclass Mine:\n    at: int = 3\n"
    )
    assert plugins.load("recorders", f"{tmp_path / 'mine.py'}:Mine")().at == 3


def test_resume_opens_what_is_there_and_nothing_else(tmp_path: Path) -> None:
    settings = tiny(epochs=1)
    first = rp.fit(settings, tmp_path / "run", control="shuffled")
    made = (first.path / "provenance.json").stat().st_mtime_ns
    again = rp.fit(settings, tmp_path / "run", control="shuffled", resume=True)
    assert again.path == first.path
    assert (first.path / "provenance.json").stat().st_mtime_ns == made
    with pytest.raises(rp.InputError, match=r"another run \(steps is 3 there, and 2 here\)"):
        rp.fit(tiny(epochs=1, steps=2), tmp_path / "run", control="shuffled", resume=True)
    with pytest.raises(rp.InputError, match="resume keeps what overwrite deletes"):
        rp.fit(settings, tmp_path / "run", control="shuffled", resume=True, overwrite=True)
    assert rp.fit(tiny(epochs=1), tmp_path / "new", resume=True).status == "complete"


def test_threads_are_a_setting_and_given_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        monkeypatch.setattr(psutil, "cpu_percent", lambda seconds: 90.0)
        one = rp.fit(tiny(epochs=1, threads=1), tmp_path / "one")
        assert "busy" not in capsys.readouterr().err
        assert torch.get_num_threads() == 2
        assert one.provenance["threads"] == 1
        two = rp.fit(tiny(epochs=1), tmp_path / "two")
        assert "give each run --threads 1" in capsys.readouterr().err
        assert two.provenance["threads"] == 2
        np.testing.assert_allclose(one.losses, two.losses, atol=1e-4)
    finally:
        torch.set_num_threads(before)


def test_output_that_nobody_reads_is_no_error() -> None:
    command = f"{sys.executable} -m recovery_probe.train quickstart --help | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert done.stdout.startswith("usage")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("language", ["C.UTF-8", "C"])
def test_errors_are_one_line_in_any_language(language: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "recovery_probe.train", "quickstart", "--epochs", "six"]
    environment = {**os.environ, "LC_ALL": language, "PYTHONUTF8": "0"}
    done = subprocess.run(command, capture_output=True, env=environment, cwd=tmp_path)
    expected = b"error: --epochs: 'six' is no whole number\n"
    assert (done.returncode, done.stderr) == (2, expected)


def test_copies_that_were_left_out_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = [str(7 ** (60 + i)) for i in range(9)]
    (tmp_path / "texts.txt").write_text("\n".join([*texts, texts[0], texts[3]]))
    settings = tiny(epochs=1, documents={"source": str(tmp_path / "texts.txt"), "count": 7})
    run = rp.fit(settings, tmp_path / "run")
    assert "documents: 2 copies or near copies of others left out" in capsys.readouterr().err
    assert run.provenance["documents_left_out"]["duplicates"] == 2


def test_updates_of_a_stretch_that_was_cut_off_do_not_count(tmp_path: Path) -> None:
    """Killed in mid-epoch, a row that is to cover the epoch is no row yet."""
    run = rp.fit(
        tiny(recorders=["weight_deltas"], weight_deltas={"every": "epoch"}), tmp_path / "run"
    )
    whole = run.weight_trajectory()
    assert whole.episodes_done.values.tolist() == [0, 5, 10, 15]
    for done, counted in ((14, 2), (10, 2), (9, 1), (4, 0)):
        stopped = cut(run, tmp_path / f"cut-{done}", done)
        assert stopped.weight_deltas.sizes["step"] == counted
        found = stopped.weight_trajectory()
        assert found.episodes_done.values.tolist() == [0, 5, 10][: counted + 1]
        np.testing.assert_array_equal(found, whole[: counted + 1])

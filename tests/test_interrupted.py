"""Runs that are stopped, moved, copied or fill the disk, and how they go on."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from commands import start, wait_for
from conftest import tiny, training
from kills import differences
from test_people_and_machines import refused

import recovery_probe as rp
from recovery_probe import config
from recovery_probe.cli import main
from recovery_probe.record import lock

FEW = ["--epochs", "4", "--recorders", "token_losses", "checkpoints"]


class Signals(rp.Recorder):
    """Sends its process a signal in an episode, once or twice."""

    name = "signals"
    sent: list[int] = []  # noqa: RUF012

    def start(self, training: rp.Training) -> rp.Layout:
        return rp.Layout()

    def before_step(self, step: rp.Step) -> None:
        if step.episode == 7 and self.sent:
            os.kill(os.getpid(), self.sent.pop())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_episode_with_a_checkpoint(
    number: int, pair: rp.Run, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    Signals.sent = [number]
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(rp.Interrupted) as told:
        rp.fit(pair.config, tmp_path / "run", hooks=[Signals])
    path = tmp_path / "run"
    assert str(told.value) == (
        f"{path}: stopped after 8 of 15 episodes; to go on from its checkpoint after 8: "
        f"python -m recovery_probe.train --resume {path}"
    )
    assert told.value.signal == number
    assert "stopping after this episode" in capfd.readouterr().err
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    run = rp.open_run(path)
    assert (run.status, run.episodes_done, run.checkpoints) == ("interrupted", 8, [0, 5, 8])
    run.resume(hooks=[Signals])
    assert differences(run, pair) == []
    (once,) = run.provenance["resumed"]
    assert (once["after"], once["again"], once["changed"]) == (8, 0, {})


def test_a_second_signal_stops_at_once(pair: rp.Run, tmp_path: Path) -> None:
    Signals.sent = [signal.SIGINT, signal.SIGINT]
    with pytest.raises(rp.Interrupted, match=r"stopped after 7 of 15 .* checkpoint after 5"):
        rp.fit(pair.config, tmp_path / "run", hooks=[Signals])
    assert rp.open_run(tmp_path / "run").checkpoints == [0, 5]


def test_the_same_command_starts_and_goes_on(tmp_path: Path) -> None:
    """As a cluster starts a job again that it has stopped."""
    out = tmp_path / "run"
    process = start(out, *FEW[2:], "--resume")
    wait_for(out, 6)
    process.send_signal(signal.SIGTERM)
    code, said = process.ended()
    assert code == 143, said
    assert f"python -m recovery_probe.train --resume {out}" in said.splitlines()[-1]
    run = rp.open_run(out)
    assert run.status == "interrupted"
    assert run.checkpoints[-1] == run.episodes_done
    done = run.episodes_done
    process = start(out, *FEW[2:], "--resume")
    wait_for(out, done + 4)
    process.kill()
    _, said = process.ended()
    assert f"goes on after {done} of 2000 episodes" in said
    assert run.refresh().status == "killed"


def test_resume_by_the_directory_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a run and its control, and with more epochs."""
    settings = tiny(epochs=1, recorders=["token_losses", "checkpoints"])
    (tmp_path / "settings.toml").write_text(config.to_toml(settings))
    out = tmp_path / "runs"
    main(
        [
            "train",
            "--config",
            str(tmp_path / "settings.toml"),
            "--out",
            str(out),
            "--control",
            "shuffled",
        ]
    )
    capsys.readouterr()
    main(["train", "--resume", str(out), "--epochs", "2"])
    said = capsys.readouterr()
    assert said.err.count("10 episodes instead of 5") == 2
    assert f"report: {out / 'cyclic' / 'report.html'}" in said.out
    run = rp.open_run(out / "cyclic")
    assert [r.episodes_done for r in (run, *run.controls)] == [10, 10]
    assert run.controls[0].config.schedule.kind == "shuffled"
    main(["train", "--resume", str(out / "cyclic")])
    assert "again" not in capsys.readouterr().err
    for words, message in (
        (["train", "--resume"], "--resume needs the directory of a run"),
        (["train", "--resume", str(tmp_path / "no")], "no such run directory"),
        (["train", "--resume", str(out / "cyclic"), "--steps", "5"], "steps is 3 there, and 5"),
        (["train", "--resume", str(out / "cyclic"), "--epochs", "1"], "epochs is 2 there, and 1"),
    ):
        assert message in refused(capsys, words)


def test_a_hook_is_named_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.py").write_text("def f(tensor, *, hook):\n    return tensor.mean()\n")
    hook = ["--hook", f"{tmp_path / 'mine.py'}:f@blocks.0.hook_resid_post"]
    (tmp_path / "settings.toml").write_text(
        config.to_toml(tiny(epochs=1, recorders=["checkpoints"]))
    )
    out = str(tmp_path / "run")
    main(["train", "--config", str(tmp_path / "settings.toml"), "--out", out, *hook])
    said = refused(capsys, ["train", "--resume", out, "--epochs", "2"])
    assert "hooks is [" in said
    assert "f@blocks.0.hook_resid_post" in said
    main(["train", "--resume", out, "--epochs", "2", *hook])
    assert rp.open_run(out).recorder("f").sizes["step"] == 30


def test_what_does_not_come_out_the_same_is_said(
    pair: rp.Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On another machine, say; the record is then of this one from there on."""
    shutil.copytree(pair.path, tmp_path / "run")
    file = tmp_path / "run" / "provenance.json"
    provenance = json.loads(file.read_text())
    provenance["versions"]["torch"] = "1.0"
    file.write_text(json.dumps(provenance | {"status": "running"}))
    shutil.rmtree(tmp_path / "run/checkpoints/episodes-00015")
    arrays = training(tmp_path / "run")
    arrays["rows_committed"][...] = 15
    arrays["losses"][13] = arrays["losses"][13] + 1e-6
    run = rp.open_run(tmp_path / "run").resume()
    said = capsys.readouterr().err
    assert "after 13 episodes losses differ from those recorded before by up to 1e-06 nats" in said
    assert "torch 1.0 -> 2." in said
    assert run.provenance["resumed"][0]["differs"]["after"] == 13
    assert np.array_equal(run.losses, pair.losses)
    assert (run.status, run.provenance["resumed"][0]["again"]) == ("complete", 4)


def test_who_writes_and_whether_anybody_does(pair: rp.Run, tmp_path: Path) -> None:
    """On this machine the system tells; of another, what it touched a moment ago."""
    path = tmp_path / "run"
    shutil.copytree(pair.path, path)
    provenance = json.loads((path / "provenance.json").read_text())
    (path / "provenance.json").write_text(json.dumps(provenance | {"status": "running"}))
    (path / "lock").touch()
    about = {"pid": 1, "host": socket.gethostname(), "since": "", "folder": path.stat().st_ino}
    run = rp.open_run(path)
    for host, folder, age, status in (
        (about["host"], about["folder"], 0, "killed"),
        ("elsewhere", about["folder"], 0, "running"),
        ("elsewhere", about["folder"], lock.SILENT + 5, "killed"),
        ("elsewhere", 1, 0, "killed"),  # a copy of a run that was being written
    ):
        (path / lock.HOLDER).write_text(json.dumps(about | {"host": host, "folder": folder}))
        then = time.time() - age
        os.utime(path / lock.HOLDER, (then, then))
        assert run.refresh().status == status, (host, folder, age)
    held = lock.Lock(path)
    held.begin()
    assert json.loads((path / lock.HOLDER).read_text())["pid"] == os.getpid()
    assert run.refresh().status == "running"
    held.close()
    assert run.refresh().status == "killed"
    assert not (path / lock.HOLDER).exists()


def test_a_copy_made_meanwhile_and_a_run_that_moves(tmp_path: Path) -> None:
    """`cp -r` of a run that is being written goes on by itself, and so does one in another
    place."""
    out = tmp_path / "run"
    process = start(out, "--epochs", "12", "--recorders", "token_losses", "checkpoints")
    try:
        run = wait_for(out, 10)
        subprocess.run(["cp", "-r", str(out), str(tmp_path / "copy")], check=True)
        assert run.refresh().status == "running"
        more = wait_for(out, run.episodes_done + 3)
        assert run.refresh().episodes_done >= more.episodes_done > 10
    finally:
        process.send_signal(signal.SIGTERM)
        process.ended()
    copy = rp.open_run(tmp_path / "copy")
    assert copy.status == "killed"
    shutil.move(out, tmp_path / "moved")
    whole = rp.open_run(tmp_path / "moved").resume()
    assert differences(copy.resume(), whole) == []


def test_a_full_disk_in_the_middle(small_disk: Path, tmp_path: Path) -> None:
    """The record and the last checkpoint stay whole; once there is room it goes on."""
    settings = tiny(recorders=["token_losses", "gradients", "checkpoints"])
    whole = rp.fit(settings, tmp_path / "whole")

    class Fills(rp.Recorder):
        name = "fills"
        full = True

        def start(self, training: rp.Training) -> rp.Layout:
            return rp.Layout()

        def before_step(self, step: rp.Step) -> None:
            if self.full and step.episode == 7:
                left = shutil.disk_usage(small_disk).free
                (small_disk / "filler").write_bytes(b"0" * max(0, left - 8192))

    with pytest.raises(rp.InputError, match=r"the disk is full, after \d+ of 15 .* make room; to"):
        rp.fit(settings, small_disk / "run", hooks=[Fills], force=True)
    run = rp.open_run(small_disk / "run")
    run.check()
    assert run.episodes_done >= 6
    assert not list(run.path.rglob("*.partial"))
    (small_disk / "filler").unlink()
    Fills.full = False
    assert differences(run.resume(hooks=[Fills]), whole) == []


def test_a_damaged_checkpoint_is_named_and_the_one_before_used(
    pair: rp.Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(pair.path, tmp_path / "run")
    cut(tmp_path / "run", 12)
    weights = tmp_path / "run/checkpoints/episodes-00010/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    run = rp.open_run(tmp_path / "run").resume()
    said = capsys.readouterr().err
    assert "the checkpoint after 10 episodes is damaged (model.safetensors is not as it" in said
    assert "goes on after 5 of 15 episodes; 7 recorded ones are trained again" in said
    assert differences(run, pair) == []


def cut(path: Path, episodes: int) -> None:
    """As if it had been killed after so many episodes."""
    training(path)["rows_committed"][...] = episodes + 1
    shutil.rmtree(path / "checkpoints/episodes-00015")
    provenance = json.loads((path / "provenance.json").read_text())
    (path / "provenance.json").write_text(json.dumps(provenance | {"status": "running"}))


def test_killed_between_two_renames(tmp_path: Path) -> None:
    """While a run is laid out anew for more epochs, and lies beside its place."""
    settings = tiny(epochs=2, recorders=["checkpoints"])
    run = rp.fit(settings, tmp_path / "run")
    aside = tmp_path / ".run-abcdefgh"
    shutil.copytree(run.path, aside)
    (aside / "lock").touch()  # as the process leaves it
    run.path.rename(aside.with_name(f"{aside.name}-before"))
    longer = rp.fit(tiny(epochs=3, recorders=["checkpoints"]), run.path, resume=True)
    assert longer.provenance["resumed"][0]["after"] == 10
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    whole = rp.fit(tiny(epochs=3, recorders=["checkpoints"]), tmp_path / "whole")
    assert differences(longer, whole) == []


def test_killed_before_an_old_checkpoint_goes(tmp_path: Path) -> None:
    """At the end, when nothing is left to train."""
    run = rp.fit(tiny(recorders=["checkpoints"], checkpoints={"keep": 1}), tmp_path / "run")
    folder = run.path / "checkpoints"
    shutil.copytree(folder / "episodes-00015", folder / "episodes-00010")
    provenance = run.path / "provenance.json"
    provenance.write_text(json.dumps(run.provenance | {"status": "running"}))
    assert rp.open_run(run.path).checkpoints == [10, 15]
    assert rp.open_run(run.path).resume().checkpoints == [15]

"""What is damaged is named, and made again bit for bit where training again can."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from kills import differences

import recovery_probe as rp
from recovery_probe.cli import main
from recovery_probe.record.verify import verify
from recovery_probe.testing import toy_settings as tiny
from recovery_probe.train.mend import mend


def flip(file: Path) -> None:
    """One bit of a file, in its middle."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))


def chunk(run: Path, array: str, first: int = 0) -> Path:
    folder = run / "record.zarr" / array / "c" / str(first)
    return folder if folder.is_file() else next(f for f in folder.rglob("*") if f.is_file())


# Damage -> what is said of it.
MENDED: dict[str, tuple[Callable[[Path], None], str]] = {
    "a bit of a recorder's array": (
        lambda run: flip(chunk(run, "gradients/sketched")),
        "gradients/sketched, rows 0 to 14: chunks are damaged or gone; what needs gradients cannot",
    ),
    "an array's chunk is gone": (
        lambda run: chunk(run, "token_losses/loss", 1).unlink(),
        "token_losses/loss, rows 5 to 9",
    ),
    "a group's metadata": (
        lambda run: (run / "record.zarr/weight_deltas/norm/zarr.json").write_text("{"),
        "record.zarr/weight_deltas/norm/zarr.json: is not as it was written",
    ),
    "a bit of the losses": (
        lambda run: flip(chunk(run, "training/losses", 1)),
        "training/losses, rows 5 to 9: chunks are damaged or gone; no analysis can be done",
    ),
    "all losses are gone": (
        lambda run: shutil.rmtree(run / "record.zarr/training/losses/c"),
        "training/losses, rows 0 to 15",
    ),
    "training losses": (
        lambda run: flip(chunk(run, "training/train_loss")),
        "training/train_loss, rows 0 to 14",
    ),
    "a bit of a checkpoint": (
        lambda run: flip(run / "checkpoints/episodes-00010/model.safetensors"),
        "checkpoint after 10 episodes: model.safetensors is not as it was written",
    ),
    "the first checkpoint's state": (
        lambda run: (run / "checkpoints/episodes-00000/state.json").unlink(),
        "checkpoint after 0 episodes: state.json is gone",
    ),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> rp.Run:
    """With what memory an optimizer has."""
    settings = tiny(
        optimizer={"lr": 0.02, "momentum": 0.9},
        recorders=["token_losses", "gradients", "weight_deltas", "checkpoints"],
    )
    return rp.fit(settings, tmp_path_factory.mktemp("whole") / "run")


def test_a_whole_run_is_whole(whole: rp.Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify(whole.path) == []
    main(["verify", str(whole.path)])
    assert capsys.readouterr().out == f"{whole.path}: whole\n"


@pytest.mark.parametrize("damage", MENDED)
def test_what_can_be_made_again_is(
    damage: str, whole: rp.Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run"
    shutil.copytree(whole.path, path)
    do, said = MENDED[damage]
    do(path)
    with pytest.raises(SystemExit) as stop:
        main(["verify", str(path)])
    assert stop.value.code == 2
    told = capsys.readouterr()
    assert said in told.out
    assert f"verify {path} --mend" in told.err
    assert verify(path), "verifying changes nothing"
    main(["verify", str(path), "--mend"])
    told = capsys.readouterr()
    assert told.out.splitlines()[-1] == f"{path}: whole"
    assert "bit for bit" in told.err
    run = rp.open_run(path)
    run.check()
    assert {what for what in differences(run, whole) if not what.startswith("attributes")} == set()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda run: flip(run / "config.toml"), "config.toml"),
        (lambda run: (run / "provenance.json").write_text("{"), "provenance.json"),
        (lambda run: flip(chunk(run, "training/tokens")), "training/tokens"),
        (lambda run: flip(run / "record.zarr/training/losses/zarr.json"), "training/losses/zarr"),
    ],
)
def test_what_cannot_is_said(
    damage: Callable[[Path], None], said: str, whole: rp.Run, tmp_path: Path
) -> None:
    path = tmp_path / "run"
    shutil.copytree(whole.path, path)
    damage(path)
    flaws = verify(path)
    assert [flaw for flaw in flaws if flaw.what.startswith(said) or said in flaw.what]
    with pytest.raises(rp.Damaged, match="nothing can be trained from it"):
        mend(path, flaws)


def test_of_several_checkpoints_the_newest_whole_one_is_used(
    whole: rp.Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run"
    shutil.copytree(whole.path, path)
    flip(path / "checkpoints/episodes-00010/model.safetensors")
    run = rp.open_run(path)
    for damaged in (lambda: run.model_at(10), lambda: run.weights_at(10)):
        with pytest.raises(
            rp.Damaged, match=r"model\.safetensors is not as it was written.*--mend"
        ):
            damaged()
    run.replay(record=["attention_patterns"], episodes=(11, 13))
    said = capsys.readouterr().err
    assert "the checkpoint after 10 episodes is damaged" in said
    assert "from the checkpoint after 5" in said

"""The picture: its numbers by hand, and that it is seen wherever it should be."""

from __future__ import annotations

import base64
import subprocess
import sys
from pathlib import Path

import nbformat
import numpy as np
import pytest
import xarray as xr
from matplotlib.colors import to_hex
from nbclient import NotebookClient
from recovery_probe_analyses.gradient_similarity import GradientSimilarity
from recovery_probe_analyses.loss_curves import LossCurves
from recovery_probe_analyses.weight_cyclicity import WeightCyclicity

import recovery_probe as rp
from recovery_probe import stats
from recovery_probe.analyze import picture, plots


def by_hand(run: rp.Run, epoch: int, until: int) -> list[float]:
    """Losses of all documents at one point of the picture, by walking through the schedule."""
    schedule, found = run.schedule.values.tolist(), []
    for document in range(5):
        turns = [t for t, d in enumerate(schedule) if d == document]
        row = turns[epoch] + until  # row k is before episode k, and right after episode k - 1
        if row > turns[epoch - 1]:
            found.append(float(run.losses.values[row, document]))
    return found


def test_numbers_by_hand(pair: rp.Run) -> None:
    numbers = picture.numbers(pair, pair.controls)
    assert numbers.until.values[-1] == 0
    assert numbers.longest.values.tolist()[0] == 5
    assert numbers.documents.isel(run=0).sel(until=slice(-4, 0)).values.tolist() == [[5] * 5] * 2
    for r, run in enumerate([pair, *pair.controls]):
        for epoch in (1, 2):
            for until in range(-8, 1):
                losses = by_hand(run, epoch, until)
                at = {"epoch": epoch, "until": until}
                if not losses or until < numbers.until[0]:
                    continue
                assert numbers.documents.isel(run=r).sel(at) == len(losses)
                np.testing.assert_allclose(numbers.loss.isel(run=r).sel(at), np.mean(losses))
    total = int(numbers.documents.isel(run=1).sum())
    waits = [np.diff(np.flatnonzero(pair.controls[0].schedule == d)) for d in range(5)]
    assert total == np.sum(waits), "every row of every wait is in the control's line once"


def test_an_uneven_schedule() -> None:
    schedule = np.array([0, 1, 0, 0, 1])
    losses = np.arange(12.0).reshape(6, 2)
    found = stats.until_turn(losses, schedule, 2)
    nan = np.nan
    expected = [[[4, 2, nan], [6, nan, nan]], [[9, 7, 5], [nan, nan, nan]]]
    np.testing.assert_array_equal(found, expected)
    assert stats.until_turn(losses, np.array([0, 1]), 2).size == 0


def test_an_arch_is_seen_in_the_run_and_not_in_its_control(pair: rp.Run) -> None:
    """The reading tells the planted fall: 1 nat from mid-wait on in one run, none in the other."""
    numbers = picture.numbers(pair, pair.controls)
    flat = xr.zeros_like(numbers.loss) + 3.0
    arch = xr.where(numbers.until == 0, 2.0, flat)
    numbers["loss"] = xr.where(numbers.run == "cyclic", arch, flat)
    assert "After epoch 2 it falls from its top by 1.00 nats in cyclic, 0.00 nats in shuffled." in (
        picture.reading(numbers)
    )
    fig = picture.draw(numbers)
    left, right = fig.axes[:2]
    assert left.get_ylim() == right.get_ylim()
    assert left.get_xlim() == right.get_xlim()
    assert "cyclic" in left.get_title()
    assert "mixed" in right.get_title()
    colours = [to_hex(c.get_color()[0]) for c in left.collections]
    assert len(set(colours)) == 2, "a line, and a colour, for each wait"


def test_thin_where_few_documents_count(pair: rp.Run) -> None:
    numbers = picture.numbers(pair, pair.controls)
    _, control = picture.draw(numbers).axes[:2]
    widths = np.array(control.collections[0].get_linewidths())
    counted = numbers.documents.isel(run=1, epoch=0).values
    assert np.corrcoef(widths, np.minimum(counted[:-1], counted[1:]))[0, 1] > 0.999


def test_seeds_are_averaged(pair: rp.Run) -> None:
    one = picture.numbers(pair)
    both = xr.concat([one, one.assign(loss=one.loss + 2)], "seed")
    (axes,) = picture.draw(both).axes
    drawn = axes.collections[0].get_segments()
    np.testing.assert_allclose(drawn[-1][-1], [0, float(one.loss[0, 0, -1]) + 1])


def test_unfinished_runs(pair: rp.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside a running run, what is there; and one line of words when that is nothing."""
    done = rp.open_run(pair.path)
    done.losses = done.losses.where(done.losses.episodes_done <= 7)
    numbers = picture.numbers(done)
    assert numbers.documents.isel(run=0, epoch=0).values.tolist() == [5, 5, 5, 4, 3]
    picture.draw(numbers)
    picture.reading(numbers)
    done.losses = done.losses.where(done.losses.episodes_done < 1)
    with pytest.raises(rp.InputError, match="no document waits for its next turn"):
        picture.numbers(done)


@pytest.mark.parametrize("last", ["run.plot()", "OnlineLoss().plot(OnlineLoss()(run))"])
def test_a_notebook_shows_it(last: str, pair: rp.Run) -> None:
    code = (
        "import recovery_probe as rp\nfrom recovery_probe_analyses.online_loss import OnlineLoss\n"
    )
    code += f"run = rp.open_run({str(pair.path)!r})\n{last}"
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    NotebookClient(book, timeout=60).execute()
    (output,) = [o for o in book.cells[0].outputs if o.output_type == "execute_result"]
    image = base64.b64decode(output.data["image/png"])
    assert image.startswith(b"\x89PNG")
    assert output.metadata["image/png"]["width"] < 1000


def test_the_readmes_picture(pair: rp.Run, tmp_path: Path) -> None:
    """A drawing on white that needs no fonts, and says which commit it came from."""
    script = Path(__file__).parents[1] / "docs" / "picture.py"
    command = [sys.executable, str(script), str(pair.path), "--out", str(tmp_path / "it.svg")]
    subprocess.run(command, check=True, timeout=120)
    text = (tmp_path / "it.svg").read_text()
    commit = pair.provenance["commit"]
    assert commit is None or f"commit {commit[:7]}" in text
    assert "commit " in text
    assert "<text" not in text
    assert "fill: #ffffff" in text.partition('id="axes_1"')[0], "a white background"


def test_every_shipped_picture_says_its_commit() -> None:
    for file in (Path(__file__).parents[1] / "docs").glob("*.svg"):
        assert "commit " in file.read_text()
        assert "<text" not in file.read_text()


def test_the_example_is_not_the_document_that_comes_first(pair: rp.Run) -> None:
    """Document 0 opens the shuffled control too, so that its two curves look alike."""
    numbers = LossCurves()(pair, *pair.controls)
    assert numbers.attrs["focal"] == 2
    np.testing.assert_array_equal(numbers.focal[0], pair.losses[:, 2])


def test_a_map_of_cosines_is_white_at_0(pair: rp.Run) -> None:
    numbers = GradientSimilarity()(pair, *pair.controls)
    fig = GradientSimilarity().plot(numbers)
    images = [image for axes in fig.axes for image in axes.images]
    assert len(images) == 4
    for image in images:
        assert image.get_cmap().name == plots.DIVERGING["cmap"]
        assert image.norm.vmin == -image.norm.vmax


def test_loops_are_drawn_without_their_drift(pair: rp.Run) -> None:
    """A colour for each epoch; each loop is centred and closes, whatever the weights' drift."""
    numbers = WeightCyclicity(permutations=9)(pair, *pair.controls)
    loops = numbers.loop.sel(run="cyclic", group="total").values.reshape(3, 5, 3)
    size = np.abs(loops).max()
    np.testing.assert_allclose(loops.mean(axis=1), 0, atol=1e-6 * size)
    np.testing.assert_allclose(loops[:, 0], loops[:, -1], atol=1e-6 * size)
    moved = pair.weight_trajectory().values[1:].reshape(3, 5, -1)
    line = np.linspace(0, 1, 5)[:, None]
    straight = moved - moved[:, :1] * (1 - line) - moved[:, -1:] * line
    centred = (straight - straight.mean(axis=1, keepdims=True)).reshape(15, -1)
    values = np.linalg.svd(centred, compute_uv=False) ** 2
    share = numbers.loop_share.sel(run="cyclic", group="total")
    np.testing.assert_allclose(share, values[:3] / values.sum(), rtol=1e-4)
    fig = WeightCyclicity().plot(numbers)
    assert [axes.name for axes in fig.axes] == ["rectilinear"] * 6

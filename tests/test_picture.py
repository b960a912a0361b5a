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


def test_numbers_by_hand(pair: rp.Run) -> None:
    """The mean loss at every age, by walking through the schedule."""
    runs = [pair, *pair.controls]
    numbers = picture.numbers(pair, pair.controls)
    for r, run in enumerate(runs):
        for epoch in (1, 2):
            each = []
            for document in range(5):
                turns = np.flatnonzero(run.schedule == document)
                this, following = turns[epoch - 1], turns[epoch]
                if following - this >= 5:
                    each.append(run.losses.values[this + 1 : this + 6, document])
            assert int(numbers.counted[r, epoch - 1]) == len(each)
            if each:
                np.testing.assert_allclose(numbers.loss[r, epoch - 1], np.mean(each, axis=0))
    assert numbers.counted[0].values.tolist() == [5, 5]


def bump(pair: rp.Run) -> xr.Dataset:
    """The numbers of a pair with others in their place: an excess of .5 and a gain of .2 nats."""
    numbers = picture.numbers(pair, pair.controls)
    numbers.run_loss[:] = [1.0, 2.5, 2.5, 2.0, 1.8]
    numbers.control_loss[:] = 2.0
    for name, value in (("gain", 0.2), ("excess", 0.5), ("matched_fall", 0.7)):
        numbers[name][:] = value
        numbers[f"{name}_low"][:], numbers[f"{name}_high"][:] = value - 0.1, value + 0.1
    return numbers


def test_the_bump_and_the_gain_are_named_and_drawn(pair: rp.Run) -> None:
    numbers = bump(pair)
    assert "+0.50 nats in mid-wait and -0.20 nats on arrival: it falls by 0.70 nats more." in (
        picture.reading(numbers)
    )
    curve, parts = picture.draw(numbers).axes
    drawn = {line.get_label(): line.get_ydata() for line in curve.lines}
    np.testing.assert_allclose(drawn["cyclic, epoch 2"], [1.0, 2.5, 2.5, 2.0, 1.8])
    np.testing.assert_allclose(drawn["shuffled, at equal age and time"], 2.0)
    words = [text.get_text() for text in curve.texts]
    assert "excess in mid-wait\n+0.50 nats" in words
    assert "gain on arrival\n+0.20 nats" in words
    shaded = {to_hex(area.get_facecolor()[0]) for area in curve.collections}
    assert shaded == {to_hex(picture.PARTS[name][1]) for name in ("excess", "gain")}
    points = [float(line.get_ydata()[0]) for line in parts.lines[:3]]
    assert points == [0.5, 0.2, 0.7]
    assert "spread over" in parts.get_title()


def test_seeds_are_averaged_and_each_is_a_point(pair: rp.Run) -> None:
    one = bump(pair)
    both = rp.across([one, one.assign(run_loss=one.run_loss + 2, gain=one.gain + 2)])
    curve, parts = picture.draw(both).axes
    drawn = {line.get_label(): line.get_ydata() for line in curve.lines}
    np.testing.assert_allclose(drawn["cyclic, epoch 2"], [2.0, 3.5, 3.5, 3.0, 2.8])
    faint = [line.get_ydata()[0] for line in curve.lines if line.get_linewidth() < 1]
    assert {1.0, 3.0} <= set(faint)
    points = [list(np.round(np.atleast_1d(line.get_ydata()), 9)) for line in parts.lines]
    assert {0.2, 2.2} <= {point for (point, *_) in points}
    assert "2 seeds" in parts.get_title()


def test_a_run_alone_and_an_unfinished_one(pair: rp.Run) -> None:
    """Beside a running run, what is there; and one line of words when that is nothing."""
    (axes,) = picture.draw(picture.numbers(pair)).axes
    assert not axes.texts
    done = rp.open_run(pair.path)
    done.losses = done.losses.where(done.losses.episodes_done <= 7)
    numbers = picture.numbers(done)
    assert numbers.counted.values.tolist() == [[3, 0]]
    picture.draw(numbers)
    picture.reading(numbers)
    done.losses = done.losses.where(done.losses.episodes_done < 1)
    with pytest.raises(rp.InputError, match="no document has come back yet"):
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
    """A colour for each epoch; each loop is centred and closes, whatever the weights' trend."""
    numbers = WeightCyclicity(permutations=9)(pair, *pair.controls)
    loops = numbers.loop.sel(run="cyclic", group="total").values.reshape(3, 5, 3)
    size = np.abs(loops).max()
    np.testing.assert_allclose(loops.mean(axis=1), 0, atol=1e-6 * size)
    np.testing.assert_allclose(loops[:, 0], loops[:, -1], atol=1e-6 * size)
    updates = np.diff(pair.weight_trajectory().values.astype("float64").reshape(16, -1), axis=0)
    moved = stats.without_trend(updates, 5).cumsum(axis=0).reshape(3, 5, -1)
    line = np.linspace(0, 1, 5)[:, None]
    straight = moved - moved[:, :1] * (1 - line) - moved[:, -1:] * line
    centred = (straight - straight.mean(axis=1, keepdims=True)).reshape(15, -1)
    values = np.linalg.svd(centred, compute_uv=False) ** 2
    share = numbers.loop_share.sel(run="cyclic", group="total")
    np.testing.assert_allclose(share, values[:3] / values.sum(), rtol=1e-4)
    fig = WeightCyclicity().plot(numbers)
    assert [axes.name for axes in fig.axes] == ["rectilinear"] * 6

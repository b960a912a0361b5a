"""Per-token forgetting and recovery: by hand, planted, and under chance."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from conftest import tiny
from recovery_probe_analyses import token_recovery
from recovery_probe_analyses.token_recovery import TokenRecovery

import recovery_probe as rp
from recovery_probe import plugins
from recovery_probe.analyze import analyze

T, H, C, ROWS = 5, 2, 24, 16
HOT = (3, 11)  # positions that forget and come back; a tenth of 23, rounded, is two tokens
Plant = Callable[[np.ndarray], None]


@pytest.fixture
def plant(monkeypatch: pytest.MonkeyPatch) -> Plant:
    """Gives every run a record of token losses (row, document, position) of one's own."""

    def planted(losses: np.ndarray) -> None:
        losses = losses.copy()
        losses[..., 0] = np.nan
        losses[:, 1, 20:] = np.nan  # one document is shorter
        token = [[f"Ġw{p}" if p < C - 1 else "$\\frac{<b>" for p in range(C)]] * (T + H)
        dataset = xr.Dataset(
            {"loss": (("episodes_done", "document", "position"), losses.astype("float16"))},
            coords={
                "episodes_done": np.arange(len(losses)),
                "token": (("document", "position"), np.array(token, dtype=np.dtypes.StringDType())),
            },
            attrs={"every": "5 episodes"},
        )
        monkeypatch.setattr(rp.Run, "recorder", lambda self, name: dataset)

    return planted


def wave(run: rp.Run) -> np.ndarray:
    """1 nat at every token; at HOT positions up to 3 in mid-wait, and back to 1.5 at its end."""
    losses = np.ones((ROWS, T + H, C))
    for document in range(T):
        turns = np.flatnonzero(run.schedule == document)
        for this, following in itertools.pairwise(turns):
            losses[this + 2 : following, document][:, HOT] = 3
            losses[following, document, HOT] = 1.5
    return losses


def test_planted_tokens_are_found(pair: rp.Run, plant: Plant) -> None:
    plant(wave(pair))
    numbers = TokenRecovery(words=3)(pair).isel(run=0)
    per_token = np.mean([2 / 23] * 4 + [2 / 19]) * 2  # the shorter document has 19 tokens
    np.testing.assert_allclose(numbers.total_forgotten, per_token, atol=1e-3)
    np.testing.assert_allclose(numbers.total_regained, 0.75 * per_token, atol=1e-3)
    np.testing.assert_allclose(numbers.forgotten, [2.0 * (p in HOT) for p in range(1, C)])
    np.testing.assert_allclose(numbers.concentration, 1)
    np.testing.assert_allclose(numbers.correlation, 1)
    words = numbers.word.values[:, :2].tolist()
    assert [sorted(w) for w in words] == [["␣w11", "␣w3"]] * 2, "spaces are visible"
    assert numbers.word_count.values[:, :2].tolist() == [[T, T]] * 2
    np.testing.assert_allclose(numbers.word_forgotten[:, :2], 2 * T)
    np.testing.assert_allclose(numbers.word_regained[:, :2], 1.5 * T)
    np.testing.assert_allclose(numbers.word_share[:, :2], 0.5)
    assert numbers.left_out == 0


def test_the_parts_add_up_to_the_documents_own(pair: rp.Run, plant: Plant) -> None:
    """Top minus after and top minus before of every document's mean loss, by loops alone."""
    losses = np.random.default_rng(1).uniform(1, 4, (ROWS, T + H, C)).astype("float16")
    plant(losses.astype("float64"))
    forgotten, regained = [], []
    for document in range(T):
        last = 20 if document == 1 else C
        mean = [np.mean(row[document, 1:last].astype("float64")) for row in losses]
        ups, downs = [], []
        for n in (0, 1):
            wait = mean[n * T + document + 1 : (n + 1) * T + document + 1]
            if max(wait) > wait[0]:
                ups.append(max(wait) - wait[0])
                downs.append(max(wait) - wait[-1])
        forgotten += [np.mean(ups)] if ups else []
        regained += [np.mean(downs)] if downs else []
    numbers = TokenRecovery()(pair).isel(run=0)
    np.testing.assert_allclose(numbers.total_forgotten, np.mean(forgotten), rtol=1e-9)
    np.testing.assert_allclose(numbers.total_regained, np.mean(regained), rtol=1e-9)


def test_noise_has_its_null(pair: rp.Run, plant: Plant) -> None:
    """Tokens that differ by noise alone: a tenth by the tenth, no correlation; while within an
    epoch the shared top correlates them by a half."""
    rng, found, naive = np.random.default_rng(0), [], []
    for _ in range(40):
        plant(wave(pair)[:, :, [3] * C] + rng.normal(0, 0.3, (ROWS, T + H, C)))
        numbers = TokenRecovery()(pair).isel(run=0)
        found.append([float(numbers.concentration), float(numbers.correlation)])
        f, g, _ = token_recovery._waits(pair, 15)
        naive.append(np.corrcoef(f[0, 0, 1:], g[0, 0, 1:])[0, 1])
    mean, error = np.mean(found, axis=0), np.std(found, axis=0) / np.sqrt(40)
    assert abs(mean[0] - 2 / 23) < 4 * error[0] + 0.005
    assert abs(mean[1]) < 4 * error[1]
    assert np.mean(naive) > 0.4


def test_only_falling_is_left_out_and_counted(pair: rp.Run, plant: Plant) -> None:
    losses = wave(pair)
    losses[:, 2] = np.linspace(5, 1, ROWS)[:, None]
    plant(losses)
    assert int(TokenRecovery()(pair).left_out[0]) == 2
    plant(np.broadcast_to(np.linspace(5, 1, ROWS)[:, None, None], (ROWS, T + H, C)))
    with pytest.raises(rp.InputError, match="no document has come back"):
        TokenRecovery()(pair)


def test_a_control_that_stopped_early(
    pair: rp.Run, plant: Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both are read as far as both have got, and the verdict says so."""
    losses = wave(pair)
    losses[11:] *= 7  # beyond the control's end
    plant(losses)
    done = property(lambda run: 10 if "shuffled" in str(run.path) else 15)
    monkeypatch.setattr(rp.Run, "episodes_done", done)
    numbers = TokenRecovery()(pair, *pair.controls)
    expected = np.mean([2 / 23] * 4 + [2 / 19]) * 2
    np.testing.assert_allclose(numbers.total_forgotten[0], expected, atol=1e-3)
    assert (
        TokenRecovery()
        .summary(numbers)["verdict"]
        .startswith(
            f"The runs are compared as far as {pair.controls[0].path} has got: 10 episodes."
        )
    )


def test_what_it_lacks_is_said(pair: rp.Run, plant: Plant, tmp_path: Path) -> None:
    off = rp.fit(tiny(recorders=[], epochs=1), tmp_path / "off")
    with pytest.raises(rp.InputError, match=r"replay .* --record token_losses adds it"):
        TokenRecovery()(off)
    plant(wave(pair))
    every = pair.recorder("token_losses").isel(episodes_done=slice(None, None, 5))
    pair_like: Any = rp.open_run(pair.path)
    pair_like.recorder = lambda name: every
    with pytest.raises(rp.InputError, match=r"--token_losses\.every episode"):
        TokenRecovery()(pair_like)


def test_two_epochs_have_no_other_epoch(tmp_path: Path, plant: Plant) -> None:
    run = rp.fit(tiny(epochs=2, recorders=[]), tmp_path / "run")
    plant(wave(run)[:11])
    numbers = TokenRecovery()(run)
    assert np.isnan(numbers.concentration)
    assert np.isnan(numbers.correlation)
    assert np.isfinite(numbers.total_regained)
    json.dumps(TokenRecovery().summary(numbers), allow_nan=False)
    TokenRecovery().plot(numbers)


def test_it_is_drawn_and_told(pair: rp.Run, plant: Plant) -> None:
    """Hostile words are text: no formula of a figure, no tag of a page."""
    losses = wave(pair)
    losses[..., C - 1] = losses[..., 3] + losses[..., 3]
    plant(losses)
    numbers = TokenRecovery()(pair, *pair.controls)
    fig = TokenRecovery().plot(numbers)
    fig.canvas.draw()
    assert "$\\frac{<b> ×4" in [t.get_text() for t in fig.axes[2].get_yticklabels()]
    found = TokenRecovery().summary(numbers)
    assert found["words"]["regained"][0]["word"] == "$\\frac{<b>"
    assert "a tenth" in TokenRecovery.null
    assert "cyclic regains most at" in found["verdict"]
    both = rp.across([numbers, numbers])
    TokenRecovery().plot(both)
    json.dumps(TokenRecovery().summary(both), allow_nan=False)
    assert token_recovery.drawable("日本\x07") == "\\u65e5\\u672c\\x07"


@pytest.mark.skipif(
    "token_losses" not in plugins.installed("recorders"), reason="no recorder token_losses"
)
def test_a_real_record(tmp_path: Path) -> None:
    run = rp.fit(tiny(recorders=["token_losses"]), tmp_path / "run", control="shuffled")
    numbers = TokenRecovery()(run, *run.controls)
    T, losses, schedule = 5, run.losses.values, run.schedule.values
    tops = []
    for document in range(T):
        turns = np.flatnonzero(schedule == document)
        waits = [losses[a + 1 : b + 1, document] for a, b in itertools.pairwise(turns)]
        tops.append(np.mean([w.max() - w[0] for w in waits if w.argmax() > 0]))
    np.testing.assert_allclose(numbers.total_forgotten[0], np.nanmean(tops), atol=0.01)
    found = analyze(run, run.controls, [TokenRecovery])
    assert "regains most at" in found["token_recovery"]["verdict"]

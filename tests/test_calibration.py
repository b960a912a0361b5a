"""How often the numbers err: measured as a user would, and what is shipped with a version."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from recovery_probe_analyses.age_curve import AgeCurve

import recovery_probe as rp
from recovery_probe.analyze import calibration
from recovery_probe.analyze.calibration import Shape, Truth, calibrate
from recovery_probe.cli import main
from recovery_probe.simulations.age_only import AgeOnly

AGES = ("age_curve.matched_fall", "age_curve.gain", "age_curve.excess")
# What all documents share no interval over documents can hold.
SHARED = "shock to all documents"


def rows(table: dict[str, Any], **wanted: str) -> list[dict[str, Any]]:
    return [r for r in table["rows"] if all(r[name] == value for name, value in wanted.items())]


def test_what_is_planted_comes_out(tmp_path: Path) -> None:
    """Through the public door, a few draws: forgetting by age alone, and half of it planted back.
    Rates of 300 draws and more are held in test_ages, test_pairs, test_cycles and test_inference.
    """
    truths = [
        Truth("nothing", AgeOnly, {"noise": 0.02}, nothing=AGES),
        Truth("half", AgeOnly, {"noise": 0.02, "planted": 0.5}, planted=AGES),
    ]
    table = calibrate(Shape(documents=12, held_out=0, epochs=4, steps=1), 4, tmp_path, (), truths)
    for truth, role, fall in (("nothing", "nothing", 0.0), ("half", "planted", 0.5)):
        found = {r["estimate"]: r for r in rows(table, truth=truth, role=role, kind="interval")}
        assert set(found) == {"matched_fall", "gain", "excess"}
        known = fall * (1 - np.exp(-11 / AgeOnly.tau))
        assert found["matched_fall"]["mean"] == pytest.approx(known, abs=0.05)
        assert found["excess"]["mean"] == pytest.approx(0, abs=0.05), "what comes back is gain"
        assert found["gain"]["draws"] == 4
    (power,) = rows(table, truth="half", kind="interval", estimate="matched_fall")
    assert power["rate"] == 1


def test_the_stored_one_holds_what_the_report_says() -> None:
    table = calibration.stored()
    assert Shape(**table["shape"]) == Shape()
    assert {r["truth"] for r in table["rows"]} == {t.name for t in calibration.TRUTHS}
    for row in rows(table, role="nothing"):
        least, most = (0.92, 0.98) if row["kind"] == "coverage" else (0.02, 0.08)
        if row["truth"] == SHARED:
            continue
        if row["kind"] == "coverage":
            assert row["high"] >= least, row
        else:
            assert row["low"] <= most, row


def test_the_command_goes_on_where_it_stopped(
    tmp_path: Path,
    pair: rp.Run,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Shape of a run; a truth that is there already is not drawn again; other draws are refused."""
    own, noisy = ("recovery.difference",), {"noise": 0.1}
    two = (Truth("a", AgeOnly, noisy, nothing=own), Truth("b", AgeOnly, noisy, planted=own))
    monkeypatch.setattr(calibration, "TRUTHS", two)
    words = ["calibrate", str(pair.path), "--runs", "2", "--out", str(tmp_path)]
    main(words)
    said = capsys.readouterr().out
    assert "a (nothing): recovery: difference: interval with the mean in" in said
    table = json.loads((tmp_path / "calibration.json").read_text())
    assert table["shape"] == {"documents": 5, "held_out": 2, "epochs": 3, "steps": 3}
    kept = [r for r in table["rows"] if r["truth"] == "a"]
    kept[0]["rate"] = 0.123
    (tmp_path / "calibration.json").write_text(json.dumps(table | {"rows": kept}))
    main(words)
    again = json.loads((tmp_path / "calibration.json").read_text())
    assert again["rows"][0]["rate"] == 0.123
    assert {r["truth"] for r in again["rows"]} == {"a", "b"}
    assert (tmp_path / "calibration.svg").exists()
    words[3] = "3"
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2
    assert "is of draws 2: choose another --out" in capsys.readouterr().err


def test_a_damaged_table_is_called_so(tmp_path: Path) -> None:
    (tmp_path / "calibration.json").write_text('{"rows": [')
    with pytest.raises(rp.InputError, match=r"calibration\.json: damaged"):
        calibrate(Shape(), 2, tmp_path)


def test_an_analysis_that_fails_is_named(tmp_path: Path) -> None:
    class Broken(AgeCurve):
        name = "broken"

        def compute(self, *runs: rp.Run) -> Any:
            raise KeyError("nothing")

    few = [Truth("a", AgeOnly)]
    with pytest.raises(rp.HookError, match="analysis broken failed on 'a', seed 0: KeyError"):
        calibrate(Shape(documents=5, epochs=2, steps=1), 2, tmp_path, [Broken()], few)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("", "needs --out"),
        ("--out x --runs 1", "--runs 1: at least 2"),
        ("--out x --analysis recovry", "did you mean 'recovery'"),
        ("nowhere --out x", "nowhere: no such run"),
    ],
)
def test_what_cannot_be_measured(words: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["calibrate", *words.split()])
    assert stop.value.code == 2
    assert said in capsys.readouterr().err

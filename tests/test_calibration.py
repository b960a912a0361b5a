"""How often the numbers err: measured as a user would, and what is shipped with a version."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import recovery_probe as rp
from recovery_probe.analyze import calibration
from recovery_probe.analyze.calibration import Shape, Truth, calibrate
from recovery_probe.cli import main
from recovery_probe.simulations.age_only import AgeOnly

SMALL = Shape(documents=8, held_out=2, epochs=4, steps=2)
AGES = ("age_curve.matched_fall", "age_curve.gain", "age_curve.excess")
# What all documents share no interval over documents can hold.
SHARED = "shock to all documents"


def rows(table: dict[str, Any], **wanted: str) -> list[dict[str, Any]]:
    return [r for r in table["rows"] if all(r[name] == value for name, value in wanted.items())]


def test_false_alarms_coverage_and_power(tmp_path: Path) -> None:
    """300 draws through the public door: forgetting by age alone, and half of it planted back."""
    truths = [
        Truth("nothing", AgeOnly, {"noise": 0.1}, nothing=AGES),
        Truth("half", AgeOnly, {"noise": 0.1, "planted": 0.5}, planted=AGES),
    ]
    table = calibrate(Shape(documents=12, held_out=0, epochs=4, steps=1), 300, tmp_path, (), truths)
    alarms = rows(table, truth="nothing", role="nothing", kind="interval")
    assert {r["estimate"] for r in alarms} == {"matched_fall", "gain", "excess"}
    for row in alarms:
        assert row["draws"] == 300
        assert row["low"] <= 0.08, row
        assert row["high"] >= 0.02, row
    for row in rows(table, truth="nothing", role="nothing", kind="coverage"):
        assert row["high"] >= 0.92, row
        assert row["low"] <= 0.98, row
    found = {r["estimate"]: r["rate"] for r in rows(table, truth="half", kind="interval")}
    assert found["matched_fall"] > 0.9
    assert found["excess"] < 0.1, "what comes back on arrival is gain"


def test_a_broken_interval_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from recovery_probe import stats

    def half(*given: Any, **named: Any) -> Any:
        value, low, high = studentised(*given, **named)
        return value, (value + low) / 2, (value + high) / 2

    studentised = stats.studentised_interval
    monkeypatch.setattr(stats, "studentised_interval", half)
    table = calibrate(SMALL, 60, tmp_path, (), [Truth("nothing", AgeOnly, {"noise": 0.1}, AGES)])
    assert max(r["low"] for r in rows(table, kind="interval")) > 0.08


def test_the_stored_one_holds_what_the_report_says() -> None:
    table = calibration.stored()
    assert Shape(**table["shape"]) == Shape()
    assert {r["truth"] for r in table["rows"]} == {t.name for t in calibration.TRUTHS}
    for row in rows(table, role="nothing"):
        least, most = (0.92, 0.98) if row["kind"] == "coverage" else (0.02, 0.08)
        if row["truth"] == SHARED or (row["kind"] == "coverage" and not row["estimate"]):
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
    two = (Truth("a", AgeOnly, nothing=AGES), Truth("b", AgeOnly, {"planted": 0.5}, planted=AGES))
    monkeypatch.setattr(calibration, "TRUTHS", two)
    monkeypatch.setattr(calibration.calibrate, "__defaults__", ((), two))
    words = ["calibrate", str(pair.path), "--runs", "3", "--out", str(tmp_path)]
    main(words)
    said = capsys.readouterr().out
    assert "a (nothing): age_curve: gain: interval without 0 in" in said
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
    words[3] = "4"
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2
    assert "is of 3 draws" in capsys.readouterr().err


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

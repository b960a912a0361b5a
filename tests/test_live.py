"""A run watched while it trains: the page as it was at each epoch, and in a notebook."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path
from typing import Any

import nbclient
import nbformat
import pytest
from conftest import tiny

import recovery_probe as rp
from recovery_probe.cli import main
from recovery_probe.recorders import Episode, Layout, Recorder


class Keeps(Recorder):
    """The page of the main run as it is after each episode."""

    name = "keeps"

    def start(self, training: Any) -> Layout:
        self.path, self.pages = training.path, []
        KEPT[training.path.name] = self.pages
        return Layout()

    def committed(self, episode: Episode) -> None:
        file = self.path.parent / "cyclic" / "report.html"
        self.pages.append(file.read_text() if file.exists() else "")


KEPT: dict[str, list[str]] = {}


def _losses(page: str) -> dict[str, int]:
    """How many losses of each run the explorer of a page has."""
    found = re.search(r'<script type="application/json"[^>]*>(.*?)</script>', page, re.DOTALL)
    assert found, page[:2000]
    (waits,) = (d for d in json.loads(found[1])["data"] if d["name"] == "waits")
    counts: dict[str, int] = {}
    for piece in waits["values"]:
        counts[piece["run"]] = counts.get(piece["run"], 0) + len(piece["losses"])
    return counts


def test_the_page_grows_with_the_run(tmp_path: Path) -> None:
    run = rp.fit(tiny(recorders=["live_report"]), tmp_path, control="shuffled", hooks=[Keeps])
    cyclic, shuffled = KEPT["cyclic"], KEPT["shuffled"]
    documents, T = run.losses.sizes["document"], 5
    assert "No picture yet" in cyclic[0]
    for done in range(1, 16):
        page = cyclic[done]
        assert '<meta http-equiv="refresh" content="10">' in page
        assert "Still training." in page
        whole = done // T * T
        assert f"It has {whole} of 15 episodes" in page
        if whole:
            assert _losses(page) == {"cyclic": (whole + 1) * documents}
        assert ("comes when shuffled is trained" in page) == (whole > 0)
    assert shuffled[0] != cyclic[15]
    for done in range(1, 16):
        if whole := done // T * T:
            counts = _losses(shuffled[done])
            assert counts["cyclic"] == counts["shuffled"] == (whole + 1) * documents
    assert not (tmp_path / "shuffled" / "report.html").exists(), "it stands in the run's own page"


def test_in_the_end_it_is_the_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = "--epochs 2 --steps 2 --documents.count 4 --documents.tokens 24 --documents.held_out 2"
    small += " --model.depth 1 --model.width 32 --model.heads 2 --model.vocabulary 512"
    words = ["train", "quickstart", *small.split(), "--control", "none", "--live"]
    main([*words, "--out", str(tmp_path / "run")])
    assert "live_report" in rp.open_run(tmp_path / "run").config.recorders
    page = (tmp_path / "run" / "report.html").read_text()
    assert "http-equiv" not in page
    assert "Still training" not in page
    assert 'id="exploratory"' in page


def test_in_a_notebook(tmp_path: Path) -> None:
    """Another process trains, and the cell's one output ends as the run does."""
    train = f"""
import subprocess, sys, time
import recovery_probe as rp
code = '''
from recovery_probe.testing import toy_settings
import recovery_probe as rp
rp.fit(toy_settings(recorders=[], epochs=6), {str(tmp_path / "run")!r})
'''
other = subprocess.Popen([sys.executable, "-c", code])
while True:
    try:
        run = rp.open_run({str(tmp_path / "run")!r})
        break
    except rp.InputError:
        time.sleep(0.1)
"""
    cells = [nbformat.v4.new_code_cell(c) for c in (train, "run.live(0.1)", "other.wait()")]
    book = nbclient.execute(nbformat.v4.new_notebook(cells=cells), timeout=120)
    (output,) = (o for o in book.cells[1].outputs if o.output_type == "display_data")
    frame = re.search(r'srcdoc="(.*?)" title=', output.data["text/html"], re.DOTALL)
    assert frame
    page = html.unescape(frame[1])
    run = rp.open_run(tmp_path / "run")
    assert run.status == "complete"
    assert _losses(page) == {"cyclic": 31 * run.losses.sizes["document"]}
    assert "http-equiv" not in page

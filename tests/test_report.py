"""The page a reviewer is sent."""

from __future__ import annotations

import html
import html.parser
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import ALL, tiny

import recovery_probe as rp
from recovery_probe.analyze import analyze
from recovery_probe.record.writer import Writer

EVIL = "<script>document.title = 'owned'</script> & <img src=x onerror=alert(1)> "


class Page(html.parser.HTMLParser):
    """Tags, the addresses they ask for, and the text between them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.asked: list[str] = []
        self.missing_alt = 0
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.tags.append(tag)
        self.asked += [v or "" for k, v in attrs if k in ("src", "href", "srcset", "data")]
        self.missing_alt += tag == "img" and not values.get("alt")

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    texts = folder / "evil<b>.txt"
    texts.write_text("\n".join(f"{7 ** (40 + i)} {EVIL}" for i in range(12)))
    settings = tiny(documents={"source": str(texts), "min_tokens": 2}, recorders=ALL)
    run = rp.fit(settings, folder / "run", control="shuffled")
    analyze(run, run.controls)
    return Path(run.path / "report.html")


@pytest.fixture(scope="module")
def page(report: Path) -> Page:
    return Page(report.read_text())


def test_markdown_escapes_too(report: Path) -> None:
    run = rp.open_run(report.parent)
    analyze(run, run.controls, ["recovery"], formats=["md"])
    text = (report.parent / "report.md").read_text()
    assert "<script>" not in text
    assert "<img" not in text
    assert "&lt;script&gt;" in text
    assert "](analyses/recovery.png)" in text


def test_text_of_documents_is_shown_as_text(page: Page) -> None:
    assert page.tags.count("script") == 3, "the explorer's charts, their library, and ours"
    assert EVIL.strip() in page.text
    assert page.tags.count("img") == 4 + page.text.count("Blind spot"), (
        "the picture, the explorer's, least squares, the calibration, our figures, and no image of "
        "a document's"
    )
    assert "b" not in page.tags


def test_nothing_is_fetched_and_every_figure_is_described(page: Page) -> None:
    assert page.asked
    assert all(
        a.startswith(("data:image/svg+xml,", "data:image/png;base64,", "#")) or a == "data:,"
        for a in page.asked
    )
    assert page.missing_alt == 0


def test_it_says_what_was_found_with_its_null(page: Page) -> None:
    words = ("online loss is", "of the variance in epochs", "Null", "Blind spot", "shuffled")
    for word in (*words, "SHA-256", "transformer-lens", "pass --from-checkpoint"):
        assert word in page.text


def test_nothing_stands_twice(report: Path, page: Page) -> None:
    summary = json.loads((report.parent / "analyses" / "summary.json").read_text())
    for name, about in summary["analyses"].items():
        null, verdict = (about.get(n, "").replace("`", "") for n in ("null", "verdict"))  # code
        assert page.text.count(null) == 1, name
        assert not verdict or page.text.count(verdict) == 1, name
    tables = summary["analyses"]["recovery"]["tables"]
    longest = max((row for t in tables for row in t["rows"]), key=lambda row: len("".join(row)))
    row = "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in longest) + "</tr>"
    assert report.read_text().count(row) == 1


def test_the_title_says_which_run(page: Page, report: Path) -> None:
    assert page.text.count("run/cyclic: gpt_neox, 2 blocks, 32 wide") == 2, "title and heading"
    text = report.read_text()
    assert text.index('id="picture"') < text.index('id="exploratory"')


def test_facts_within_facts_are_told_by_dotted_name(report: Path, tmp_path: Path) -> None:
    shutil.copytree(report.parent, tmp_path / "run")
    file = tmp_path / "run" / "provenance.json"
    facts = {"recorders": {"lens": {"seconds": 1.5, "hooks": ["a", "b"]}, "other": {}}}
    file.write_text(json.dumps(json.loads(file.read_text()) | facts))
    run = rp.open_run(tmp_path / "run")
    one = ["recovery"]
    analyze(run, (), one, formats=["html", "md"])
    for kind in ("html", "md"):
        text = (run.path / f"report.{kind}").read_text()
        assert "recorders.lens.seconds" in text
        assert "a, b" in text
        assert "versions.torch" in text
        assert "{'" not in text.partition("What it was made of")[2]


def test_an_unfinished_run_is_called_so(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(rp.Diverged):
        rp.fit(tiny(optimizer={"lr": 1e30}), out)
    run = rp.open_run(out)
    analyze(run)
    assert "is diverged." in Page((out / "report.html").read_text()).text


@pytest.mark.parametrize("rows", [0, 1, 8])
def test_a_killed_run_has_a_page(
    rows: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever it got to: a picture, or a line that says why there is none."""
    commit = Writer.commit

    def until(self: Writer, row: int, *given: Any, **named: Any) -> None:
        if row >= rows:
            raise KeyboardInterrupt
        commit(self, row, *given, **named)

    monkeypatch.setattr(Writer, "commit", until)
    with pytest.raises(KeyboardInterrupt):
        rp.fit(tiny(recorders=[]), tmp_path / "run")
    file = tmp_path / "run" / "provenance.json"
    facts = json.loads(file.read_text()) | {"status": "running"}
    file.write_text(
        json.dumps({k: v for k, v in facts.items() if k not in ("message", "finished")})
    )
    run = rp.open_run(tmp_path / "run")
    analyze(run, formats=["html", "md"])
    for kind in ("html", "md"):
        text = (run.path / f"report.{kind}").read_text()
        assert "is killed." in text
        assert f"It has {max(0, rows - 1)} of 15 episodes" in text
        assert ("No picture yet." in text) == (rows < 2)

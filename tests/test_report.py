"""The page a reviewer is sent."""

from __future__ import annotations

import html
import html.parser
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import tiny

import recovery_probe as rp
from recovery_probe import plugins
from recovery_probe.analyze import analyze

CHROMIUM = shutil.which("chromium")

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
    texts.write_text("\n".join(EVIL * 8 + str(i) for i in range(12)))
    settings = tiny(control="shuffled", documents={"source": str(texts), "min_tokens": 2})
    run = rp.fit(settings, folder / "run")
    analyze(run, run.controls)
    return Path(run.path / "report.html")


@pytest.fixture(scope="module")
def page(report: Path) -> Page:
    return Page(report.read_text())


@pytest.mark.skipif(CHROMIUM is None, reason="Debian's package chromium is not installed")
@pytest.mark.parametrize("size", ["1200,900", "400,800"])
def test_in_a_browser(report: Path, size: str, tmp_path: Path) -> None:
    """No console error, no request, every figure drawn, nothing of a document's run."""
    probe = """<script>addEventListener("load", () => {
      const images = [...document.images];
      const wide = document.documentElement.scrollWidth - innerWidth;
      document.title = JSON.stringify({
        images: images.length, drawn: images.filter(i => i.naturalWidth > 50).length,
        shown: images.filter(i => i.getBoundingClientRect().width > 50).length,
        requests: performance.getEntriesByType("resource").filter(
          r => !r.name.startsWith("data:")).length, wide })})</script></body>"""
    (tmp_path / "page.html").write_text(report.read_text().replace("</body>", probe))
    done = subprocess.run(
        [
            str(CHROMIUM),
            *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"),
            *("--disable-background-networking", "--disable-component-update", "--disable-quic"),
            *(f"--user-data-dir={tmp_path / 'user'}", f"--window-size={size}"),
            *("--enable-logging=stderr", "--virtual-time-budget=5000", "--dump-dom"),
            (tmp_path / "page.html").as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "CONSOLE" not in done.stderr, done.stderr
    (title,) = re.findall(r"<title>(.*?)</title>", done.stdout)
    told = json.loads(html.unescape(title))
    assert told["images"] == told["drawn"] == told["shown"] >= 8, told
    assert told["requests"] == 0
    assert told["wide"] <= 0, "the page itself never scrolls sideways"


def test_markdown_escapes_too(report: Path) -> None:
    run = rp.open_run(report.parent)
    analyze(run, run.controls, [plugins.find("analyses", "recovery", rp.Analysis)], formats=["md"])
    text = (report.parent / "report.md").read_text()
    assert "<script>" not in text
    assert "<img" not in text
    assert "&lt;script&gt;" in text
    assert "](analyses/recovery.png)" in text


def test_text_of_documents_is_shown_as_text(page: Page) -> None:
    assert "script" not in page.tags
    assert EVIL.strip() in page.text
    assert page.tags.count("img") == page.text.count("Blind spot"), (
        "our figures, and no image of a document's"
    )
    assert "b" not in page.tags


def test_nothing_is_fetched_and_every_figure_is_described(page: Page) -> None:
    assert page.asked
    assert all(
        a.startswith(("data:image/svg+xml;base64,", "#")) or a == "data:," for a in page.asked
    )
    assert page.missing_alt == 0


def test_it_says_what_was_found_with_its_null(page: Page) -> None:
    words = ("online loss is", "of the variance in epochs", "Null", "Blind spot", "shuffled")
    for word in (*words, "SHA-256", "transformer-lens", "pass --from-checkpoint"):
        assert word in page.text


def test_an_unfinished_run_is_called_so(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(rp.Diverged):
        rp.fit(tiny(optimizer={"lr": 1e30}), out)
    run = rp.open_run(out)
    analyze(run)
    assert "is diverged." in Page((out / "report.html").read_text()).text

"""The page a reviewer is sent."""

from __future__ import annotations

import html.parser
from pathlib import Path

import pytest
from conftest import tiny

import recovery_probe as rp
from recovery_probe.analyze import analyze

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
def page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    folder = tmp_path_factory.mktemp("report")
    texts = folder / "evil<b>.txt"
    texts.write_text("\n".join(EVIL * 8 + str(i) for i in range(12)))
    settings = tiny(control="shuffled", documents={"source": str(texts), "min_tokens": 2})
    run = rp.fit(settings, folder / "run")
    analyze(run, run.controls)
    return Page(Path(run.path / "report.html").read_text())


def test_text_of_documents_is_shown_as_text(page: Page) -> None:
    assert "script" not in page.tags
    assert EVIL.strip() in page.text
    assert page.tags.count("img") == 3, "our figures, and no image of a document's"
    assert "b" not in page.tags


def test_nothing_is_fetched_and_every_figure_is_described(page: Page) -> None:
    assert page.asked
    assert all(address.startswith("data:image/svg+xml;base64,") for address in page.asked)
    assert page.missing_alt == 0


def test_it_says_what_was_found_with_its_null(page: Page) -> None:
    for word in ("online loss is", "Null", "Blind spot", "shuffled", "SHA-256", "transformer-lens"):
        assert word in page.text


def test_an_unfinished_run_is_called_so(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(rp.Diverged):
        rp.fit(tiny(optimizer={"lr": 1e30}), out)
    run = rp.open_run(out)
    analyze(run)
    assert "This run is diverged." in Page((out / "report.html").read_text()).text

"""The explorer of a report, in a browser, with a mouse, a finger and a keyboard."""

from __future__ import annotations

import html.parser
import io
import json
import re
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from conftest import Open, tiny

import recovery_probe as rp
from recovery_probe.analyze import analyze, explorer

EVIL = "</script><img src=x onerror=document.title='owned'>&lt;"
VIEW = "document.querySelector('#explorer-charts').view"
T, EPOCHS = 5, 3


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> rp.Run:
    """With documents whose names and texts are markup."""
    folder = tmp_path_factory.mktemp("explorer")
    texts = folder / "evil<b>.txt"
    texts.write_text("\n".join(f"{7 ** (40 + i)} {EVIL}" for i in range(12)))
    settings = tiny(
        documents={"source": str(texts), "min_tokens": 2},
        recorders=["checkpoints", "weight_deltas"],
    )
    made = rp.fit(settings, folder / "run", control="shuffled")
    analyze(made, made.controls, ["age_curve", "recovery"])
    return made


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of three seeds of least squares, which recovers."""
    folder = tmp_path_factory.mktemp("seeds")
    runs = [rp.simulate("linear_documents", folder / str(seed), seed=seed) for seed in range(3)]
    controls = [control for run in runs for control in run.controls]
    analyze(runs, controls, ["recovery"], out=folder, formats=["html", "md"])
    return folder / "report.html"


def settled(page: Any, expression: str) -> Any:
    """A value once the charts are drawn."""
    page.evaluate(f"{VIEW}.runAsync().then(() => 0)")
    return page.evaluate(expression)


def signal(page: Any, name: str) -> Any:
    return settled(page, f"{VIEW}.signal('{name}')")


def cells(page: Any, chart: int = 1) -> Any:
    """Of a heat map, the first run's by default."""
    return page.locator(f"#explorer-charts .concat_{chart}_layer_0_marks path")


def datum(cell: Any) -> dict[str, Any]:
    found: dict[str, Any] = cell.evaluate("cell => ({...cell.__data__.datum})")
    return found


def cell_of(page: Any, document: int, done: int, chart: int = 1) -> Any:
    """The cell of a document after so many episodes."""
    wanted = f"datum.document === {document} && datum.done === {done}"
    script = f"all => all.findIndex(({{__data__: {{datum}}}}) => {wanted})"
    return cells(page, chart).nth(cells(page, chart).evaluate_all(script))


def test_hover_says_the_recorded_number(run: rp.Run, visit: Open) -> None:
    page = visit(run.path / "report.html")
    for chart, one in enumerate([run, *run.controls], 1):
        for document, done in ((0, 0), (3, 7), (6, 15)):
            cell_of(page, document, done, chart).hover()
            text = page.inner_text("#explorer-tip")
            assert f"loss: {float(one.losses[done, document]):.4f}\n" in text
            assert f"name: {run.record.name.values[document]}" in text
            assert f"episodes done: {done}\n" in text
    cell_of(page, 3, 7).hover()
    text = page.inner_text("#explorer-tip")
    assert "episodes since its own: 4" in text, "trained on in episode 3, the fourth"
    assert "<img src=x onerror" in text
    assert page.title() != "owned"
    assert page.locator("#explorer-tip *:not(div)").count() == 0
    page.mouse.move(5, 5)
    assert page.is_hidden("#explorer-tip")


def test_a_click_draws_the_document(run: rp.Run, visit: Open) -> None:
    page = visit(run.path / "report.html")
    cell_of(page, 3, 7).click()
    assert signal(page, "document") == 3
    assert page.input_value("select[name=document]") == "3", "the choice beside it says so too"
    shown = page.evaluate(
        f"{VIEW}.data('waits').filter(w => w.document === 3 && w.n).map(w => [w.run, w.turn])"
    )
    for one in (run, run.controls[0]):
        name = one.config.schedule.kind
        assert [t for r, t in shown if r == name] == np.flatnonzero(one.schedule == 3).tolist()
    lines = lines_of(page)
    assert len(lines) == 4, "its own in run and control, and the two beside it"
    expected = [run.losses[:, d].values for d in (2, 4, 3)] + [run.controls[0].losses[:, 3].values]
    for line, losses in zip(lines, expected, strict=True):
        np.testing.assert_allclose(line[:, 0], np.arange(16), atol=0.02)
        np.testing.assert_allclose(line[:, 1], losses, atol=0.02 * losses.max())
    said = page.inner_text("#explorer-said")
    before, after = run.losses.values[3:5, 3]
    assert f"cyclic, turn 1 {before:.2f} → {after:.2f}" in said, "for a screen reader"


def lines_of(page: Any) -> list[np.ndarray]:
    """(n, 2) each: the lines in the chart of the chosen document, in its axes' units."""
    paths = page.evaluate(
        "[...document.querySelectorAll('#explorer-charts .mark-line path')]"
        ".filter(p => /concat_3/.test(p.closest('.mark-line').getAttribute('class')))"
        ".map(p => p.getAttribute('d'))"
    )
    invert = (
        f"([x, y]) => [{VIEW}.scale('concat_3_x').invert(x), {VIEW}.scale('concat_3_y').invert(y)]"
    )
    found = []
    for path in paths:
        points = np.array(re.findall(r"[ML](-?[\d.]+),(-?[\d.]+)", path), dtype=float)
        found.append(np.array(page.evaluate(f"points => points.map({invert})", points.tolist())))
    return found


def test_a_brush_chooses_epochs(run: rp.Run, visit: Open) -> None:
    page = visit(run.path / "report.html", (1100, 2000))
    strip = page.locator("#explorer-charts .concat_0_layer_0_marks path")
    assert (signal(page, "first"), signal(page, "last")) == (1, EPOCHS)
    strip.scroll_into_view_if_needed()
    box = strip.bounding_box()

    def drag(begin: float, end: float) -> tuple[int, int]:
        """From and to so many episodes done."""
        places = [box["x"] + box["width"] * done / (T * EPOCHS) for done in (begin, end)]
        height = box["y"] + box["height"] / 2
        page.mouse.move(places[0], height)
        page.mouse.down()
        page.mouse.move(places[1], height, steps=5)
        page.mouse.up()
        return signal(page, "first"), signal(page, "last")

    assert drag(6, 9) == (2, 2)
    done = cells(page).evaluate_all("all => all.map(c => c.__data__.datum.done)")
    assert set(done) == set(range(5, 11))
    assert drag(13, 7) == (2, 3), "the other way, from within the last one"
    assert page.input_value("input[name=first]") == "2"
    page.set_viewport_size({"width": 500, "height": 900})
    assert (signal(page, "first"), signal(page, "last")) == (2, 3), "a new width changes none"


def test_the_keyboard_does_it_too(run: rp.Run, visit: Open) -> None:
    page = visit(run.path / "report.html")
    page.focus("select[name=document]")
    page.keyboard.press("Home")
    page.keyboard.press("ArrowDown")
    assert signal(page, "document") == 1
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowLeft")
    assert (signal(page, "first"), signal(page, "last")) == (2, 2)
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    assert signal(page, "align")
    for chart, one in enumerate([run, *run.controls], 1):
        found = cells(page, chart).evaluate_all("all => all.map(c => ({...c.__data__.datum}))")
        assert found
        for cell in found:
            turns = np.flatnonzero(one.schedule == cell["document"])
            n = int((turns < cell["done"]).sum())
            age = cell["done"] - turns[n - 1]
            assert age <= T
            assert cell["x"] == (n - 1) * T + age
            assert cell["age"] == age
            expected = float(one.losses[cell["done"], cell["document"]])
            assert cell["loss"] == pytest.approx(expected, abs=6e-5)
    page.focus("input[name=turn]")
    helix = page.locator("#explorer-charts .concat_4_layer_1_marks")
    before = helix.inner_html()
    page.keyboard.press("ArrowRight")
    assert signal(page, "turn") == 21
    assert helix.inner_html() != before


def test_colours_are_those_of_the_numbers(run: rp.Run, visit: Open) -> None:
    """A screenshot's pixels beside the losses: viridis of their square roots."""
    from PIL import Image

    page = visit(run.path / "report.html", (1100, 2000))
    roots = np.sqrt(run.losses.values)
    both = np.sqrt([run.losses.values, run.controls[0].losses.values])
    expected = mpl.colormaps["viridis"]((roots - both.min()) / (both.max() - both.min()))
    charts = page.locator("#explorer-charts svg")
    shot = np.asarray(Image.open(io.BytesIO(charts.screenshot())).convert("RGB"))
    corner = charts.bounding_box()
    chosen = signal(page, "document")
    for document, done in ((0, 4), (0, 15), (4, 2), (4, 11), (6, 8)):
        assert document != chosen
        box = cell_of(page, document, done).bounding_box()
        x, y = (box[n] - corner[n] + box[size] / 2 for n, size in (("x", "width"), ("y", "height")))
        pixel = shot[int(y), int(x)]
        np.testing.assert_allclose(pixel / 255, expected[done, document, :3], atol=0.04)


@pytest.mark.parametrize("size", [(1100, 900), (400, 800), (360, 800)])
def test_the_page_fits(run: rp.Run, visit: Open, size: tuple[int, int]) -> None:
    page = visit(run.path / "report.html", size)
    told = page.evaluate("""() => {
      const images = [...document.images].filter(i => !i.closest("[hidden]"));
      return {
        images: images.length, drawn: images.filter(i => i.naturalWidth > 50).length,
        shown: images.filter(i => i.getBoundingClientRect().width > 50).length,
        first: Math.round(images[0].getBoundingClientRect().top),
        open: document.querySelectorAll("details[open]").length,
        wide: document.documentElement.scrollWidth - innerWidth,
        charts: document.querySelector("#explorer-charts").clientWidth,
        svg: document.querySelector("#explorer-charts svg").getBoundingClientRect().width,
        text: Math.min(...[...document.querySelectorAll("#explorer-charts text")].map(
          t => t.getBoundingClientRect().height)) }}""")
    assert told["images"] == told["drawn"] == told["shown"] == 5, told
    assert told["first"] < 400, "the picture is seen before anything is read"
    assert told["open"] == 0, "long tables are folded"
    assert told["wide"] <= 0, "the page itself never scrolls sideways"
    assert 0.9 * told["charts"] < told["svg"] <= told["charts"]
    assert told["text"] >= 9, "and it is not made to fit by being made too small to read"
    assert (run.path / "report.html").stat().st_size < 3e6


def test_a_finger_sees_the_number(run: rp.Run, visit: Open) -> None:
    page = visit(run.path / "report.html", (400, 800), has_touch=True, is_mobile=True)
    cell_of(page, 2, 9).tap()
    assert signal(page, "document") == 2
    assert f"loss: {float(run.losses[9, 2]):.4f}" in page.inner_text("#explorer-tip")


def test_at_night_and_on_paper(run: rp.Run, visit: Open) -> None:
    page = visit(run.path / "report.html", color_scheme="dark")
    text = page.locator("#explorer-charts text").first
    dark = "rgb(230, 230, 230)"
    assert text.evaluate("t => getComputedStyle(t).fill") == dark
    page.emulate_media(media="print")
    assert text.evaluate("t => getComputedStyle(t).fill") == "rgb(0, 0, 0)"
    assert page.is_hidden("#explorer-controls")
    assert page.is_visible("#explorer-charts svg")


def test_without_scripts_there_is_a_picture_and_a_table(run: rp.Run, visit: Open) -> None:
    page = visit(run.path / "report.html", java_script_enabled=False)
    assert page.is_visible("#explorer-still img")
    assert page.is_hidden("#explorer-live")
    rows = page.locator("#explorer-table tbody tr")
    assert rows.count() == 7
    losses = run.losses.values
    for document in range(T):
        texts = rows.nth(document).locator("td").all_text_contents()
        assert texts[0] == str(run.record.name.values[document])
        turns = [
            f"{losses[k, document]:.2f} → {losses[k + 1, document]:.2f}"
            for k in np.flatnonzero(run.schedule == document)
        ]
        assert texts[1 : 1 + EPOCHS] == turns
    assert rows.nth(6).locator("td").all_text_contents()[1:] == ["–"] * 2 * EPOCHS, "held out"


def test_an_old_browser_keeps_the_picture(run: rp.Run, browser: Any) -> None:
    page = browser.new_page()
    page.add_init_script("delete window.DecompressionStream")
    page.goto((run.path / "report.html").as_uri())
    page.wait_for_selector("#explorer-why:not(:empty)")
    assert page.is_visible("#explorer-still img")
    assert page.is_hidden("#explorer-live")
    page.close()


def test_seeds_are_thin_lines_behind_their_mean(seeds: Path, visit: Open) -> None:
    page = visit(seeds)
    page.select_option("select[name=document]", "4")
    runs = [rp.open_run(seeds.parent / str(s) / "cyclic") for s in range(3)]
    losses = np.stack([run.losses.values for run in runs])
    settled(page, "0")
    lines = lines_of(page)
    assert len(lines) == 2 + 3 * 2 + 2, "beside it; of three seeds, run and control; their means"
    for line, one in zip(lines[2:8:2], losses[:, :, 4], strict=True):
        np.testing.assert_allclose(line[:, 1], one, atol=0.01)
    np.testing.assert_allclose(lines[-2][:, 1], losses[:, :, 4].mean(axis=0), atol=0.01)
    cell_of(page, 4, 50).hover()
    text = page.inner_text("#explorer-tip")
    assert f"loss (mean of 3 seeds): {losses[:, 50, 4].mean():.4f}" in text


def test_seeds_decide_about_the_paper_and_one_run_does_not(seeds: Path, run: rp.Run) -> None:
    def row(report: Path) -> dict[str, Any]:
        summary = json.loads((report.parent / "analyses" / "summary.json").read_text())
        found: dict[str, Any] = summary["analyses"]["recovery"]["row"]
        return found

    assert row(seeds)["agrees"] is True
    assert "<strong>✓</strong>" in seeds.read_text()
    assert "| ✓ Much comes back" in seeds.with_suffix(".md").read_text()
    one = run.path / "report.html"
    assert row(one)["agrees"] is None
    assert "<strong>–</strong>" in one.read_text()
    assert "<strong>✓</strong>" not in one.read_text()


def test_the_helix_is_that_of_the_residuals(pair: rp.Run) -> None:
    """By the definition: weights minus their mean over a cycle, on two principal components."""
    path = explorer.helix(pair, "cyclic")
    weights = pair.weight_trajectory().values.reshape(16, -1)
    rows = range(2, 14)
    residual = np.stack([weights[k] - weights[k - 2 : k + 3].mean(axis=0) for k in rows])
    left, values, _ = np.linalg.svd(residual - residual.mean(axis=0), full_matrices=False)
    assert [p["done"] for p in path] == [*rows]
    assert [p["document"] for p in path] == [(k - 1) % T for k in rows]
    for name, expected in zip("uv", (left * values).T, strict=False):
        found = np.array([p[name] for p in path])
        sign = np.sign(found @ expected)
        np.testing.assert_allclose(found, sign * expected, atol=1e-3)


def test_a_long_run_is_thinned_and_says_so(pair: rp.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explorer, "DOCUMENTS", 4)
    monkeypatch.setattr(explorer, "CELLS", 50)
    made = explorer.explorer([(pair, pair.controls)])
    assert made is not None
    waits = next(d["values"] for d in made["spec"]["data"] if d["name"] == "waits")
    assert {w["document"] for w in waits} == {0, 2, 4, 6}
    assert sum(len(w["losses"]) for w in waits) <= 50
    for wait in waits:
        one = pair if wait["run"] == "cyclic" else pair.controls[0]
        for i, loss in enumerate(wait["losses"]):
            expected = float(one.losses[wait["start"] + 3 * i, wait["document"]])
            assert loss == pytest.approx(expected, abs=6e-5)
    notes = " ".join(made["notes"])
    assert "4 of 7 documents are shown" in notes
    assert "One episode in 3 is shown, of 15." in notes


def test_texts_stay_inside_their_script(run: rp.Run) -> None:
    class Scripts(html.parser.HTMLParser):
        inside, found = False, ""

        def handle_starttag(self, tag: str, attrs: Any) -> None:
            self.inside = dict(attrs).get("id") == "explorer-spec"

        def handle_data(self, data: str) -> None:
            self.found += data * self.inside

        def handle_endtag(self, tag: str) -> None:
            self.inside = False

    scripts = Scripts()
    scripts.feed((run.path / "report.html").read_text())
    spec = json.loads(scripts.found)
    names = [d["begins"] for data in spec["data"] for d in data.get("values", []) if "begins" in d]
    assert any("</script>" in name for name in names)
    assert "<" not in scripts.found

"""The site: its pages' code is run, its directory is the one that is written, and it builds."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import zarr

import recovery_probe as rp
from recovery_probe import cli, config, plugins
from recovery_probe.testing import toy_settings

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
HOW_TO = sorted((DOCS / "how-to").glob("*.md"))
FENCE = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)


def blocks(page: Path) -> Iterator[tuple[str, str, str]]:
    """Language, title and text of every fenced block."""
    yield from FENCE.findall(page.read_text("utf-8"))


@pytest.mark.parametrize("page", HOW_TO, ids=lambda page: page.stem)
def test_the_code_of_a_page_runs(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy = tmp_path / "toy.toml"
    toy.write_text(config.to_toml(toy_settings(epochs=2, recorders=["document_gradients"])))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    loaded, namespace = set(sys.modules), {"__name__": "page"}
    try:
        for language, title, text in blocks(page):
            if title:
                (tmp_path / title).write_text(text, "utf-8")
            elif language == "python":
                exec(compile(text, page.name, "exec"), namespace)
            else:
                assert language == "sh", f"{page.name}: a block of {language or 'nothing'}"
                _run(text, toy)
    finally:  # two pages may name a file alike
        for name in set(sys.modules) - loaded:
            if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
                del sys.modules[name]


def _run(text: str, toy: Path) -> None:
    """Each line as the command line would have it, with toy settings in the preset's place."""
    for line in text.splitlines():
        python, module, name, *words = shlex.split(line)
        assert (python, module) == ("python", "-m"), line
        command = name.removeprefix("recovery_probe.")
        if command == "train":
            assert words.pop(0) == "quickstart", line
            words += ["--config", str(toy), "--quiet"]
        cli.main([command, *words])


RUN_DIRECTORY = (DOCS / "run-directory.md").read_text("utf-8")


def section(title: str) -> str:
    """The text of a section of the page of the run directory, without those under it."""
    found = re.search(
        rf"^#+ {re.escape(title)}\n(.*?)(?=^#+ |\Z)", RUN_DIRECTORY, re.MULTILINE | re.DOTALL
    )
    assert found, f"no section {title!r}"
    return found[1]


def rows(text: str) -> list[list[str]]:
    """The cells of its tables, but their heads."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    cells = [[c.strip() for c in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    return [row for row in cells if row[0].startswith("`")]


def names(text: str) -> set[str]:
    """What stands as code in the first cells of its tables."""
    return {name for row in rows(text) for name in re.findall(r"`([^`]+)`", row[0])}


def written(array: Any) -> tuple[str, str]:
    """Dimensions and type of an array of the record, as the page has them."""
    kind = "string" if "String" in str(array.dtype) else str(array.dtype)
    return ", ".join(array.metadata.dimension_names or ()), kind


@pytest.fixture(scope="module")
def groups(pair: rp.Run, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Groups of a record, by name: of every recorder that writes arrays."""
    more = toy_settings(
        recorders=["attention_patterns", "residual_stream"],
        attention_patterns={"patterns": True},
        residual_stream={"focal_layers": "all"},
        epochs=1,
    )
    run = rp.fit(more, tmp_path_factory.mktemp("more") / "run")
    opened = [zarr.open_group(r.path / "record.zarr", mode="r") for r in (pair, run)]
    return {name: group for record in opened for name, group in record.groups()}


def test_the_page_of_the_run_directory_has_every_array(groups: dict[str, Any]) -> None:
    coordinates = {
        row[0].strip("`"): (row[1].split(", "), row[2]) for row in rows(section("Coordinates"))
    }
    seen = set()
    for group, arrays in groups.items():
        told = {row[0].strip("`"): tuple(row[1:4]) for row in rows(section(f"`{group}`"))}
        found = {}
        for name, array in arrays.arrays():
            dims, kind = written(array)
            if "covers" in array.attrs or (group == "training" and name not in coordinates):
                found[name] = (dims, kind, array.attrs["units"])
            elif not (group == "training" and name in told):
                along, type_ = coordinates[name]
                assert kind == type_, f"{group}/{name}"
                assert set(dims.split(", ")) <= set(along), f"{group}/{name} along {dims}"
                seen.add(name)
            else:
                found[name] = (dims, kind, array.attrs["units"])
        assert told == found, group
    assert seen == set(coordinates), "the page has coordinates that no group has"


def test_the_page_of_the_run_directory_has_every_file_and_fact(pair: rp.Run) -> None:
    listed = set(re.findall(r"^  ([a-z.]+)", RUN_DIRECTORY, re.MULTILINE))
    assert {file.name for file in pair.path.iterdir()} <= listed
    facts = json.loads((pair.path / "provenance.json").read_text("utf-8"))
    assert names(section("provenance.json")) == set(facts)
    root = zarr.open_group(pair.path / "record.zarr", mode="r")
    assert set(root.attrs) <= set(re.findall(r"`(\w+)`", section("record.zarr")))
    last = pair.path / "checkpoints" / f"episodes-{pair.checkpoints[-1]:05d}"
    files = names(section("checkpoints/episodes-00020"))
    assert {file.name for file in last.iterdir()} <= files


def test_every_name_and_plug_in_stands_on_a_page_of_the_api() -> None:
    pages = "\n".join(page.read_text("utf-8") for page in (DOCS / "api").glob("*.md"))
    told = set(re.findall(r"^::: (\S+)", pages, re.MULTILINE))
    addresses = {name: f"recovery_probe.{name}" for name in rp.__all__}
    addresses["simulate"] = "recovery_probe.simulations.writing.simulate"  # a module has that name
    missing = [name for name, address in addresses.items() if address not in told]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    for group in project["entry-points"].values():
        for value in group.values():
            module, _, kind = value.partition(":")
            if not {f"{module}.{kind}", f"recovery_probe.{kind}"} & told:
                missing.append(value)
    assert not missing


def test_the_gallery_has_every_analysis_and_experiment() -> None:
    page = (DOCS / "gallery" / "index.md").read_text("utf-8")
    shown = re.findall(r"^### (\w+)$\n+^\*\*(.+)\*\*$", page, re.MULTILINE)
    questions = {
        name: plugins.find(group, name).question
        for group in ("analyses", "experiments")
        for name in plugins.ours(group)
    }
    assert dict(shown) == questions  # and as it is asked now
    for name in questions:
        assert (DOCS / "gallery" / f"{name}.svg").exists()


class Requests(HTMLParser):
    """What a page would ask of another machine when it is opened."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        address = given.get("src") or (given.get("href", "") if tag == "link" else "")
        if address.startswith(("http:", "https:", "//")) and given.get("rel") != "canonical":
            self.found.append(f"{tag} {address}")


def test_the_site_builds_and_asks_nothing_of_other_machines(tmp_path: Path) -> None:
    build = ["-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    # Its search path has to come from its own file.
    bare = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(
        [sys.executable, *build], cwd=ROOT, env=bare, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    pages = list((tmp_path / "site").rglob("*.html"))
    assert len(pages) > 20
    for page in pages:
        reader = Requests()
        reader.feed(page.read_text("utf-8"))
        assert not reader.found, page.name
    start = (tmp_path / "site" / "index.html").read_text("utf-8")
    assert '<span class="flag">--out</span>' in start  # which no line breaks
    for style in (tmp_path / "site").rglob("*.css"):
        assert not re.search(r"url\(['\"]?(https?:)?//", style.read_text("utf-8")), style.name
    assert "recovery_probe.Run.losses" in (tmp_path / "site" / "api" / "runs.html").read_text(
        "utf-8"
    )

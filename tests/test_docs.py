"""The site: its pages' code is run, its directory is the one that is written, and it builds."""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zarr

import recovery_probe as rp
from recovery_probe import cli, config
from recovery_probe.testing import toy_run, toy_settings

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
    toy_run()
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

"""The site: its pages' code is run, its directory is the one that is written, and it builds."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from recovery_probe import cli, config
from recovery_probe.testing import toy_run, toy_settings

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
HOW_TO = sorted((DOCS / "how-to").glob("*.md"))
FENCE = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)

def blocks(page: Path) -> Iterator[tuple[str, str, str]]:
    """Language, title and text of every fenced block."""
    for language, title, text in FENCE.findall(page.read_text("utf-8")):
        yield language, title, text


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

"""The README, the guides and every other page but those that `test_docs` runs line by line: their
commands are understood, their settings are settings, their Python runs. The notebooks, which tests
run too, are committed with their outputs and nothing else.

A command is given to the command line itself, in a place where nothing can be trained or written:
`runs` is a file there, and no run is anywhere. So what is wrong with its words is said, and what is
right ends at the folder.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import runpy
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytest
from recovery_probe_analyses.age_curve import AgeCurve
from test_docs import DOCS, HOW_TO, ROOT, blocks, names, rows

import recovery_probe as rp
from recovery_probe import cli, config, plugins
from recovery_probe.record.store import write_zarr
from recovery_probe.sweep import spec
from recovery_probe.testing import toy_settings

PAGES = [
    *(ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "recovery_probe" / "README.md"),
    *sorted(set(DOCS.rglob("*.md")) - set(HOW_TO)),
]
# What a page may call beside Python; a word that is not here fails its page.
OTHERS = ("pip", "pytest", "ruff", "mypy", "mkdocs", "pre-commit")
# How a command ends that has understood its words.
STOPPED = re.compile(
    "is not a folder|Not a directory|no such run directory|not a run; it has|no run: it has"
    "|no sbatch here"
)
# The guides whose tables have all plug-ins of a group.
GUIDES = {
    "analyses": "analyse",
    "experiments": "experiments",
    "interventions": "intervene",
    "recorders": "record",
    "schedules": "train",
    "simulations": "simulate",
}
NOT_RUN = {"clusters.md": "its executor is a Dask cluster's"}
INLINE = re.compile(r"`(python (?:-m )?\w+[./][^`]+)`")  # a command in the text, on a line or two
# Instead of a preset: with the blocks that pages speak of, and without what takes time.
TOY = {"epochs": 2, "steps": 1, "model": {"depth": 4}, "recorders": ["checkpoints"]}
# The README's run: of all that is recorded by default, and 40 episodes.
WHOLE = {"documents": {"count": 10}, "recorders": rp.Settings().recorders}


def having(language: str) -> list[Any]:
    """The pages with blocks of a language."""
    pages = [page for page in PAGES if any(kind == language for kind, *_ in blocks(page))]
    if language == "sh":
        pages += [p for p in PAGES if p not in pages and INLINE.search(p.read_text("utf-8"))]
    return [pytest.param(page, id=str(page.relative_to(ROOT))) for page in pages]


def commands(page: Path) -> list[list[str]]:
    """The words behind each `python` of a page, in blocks and in the text, as a shell that reads
    them would pass them on: loops, quotes and lines that go on are the shell's to read."""
    texts = [text for language, _, text in blocks(page) if language == "sh"]
    texts += [" ".join(text.split()) for text in INLINE.findall(page.read_text("utf-8"))]
    script = "python() { local IFS=$'\\t'; echo \"$*\"; }\n"
    script += "".join(f"{name}() {{ :; }}\n" for name in OTHERS)
    bash = shutil.which("bash")
    assert bash
    done = subprocess.run(
        [bash, "-eu"],
        input=script + "\n".join(texts),
        env={"PATH": "/nowhere", "HOME": os.getcwd()},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{page.name}: {done.stderr}"
    return [line.split("\t") for line in done.stdout.splitlines()]


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory in which nothing can be trained. RUN has settings, and is no run."""
    monkeypatch.chdir(tmp_path)
    for name in ("runs", "sweeps"):
        (tmp_path / name).touch()
    (tmp_path / "RUN").mkdir()
    (tmp_path / "RUN" / "config.toml").write_text(config.to_toml(toy_settings()))
    return tmp_path


@pytest.mark.parametrize("page", having("sh"))
def test_the_commands_of_a_page_are_understood(
    page: Path, nowhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for _, title, text in blocks(page):
        if title:
            (nowhere / title).write_text(text, "utf-8")
    for first, *words in commands(page):
        if first != "-m":
            assert (ROOT / first).is_file(), f"{page.name}: {first}"
            continue
        capsys.readouterr()
        code: Any = 0
        try:
            cli.main([words[0].removeprefix("recovery_probe."), *_elsewhere(words[1:])])
        except SystemExit as stop:
            code = stop.code
        said = capsys.readouterr().err
        tells = words[1:] == [] or {"--help", "--list"} & set(words)
        assert not code if tells else STOPPED.search(said), f"{page.name}: {words}: {said}"


def _elsewhere(words: list[str]) -> list[str]:
    """The words with all that is written in `runs`, which is a file."""
    if words[:1] == ["--resume"]:  # that is short for the settings of a run, and its place
        words = ["--config", "RUN/config.toml", "--out", words[1], "--resume", *words[2:]]
    if "--plan" in words:  # of a sweep, this trains an episode to measure it
        words.remove("--plan")
    if "--out" in words:
        at = words.index("--out") + 1
        words[at] = f"runs/{Path(words[at]).name}"
    return words


def test_every_flag_name_and_file_that_a_page_speaks_of_is_there() -> None:
    known = {*config.names(), "seed", "help", "help-all", "quiet"}
    for name in cli.COMMANDS:
        module = importlib.import_module(f"recovery_probe.commands.{name}")
        kinds = [kind for kind in vars(module).values() if is_dataclass(kind)]
        known |= {field.name.replace("_", "-") for kind in kinds for field in fields(kind)}
    for name in plugins.ours("simulations"):
        known |= {field.name for field in plugins.own_fields(plugins.find("simulations", name))}
    for page in PAGES:
        text = page.read_text("utf-8")
        assert set(re.findall(r"`--([a-z][\w.-]*)", text)) <= known, page.name
        assert set(re.findall(r"\brp\.(\w+)", text)) <= set(dir(rp)), page.name
        for file in re.findall(r"`((?:docs|tests|notebooks|recovery_probe)/[\w./-]+)`", text):
            assert (ROOT / file).exists() or "/NAME" in file, f"{page.name}: {file}"


@pytest.mark.parametrize(("group", "guide"), GUIDES.items())
def test_the_table_of_a_guide_has_every_plug_in(group: str, guide: str) -> None:
    text = (DOCS / "guide" / f"{guide}.md").read_text("utf-8")
    assert names(text) == set(plugins.ours(group))
    if group in ("analyses", "experiments"):  # and what it asks now
        for name, about in rows(text):
            assert about.startswith(plugins.find(group, name.strip("`")).question), name


@pytest.mark.parametrize("page", having("toml"))
def test_the_settings_of_a_page_are_settings(page: Path, tmp_path: Path) -> None:
    for language, _, text in blocks(page):
        if language != "toml":
            continue
        if "base" in (values := tomllib.loads(text)):  # a sweep
            file = tmp_path / "sweep.toml"
            file.write_text(text, "utf-8")
            assert spec.planned(spec.read(file), tmp_path / "out")
        else:
            config.preset("quickstart", **values)


def execute(page: Path, namespace: dict[str, Any]) -> None:
    """The Python of a page, in the working directory, its files written where it says."""
    for language, title, text in blocks(page):
        if title:
            Path(title).write_text(text, "utf-8")
        elif language == "python":
            code = compile(text, page.name, "exec")
            if page.name in NOT_RUN:
                imports = re.findall(r"^(?:from|import) .*$", text, re.MULTILINE)
                code = compile("\n".join(imports), page.name, "exec")
            exec(code, namespace)


@contextlib.contextmanager
def at(place: Path, **more: Any) -> Iterator[None]:
    """In a folder, with toy settings in each preset's place."""

    def toy(name: str, **changes: Any) -> rp.Settings:
        config.preset(name, **changes)  # there is such a preset, and it takes such changes
        return toy_settings(**TOY | more | changes)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rp, "preset", toy)
        patch.chdir(place)
        patch.syspath_prepend(str(place))
        try:
            yield
        finally:
            sys.modules.pop("mine", None)  # the next page has another
            plt.close("all")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> rp.Run:
    """What the README's Python trains; the other pages open it, or have it at hand."""
    place = tmp_path_factory.mktemp("readme")
    with at(place, **WHOLE):
        execute(ROOT / "README.md", {"__name__": "page"})
    made = rp.open_run(place / "runs" / "mine" / "cyclic")
    gain = AgeCurve()(made, *made.controls)
    write_zarr(gain, made.path / "analyses" / "age_curve.zarr")  # as `analyze` does
    return made


@pytest.mark.parametrize("page", [p for p in having("python") if p.id != "README.md"])
def test_the_python_of_a_page_runs(page: Path, run: rp.Run, tmp_path: Path) -> None:
    opened = ["runs/quickstart"]
    if page.name == "recipes.md":  # its five seeds are one run here
        opened += [f"runs/seed{s}" for s in range(5)]
    (tmp_path / "runs").mkdir()
    for name in opened:
        (tmp_path / name).symlink_to(run.path.parent)
    (tmp_path / "RUN").symlink_to(run.path)
    with at(tmp_path):
        execute(page, {"__name__": "page", "rp": rp, "run": run})


@pytest.mark.parametrize(
    "file", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda file: file.stem
)
def test_a_notebook_has_its_outputs_and_nothing_of_the_machine(file: Path) -> None:
    text = file.read_text("utf-8")
    cleaned = runpy.run_path(str(ROOT / "notebooks" / "clean.py"))["cleaned"]
    assert text == cleaned(text), "python notebooks/clean.py notebooks/*.ipynb"
    assert '"image/png"' in text
    assert not re.search(r"(?<![\w+/])/(home|root|tmp|usr|Users)/|\bat 0x[0-9a-f]{6}", text)

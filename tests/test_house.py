"""The house itself: which way imports point, how long files are, and how fast the door opens."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import recovery_probe

ROOT = Path(recovery_probe.__file__).parent
PACKAGE = "recovery_probe"
SLOW = ("torch", "transformer_lens", "transformers", "matplotlib", "scipy")
# The door that every user comes in by, and the methods of `Run` that are conveniences: they look
# up, when they are called.
LAZY = {
    ("recovery_probe", "*"),
    ("recovery_probe.train", "recovery_probe.train.fitting"),
    ("recovery_probe.analyze", "recovery_probe.analyze.perform"),
    ("recovery_probe.record.run", "recovery_probe.models"),
    ("recovery_probe.record.run", "recovery_probe.train"),
    ("recovery_probe.record.run", "recovery_probe.train.fitting"),
    ("recovery_probe.record.run", "recovery_probe.train.plan"),
    ("recovery_probe.record.run", "recovery_probe.train.replay"),
    ("recovery_probe.record.shown", "recovery_probe.analyze"),
    ("recovery_probe.record.shown", "recovery_probe.analyze.live"),
    ("recovery_probe.record.shown", "recovery_probe.analyze.picture"),
}


def modules() -> dict[str, Path]:
    """Name -> file of every module of the package."""
    found = {}
    for file in sorted(ROOT.rglob("*.py")):
        parts = [PACKAGE, *file.relative_to(ROOT).with_suffix("").parts]
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


def imported(name: str, file: Path, known: set[str]) -> set[str]:
    """The modules of the package that one imports: at its top, inside functions, and for type
    checkers alone."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{name}: a relative import"
            of = node.module or ""
            inner = {f"{of}.{alias.name}" for alias in node.names}
            found |= {m for m in inner if m in known} or {of}
            if any(m not in known for m in inner):
                found.add(of)
    return {m for m in found & known if m != name}


def graph() -> dict[str, set[str]]:
    known = modules()
    edges = {name: imported(name, file, set(known)) for name, file in known.items()}
    return {
        name: {m for m in others if not {(name, m), (name, "*")} & LAZY}
        for name, others in edges.items()
    }


def test_imports_point_one_way() -> None:
    try:
        order = list(TopologicalSorter(graph()).static_order())
    except CycleError as circle:
        pytest.fail(" <- ".join(circle.args[1]))
    assert order.index("recovery_probe.record.writer") < order.index("recovery_probe.train.loop")


def test_the_graph_sees_imports_of_all_kinds(tmp_path: Path) -> None:
    file = tmp_path / "x.py"
    file.write_text(
        "from typing import TYPE_CHECKING\nimport recovery_probe.errors\n"
        "if TYPE_CHECKING:\n    from recovery_probe.record.run import Run\n"
        "def f():\n    from recovery_probe import config\n"
    )
    seen = imported("x", file, set(modules()))
    assert seen == {f"{PACKAGE}.{m}" for m in ("errors", "record.run", "config")}


@pytest.mark.parametrize(
    ("lower", "higher"),
    [
        ("errors", "plugins"),
        ("record", "train"),
        ("record", "recorders"),
        ("record", "interventions"),
        ("documents", "models"),
        ("models", "recorders"),
        ("training", "recorders.recording"),
        ("stats", "record"),
        ("record", "simulations"),
        ("simulations", "analyze"),
        ("simulations", "recorders"),
        ("simulations", "training"),
    ],
)
def test_lower_rooms_know_nothing_of_higher_ones(lower: str, higher: str) -> None:
    reach, edges = {f"{PACKAGE}.{higher}"}, graph()

    def inside(module: str, room: str) -> bool:
        return module == f"{PACKAGE}.{room}" or module.startswith(f"{PACKAGE}.{room}.")

    todo = [m for m in edges if inside(m, lower)]
    reach = set(todo)
    while todo:
        for other in edges[todo.pop()] - reach:
            reach.add(other)
            todo.append(other)
    assert not [m for m in reach if inside(m, higher)]


def test_nothing_imports_the_analyses() -> None:
    for name, file in modules().items():
        assert "import recovery_probe_analyses" not in file.read_text("utf-8"), name
        assert "from recovery_probe_analyses" not in file.read_text("utf-8"), name


def test_no_file_is_long() -> None:
    top = ROOT.parent
    files = [*modules().values(), *(top / "analyses").rglob("*.py"), *(top / "tests").rglob("*.py")]
    lengths = {f.name: len(f.read_text("utf-8").splitlines()) for f in files}
    assert not {name: n for name, n in lengths.items() if n > 400}


@pytest.mark.parametrize(
    "code",
    [
        "from recovery_probe.cli import main; main(['train', 'quickstart', '--help'])",
        "from recovery_probe.cli import main; main("
        "['train', 'quickstart', '--optimizer.lr', '-1'])",
        "from recovery_probe.cli import main; main(['analyze', '--help'])",
        "from recovery_probe.cli import main; main(['analyze', '--list'])",
        "from recovery_probe.cli import main; main(['simulate', 'age_only', '--help'])",
        "import tempfile, recovery_probe as rp\n"
        "with tempfile.TemporaryDirectory() as out: rp.simulate('age_only', out, epochs=1)",
        "import recovery_probe as rp; rp.open_run(sys.argv[1]).losses.mean()",
        "import recovery_probe as rp; rp.preset('quickstart', **{'optimizer.name': 'adam'})",
    ],
    ids=[
        "help",
        "refused",
        "analyze help",
        "list",
        "simulate help",
        "simulate",
        "open_run",
        "preset",
    ],
)
def test_the_door_opens_without_torch(code: str, pair: recovery_probe.Run) -> None:
    script = f"import sys, atexit\natexit.register(lambda: print('LOADED', *sys.modules))\n{code}"
    ended = subprocess.run(
        [sys.executable, "-c", script, str(pair.path)], capture_output=True, text=True
    )
    assert "Traceback" not in ended.stderr, ended.stderr
    loaded = set(ended.stdout.rpartition("LOADED ")[2].split())
    assert "recovery_probe" in loaded
    assert not loaded & {*SLOW}

"""What is said while there is work, on standard error, unless it is to be quiet: plain lines, and
bars on a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

T = TypeVar("T")
_quiet = False


@contextmanager
def as_before() -> Iterator[None]:
    """Whatever is made quiet in between is so no more afterwards."""
    global _quiet
    before = _quiet
    try:
        yield
    finally:
        _quiet = before


def be_quiet() -> None:
    """Say nothing from now on."""
    global _quiet
    _quiet = True


def say(text: str) -> None:
    """A line on how far things are, or what they will take. What is wrong is not said so."""
    if not _quiet:
        print(text, file=sys.stderr, flush=True)


def on_terminal() -> bool:
    """Whether somebody is there to see a bar."""
    return sys.stderr.isatty() and not _quiet


@contextmanager
def bar(
    label: str, total: float, unit: str, done: int = 0, stays: bool = False
) -> Iterator[Callable[..., None]]:
    """A bar with the time left, of so many units, some of them done before; shown on a terminal
    alone. Yields what moves it: `step(count=1, label=…, said=…)`, `said` standing behind it. It
    `stays` when it is done, or goes."""
    if not on_terminal():
        yield lambda *_, **__: None
        return
    from rich import progress
    from rich.console import Console

    columns = (
        progress.TextColumn("{task.description}", markup=False),
        progress.BarColumn(30),
        progress.MofNCompleteColumn(),
        progress.TextColumn(unit),
        progress.TextColumn("{task.fields[said]}", markup=False),
        progress.TimeRemainingColumn(elapsed_when_finished=True),
    )
    with progress.Progress(*columns, console=Console(stderr=True), transient=not stays) as shown:
        task = shown.add_task(label, total=total, completed=done, said="")

        def step(count: float = 1, label: str | None = None, said: str | None = None) -> None:
            fields: dict[str, Any] = {} if said is None else {"said": said}
            shown.update(task, advance=count, description=label, **fields)

        yield step


def along(items: Iterable[T], label: str, total: int, unit: str) -> Iterator[T]:
    """Items one by one, with a bar."""
    with bar(label, total, unit) as step:
        for item in items:
            yield item
            step()

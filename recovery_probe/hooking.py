"""Functions at hook points of a network, and what these show."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from recovery_probe.training import Training


@contextmanager
def hooked(bridge: Any, hooks: Iterable[tuple[str, str, Callable[..., Any]]]) -> Iterator[None]:
    """(hook point, `fwd` or `bwd`, function), attached; gone when it ends, also after an error."""
    attached = []
    try:
        for name, direction, function in hooks:
            point = bridge.hook_dict[name]
            held = point.fwd_hooks if direction == "fwd" else point.bwd_hooks
            before = list(held)
            alias = [name] if point.name != name else None
            point.add_hook(function, dir=direction, alias_names=alias)
            attached += [(held, handle) for handle in held if handle not in before]
        yield
    finally:
        for held, handle in attached:
            handle.hook.remove()
            held.remove(handle)


@torch.no_grad()
def shapes_at(
    training: Training, points: Iterable[str], documents: int = 1
) -> dict[str, tuple[int, ...]]:
    """Hook point -> shape of the tensor there, of those that a pass over the first documents
    reaches: an architecture may have points that never fire."""
    shapes: dict[str, tuple[int, ...]] = {}

    def see(tensor: Any, *, hook: Any) -> None:
        shapes[hook.name] = tuple(getattr(tensor, "shape", ()))

    known = [point for point in dict.fromkeys(points) if point in training.model.bridge.hook_dict]
    training.model.train(False)
    with hooked(training.model.bridge, [(point, "fwd", see) for point in known]):
        training.losses(slice(documents))
    return {point: shapes[point] for point in known if point in shapes}

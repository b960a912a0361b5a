"""What a recorder may not do, noticed: layouts that no record can hold, rows that are not what was
announced, and changes of what training depends on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recovery_probe.errors import HookError, InputError
from recovery_probe.record.layout import EPISODE, STEP, TRAINING, Array
from recovery_probe.record.run import Run
from recovery_probe.recorders import Layout, Recorder
from recovery_probe.training import Training

# What a run holds itself: an attribute of it could not be a recorder's group. (The recorder of
# checkpoints writes files, and the attribute tells of them.)
RESERVED = {*dir(Run), "path", "config", "provenance", TRAINING} - {"checkpoints"}
RANK = {"b": 0, "u": 1, "i": 1, "f": 2}  # kinds of numbers; a row may be stored as a higher one


def check_names(recorders: Iterable[Recorder]) -> None:
    """Raise `InputError` unless every recorder can have a group of its own in the record."""
    seen: set[str] = set()
    for recorder in recorders:
        name = getattr(recorder, "name", None)
        if not isinstance(name, str):
            raise InputError(f"recorder {type(recorder).__name__} has no name: name = '...'")
        if name in seen:
            raise InputError(
                f"two recorders are called {name!r}; leave out the one that the settings name "
                f"(--no-record {name}), or give a hook another name: (name, pattern, function)"
            )
        if not name.isidentifier() or name.startswith("_") or name in RESERVED:
            raise InputError(
                f"a recorder called {name!r} cannot have a group in the record; give it another "
                "name (a hook: hooks=[(name, pattern, function)], or a def of its own)"
            )
        seen.add(name)


def check_layout(name: str, layout: Any) -> None:
    """Raise `InputError` when a record cannot hold what a recorder announces."""
    if not isinstance(layout, Layout):
        raise InputError(f"recorder {name}: start gave a {type(layout).__name__}, and not a Layout")
    sizes: dict[str, tuple[int, str]] = {}  # dimension -> size, and where it is from
    for array_name, array in layout.arrays.items():
        where = f"recorder {name}: array {array_name!r}"
        if not isinstance(array, Array):
            raise InputError(f"{where} is a {type(array).__name__}, and not an Array")
        words = [array_name, *array.dims]
        if not all(isinstance(w, str) and w.isidentifier() for w in words):
            raise InputError(f"{where} with dimensions {array.dims}: expected names without / or .")
        if array.time not in (STEP, EPISODE):
            raise InputError(f"{where}: time = {array.time!r}, expected {STEP!r} or {EPISODE!r}")
        if {STEP, EPISODE, array_name} & set(array.dims) or len({*array.dims}) < len(array.dims):
            raise InputError(f"{where}: a row cannot have the dimensions {array.dims}")
        if len(array.dims) != len(array.shape):
            raise InputError(f"{where}: dimensions {array.dims} do not go with {array.shape}")
        if _kind(array.dtype) not in RANK:
            raise InputError(f"{where}: dtype {array.dtype!r} is not one of real numbers")
        for dimension, size in zip(array.dims, array.shape, strict=True):
            _agree(sizes, dimension, size, where)
    for coordinate, (dims, values) in layout.coords.items():
        where = f"recorder {name}: coordinate {coordinate!r}"
        if coordinate in layout.arrays or coordinate in (STEP, EPISODE):
            raise InputError(f"{where}: the name is taken")
        dims = (dims,) if isinstance(dims, str) else tuple(dims)
        shape = np.shape(values)
        if len(dims) != len(shape):
            raise InputError(f"{where}: dimensions {dims} do not go with {shape}")
        for dimension, size in zip(dims, shape, strict=True):
            _agree(sizes, dimension, size, where)


def _kind(dtype: Any) -> str:
    try:
        return np.dtype(dtype).kind
    except TypeError:
        return "O"


def _agree(sizes: dict[str, tuple[int, str]], dimension: str, size: int, where: str) -> None:
    before, there = sizes.setdefault(dimension, (size, where))
    if before != size:
        raise InputError(f"{where}: {dimension} has size {size}, and {before} in {there}")


def misfit(value: Any, array: Array) -> str:
    """What is wrong with a row that an array is to hold; nothing for none."""
    if tuple(np.shape(value)) != tuple(array.shape):
        return f"of shape {tuple(np.shape(value))}; its layout says of shape {tuple(array.shape)}"
    if isinstance(value, Tensor):
        kind = "c" if value.is_complex() else "f" if value.is_floating_point() else "i"
        kind = "b" if value.dtype == torch.bool else kind
    else:
        kind = np.asarray(value).dtype.kind
    if kind not in RANK or RANK[kind] > RANK[np.dtype(array.dtype).kind]:
        dtype = value.dtype if isinstance(value, Tensor) else np.asarray(value).dtype
        return f"as {dtype}; its layout says as {array.dtype}"
    return ""


def check_positions(name: str, layout: Layout, training: Training) -> None:
    """Raise `InputError` for rows of all positions where some steps have fewer."""
    documents = training.documents
    full = documents.lengths[: documents.trained].min() == documents.mask.shape[1]
    if training.settings.documents.padding == "masked" or full:
        return
    for array, about in layout.arrays.items():
        if about.time == STEP and {"position", "query", "key"} & set(about.dims):
            raise InputError(
                f"recorder {name}: a row of {array} has all positions, and steps have as many as "
                "their documents (documents.padding = none): use documents.padding masked"
            )


def fitted(rows: NDArray[Any], array: Array) -> NDArray[Any] | None:
    """The rows as an array holds them; None when it cannot hold one of their values."""
    with np.errstate(over="ignore", invalid="ignore"):
        held = rows.astype(array.dtype)
    if rows.dtype.kind == "f":
        whole = not (np.isinf(held) & ~np.isinf(rows)).any()
    else:
        whole = bool((held == rows).all())
    return held if whole else None


def checksum(tensor: Tensor) -> Tensor:
    """Sum of a tensor's bits, as integers: exact, and at the speed of memory."""
    flat = tensor.detach().contiguous().view(-1)
    bits = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return flat.view(bits.get(flat.element_size(), torch.uint8)).sum(dtype=torch.int64)


class Seal:
    """Put on weights, or gradients too, it notices that they changed, by their checksums."""

    def __init__(self, parameters: Mapping[str, Tensor], gradients: bool) -> None:
        self.parameters, self.gradients = parameters, gradients
        self.before = self._sums()

    def _sums(self) -> dict[str, list[int]]:
        """What -> a checksum for each parameter; -1 for a gradient that is not there."""
        weights = list(self.parameters.values())
        kinds: dict[str, list[Tensor | None]] = {"weights": [*weights]}
        if self.gradients:
            kinds["gradients"] = [p.grad for p in weights]
        absent = torch.tensor(-1, device=weights[0].device)
        return {
            kind: torch.stack([absent if t is None else checksum(t) for t in tensors]).tolist()
            for kind, tensors in kinds.items()
        }

    def check(self, who: str, when: str) -> None:
        """Raise `HookError` when something changed since the last look."""
        now = self._sums()
        for kind, sums in now.items():
            pairs = zip(self.parameters, self.before[kind], sums, strict=True)
            changed = [name for name, before, after in pairs if before != after]
            if changed:
                more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
                raise HookError(
                    f"{who} changed the {kind} at {when}: {', '.join(changed[:3])}{more}; a "
                    "recorder only watches"
                )
        self.before = now


@contextmanager
def untouched(tensor: Any, message: Callable[[], str], *, values: bool = False) -> Iterator[None]:
    """Raise `HookError` when what is done meanwhile changes a tensor in place. PyTorch counts
    changes, but for those through `.data`, which `values` notices too."""
    if not isinstance(tensor, Tensor):
        yield
        return
    version, bits = tensor._version, checksum(tensor) if values else None
    yield
    if tensor._version != version or (bits is not None and not torch.equal(bits, checksum(tensor))):
        raise HookError(message())

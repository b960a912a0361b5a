"""What remembers something, as JSON and tensors: no pickles."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor


def packed(tree: Any, tensors: dict[str, Tensor]) -> Any:
    """A tree of dicts, lists, tuples, numbers, strings, tensors and arrays as JSON can hold it;
    its tensors go to `tensors`, by the names that stand in their places. Raises `TypeError` for
    anything else."""
    if isinstance(tree, Tensor | np.ndarray | np.generic):
        name = f"{len(tensors):05d}"
        if isinstance(tree, Tensor):
            tensors[name] = tree.detach().clone().contiguous()
            return {"tensor": name}
        tensors[name] = torch.from_numpy(np.array(tree))
        return {"array": name}
    if isinstance(tree, dict):  # JSON would make strings of keys that are numbers
        return {"dict": [[key, packed(value, tensors)] for key, value in tree.items()]}
    if isinstance(tree, tuple):
        return {"tuple": [packed(value, tensors) for value in tree]}
    if isinstance(tree, list):
        return [packed(value, tensors) for value in tree]
    if tree is None or isinstance(tree, bool | int | float | str):
        return tree
    raise TypeError(f"a {type(tree).__name__} cannot be kept: tensors, arrays, numbers, text can")


def unpacked(tree: Any, tensors: dict[str, Tensor]) -> Any:
    """What was packed."""
    if isinstance(tree, list):
        return [unpacked(value, tensors) for value in tree]
    if not isinstance(tree, dict):
        return tree
    ((kind, content),) = tree.items()
    if kind in ("tensor", "array"):
        return tensors[content].numpy() if kind == "array" else tensors[content]
    if kind == "tuple":
        return tuple(unpacked(value, tensors) for value in content)
    return {key: unpacked(value, tensors) for key, value in content}

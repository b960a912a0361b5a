"""Random projections that keep inner products, at memory speed.

A vector is cut into rows of length k, each row is multiplied by a random sign, and the rows are
added: one matrix-vector product. Two coordinates of a row never collide and two rows have
independent signs, so that inner products are unbiased, with an error of about |x||y| / √k. It is
linear: the sketch of a sum is the sum of sketches.

Long vectors are folded twice, first to `FIRST` and then to the size asked for: a product with
short rows is several times slower, and the first fold adds next to nothing to the error.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Mapping

import numpy as np
import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

FIRST = 8191  # prime, so that rows do not line up with those of a weight matrix


def signs(key: str, count: int) -> Tensor:
    """(count,) of ±1, float32: the same on every machine and device, for the key decides them
    through a counter-based generator (Philox)."""
    words = np.frombuffer(hashlib.blake2b(key.encode(), digest_size=16).digest(), dtype="<u8")
    raw = np.random.Philox(key=words).random_raw(-(-count // 64)).astype("<u8")
    bits = np.unpackbits(raw.view(np.uint8), count=count)
    return torch.from_numpy(bits.astype(np.float32) * 2 - 1)


class Fold:
    """Rows of length `size`, times signs, added."""

    def __init__(self, key: str, length: int, size: int) -> None:
        self.size = size
        self.signs = signs(key, -(-length // size))  # one for each row, the last perhaps short

    def __call__(self, flat: Tensor, offset: int = 0) -> Tensor:
        """(size,): of a vector, or of the piece of it that starts at coordinate `offset`."""
        if self.signs.device != flat.device or self.signs.dtype != flat.dtype:
            self.signs = self.signs.to(flat)
        if offset % self.size:  # up to the next whole row
            column = offset % self.size
            head = flat[: self.size - column]
            out = flat.new_zeros(self.size)
            out[column : column + len(head)] = head * self.signs[offset // self.size]
            rest = flat[len(head) :]
            return out + self(rest, offset + len(head)) if len(rest) else out
        first = offset // self.size
        rows = len(flat) // self.size
        out = self.signs[first : first + rows] @ flat[: rows * self.size].view(rows, self.size)
        tail = flat[rows * self.size :]
        if len(tail):
            out[: len(tail)] += tail * self.signs[first + rows]
        return out


class Sketch:
    """A linear map from `length` coordinates to `size`, decided by `seed` and `name` alone."""

    def __init__(self, name: str, length: int, size: int, seed: int = 0) -> None:
        twice = length > FIRST > size
        self.first = Fold(f"{seed}/{name}/first", length, FIRST) if twice else None
        self.second = Fold(f"{seed}/{name}", FIRST if twice else length, size)

    def __call__(self, values: Tensor, offset: int = 0) -> Tensor:
        """(size,): the sketch of a tensor, flattened, or of a piece that starts at `offset`."""
        flat = values.detach().reshape(-1)
        if self.first is None:
            return self.second(flat, offset)
        return self.second(self.first(flat, offset))


class LongVector:
    """The first fold of one vector into its row of a table, and its squared norm. On a small
    model the calls cost as much as the arithmetic, so that all that they take stands ready."""

    def __init__(self, fold: Fold, length: int, row: Tensor, square: Tensor) -> None:
        rows, rest = divmod(length, fold.size)
        signs = fold.signs.to(row)
        self.whole, self.signs, self.last = rows * fold.size, signs[None, :rows], float(signs[-1])
        self.out, self.tail, self.square = row[None, : fold.size], row[:rest], square

    def __call__(self, flat: Tensor) -> None:
        rows = flat[: self.whole].view(-1, self.out.shape[1])
        torch.mm(self.signs, rows, out=self.out)
        if len(self.tail):
            self.tail.add_(flat[self.whole :], alpha=self.last)
        torch.dot(flat, flat, out=self.square)  # at once, while it may still be in the cache


class ModuleSketches:
    """Sketches and exact norms of a set of parameter-shaped tensors, one for each module.

    `modules` are TransformerLens names without the last word: the weight and the bias of
    `blocks.3.attn.q` are one vector.
    """

    def __init__(self, parameters: Mapping[str, Tensor], size: int, seed: int = 0) -> None:
        self.size = size
        self.modules = list(dict.fromkeys(module_of(name) for name in parameters))
        self.sketches = {n: Sketch(n, p.numel(), size, seed) for n, p in parameters.items()}
        self.lengths = {name: p.numel() for name, p in parameters.items()}
        self.names = {  # long vectors are folded one by one, short ones all at once
            "long": [name for name, sketch in self.sketches.items() if sketch.first],
            "short": [name for name, sketch in self.sketches.items() if not sketch.first],
        }
        self.kind: tuple[torch.device, torch.dtype] | None = None  # what the tables are made for
        self._last: tuple[int, tuple[Tensor, Tensor]] | None = None

    def of_gradients(self, step: int, parameters: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Sketches and norms of the gradients at a step; worked out once a step, whoever asks."""
        if self._last is None or self._last[0] != step:
            one = next(iter(parameters.values()))
            gradients = ((n, g) for n, p in parameters.items() if (g := p.grad) is not None)
            self._last = step, self(gradients, like=one)
        return self._last[1]

    @torch.no_grad()
    def __call__(
        self,
        tensors: Mapping[str, Tensor] | Iterable[tuple[str, Tensor]],
        like: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """(modules, size) sketches and (modules,) exact Euclidean norms, worked out in float32 at
        least. Pairs of name and tensor are taken one by one, so that they need not exist at the
        same time; a parameter that is not among them counts as 0. `like`, where there may be none
        at all, tells the device."""
        pairs = iter(tensors.items() if isinstance(tensors, Mapping) else tensors)
        first = next(pairs, None)
        one = first[1] if first else like
        if one is None:
            raise ValueError("no tensor to sketch")
        dtype = torch.promote_types(one.dtype, torch.float32)
        if self.kind != (one.device, dtype):
            self._lay_out(one.device, dtype)
        self.folded.zero_()
        self.squares.zero_()
        none = self.squares.new_zeros(0)
        short = dict.fromkeys(self.names["short"], none)
        for name, tensor in itertools.chain([first] if first else [], pairs):
            flat = tensor.reshape(-1).to(dtype)
            if name in short:
                short[name] = flat
            else:
                self.long[name](flat)
        sketched = self.squares.new_zeros(len(self.modules), self.size)
        squares = self.squares.new_zeros(len(self.modules))
        if self.long:
            self._add(sketched, "long", self.folded)
            squares.index_add_(0, self.rows["long"], self.squares)
        if short:
            padded = pad_sequence(list(short.values()), batch_first=True)  # (parameter, longest)
            width = self.signs["short"].shape[1] * self.size
            self._add(sketched, "short", F.pad(padded, (0, width - padded.shape[1])))
            squares.index_add_(0, self.rows["short"], padded.square().sum(1))
        return sketched, squares.sqrt()

    def _add(self, sketched: Tensor, kind: str, vectors: Tensor) -> None:
        """Add the second folds of these vectors (parameters, whole rows), padded with zeros."""
        rows = rearrange(vectors, "parameter (row k) -> parameter row k", k=self.size)
        folds = einsum(self.signs[kind], rows, "parameter row, parameter row k -> parameter k")
        sketched.index_add_(0, self.rows[kind], folds)

    def _lay_out(self, device: torch.device, dtype: torch.dtype) -> None:
        """Tables on a device: signs of the second folds, and room for the first ones."""
        position = {module: i for i, module in enumerate(self.modules)}
        self.rows, self.signs = {}, {}
        for kind, names in self.names.items():
            own = [self.sketches[name].second.signs for name in names]
            signs = pad_sequence(own, batch_first=True) if own else torch.zeros(0, 0)
            rows = [position[module_of(name)] for name in names]
            self.signs[kind] = signs.to(device, dtype)
            self.rows[kind] = torch.tensor(rows, dtype=torch.int64, device=device)
        count = len(self.names["long"])
        width = self.signs["long"].shape[1] * self.size
        self.folded = torch.zeros(count, width, device=device, dtype=dtype)
        self.squares = torch.zeros(count, device=device, dtype=dtype)
        self.long = {
            name: LongVector(fold, self.lengths[name], self.folded[i], self.squares[i])
            for i, name in enumerate(self.names["long"])
            if (fold := self.sketches[name].first)
        }
        self.kind = device, dtype


def module_of(name: str) -> str:
    """`blocks.3.attn.q` of `blocks.3.attn.q.weight`."""
    return name.rpartition(".")[0]

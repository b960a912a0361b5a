"""The training document's residual stream at every step, and the focal document's last one."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from recovery_probe.errors import InputError
from recovery_probe.recorders import (
    EPISODE,
    STEP,
    Array,
    Hook,
    Layout,
    Recorder,
    Rows,
    RunInfo,
    Step,
)


class ResidualStream(Recorder):
    """`residual` (step, layer, …): before block 0 (layer 0) and after each block, reduced over the
    real positions as `residual_stream.reduce` says. `final` (episodes_done, position, width): the
    focal document's stream after the last block, before the final norm and the unembedding, at
    all positions, NaN past its length; `focal` (episodes_done, layer, position, width): the same
    at every layer, when `residual_stream.focal_layers` is `all`."""

    name = "residual_stream"

    def start(self, run: RunInfo) -> Layout:
        wanted, bridge = run.settings.residual_stream, run.model.bridge
        if not wanted.focal < run.settings.documents.count:
            raise InputError(
                f"residual_stream.focal = {wanted.focal}: the documents trained on are 0 to "
                f"{run.settings.documents.count - 1}"
            )
        self.focal, self.reduce = wanted.focal, wanted.reduce
        self.all_layers = wanted.focal_layers == "all"
        self.evaluated: list[Tensor] = []
        self.length = int(run.lengths[wanted.focal])
        blocks, width = len(bridge.blocks), bridge.cfg.d_model
        self.layers = blocks + 1
        positions = run.tokens.shape[1]
        full = wanted.reduce == "all"
        points = ["blocks.0.hook_resid_pre"]
        points += [f"blocks.{i}.hook_resid_post" for i in range(blocks)]
        self.layer = {point: i for i, point in enumerate(points)}
        everywhere = Array(
            EPISODE,
            ("layer", "position", "width"),
            (self.layers, positions, width),
            f"residual stream of document {wanted.focal} at every layer",
            dtype="float16",
        )
        return Layout(
            arrays={
                "residual": Array(
                    STEP,
                    ("layer", *(["position"] if full else []), "width"),
                    (self.layers, *([positions] if full else []), width),
                    f"residual stream of the training document, {wanted.reduce} of positions; "
                    "layer 0 is before block 0, layer i after block i - 1",
                    dtype="float16" if full else "float32",
                ),
                "final": Array(
                    EPISODE,
                    ("position", "width"),
                    (positions, width),
                    f"residual stream of document {wanted.focal} after the last block",
                    dtype="float16",
                ),
                **({"focal": everywhere} if self.all_layers else {}),
            },
            coords={"hook_point": ("layer", points)},
            every={STEP: wanted.every},
            hooks=(
                *(Hook(point, self.training) for point in points),
                *(
                    Hook(point, self.evaluation, during="evaluation")
                    for point in (points if self.all_layers else points[-1:])
                ),
            ),
        )

    def training(self, tensor: Tensor, *, hook: object, moment: Step) -> Rows:
        layer = self.layer[str(getattr(hook, "name", ""))]
        if layer == 0:
            self.seen: list[Tensor] = []
        real = tensor.detach()[0, : moment.length]
        if self.reduce == "mean":
            real = real.mean(0)
        elif self.reduce == "last":
            real = real[-1].clone()
        else:
            real = pad(real.half(), tensor.shape[1])
        self.seen.append(real)
        return {"residual": torch.stack(self.seen)} if layer == self.layers - 1 else None

    def evaluation(self, tensor: Tensor, *, hook: object, moment: range) -> Rows:
        if self.focal not in moment:
            return None
        real = tensor.detach()[moment.index(self.focal), : self.length].half()
        real = pad(real, tensor.shape[1])
        layer = self.layer[str(getattr(hook, "name", ""))]
        if not self.all_layers:
            return {"final": real}
        self.evaluated = [] if layer == 0 else self.evaluated
        self.evaluated.append(real)
        if layer < self.layers - 1:
            return None
        return {"final": real, "focal": torch.stack(self.evaluated)}


def pad(real: Tensor, positions: int) -> Tensor:
    """(positions, width), NaN past the end."""
    out = real.new_full((positions, real.shape[1]), math.nan)
    out[: len(real)] = real
    return out

"""The training document's residual stream at every step, and the focal document's last one."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from recovery_probe.errors import InputError
from recovery_probe.recorders import (
    EPISODE,
    STEP,
    Array,
    Episode,
    Hook,
    Layout,
    Points,
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
        self.length = int(run.lengths[wanted.focal])
        blocks, width = len(bridge.blocks), bridge.cfg.d_model
        layers = blocks + 1
        positions = run.tokens.shape[1]
        full = wanted.reduce == "all"
        points = ["blocks.0.hook_resid_pre"]
        points += [f"blocks.{i}.hook_resid_post" for i in range(blocks)]
        self.trained = Points(points)
        self.evaluated = Points(points if self.all_layers else points[-1:])
        rounded = "; float16: rounded to 1 in 2048, and inf beyond 65504"
        everywhere = Array(
            EPISODE,
            ("layer", "position", "width"),
            (layers, positions, width),
            f"residual stream of document {wanted.focal} at every layer{rounded}",
            dtype="float16",
        )
        return Layout(
            arrays={
                "residual": Array(
                    STEP,
                    ("layer", *(["position"] if full else []), "width"),
                    (layers, *([positions] if full else []), width),
                    f"residual stream of the training document, {wanted.reduce} of positions; "
                    "layer 0 is before block 0, layer i after block i - 1"
                    + (rounded if full else ""),
                    dtype="float16" if full else "float32",
                ),
                "final": Array(
                    EPISODE,
                    ("position", "width"),
                    (positions, width),
                    f"residual stream of document {wanted.focal} after the last block{rounded}",
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

    def training(self, tensor: Tensor, *, hook: Any, moment: Step) -> None:
        real = tensor.detach()[0, : moment.length]
        if self.reduce == "mean":
            real = real.mean(0)
        elif self.reduce == "last":
            real = real[-1]
        else:
            real = pad(real.half(), tensor.shape[1])
        self.trained.put(hook.name, real)

    def after_backward(self, step: Step) -> Rows:
        return self.trained.rows("residual")

    def evaluation(self, tensor: Tensor, *, hook: Any, moment: range) -> None:
        if self.focal in moment:
            real = tensor.detach()[moment.index(self.focal), : self.length].half()
            self.evaluated.put(hook.name, pad(real, tensor.shape[1]))

    def after_episode(self, episode: Episode) -> Rows:
        row = self.evaluated.row()  # (layer, position, width), of the last layer or of all
        if row is None:
            return None
        return {"final": row[-1], **({"focal": row} if self.all_layers else {})}


def pad(real: Tensor, positions: int) -> Tensor:
    """(positions, width), NaN past the end."""
    out = real.new_full((positions, real.shape[1]), math.nan)
    out[: len(real)] = real
    return out

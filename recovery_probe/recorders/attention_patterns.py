"""Entropy of the training document's attention, by head; the patterns themselves on request."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from recovery_probe.errors import InputError
from recovery_probe.recorders import (
    STEP,
    Array,
    Hook,
    Layout,
    Points,
    Recorder,
    Rows,
    RunInfo,
    Step,
    shapes_at,
)


class AttentionPatterns(Recorder):
    """`entropy` (step, block, head), nats: mean over the real query positions of the entropy of
    each one's pattern. `pattern` (step, block, head, query, key), with
    `attention_patterns.patterns`."""

    name = "attention_patterns"

    def start(self, run: RunInfo) -> Layout:
        wanted, bridge = run.settings.attention_patterns, run.model.bridge
        blocks, positions = len(bridge.blocks), run.tokens.shape[1]
        points = [f"blocks.{i}.attn.hook_pattern" for i in range(blocks)]
        shapes = {shape[1:] for shape in shapes_at(run, points).values()}
        if not all(s[1:] == (positions, positions) for s in shapes) or len(shapes) > 1:
            raise InputError(
                f"attention_patterns: patterns of shape {sorted(shapes)} are not one "
                f"(head, {positions}, {positions}) for all blocks; leave it out: "
                "--no-record attention_patterns"
            )
        heads = next(iter(shapes), (bridge.cfg.n_heads,))[0]
        self.patterns = wanted.patterns
        self.entropy, self.kept = Points(points), Points(points)
        arrays = {
            "entropy": Array(
                STEP, ("block", "head"), (blocks, heads), "mean entropy of attention", "nats"
            )
        }
        if wanted.patterns:
            arrays["pattern"] = Array(
                STEP,
                ("block", "head", "query", "key"),
                (blocks, heads, positions, positions),
                "attention pattern of the training document",
                dtype="float16",
            )
        hooks = tuple(Hook(point, self.training) for point in points)
        return Layout(arrays, every={STEP: wanted.every}, hooks=hooks)

    def training(self, pattern: Tensor, *, hook: Any, moment: Step) -> None:
        p = pattern.detach()[0]  # (head, query, key)
        entropy = torch.special.entr(p[:, : moment.length].float()).sum(-1).mean(-1)
        self.entropy.put(hook.name, entropy)
        if self.patterns:
            self.kept.put(hook.name, p.half())

    def after_backward(self, step: Step) -> Rows:
        return {**(self.entropy.rows("entropy") or {}), **(self.kept.rows("pattern") or {})}

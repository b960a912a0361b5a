"""Our trainer against a bare PyTorch loop on the same Hugging Face model.

    python tests/benchmarks/bench_loop.py [--shape quickstart large] [--rounds 9] [--profile]

One process; the loops take turns, three episodes each, round after round, with an evaluation of
all T + H documents first and after each episode. Both kinds of attention are measured, each
against the bare loop with the same one. Ratios are of the loops of one round, in seconds of the
processor that the process took: what others do on the machine meanwhile tells less in them.
"""

from __future__ import annotations

import argparse
import cProfile
import itertools
import os
import pstats
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM

import recovery_probe as rp
from recovery_probe.interventions.acting import Interventions
from recovery_probe.record.layout import Timeline
from recovery_probe.record.writer import Writer
from recovery_probe.recorders.recording import Recording
from recovery_probe.train.loop import train
from recovery_probe.train.progress import Progress

SHAPES = {
    "quickstart": {},
    "large": {
        "steps": 2,
        "model": {"width": 576, "depth": 30, "heads": 9},
        "documents": {"count": 4, "held_out": 1, "tokens": 128, "min_tokens": 128},
    },
}
PLAN = [0, 1, 2]
Prepare = Callable[[list[int]], Callable[[], object]]  # documents to train on -> what is timed


def bare(settings: rp.Settings, tokens: torch.Tensor, weights: Path, attention: str) -> Prepare:
    """The same arithmetic without us."""
    model = AutoModelForCausalLM.from_pretrained(weights, attn_implementation=attention)
    optimizer = torch.optim.SGD(model.parameters(), lr=settings.optimizer.lr, fused=True)

    def losses(batch: torch.Tensor) -> torch.Tensor:
        logits = model(batch, use_cache=False).logits[:, :-1]
        each = F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten(), reduction="none")
        return each.view(len(batch), -1).mean(1)

    def evaluate() -> list[float]:
        model.eval()
        with torch.no_grad():
            return torch.cat([losses(b) for b in tokens.split(settings.eval_batch)]).tolist()

    def run(plan: list[int]) -> None:
        evaluate()
        for document in plan:
            model.train()
            for _ in range(settings.steps):
                optimizer.zero_grad()
                losses(tokens[document : document + 1])[0].backward()
                optimizer.step()
            evaluate()

    return lambda plan: lambda: run(plan)


class Silent(Progress):
    def tell(self, training: rp.Training) -> None:
        pass


def ours(training: rp.Training, folder: Path) -> Prepare:
    """The package's own loop, losses alone."""
    names = itertools.count()
    settings, documents = training.settings, training.documents

    def prepare(plan: list[int]) -> Callable[[], None]:
        schedule = np.array(plan, dtype=np.int32)
        timeline = Timeline(
            schedule, settings.documents.count, settings.steps, settings.documents.count
        )
        rows = np.full((len(plan) + 1, len(documents)), np.nan)
        fresh = replace(training, timeline=timeline, rows=rows)
        interventions = Interventions([], fresh)
        recording = Recording([], fresh, interventions)
        out = folder / str(next(names))
        writer = Writer.create(out, settings, documents, timeline, provenance={})
        writer.put_in_place()
        return lambda: train(fresh, interventions, recording, writer, Silent("", timeline))

    return prepare


def measure(name: str, rounds: int, profile: bool) -> None:
    # A small step: hours on three documents must not end in losses and gradients of 0.
    settings = rp.preset("quickstart", optimizer={"lr": 1e-6}, **SHAPES[name])
    with tempfile.TemporaryDirectory() as aside:
        loops: dict[str, Prepare] = {}
        for attention in ("eager", "sdpa"):
            training = rp.Training.open(rp.changed(settings, **{"model.attention": attention}))
            weights, tokens = Path(aside) / attention, training.inputs["tokens"]
            training.model.save(weights)
            loops[f"ours, {attention}"] = ours(training, Path(aside) / f"runs-{attention}")
            loops[f"bare, {attention}"] = bare(training.settings, tokens, weights, attention)
        times = {loop: np.zeros(rounds) for loop in loops}
        for turn in range(-1, rounds):  # the first warms up
            for loop, prepare in sorted(loops.items(), reverse=bool(turn % 2)):
                timed = prepare(PLAN)
                start = time.process_time()
                timed()
                if turn >= 0:
                    times[loop][turn] = time.process_time() - start
        if profile:
            timed = loops["ours, eager"](PLAN)
            with cProfile.Profile() as seen:
                timed()
            pstats.Stats(seen).sort_stats("tottime").print_stats(25)
    print(
        f"{name}: {settings.model.depth} blocks, {settings.model.width} wide, "
        f"{tokens.shape[1]} tokens, {len(tokens)} documents, M = {settings.steps}, "
        f"{torch.get_num_threads()} threads, {rounds} rounds; load {os.getloadavg()[0]:.1f}"
    )
    for loop, seconds in times.items():
        low, middle, high = np.quantile(seconds, [0.25, 0.5, 0.75]) * 1e3
        print(f"  {loop:<11} {middle:9.1f} ms (quartiles {low:.1f} to {high:.1f})")
    for ours_, other in (
        ("ours, eager", "bare, eager"),
        ("ours, sdpa", "bare, sdpa"),
        ("ours, eager", "bare, sdpa"),
    ):
        low, middle, high = np.quantile(times[ours_] / times[other], [0.25, 0.5, 0.75])
        print(
            f"  {ours_} / {other}: {middle:.3f} by round (quartiles {low:.3f} to {high:.3f}), "
            f"{times[ours_].min() / times[other].min():.3f} at their best",
            flush=True,
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--profile", action="store_true", help="where our loop's time goes")
    arguments = parser.parse_args()
    for shape in arguments.shape:
        measure(shape, arguments.rounds, arguments.profile)

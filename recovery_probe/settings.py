"""The settings of a run: typed, each with its comment, the same names in TOML and on the
command line (`[optimizer] lr = 0.1` is `--optimizer.lr 0.1`).

Those of plug-ins belong to the plug-ins' classes; here they are plain data, so that any run can be
read.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Annotated, Any, ClassVar, Literal

import pydantic
from annotated_types import Ge, Gt, Le, Lt

from recovery_probe.plugins import STRICT

# What a setting decides, where that is not the numbers of a run: what is written of them, or where
# and how fast they are computed (of the numbers, the last digits).
WATCH, EXECUTION = {"role": "watch"}, {"role": "execution"}


class Table(dict[str, Any]):
    """The settings of a plug-in as plain data: `table.lr` is `table["lr"]`."""

    def __getattr__(self, name: str) -> Any:
        if name in self:
            return self[name]
        raise AttributeError(f"no setting {name!r}; there are {', '.join(self) or 'none'}")


@dataclass(frozen=True)
class Chosen:
    """A part of the settings that names a plug-in, whose own settings stand beside the name: as
    attributes, and in the same table."""

    own: dict[str, Any] = field(default_factory=Table, kw_only=True)

    __pydantic_config__: ClassVar[pydantic.ConfigDict] = STRICT

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name == "own":
            raise AttributeError(name)
        return getattr(self.own, name)


@dataclass(frozen=True)
class Seed:
    """Where random numbers come from: one number sets all three (`seed = 3`, `--seed 3`). Apart,
    they tell whether a result hangs on the documents, the weights or the order."""

    # decides the choice of documents, and which comes first
    documents: Annotated[int, Ge(0)] = 0
    # decides the initial weights
    weights: Annotated[int, Ge(0)] = 0
    # decides the shuffles, dropout, and what interventions draw
    order: Annotated[int, Ge(0)] = 0

    __pydantic_config__: ClassVar[pydantic.ConfigDict] = STRICT

    def __str__(self) -> str:
        """`3`, or `documents 1, weights 0, order 0`."""
        each = [f"{f.name} {getattr(self, f.name)}" for f in fields(self)]
        alike = self.documents == self.weights == self.order
        return str(self.documents) if alike else ", ".join(each)


@dataclass(frozen=True)
class Documents(Chosen):
    """What is read, over and over."""

    # python-topics (built in), a .txt, .jsonl or .npy file, a folder, lee,
    # hf:NAME[:CONFIG][:FIELD], or another installed source
    source: str = "python-topics"
    # T, documents trained on; at least 2
    count: Annotated[int, Ge(2)] = 20
    # C, tokens kept of each document, at least 2; shorter ones are padded, the padding masked
    tokens: Annotated[int, Ge(2), Le(2**20)] = 64
    # H, documents evaluated like the others and never trained on
    held_out: Annotated[int, Ge(0)] = 5
    # leave out documents with fewer tokens than this, at least 2
    min_tokens: Annotated[int, Ge(2)] = 2
    # read at most this many documents of the source, from its start; at least 2
    pool: Annotated[int, Ge(2), Le(10**9)] = 1000
    # masked: a step has C positions, those past a document's end out of the loss; none: a step has
    # the document's own alone. The same loss, up to rounding
    padding: Literal["masked", "none"] = "masked"
    # w: each step has C of 2C tokens, at C/2 and up to w from there, drawn at every step;
    # evaluations have those at C/2
    window: Literal["none"] | Annotated[int, Ge(0)] = "none"
    # puts the same T documents in other places, by this number; 0: as they were drawn
    permute: Annotated[int, Ge(0)] = 0
    # share of its tokens, in whole tokens, that each of the T has from the next, the last from the
    # first: neighbours alike in the data, unless `permute` parts them
    overlap: Annotated[float, Ge(0), Lt(1)] = 0.0

    @property
    def shared(self) -> int:
        """Tokens that a document has from the next; what rounding took from a whole one is back."""
        return int(self.overlap * self.tokens + 1e-9)


@dataclass(frozen=True)
class Model:
    """The network."""

    # random (sizes below), a hub name, a local folder, or a .gguf file; ~ is the home
    source: str = "random"
    # branch, tag or commit of a hub name
    revision: str = "main"
    # own: weights as the source has them; drawn: its network, with fresh weights by `init`
    weights: Literal["own", "drawn"] = "own"
    # random: any causal architecture transformers knows (gpt_neox, llama, gpt2, ...)
    architecture: str = "gpt_neox"
    # random: width of the residual stream
    width: Annotated[int, Ge(1), Le(2**20)] = 256
    # random: width inside the MLP, as a multiple of that
    mlp_ratio: Annotated[float, Gt(0), Le(1024)] = 4.0
    # random: number of blocks
    depth: Annotated[int, Ge(1), Le(1000)] = 6
    # random: attention heads per block
    heads: Annotated[int, Ge(1)] = 4
    # random: size of the byte-level BPE vocabulary trained on the built-in documents, 257 or more;
    # they make some 9000 entries at most, and embeddings beyond those are never read
    vocabulary: Annotated[int, Ge(257), Le(2**20)] = 4096
    # fresh weights: the paper's scheme, the one of the transformers library, or N(0, .02²) with
    # biases at 0
    init: Literal["paper", "library", "normal"] = "paper"
    # own: each dropout as the model's configuration has it; a number: that probability for all
    dropout: Literal["own"] | Annotated[float, Ge(0), Lt(1)] = "own"
    # eager: every hook point; sdpa: PyTorch's fused attention, which has no scores and no pattern
    attention: Literal["eager", "sdpa"] = "eager"
    # number format of weights and arithmetic
    dtype: Literal["float32", "float64", "bfloat16"] = "float32"

    __pydantic_config__: ClassVar[pydantic.ConfigDict] = STRICT


@dataclass(frozen=True)
class Schedule(Chosen):
    """Which document each episode trains on."""

    # cyclic (the same order every epoch), shuffled (a new one every epoch), another installed
    # schedule, or file.py:CLASS
    kind: str = "cyclic"


@dataclass(frozen=True)
class Optimizer(Chosen):
    """How a gradient becomes an update."""

    # sgd (plain descent without momentum), adam, adamw, another installed one, or file.py:CLASS
    name: str = "sgd"
    # lr is the rate of a step, or of an episode: each of its M steps then has lr / M
    per: Literal["step", "episode"] = "step"
    # how the rate goes on: the same, or down a cosine to 0 at the end of the run
    decay: Literal["none", "cosine"] = "none"
    # when it starts again, without what it remembers
    reset: Literal["never", "episode", "epoch"] = "never"


@dataclass(frozen=True)
class Outcome:
    """What the run is for, declared beforehand: its hash stands in the provenance before the first
    step. A report tells apart what was declared (primary) and what was found (exploratory)."""

    # the primary quantity, of age_curve, the run minus its control: matched_fall, gain (on
    # arrival), excess (in mid-wait), or score (cross-fitted, at equal age)
    primary: Literal["matched_fall", "gain", "excess", "score"] = "matched_fall"
    # the wait that it is taken from, after the n-th episode on a document; 0 for the last
    epoch: Annotated[int, Ge(0)] = 0
    # the share of the wait at which the window begins; it ends when the turn comes
    window: Annotated[float, Gt(0), Lt(1)] = 2 / 3
    # smallest effect of interest, in nats; of a score, its share. Less than that is as good as none
    smallest: Annotated[float, Gt(0)] = 0.05
    # how many seeds will be trained
    seeds: Annotated[int, Ge(1)] = 5
    # when to stop; fixed: with that number of seeds, whatever they show. Or in words
    stop: str = "fixed"

    __pydantic_config__: ClassVar[pydantic.ConfigDict] = STRICT


@dataclass(frozen=True)
class Settings:
    """Everything that decides what a run computes."""

    # where random numbers come from; `--seed 3`, or `seed = 3`, sets all three
    seed: Seed = field(default_factory=Seed)
    # E, passes over the documents; at least 1
    epochs: Annotated[int, Ge(1)] = 6
    # M, gradient steps per episode; at least 1
    steps: Annotated[int, Ge(1)] = 10
    # auto, cpu, cuda, cuda:1, mps
    device: str = field(default="auto", metadata=EXECUTION)
    # documents evaluated at once; changes memory and speed, and losses in the last digit only
    eval_batch: Annotated[int, Ge(1)] = field(default=8, metadata=EXECUTION)
    # threads on the CPU; 0 for torch's own choice. Give each of several runs at once its own few:
    # together they wait for one another. Changes speed, and losses in the last digit only
    threads: Annotated[int, Ge(0), Le(1024)] = field(default=0, metadata=EXECUTION)
    # what is recorded beside losses: installed names, or file.py:CLASS
    recorders: tuple[str, ...] = field(
        default=("token_losses", "residual_stream", "gradients", "weight_deltas", "checkpoints"),
        metadata=WATCH,
    )
    # what changes training, in this order at every moment: installed names, or file.py:CLASS
    interventions: tuple[str, ...] = ()
    # size of the sketch of a module's gradient or update, 1 to 4096; errors of cosines fall as
    # 1/sqrt of it
    sketch: Annotated[int, Ge(1), Le(4096)] = field(default=127, metadata=WATCH)
    # what is read, over and over
    documents: Documents = field(default_factory=Documents)
    # the network
    model: Model = field(default_factory=Model)
    # which document each episode trains on
    schedule: Schedule = field(default_factory=Schedule)
    # how a gradient becomes an update
    optimizer: Optimizer = field(default_factory=Optimizer)
    # what the run is for
    outcome: Outcome = field(default_factory=Outcome, metadata=WATCH)
    # settings of recorders and interventions: the name of each -> its table
    tables: dict[str, Any] = field(default_factory=dict)

    __pydantic_config__: ClassVar[pydantic.ConfigDict] = STRICT

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("_") and name != "tables" and name in self.tables:
            return self.tables[name]
        raise AttributeError(f"no settings called {name!r}")

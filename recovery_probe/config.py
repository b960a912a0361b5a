"""The settings of a run: typed, each with its comment, the same names in TOML and on the
command line (`[optimizer] lr = 0.1` is `--optimizer.lr 0.1`)."""

from __future__ import annotations

import difflib
import functools
import json
import tomllib
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, cast

import numpy as np
import pydantic
import tomli_w
from annotated_types import Ge, Gt, Le, Lt

from recovery_probe.errors import InputError

PRESETS = resources.files("recovery_probe") / "presets"
STRICT: pydantic.ConfigDict = {"extra": "forbid", "strict": True, "allow_inf_nan": False}


@dataclass(frozen=True)
class Documents:
    """What is read, over and over."""

    # python-topics (built in), a .txt, .jsonl or folder, lee, or hf:NAME[:CONFIG][:FIELD]
    source: str = "python-topics"
    # T, documents trained on; at least 2
    count: Annotated[int, Ge(2)] = 20
    # C, tokens kept of each document, at least 2; shorter ones are padded, the padding masked
    tokens: Annotated[int, Ge(2), Le(2**20)] = 64
    # H, documents evaluated like the others and never trained on
    held_out: Annotated[int, Ge(0)] = 5
    # leave out documents with fewer tokens than this, at least 2
    min_tokens: Annotated[int, Ge(2)] = 2
    # the field that holds the text, in JSONL files and hub datasets
    field: str = "text"
    # read at most this many documents of the source, from its start; at least 2
    pool: Annotated[int, Ge(2), Le(10**9)] = 1000

    __pydantic_config__: ClassVar[pydantic.ConfigDict] = STRICT


@dataclass(frozen=True)
class Model:
    """The network."""

    # random (sizes below), a hub name, a local folder, or a .gguf file
    source: str = "random"
    # branch, tag or commit of a hub name
    revision: str = "main"
    # random: any causal architecture transformers knows (gpt_neox, llama, gpt2, ...)
    architecture: str = "gpt_neox"
    # random: width of the residual stream; the MLP is four times as wide
    width: Annotated[int, Ge(1), Le(2**20)] = 256
    # random: number of blocks
    depth: Annotated[int, Ge(1), Le(1000)] = 6
    # random: attention heads per block
    heads: Annotated[int, Ge(1)] = 4
    # random: size of the byte-level BPE vocabulary trained on the built-in documents, 257 or more;
    # they make some 9000 entries at most, and embeddings beyond those are never read
    vocabulary: Annotated[int, Ge(257), Le(2**20)] = 4096
    # random: the paper's scheme, or the one of the transformers library
    init: Literal["paper", "library"] = "paper"
    # own: each dropout as the model's configuration has it; a number: that probability for all
    dropout: Literal["own"] | Annotated[float, Ge(0), Lt(1)] = "own"
    # eager: every hook point; sdpa: PyTorch's fused attention, which has no scores and no pattern
    attention: Literal["eager", "sdpa"] = "eager"
    # number format of weights and arithmetic
    dtype: Literal["float32", "float64", "bfloat16"] = "float32"

    __pydantic_config__: ClassVar[pydantic.ConfigDict] = STRICT


@dataclass(frozen=True)
class Schedule:
    """Which document each episode trains on."""

    # cyclic: the same order every epoch; shuffled: a new order every epoch
    kind: Literal["cyclic", "shuffled"] = "cyclic"
    # shuffled: document 0 stays first in every epoch, as in the paper
    keep_first: bool = True

    __pydantic_config__: ClassVar[pydantic.ConfigDict] = STRICT


@dataclass(frozen=True)
class Optimizer:
    """How a gradient becomes an update."""

    name: Literal["sgd", "adam", "adamw"] = "sgd"  # plain descent is sgd without momentum
    # learning rate, above 0
    lr: Annotated[float, Gt(0)] = 0.1
    # sgd only; from 0 to below 1
    momentum: Annotated[float, Ge(0), Lt(1)] = 0.0
    # L2 penalty (sgd, adam) or decoupled decay (adamw)
    weight_decay: Annotated[float, Ge(0)] = 0.0
    # start each episode with a fresh state
    reset: bool = False

    __pydantic_config__: ClassVar[pydantic.ConfigDict] = STRICT


@dataclass(frozen=True)
class ResidualStream:
    """The recorder of residual streams."""

    # step, N steps, episode (its first step) or epoch
    every: str = "step"
    # the mean over positions, the last position, or all of them in float16
    reduce: Literal["mean", "last", "all"] = "mean"
    # the document whose final residual stream is kept after every episode
    focal: Annotated[int, Ge(0)] = 0
    # keep the focal document's stream after the last block, or at every layer too
    focal_layers: Literal["last", "all"] = "last"

    __pydantic_config__: ClassVar[pydantic.ConfigDict] = STRICT


@dataclass(frozen=True)
class Gradients:
    """The recorder of gradient sketches."""

    # step, N steps, episode (its first step) or epoch
    every: str = "step"

    __pydantic_config__: ClassVar[pydantic.ConfigDict] = STRICT


@dataclass(frozen=True)
class WeightDeltas:
    """The recorder of weight updates."""

    # step, N steps, episode or epoch: the update over each such stretch
    every: str = "step"

    __pydantic_config__: ClassVar[pydantic.ConfigDict] = STRICT


@dataclass(frozen=True)
class TokenLosses:
    """The recorder of the loss of every token."""

    # episode, N episodes or epoch
    every: str = "episode"

    __pydantic_config__: ClassVar[pydantic.ConfigDict] = STRICT


@dataclass(frozen=True)
class DocumentGradients:
    """The recorder of inner products between the gradients of all documents."""

    # episode, N episodes or epoch
    every: str = "epoch"

    __pydantic_config__: ClassVar[pydantic.ConfigDict] = STRICT


@dataclass(frozen=True)
class AttentionPatterns:
    """The recorder of attention."""

    # step, N steps, episode (its first step) or epoch
    every: str = "step"
    # keep the patterns too, not their entropy alone
    patterns: bool = False

    __pydantic_config__: ClassVar[pydantic.ConfigDict] = STRICT


@dataclass(frozen=True)
class Checkpoints:
    """The recorder of weights."""

    # episode, N episodes or epoch; the untrained weights are always the first
    every: str = "epoch"
    # how many of the latest to keep; 0 for all
    keep: Annotated[int, Ge(0)] = 0

    __pydantic_config__: ClassVar[pydantic.ConfigDict] = STRICT


@dataclass(frozen=True)
class Settings:
    """Everything that decides what a run computes."""

    # decides the choice and order of documents, the shuffles, the initial weights, dropout
    seed: Annotated[int, Ge(0)] = 0
    # E, passes over the documents; at least 1
    epochs: Annotated[int, Ge(1)] = 6
    # M, gradient steps per episode; at least 1
    steps: Annotated[int, Ge(1)] = 10
    # auto, cpu, cuda, cuda:1, mps
    device: str = "auto"
    # also train the matched run whose documents come in a new order every epoch
    control: Literal["none", "shuffled"] = "none"
    # documents evaluated at once; changes memory and speed, and losses in the last digit only
    eval_batch: Annotated[int, Ge(1)] = 8
    # threads on the CPU; 0 for torch's own choice. Give each of several runs at once its own few:
    # together they wait for one another. Changes speed, and losses in the last digit only
    threads: Annotated[int, Ge(0), Le(1024)] = 0
    # what is recorded beside losses: installed names, or file.py:CLASS
    recorders: tuple[str, ...] = (
        "token_losses",
        "residual_stream",
        "gradients",
        "weight_deltas",
        "checkpoints",
    )
    # size of the sketch of a module's gradient or update, 1 to 4096; errors of cosines fall as
    # 1/sqrt of it
    sketch: Annotated[int, Ge(1), Le(4096)] = 127
    # what is read, over and over
    documents: Documents = field(default_factory=Documents)
    # the network
    model: Model = field(default_factory=Model)
    # which document each episode trains on
    schedule: Schedule = field(default_factory=Schedule)
    # how a gradient becomes an update
    optimizer: Optimizer = field(default_factory=Optimizer)
    # the recorder of residual streams
    residual_stream: ResidualStream = field(default_factory=ResidualStream)
    # the recorder of gradient sketches
    gradients: Gradients = field(default_factory=Gradients)
    # the recorder of weight updates
    weight_deltas: WeightDeltas = field(default_factory=WeightDeltas)
    # the recorder of the loss of every token
    token_losses: TokenLosses = field(default_factory=TokenLosses)
    # the recorder of inner products between the gradients of all documents
    document_gradients: DocumentGradients = field(default_factory=DocumentGradients)
    # the recorder of attention
    attention_patterns: AttentionPatterns = field(default_factory=AttentionPatterns)
    # the recorder of weights
    checkpoints: Checkpoints = field(default_factory=Checkpoints)

    __pydantic_config__: ClassVar[pydantic.ConfigDict] = STRICT


MOST_STEPS = 10**8  # a year at three a second; the record is laid out for all of them beforehand
_ADAPTER = pydantic.TypeAdapter(Settings)


def from_dict(values: Mapping[str, Any], origin: str = "settings") -> Settings:
    """Checked settings from nested values; whatever is missing takes its default.

    `origin` says where the values come from, for the message of the `InputError` that an
    unknown name, a wrong type or an impossible value raises.
    """
    try:
        # As JSON: strict about numbers and strings, and content to build dataclasses from tables.
        settings = _ADAPTER.validate_json(json.dumps(values, default=str))
    except pydantic.ValidationError as error:
        raise InputError(f"{origin}: " + "; ".join(_explain(e) for e in error.errors())) from None
    if settings.optimizer.momentum and settings.optimizer.name != "sgd":
        raise InputError(
            f"{origin}: optimizer.momentum = {settings.optimizer.momentum} belongs to sgd, "
            f"not to {settings.optimizer.name}; leave it at 0"
        )
    steps = settings.epochs * settings.documents.count * settings.steps
    if steps > MOST_STEPS:
        raise InputError(
            f"{origin}: epochs = {settings.epochs}, documents.count = {settings.documents.count} "
            f"and steps = {settings.steps} make {steps:.2g} gradient steps, more than "
            f"{MOST_STEPS:.0e}: ask for fewer"
        )
    if settings.control == "shuffled" and settings.schedule.kind == "shuffled":
        raise InputError(
            f'{origin}: schedule.kind = "shuffled" with control = "shuffled" would compare a '
            "shuffled run with itself; use --control none"
        )
    return settings


def check(settings: Settings) -> Settings:
    """The same settings, checked; for settings built by hand."""
    return from_dict(asdict(settings))


def load(path: Path) -> Settings:
    """Settings from a TOML file, such as the `config.toml` of a run."""
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"{path}: cannot be read as TOML: {error}") from None
    return from_dict(values, str(path))


def to_toml(settings: Settings) -> str:
    """The settings as TOML text that `load` reads back to the same settings."""
    return tomli_w.dumps(asdict(settings))


@functools.cache
def presets() -> dict[str, str]:
    """Name of every preset, with the first comment line of its file."""
    files = sorted((f for f in PRESETS.iterdir() if f.name.endswith(".toml")), key=lambda f: f.name)
    return {
        f.name.removesuffix(".toml"): f.read_text(encoding="utf-8").split("\n", 1)[0].lstrip("# ")
        for f in files
    }


def preset(name: str, **changes: Any) -> Settings:
    """A named preset, with changes: `preset("quickstart", epochs=3, optimizer={"lr": 0.05})`, or
    by dotted names, `preset("quickstart", **{"optimizer.lr": 0.05})`.

    Raises `InputError` for an unknown name (with the nearest one) or an impossible change.
    """
    if name not in presets():
        raise InputError(
            f"unknown preset {name!r}{nearest(name, presets())}; presets: {', '.join(presets())}"
        )
    values = tomllib.loads((PRESETS / f"{name}.toml").read_text(encoding="utf-8"))
    for key, change in changes.items():
        table, dot, setting = key.partition(".")
        if dot:
            change = {setting: change}
        merged = isinstance(change, dict) and isinstance(values.get(table, {}), dict)
        values[table] = {**values.get(table, {}), **change} if merged else change
    return from_dict(values, f"preset {name}")


def names(part: Any = Settings, prefix: str = "") -> Iterator[str]:
    """Dotted name of every setting."""
    for f in fields(part):
        default = f.default_factory() if callable(f.default_factory) else f.default
        if is_dataclass(default):
            yield from names(default, f"{prefix}{f.name}.")
        else:
            yield prefix + f.name


def nearest(word: str, known: Any) -> str:
    """`; did you mean 'x'?`, or nothing when no known word is near."""
    word, known = word.replace("learning_rate", "lr"), list(known)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    if not close:  # the last part may be right: `lr` of `optimizer.lr`
        last = {name.rpartition(".")[2]: name for name in known}
        close = [last[n] for n in difflib.get_close_matches(word, list(last), n=1, cutoff=0.7)]
    return f"; did you mean {close[0]!r}?" if close else ""


# Settings that decide what is written, and not what is computed.
WATCHING = (
    "recorders",
    "sketch",
    "residual_stream",
    "gradients",
    "weight_deltas",
    "token_losses",
    "document_gradients",
    "attention_patterns",
    "checkpoints",
)


# Recorders of ours that write arrays.
RECORDERS = tuple(n for n in WATCHING if n not in ("recorders", "sketch", "checkpoints"))
# Settings that decide where and how fast a run is computed; of its numbers, the last digits.
EXECUTION = ("device", "eval_batch", "threads")


def differences(a: Settings, b: Settings) -> dict[str, tuple[Any, Any]]:
    """Dotted name -> the two values, for every setting in which two settings differ."""
    pairs = ((name, _value(a, name), _value(b, name)) for name in names())
    return {name: (left, right) for name, left, right in pairs if left != right}


def generator(seed: int, purpose: str) -> np.random.Generator:
    """The random numbers of one purpose: independent of every other purpose's."""
    return np.random.default_rng([seed, zlib.crc32(purpose.encode())])


def torch_seed(seed: int, purpose: str) -> int:
    """A seed for a torch generator, made from the same stream."""
    return int(generator(seed, purpose).integers(2**63))


def _value(settings: Settings, name: str) -> Any:
    return functools.reduce(getattr, name.split("."), cast(Any, settings))


def _explain(error: Any) -> str:
    name = ".".join(str(part) for part in error["loc"])
    # Where a setting may be of two types, pydantic adds the type it tried.
    name = next((known for known in names() if name.startswith(f"{known}.")), name)
    if error["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        return f"unknown setting {name}{nearest(name, names())}"
    return f"{name} = {error['input']!r}: {error['msg'].replace('Input s', 's')}"

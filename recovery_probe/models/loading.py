"""A Hugging Face model of any source -> a TransformerBridge to train.

The bridge gives every weight its TransformerLens name and every activation a hook point. It
also keeps the weights under their Hugging Face names, and for architectures with one joint
query-key-value matrix it computes with a split copy: `Model` knows which tensor is which. That
what is trained is the network that was loaded, and can be saved, is tried at every load.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import Parameter

from recovery_probe.models import sources
from recovery_probe.config import Model as ModelSettings
from recovery_probe.config import Settings, torch_seed
from recovery_probe.errors import InputError
from recovery_probe.models.sources import name_of, refused
from recovery_probe.models.sources import train_tokenizer as train_tokenizer

# Largest difference of logits, relative to the largest logit, that is put down to rounding. (Some
# architectures turn and normalise in float32 whatever the weights are.)
ROUNDING = {torch.float64: 1e-4, torch.float32: 1e-4, torch.bfloat16: 1e-2}
# TransformerLens names of the matrices that write to the residual stream, and of the others.
OUTWARD = ("o", "out", "fc2")
INNER = ("embed", "pos_embed", "unembed", "q", "k", "v", "in", "gate", "fc1")


@dataclass(frozen=True)
class Model:
    """A network ready to train."""

    bridge: Any  # transformer_lens.model_bridge.TransformerBridge, untyped upstream
    tokenizer: Any
    # TransformerLens name (blocks.3.attn.q.weight) -> what the forward pass uses, each once.
    parameters: dict[str, Parameter]
    # Hugging Face name -> tensor, as they were before bridging; joint matrices are stale.
    _hf_tensors: dict[str, Tensor]
    _modules: tuple[nn.Module, ...]  # every module of the bridge, once

    def train(self, training: bool = True) -> None:
        """Training mode (dropout), or evaluation mode. As `bridge.train(training)`, which takes
        5% of a small model's episode: it reaches every module by all of its paths."""
        for module in self._modules:
            module.training = training

    @property
    def device(self) -> torch.device:
        return next(iter(self.parameters.values())).device

    def tokenize(self, text: str) -> list[int]:
        """Token ids as the model's own tokenizer gives them, with the special tokens that it adds
        and none that the text spells out. Raises `InputError` for one without an embedding."""
        ids = list(self.tokenizer(text, verbose=False, split_special_tokens=True)["input_ids"])
        known = len(self.parameters["embed.weight"])
        if ids and max(ids) >= known:
            raise InputError(
                f"model.source: its tokenizer makes token {max(ids)}, and its network has "
                f"embeddings for {known} tokens; they do not belong together"
            )
        return ids

    @property
    def nbytes(self) -> int:
        """Bytes of the weights as `save` writes them."""
        return sum(t.numel() * t.element_size() for t in self._hf_tensors.values())

    def state_dict(self) -> dict[str, Tensor]:
        """The weights under their Hugging Face names, joint matrices rebuilt from the split
        ones that were trained: what a plain Hugging Face model loads."""
        rebuilt: dict[int, Tensor] = {}
        places: dict[Any, Tensor] = {}  # blocks of the same shapes split alike
        for attention in _joint_attentions(self.bridge):
            for kind in ("weight", "bias"):
                joint = getattr(attention.qkv.original_component, kind, None)
                if joint is None:
                    continue
                parts = [getattr(part.original_component, kind) for part in _split(attention)]
                shapes = (kind, *(part.shape for part in parts))
                if shapes not in places:
                    places[shapes] = _places(attention, kind)
                rebuilt[id(joint)] = torch.empty_like(joint.data)
                values = torch.cat([part.detach().flatten() for part in parts])
                rebuilt[id(joint)].view(-1)[places[shapes]] = values
        return {name: rebuilt.get(id(t), t.detach()) for name, t in self._hf_tensors.items()}

    def save(self, folder: Path) -> None:
        """Write a folder that `AutoModelForCausalLM.from_pretrained` and `model.source` read."""
        folder.mkdir(parents=True)
        tensors = {name: t.contiguous().cpu() for name, t in self.state_dict().items()}
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        self.bridge.original_model.config.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


def load(settings: Settings) -> Model:
    """The model of these settings, on its device, with its initial weights, in evaluation mode.

    Raises `InputError` when the source cannot be read, the settings do not fit the model, or the
    bridge would train another network than the one that was loaded.
    """
    # Read when cuBLAS starts, which the first pass on a GPU does: deterministic products.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    wanted, device = settings.model, pick_device(settings.device)
    # Libraries draw weights from torch's global generator: lend it our seed, and put it back.
    with lent_generators(torch_seed(settings.seed, "weights"), device):
        hf_model, tokenizer = sources.load(wanted)
        context = getattr(hf_model.config, "max_position_embeddings", None)
        if context and settings.documents.tokens > context:
            name = wanted.architecture if wanted.source == "random" else wanted.source
            raise InputError(
                f"documents.tokens = {settings.documents.tokens} is more than the {context} "
                f"positions that {name} reads"
            )
        with refused(f"{name_of(wanted)} cannot be had on {device}"):
            hf_model.to(device)
        model = _bridge(hf_model, tokenizer, settings)
    if wanted.source == "random" and wanted.init == "paper":
        _init_as_paper(model, wanted, torch_seed(settings.seed, "weights"))
    return model


@contextmanager
def lent_generators(seed: int, device: torch.device) -> Iterator[None]:
    """Torch's global generators, of the CPU and of this device, with our seed, and put back
    afterwards. `torch.manual_seed` would reseed those of every GPU."""
    generators = [torch.default_generator]
    if device.type == "cuda":
        generators.append(torch.cuda.default_generators[device.index or 0])
    if device.type == "mps":
        generators.append(torch.mps._get_default_mps_generator())
    before = [generator.get_state() for generator in generators]
    try:
        for generator in generators:
            generator.manual_seed(seed)
        yield
    finally:
        for generator, state in zip(generators, before, strict=True):
            generator.set_state(state)


def pick_device(name: str) -> torch.device:
    """`auto` is the GPU when there is one. Raises `InputError` for one that is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
        if torch.backends.mps.is_available():
            name = "mps"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # `meta` has no numbers to give
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).split("\n", 1)[0]
        raise InputError(f"device = {name!r} cannot be used here: {reason}") from None
    return device


def _bridge(hf_model: Any, tokenizer: Any, settings: Settings) -> Model:
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    wanted, architecture = settings.model, type(hf_model).__name__
    tensors = _once(hf_model.state_dict(keep_vars=True).items())
    device = hf_model.device
    tokens = torch.arange(min(16, settings.documents.tokens), device=device)[None]
    level = logging.getLogger().level
    try:
        with refused(f"{name_of(wanted)} cannot be run"):
            plain = _training_logits(
                hf_model.train, lambda: hf_model(input_ids=tokens, use_cache=False).logits, device
            )
        with refused(f"{name_of(wanted)}: TransformerLens cannot bridge {architecture}"):
            # Not boot_transformers: that one looks the tokenizer up on the hub.
            bridge = build_bridge_from_module(hf_model, architecture, hf_config=hf_model.config)
            bridge.tokenizer = tokenizer
            for module in bridge.modules():
                _skip_idle_statistics(module)
            modules = {id(m): m for top in (bridge, hf_model) for m in top.modules()}
            bridge.train(False)
            live = _used_parameters(bridge, tokens)
            model = Model(bridge, tokenizer, live, tensors, tuple(modules.values()))
            bridged = _training_logits(model.train, lambda: bridge(tokens, use_cache=False), device)
            _check_faithful(model, plain, bridged, tokens, wanted)
            _check_saved(model, wanted)
    finally:
        logging.getLogger().setLevel(level)
    return model


@torch.no_grad()
def _training_logits(
    train: Callable[[bool], Any], logits: Callable[[], Tensor], device: torch.device
) -> Tensor:
    """(1, C, vocabulary): what a network gives in training mode, under a seed of its own."""
    train(True)
    with lent_generators(0, device):
        found = logits()
    train(False)
    return found


@torch.no_grad()
def _check_faithful(
    model: Model, plain: Tensor, bridged: Tensor, tokens: Tensor, wanted: ModelSettings
) -> None:
    """Raise `InputError` unless the bridge gives transformers' own logits in training mode, under
    the same seed, and no position sees a later one. `plain` and `bridged`: (1, C, vocabulary)."""
    if (plain - bridged).abs().max() > ROUNDING[plain.dtype] * plain.abs().max():
        config = model.bridge.original_model.config
        drops = [f"{name} = {p:g}" for name, p in sources.probabilities(config).items() if p]
        raise InputError(
            f"{name_of(wanted)}: in training, TransformerLens gives other logits than transformers"
            + (f"; take the dropout away ({', '.join(drops)}): --model.dropout 0" if drops else "")
        )
    half = tokens.shape[1] // 2
    changed = torch.cat([tokens[:, :half], tokens[:, half:].flip(1) + 1], dim=1)
    one, other = model.bridge(torch.cat([tokens, changed]), use_cache=False)[:, :half]
    # The mean, as rounding moves few: in bfloat16 a step is as large as what a later token does.
    if (one - other).abs().mean() > 0.1 * ROUNDING[plain.dtype] * one.abs().mean():
        raise InputError(
            f"{name_of(wanted)}: not a causal model: its positions see later ones, so that the "
            "next token is no prediction"
        )


def _check_saved(model: Model, wanted: ModelSettings) -> None:
    """Raise `InputError` when a weight that is trained would not be in what `save` writes: it is
    one of the Hugging Face tensors, a part of one in the same memory (Phi-3's gate), or rejoined.
    """
    saved = {t.untyped_storage().data_ptr() for t in model._hf_tensors.values()}
    for attention in _joint_attentions(model.bridge):
        for part in _split(attention):
            saved |= {p.untyped_storage().data_ptr() for p in part.original_component.parameters()}
    memory = {name: p.untyped_storage().data_ptr() for name, p in model.parameters.items()}
    if lost := [name for name, place in memory.items() if place not in saved]:
        raise InputError(
            f"{name_of(wanted)}: its trained weights could not be saved under Hugging Face names: "
            + ", ".join(lost[:3])
        )


def _skip_idle_statistics(module: Any) -> None:
    """Let a norm of the bridge go straight to Hugging Face's own while nobody hooks its scale or
    its normalized input. TransformerLens 4.3 works both out at every pass, for nobody: half of
    what the bridge costs a small model. The output is the same tensor; a version that has no such
    method is left alone.
    """
    full = getattr(module, "_hf_autograd_forward_with_hooks", None)
    if full is None:
        return
    points = (module.hook_scale, module.hook_normalized)

    def forward(x: Tensor) -> Tensor:
        norm = module.original_component
        if norm is None or any(p.fwd_hooks or p.bwd_hooks for p in points):
            return full(x)
        return norm(x).to(x.dtype)

    module._hf_autograd_forward_with_hooks = forward


def _used_parameters(bridge: Any, tokens: Tensor) -> dict[str, Parameter]:
    """TransformerLens name -> parameter, for those the loss depends on, each counted once.

    The bridge reaches a weight by several paths (its Hugging Face one, with wrapper modules
    between, and its own, the shortest), and keeps joint matrices it no longer reads: a tiny
    backward pass tells which are live. The others are frozen, so that nothing decays them.
    """
    with torch.enable_grad():
        bridge(tokens, use_cache=False).float().pow(2).mean().backward()
    shortest: dict[int, str] = {}
    found: dict[int, Parameter] = {}
    for path, parameter in nn.Module.named_parameters(bridge, remove_duplicate=False):
        if parameter.grad is None:
            parameter.requires_grad_(False)
            continue
        name = path.replace("_original_component.", "")
        if len(name) < len(shortest.get(id(parameter), name + " ")):
            shortest[id(parameter)] = name
            found[id(parameter)] = parameter
            # Split weights are views with gaps. A fused optimizer step reads a gradient as if
            # it were laid out like its weight, and updates such a view wrongly, in silence.
            parameter.data = parameter.data.contiguous()
    bridge.zero_grad(set_to_none=True)
    return {shortest[key]: parameter for key, parameter in found.items()}


def _joint_attentions(bridge: Any) -> list[Any]:
    attentions = [getattr(block, "attn", None) for block in bridge.blocks]
    return [a for a in attentions if hasattr(a, "split_qkv_matrix") and hasattr(a, "qkv")]


def _split(attention: Any) -> tuple[Any, Any, Any]:
    return attention.q, attention.k, attention.v


def _places(attention: Any, kind: str) -> Tensor:
    """Where each entry of the split q, k and v, one after the other, stands in the joint
    query-key-value `kind` (weight or bias), flattened.

    How rows interleave differs between architectures. The bridge's own split is asked: it
    moves entries without changing them, so splitting the numbers 0, 1, 2, … tells.
    """
    joint: Parameter = getattr(attention.qkv.original_component, kind)
    stale = joint.data
    try:
        joint.data = torch.arange(stale.numel(), dtype=torch.float64).view(stale.shape)
        parts = attention.split_qkv_matrix(attention.original_component)
    finally:
        joint.data = stale
    places = torch.cat([getattr(part, kind).detach().flatten() for part in parts]).long()
    filled = torch.zeros(stale.numel(), dtype=torch.bool)
    filled[places] = True
    if len(places) != stale.numel() or not filled.all():
        raise InputError(f"{attention.name}: q, k and v do not make up the joint {kind}")
    return places.to(stale.device)


def _once(items: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """Tied tensors under their first name only, as safetensors wants them."""
    seen: dict[int, tuple[str, Tensor]] = {}
    for name, tensor in items:
        seen.setdefault(id(tensor), (name, tensor))
    return dict(seen.values())


@torch.no_grad()
def _init_as_paper(model: Model, wanted: ModelSettings, seed: int) -> None:
    """Weights as the paper's random-init runs draw them (its public code).

    Embeddings, query, key, value and the MLP's input: σ = √(2 / (5d)); the two projections
    back into the residual stream: σ = 2 / (L√d). Norms start as the library has them, with a
    gain of 1 (a weight of 0 where it is stored less 1), biases at 0.
    """
    inner = math.sqrt(2 / (5 * wanted.width))
    outward = 2 / (wanted.depth * math.sqrt(wanted.width))
    rng = torch.Generator().manual_seed(seed)
    for name, parameter in model.parameters.items():
        module, _, kind = name.rpartition(".")
        role = module.rpartition(".")[-1]  # q of blocks.3.attn.q
        if kind == "bias":
            parameter.zero_()
        elif role.startswith("ln") or role.endswith(("_norm", "_ln")):
            continue
        elif role in OUTWARD:
            parameter.copy_(torch.randn(parameter.shape, generator=rng) * outward)
        elif role in INNER:
            parameter.copy_(torch.randn(parameter.shape, generator=rng) * inner)
        else:
            raise InputError(
                f'model.init = "paper" has no rule for {name} of {wanted.architecture}; '
                "use --model.init library"
            )

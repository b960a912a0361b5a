"""Random init, hub name, local folder or GGUF file -> a TransformerBridge to train.

The bridge gives every weight its TransformerLens name and every activation a hook point. It
also keeps the weights under their Hugging Face names, and for architectures with one joint
query-key-value matrix it computes with a split copy: `Model` knows which tensor is which.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import Parameter

from recovery_probe import documents
from recovery_probe.config import Model as ModelSettings
from recovery_probe.config import Settings, nearest, torch_seed
from recovery_probe.documents import quiet_hub
from recovery_probe.errors import InputError

END_OF_TEXT = "<|endoftext|>"
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
        """Token ids as the model's own tokenizer gives them, special tokens included."""
        return list(self.tokenizer(text, verbose=False)["input_ids"])

    def state_dict(self) -> dict[str, Tensor]:
        """The weights under their Hugging Face names, joint matrices rebuilt from the split
        ones that were trained: what a plain Hugging Face model loads."""
        rebuilt = {}
        for attention in _joint_attentions(self.bridge):
            for kind in ("weight", "bias"):
                joint = getattr(attention.qkv.original_component, kind, None)
                if joint is not None:
                    rebuilt[id(joint)] = _rejoin(attention, kind)
        return {name: rebuilt.get(id(t), t.detach()) for name, t in self._hf_tensors.items()}

    def save(self, folder: Path) -> None:
        """Write a folder that `AutoModelForCausalLM.from_pretrained` and `model.source` read."""
        folder.mkdir(parents=True)
        tensors = {name: t.contiguous().cpu() for name, t in self.state_dict().items()}
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        self.bridge.original_model.config.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


def load(settings: Settings) -> Model:
    """The model of these settings, on its device, with its initial weights.

    Raises `InputError` when the source cannot be read or the settings do not fit the model.
    """
    # Libraries draw weights from torch's global generator: lend it our seed, and put it back.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch_seed(settings.seed, "weights"))
        return _load(settings, pick_device(settings.device))


def _load(settings: Settings, device: torch.device) -> Model:
    wanted = settings.model
    hf_model, tokenizer = _random(settings) if wanted.source == "random" else _pretrained(wanted)
    context = getattr(hf_model.config, "max_position_embeddings", None)
    if context and settings.documents.tokens > context:
        raise InputError(
            f"documents.tokens = {settings.documents.tokens} is more than the {context} positions "
            f"that {wanted.source if wanted.source != 'random' else wanted.architecture} reads"
        )
    hf_model.to(device=device, dtype=getattr(torch, wanted.dtype))
    model = _bridge(hf_model, tokenizer)
    if wanted.source == "random" and wanted.init == "paper":
        _init_as_paper(model, wanted, torch_seed(settings.seed, "weights"))
    return model


def pick_device(name: str) -> torch.device:
    """`auto` is the GPU when there is one. Raises `InputError` for one that is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
        if torch.backends.mps.is_available():
            name = "mps"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).split("\n", 1)[0]
        raise InputError(f"device = {name!r} cannot be used here: {reason}") from None
    return device


def _pretrained(wanted: ModelSettings) -> tuple[Any, Any]:
    """A Hugging Face model and its tokenizer from a GGUF file, a folder or the hub."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = Path(wanted.source)
    where: dict[str, Any] = {"pretrained_model_name_or_path": wanted.source}
    if path.suffix == ".gguf":
        if not path.is_file():
            raise InputError(f"model.source = {wanted.source!r}: no such file")
        where = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    elif path.is_dir():
        if not (path / "config.json").is_file():
            raise InputError(f"model.source = {wanted.source!r}: the folder has no config.json")
    elif path.exists() or wanted.source.startswith((".", "/", "~")) or wanted.source.count("/") > 1:
        raise InputError(
            f"model.source = {wanted.source!r}: neither a folder with config.json nor a .gguf file"
        )
    else:
        where["revision"] = wanted.revision
    try:
        with quiet_hub():
            tokenizer = AutoTokenizer.from_pretrained(**where)
            model = AutoModelForCausalLM.from_pretrained(
                **where, dtype=getattr(torch, wanted.dtype), attn_implementation="eager"
            )
    except Exception as error:  # every format and every missing file raises its own type
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        hint = "" if path.exists() else "; is the name right, and is there a network?"
        raise InputError(
            f"model.source = {wanted.source!r} cannot be loaded{hint} ({reason})"
        ) from (error)
    return model, tokenizer


def _random(settings: Settings) -> tuple[Any, Any]:
    """A Hugging Face model of the sizes asked for, randomly initialised by the seed."""
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL

    wanted = settings.model
    if wanted.architecture not in CAUSAL:
        raise InputError(
            f"model.architecture = {wanted.architecture!r} is not a causal model of "
            f"transformers{nearest(wanted.architecture, CAUSAL)}"
        )
    if wanted.width % wanted.heads:
        raise InputError(
            f"model.width = {wanted.width} is not a multiple of model.heads = {wanted.heads}"
        )
    tokenizer = train_tokenizer(wanted.vocabulary)
    known = AutoConfig.for_model(wanted.architecture)
    sizes = {
        "hidden_size": wanted.width,
        "num_hidden_layers": wanted.depth,
        "num_attention_heads": wanted.heads,
        "num_key_value_heads": wanted.heads,
        "intermediate_size": 4 * wanted.width,
        "head_dim": wanted.width // wanted.heads,
        "vocab_size": wanted.vocabulary,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": 0,
    }
    own = {*known.to_dict(), *known.attribute_map}
    config = AutoConfig.for_model(
        wanted.architecture, **{k: v for k, v in sizes.items() if k in own}
    )
    try:
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(
            f"model.architecture = {wanted.architecture!r} cannot be built at width "
            f"{wanted.width}, depth {wanted.depth}, {wanted.heads} heads: {reason}"
        ) from error
    return model, tokenizer


def train_tokenizer(vocabulary: int) -> Any:
    """A byte-level BPE tokenizer trained on the built-in documents, all of them."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator((d.text for d in documents.python_topics()), trainer)
    end = {f"{kind}_token": END_OF_TEXT for kind in ("bos", "eos", "pad")}
    return PreTrainedTokenizerFast(tokenizer_object=bpe, **end)


def _bridge(hf_model: Any, tokenizer: Any) -> Model:
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    architecture = type(hf_model).__name__
    tensors = _once(hf_model.state_dict(keep_vars=True).items())
    level = logging.getLogger().level
    try:
        # Not boot_transformers: that one looks the tokenizer up on the hub.
        bridge = build_bridge_from_module(hf_model, architecture, hf_config=hf_model.config)
    except (ValueError, KeyError, AttributeError, NotImplementedError) as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"TransformerLens cannot bridge {architecture}: {reason}") from error
    finally:
        logging.getLogger().setLevel(level)
    bridge.tokenizer = tokenizer
    for module in bridge.modules():
        _skip_idle_statistics(module)
    modules = {id(m): m for top in (bridge, hf_model) for m in top.modules()}
    return Model(bridge, tokenizer, _used_parameters(bridge), tensors, tuple(modules.values()))


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


def _used_parameters(bridge: Any) -> dict[str, Parameter]:
    """TransformerLens name -> parameter, for those the loss depends on, each counted once.

    The bridge reaches a weight by several paths (its Hugging Face one, with wrapper modules
    between, and its own, the shortest), and keeps joint matrices it no longer reads: a tiny
    backward pass tells which are live. The others are frozen, so that nothing decays them.
    """
    device = next(bridge.parameters()).device
    probe = torch.tensor([[0, 1, 2, 3]], device=device)
    with torch.enable_grad():
        bridge(probe, use_cache=False).float().pow(2).mean().backward()
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
    return [
        block.attn
        for block in bridge.blocks
        if hasattr(block.attn, "split_qkv_matrix") and hasattr(block.attn, "qkv")
    ]


def _rejoin(attention: Any, kind: str) -> Tensor:
    """The joint query-key-value `kind` (weight or bias) that splits into the trained q, k, v.

    How rows interleave differs between architectures. The bridge's own split is asked: it
    moves entries without changing them, so splitting the numbers 0, 1, 2, … tells where each
    entry of q, k and v came from.
    """
    joint: Parameter = getattr(attention.qkv.original_component, kind)
    stale = joint.data
    try:
        joint.data = torch.arange(stale.numel(), dtype=torch.float64).view(stale.shape)
        sources = attention.split_qkv_matrix(attention.original_component)
    finally:
        joint.data = stale
    rejoined = torch.empty_like(stale).flatten()
    covered = 0
    for source, part in zip(sources, (attention.q, attention.k, attention.v), strict=True):
        index = getattr(source, kind).detach().flatten().long().to(stale.device)
        rejoined[index] = getattr(part.original_component, kind).detach().flatten()
        covered += index.numel()
    if covered != stale.numel():
        raise InputError(f"{attention.name}: q, k and v do not make up the joint {kind}")
    return rejoined.view(stale.shape)


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
    back into the residual stream: σ = 2 / (L√d). Norms start at 1, biases at 0.
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
            parameter.fill_(1.0)
        elif role in OUTWARD:
            parameter.copy_(torch.randn(parameter.shape, generator=rng) * outward)
        elif role in INNER:
            parameter.copy_(torch.randn(parameter.shape, generator=rng) * inner)
        else:
            raise InputError(
                f'model.init = "paper" has no rule for {name} of {wanted.architecture}; '
                "use --model.init library"
            )

"""Passes that go around what nobody watches.

TransformerLens puts each part of a network into a wrapper that shows what comes in and goes out at
its hook points, and calls the part. In a network of 6 blocks these are 80 wrappers and 340 hook
points, which at rest take 6% of a small model's step. While a pass of ours is under way, wrappers
without a hook give their places in Hugging Face's network to what they wrap: the same arithmetic
in the same order, so that no bit changes. Before and after every pass all is as TransformerLens
made it, and whoever hooks a point, by whatever means, sees the next pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

# Settings of a bridge under which its wrappers call one another's hook points.
CROSS_TALK = ("use_split_qkv_input", "use_attn_in", "use_attn_result", "use_hook_mlp_in")


@dataclass(frozen=True)
class Place:
    """Where a wrapper stands in the network."""

    modules: dict[str, Any]  # of its parent
    name: str
    wrapper: nn.Module
    stand_in: Any  # while nobody watches
    hooks: tuple[Mapping[int, Any], ...]  # every kind that somebody may have registered


class Direct:
    """Calls what is wrapped, and is the wrapper in everything else: for parents that read it."""

    def __init__(self, wrapper: nn.Module, wrapped: nn.Module) -> None:
        self.wrapper, self.wrapped = wrapper, wrapped

    def __call__(self, *args: Any) -> Any:
        return self.wrapped(*args)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.wrapper, name)


class Block(nn.Module):
    """A block between its two hook points, those of the residual stream: the bridge's own reads
    the block's signature at every pass, and more, which takes 1% of a small model's step."""

    def __init__(self, wrapper: Any, wrapped: nn.Module) -> None:
        super().__init__()
        self.before, self.wrapped, self.after = wrapper.hook_in, wrapped, wrapper.hook_out

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if args:
            args = (self.before(args[0]), *args[1:])
        else:
            kwargs["hidden_states"] = self.before(kwargs["hidden_states"])
        output = self.wrapped(*args, **kwargs)
        if isinstance(output, tuple):
            return (self.after(output[0]), *output[1:])
        # A list, as of openai-gpt, is nothing that the bridge's own would show.
        return self.after(output) if isinstance(output, Tensor) else output

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:  # some networks ask a block for its kind of attention
            return getattr(self.wrapped, name)


class Bypass:
    """`with bypass():` around a pass."""

    def __init__(self, bridge: Any) -> None:
        self.bridge = bridge
        self.places = list(_places(bridge.original_model))

    @contextmanager
    def __call__(self) -> Iterator[None]:
        settings = self.bridge.cfg
        usual = not any(getattr(settings, name, False) for name in CROSS_TALK)
        usual = usual and not self.bridge.compatibility_mode
        idle = [place for place in self.places if not any(place.hooks)] if usual else []
        for place in idle:
            place.modules[place.name] = place.stand_in
        try:
            yield
        finally:
            for place in idle:
                place.modules[place.name] = place.wrapper


def _places(network: nn.Module) -> Iterator[Place]:
    """Those of the wrappers that do nothing but call their hook points and what they wrap."""
    from transformer_lens.model_bridge import generalized_components as parts
    from transformer_lens.model_bridge.generalized_components.base import GeneralizedComponent
    from transformer_lens.model_bridge.generalized_components.conv1d import Conv1DBridge

    linear = (parts.LinearBridge.forward, Conv1DBridge.forward)
    plain = {
        *linear,
        parts.AttentionBridge.forward,
        parts.EmbeddingBridge.forward,
        parts.GatedMLPBridge.forward,
        parts.MLPBridge.forward,
        parts.NormalizationBridge.forward,
        parts.RotaryEmbeddingBridge.forward,
        parts.UnembeddingBridge.forward,
    }

    def hands_on(wrapper: Any) -> bool:
        if isinstance(wrapper, parts.NormalizationBridge):
            return wrapper.use_native_layernorm_autograd and type(wrapper).forward in plain
        return getattr(wrapper.forward, "__func__", None) in plain

    for parent in network.modules():
        computes = isinstance(parent, parts.AttentionBridge) and not hands_on(parent)
        if isinstance(parent, GeneralizedComponent) and not computes:
            continue  # what it wraps calls its children
        for name, child in parent.named_children():
            wrapped = getattr(child, "original_component", None)
            if not isinstance(child, GeneralizedComponent) or wrapped is None:
                continue
            stand_in: Any = wrapped
            shown: tuple[nn.Module, ...] = ()
            if computes:
                if type(child).forward not in linear:
                    continue
                stand_in = Direct(child, wrapped)
            elif type(child).forward is parts.BlockBridge.forward:
                stand_in, shown = Block(child, wrapped), (child.hook_in, child.hook_out)
            elif not hands_on(child):
                continue
            yield Place(parent._modules, name, child, stand_in, _hooks(child, shown))


def _hooks(wrapper: Any, shown: tuple[nn.Module, ...]) -> tuple[Mapping[int, Any], ...]:
    """All that may be called at a wrapper, but at the points that its stand-in shows too."""
    from transformer_lens.hook_points import HookPoint

    points = [child for child in wrapper.children() if isinstance(child, HookPoint)]
    points = [point for point in points if point not in shown]
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    hooks = [getattr(module, kind) for module in (wrapper, *points) for kind in kinds]
    # TransformerLens hangs hooks of its own on norms, for what `CROSS_TALK` names.
    own = wrapper._forward_pre_hooks
    return tuple(each for each in hooks if not (each is own and own))

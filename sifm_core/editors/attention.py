"""What the layers of a diffusers network attend to: the picture's positions to the words of the prompt."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import EditorError


@contextmanager
def watched(net: nn.Module) -> Iterator[tuple[list[str], list[Tensor]]]:
    """The paths of the layers in which the image attends to text, and, once ``net`` ran, their probabilities.

    The layers themselves compute what they always do; the probabilities, which fused attention hides, are computed
    beside them from the same inputs. A checkpoint would recompute without these: none is made meanwhile.
    """
    layers = {path: module for path, module in net.named_modules() if _is_joint(module) or _is_cross(module)}
    if not layers:
        raise EditorError(
            f"{type(net).__name__} has no layer in which the image attends to text: choose another method"
        )
    seen: list[Tensor] = []

    def look(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden = args[0] if args else kwargs["hidden_states"]
        seen.append(_probabilities(module, hidden, kwargs["encoder_hidden_states"]))

    hooks = [layer.register_forward_pre_hook(look, with_kwargs=True) for layer in layers.values()]
    checkpointed: list[Any] = [module for module in net.modules() if getattr(module, "gradient_checkpointing", False)]
    try:
        for module in checkpointed:
            module.gradient_checkpointing = False
        yield list(layers), seen
    finally:
        for module in checkpointed:
            module.gradient_checkpointing = True
        for hook in hooks:
            hook.remove()


def _is_cross(module: nn.Module) -> bool:
    return bool(getattr(module, "is_cross_attention", False)) and not _is_joint(module)


def _is_joint(module: nn.Module) -> bool:
    return getattr(module, "add_k_proj", None) is not None


def _probabilities(layer: Any, hidden: Tensor, text: Tensor) -> Tensor:
    """(B, heads, image positions, text positions), at least float32; the softmax runs over all keys of the layer."""

    def split(values: Tensor, norm: Any) -> Tensor:
        values = values.unflatten(-1, (layer.heads, -1)).transpose(1, 2)
        return values if norm is None else norm(values)

    query = split(layer.to_q(hidden), layer.norm_q)
    if _is_joint(layer):
        own = split(layer.to_k(hidden), layer.norm_k)
        key = torch.cat([own, split(layer.add_k_proj(text), layer.norm_added_k)], dim=2)
    else:
        key = split(layer.to_k(text), layer.norm_k)
    scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
    return scores.to(torch.promote_types(scores.dtype, torch.float32)).softmax(dim=-1)[..., -text.shape[1] :]

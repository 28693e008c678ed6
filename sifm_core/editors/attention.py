"""What the layers of a diffusers network attend to: the picture's positions to the words of the prompt."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import EditorError


@contextmanager
def watched(
    net: nn.Module,
    pieces: Callable[[Tensor], Sequence[Tensor]] = lambda probabilities: [probabilities],
    known: tuple[Mapping[str, nn.Module], Callable[..., Tensor]] | None = None,
) -> Iterator[tuple[list[str], list[Tensor]]]:
    """The paths of the layers in which the image attends to text, and, once ``net`` ran, their probabilities.

    The layers themselves compute what they always do; the probabilities, which fused attention hides, are computed
    beside them from the same inputs. A checkpoint would recompute without these: none is made meanwhile. ``pieces``:
    what to take of a layer's probabilities, where its positions are more than one picture's. ``known``: the layers, and
    what works out their probabilities of what goes in, of networks of another build.
    """
    joint = {path: module for path, module in net.named_modules() if _is_joint(module) or _is_cross(module)}
    layers, probabilities = known or (joint, _probabilities)
    if not layers:
        raise EditorError(
            f"{type(net).__name__} has no layer in which the image attends to text: choose another method"
        )
    seen: list[Tensor] = []

    def look(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        kwargs = dict(kwargs)
        hidden = args[0] if args else kwargs.pop("hidden_states")
        seen.extend(pieces(probabilities(module, hidden, **kwargs)))

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


def _probabilities(
    layer: Any,
    hidden: Tensor,
    encoder_hidden_states: Tensor,
    image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    encoder_hidden_states_mask: Tensor | None = None,
    **_: Any,
) -> Tensor:
    """(B, heads, image positions, text positions), at least float32; the softmax runs over all keys of the layer."""
    text = encoder_hidden_states

    def split(values: Tensor, norm: Any) -> Tensor:
        values = values.unflatten(-1, (layer.heads, -1))
        return values if norm is None else norm(values)

    query = split(layer.to_q(hidden), layer.norm_q)
    if _is_joint(layer):
        own, words = split(layer.to_k(hidden), layer.norm_k), split(layer.add_k_proj(text), layer.norm_added_k)
        if image_rotary_emb is not None:
            query, own, words = _turned(image_rotary_emb, query, own, words)
        key = torch.cat([own, words], dim=1)
    else:
        key = split(layer.to_k(text), layer.norm_k)
    query, key = query.transpose(1, 2), key.transpose(1, 2)
    scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
    if encoder_hidden_states_mask is not None:
        padding = ~encoder_hidden_states_mask[:, None, None].bool()
        padding = nn.functional.pad(padding, (scores.shape[-1] - padding.shape[-1], 0))
        scores = scores.masked_fill(padding, float("-inf"))
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    return scores.softmax(dim=-1)[..., -text.shape[1] :]


def _turned(rotary: tuple[Tensor, Tensor], query: Tensor, own: Tensor, text: Tensor) -> tuple[Tensor, ...]:
    """Queries and keys (B, positions, heads, width) of the picture, and keys of the text, by their positions' angles.

    FLUX: cosines and sines, of the text and then of the picture; Qwen: complex numbers, of the picture and of the text.
    """
    if rotary[0].is_complex():
        from diffusers.models.transformers.transformer_qwenimage import apply_rotary_emb_qwen

        image, words = rotary
        angles = zip((query, own, text), (image, image, words), strict=True)
        return tuple(apply_rotary_emb_qwen(values, angle, use_real=False) for values, angle in angles)
    from diffusers.models.embeddings import apply_rotary_emb

    n = text.shape[1]
    of_text, of_image = ((rotary[0][k], rotary[1][k]) for k in (slice(None, n), slice(n, None)))
    pairs = zip((query, own, text), (of_image, of_image, of_text), strict=True)
    return tuple(apply_rotary_emb(values, angles, sequence_dim=1) for values, angles in pairs)

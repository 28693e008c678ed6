"""What core's networks need so that a gradient comes through them, and what takes it all back."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from torch.utils.checkpoint import checkpoint

from sifm_core.errors import EditorError

from .._comfy import unfit


@contextmanager
def differentiable(networks: Sequence[nn.Module], in_place: Sequence[nn.Module] = ()) -> Iterator[None]:
    """Inside, gradients come through ``networks`` though ComfyUI made or moved them in inference mode.

    Weights are neither copied nor changed: normal tensors that share their memory stand in for them, and at the end the
    originals return, but for slots that somebody else has filled meanwhile (another clone of the model that was
    loaded). Those that are not on the device come there each into memory of its own, not into a buffer that the next
    layer fills again. ``in_place``: networks whose blocks add to their inputs in place. Whatever is raised inside,
    nothing stays.
    """
    from comfy import model_management

    training, stream = model_management.in_training, model_management.get_offload_stream
    hooks: list[Any] = []
    slots: list[tuple[MutableMapping[str, Any], str, Tensor, Tensor]] = []
    try:
        model_management.in_training = True  # the fused kernels of rope and modulation have no gradient
        model_management.get_offload_stream = own_memory
        for network in networks:
            for holder, name, tensor in _foreign(network):
                alias = _alias(tensor)
                slots.append((holder, name, tensor, alias))
                holder[name] = alias
        for part in (part for network in in_place for part in network.modules()):
            if type(part).__name__.endswith("Norm"):
                hooks.append(part.register_forward_pre_hook(_copied))
        with _Functional():
            yield
    finally:
        for hook in hooks:
            hook.remove()
        for holder, name, original, alias in slots:
            if holder.get(name) is alias:
                holder[name] = original
        model_management.in_training, model_management.get_offload_stream = training, stream


def own_memory(device: torch.device) -> None:
    """In place of core's stream for weights that are off the device: its buffer is one for all layers."""


def resident(patcher: Any) -> Any:
    """The patcher itself, or in place of one with dynamic VRAM a copy without: what streams in has no safe gradient.

    Raises EditorError for a model of a loader that does not say how to load it again.
    """
    if not patcher.is_dynamic():
        return patcher
    try:
        return patcher.clone(disable_dynamic=True, force_deepcopy=True)
    except RuntimeError as error:
        raise EditorError(
            f"{type(patcher.model).__name__} streams into memory while it runs (dynamic VRAM), which silently gives "
            f"wrong gradients, and its loader cannot load it again without ({error}): take one of ComfyUI's own "
            "loaders, or start it with --disable-dynamic-vram"
        ) from error


def resident_in(holder: Any, network: str) -> Any:
    """The same of a VAE or CLIP, which has the patcher's model as its attribute ``network``, too."""
    patcher = resident(holder.patcher)
    if patcher is holder.patcher:
        return holder
    made = copy.copy(holder)
    made.patcher = patcher
    setattr(made, network, patcher.model)
    return made


@contextmanager
def recomputed(blocks: Sequence[nn.Module]) -> Iterator[None]:
    """Inside, each block keeps its inputs alone and computes the rest again on the way back."""

    def again(forward: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            return checkpoint(_on_copies, forward, args, kwargs, use_reentrant=False, preserve_rng_state=False)

        return run

    own = [block.__dict__.get("forward") for block in blocks]
    try:
        for block in blocks:
            block.forward = again(block.forward)
        yield
    finally:
        for block, forward in zip(blocks, own, strict=True):
            block.__dict__.pop("forward", None)
            if forward is not None:
                block.forward = forward


def _on_copies(forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """A block that adds to its inputs in place must find them as they were when it is run again."""
    copies = [value.clone() if isinstance(value, Tensor) else value for value in args]
    return forward(*copies, **{k: v.clone() if isinstance(v, Tensor) else v for k, v in kwargs.items()})


class _Functional(TorchFunctionMode):
    """Core's language models write sums into buffers with ``out=``, which no gradient passes: without it they do."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.add and kwargs.get("out") is not None:
            del kwargs["out"]
        return func(*args, **kwargs)


def _copied(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """A norm keeps its input for the gradient, and what is added in place later would change it."""
    return tuple(value.clone() if isinstance(value, Tensor) else value for value in args)


def _foreign(network: nn.Module) -> Iterator[tuple[MutableMapping[str, Any], str, Tensor]]:
    """Where a network holds tensors that no gradient passes, or that would collect one of their own."""
    for part in network.modules():
        holders: list[Any] = [part._parameters, part._buffers, part.__dict__]
        if (latents := getattr(part, "latent_format", None)) is not None:
            holders.append(vars(latents))
        for holder in holders:
            for name, value in list(holder.items()):
                if isinstance(value, Tensor) and (value.requires_grad or any(map(unfit, _parts(value)))):
                    yield holder, name, value


def _parts(tensor: Tensor) -> list[Tensor]:
    if not is_traceable_wrapper_subclass(tensor):
        return [tensor]
    return [tensor, *(getattr(tensor, name) for name in tensor.__tensor_flatten__()[0])]


def plain(tensor: Tensor) -> Tensor:
    """A tensor of no other class on the same memory, whatever mode or loader the given one is from."""
    made = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    return made.set_(tensor.untyped_storage(), tensor.storage_offset(), Tensor.size(tensor), tensor.stride())


def _alias(tensor: Tensor) -> Tensor:
    """A normal tensor on the same memory that asks for no gradient; of a quantised one, each of its parts.

    A loader's own class of tensors (GGUF's) stays what it is, with all that it knows of itself.
    """
    if is_traceable_wrapper_subclass(tensor):
        names, about = tensor.__tensor_flatten__()
        parts = {name: _alias(getattr(tensor, name)) for name in names}
        made = type(tensor).__tensor_unflatten__(parts, about, tensor.shape, tensor.stride())
    else:
        made = plain(tensor)
        if type(tensor) not in (Tensor, nn.Parameter):
            made = made.as_subclass(type(tensor))
            made.__dict__.update(vars(tensor))
            return made
    if isinstance(tensor, nn.Parameter):
        made = nn.Parameter(made, requires_grad=False)
    return made

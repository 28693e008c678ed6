"""A MODEL whose weights are packed as GGUF loaders keep them: a tensor class of their own, unpacked in each forward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Packed(Tensor):
    """Bytes of a matrix; knows its true shape and the LoRAs on it, and loses both in every copy but :meth:`to`."""

    @staticmethod
    def __new__(cls, raw: Tensor, **about: Any) -> Packed:
        return raw.as_subclass(cls)

    def __init__(self, raw: Tensor, *, tensor_shape: torch.Size, patches: Any = ()) -> None:
        self.tensor_shape, self.patches = tensor_shape, list(patches)

    def to(self, *args: Any, **kwargs: Any) -> Packed:
        new = super().to(*args, **kwargs)
        new.tensor_shape, new.patches = self.tensor_shape, list(self.patches)
        return new

    def clone(self, *args: Any, **kwargs: Any) -> Packed:
        return self

    def detach(self, *args: Any, **kwargs: Any) -> Packed:
        return self

    @property
    def shape(self) -> torch.Size:
        return self.__dict__.get("tensor_shape") or self.size()


def pack(weight: Tensor) -> Packed:
    """Rows of int8 with a scale each."""
    scale = weight.abs().amax(dim=1, keepdim=True) / 127
    raw = torch.cat([(weight / scale).round().to(torch.int8).view(torch.uint8), scale.view(torch.uint8)], dim=1)
    return Packed(raw, tensor_shape=weight.shape)


def unpack(packed: Packed, dtype: torch.dtype) -> Tensor:
    import comfy.lora

    raw = packed.as_subclass(Tensor)
    weight = raw[:, :-4].view(torch.int8).to(dtype) * raw[:, -4:].contiguous().view(torch.float32).to(dtype)
    for patches, key in packed.patches:
        weight = comfy.lora.calculate_weight(patches, weight, key)
    return weight


class Layer:
    """What becomes of a Linear."""

    comfy_cast_weights = True

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x)
        return nn.functional.linear(x, unpack(self.weight.to(x.device), x.dtype), bias)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        """Shapes alone, and room for a matrix that is unpacked."""
        destination[prefix + "weight"] = torch.zeros(self.weight.size(), dtype=torch.uint8, device="meta")
        destination[prefix + "temp.weight"] = torch.zeros(self.weight.shape, device="meta")
        if self.bias is not None:
            destination[prefix + "bias"] = torch.zeros_like(self.bias, device="meta")


def packed(model: Any) -> Any:
    """The MODEL with packed blocks, on a patcher that leaves LoRAs to the forward."""
    from comfy.model_patcher import ModelPatcher
    from comfy.utils import get_attr, set_attr_param

    class Patcher(ModelPatcher):
        def patch_weight_to_device(self, key: str, device_to: Any = None, inplace_update: bool = False) -> None:
            if key in self.patches:
                new = get_attr(self.model, key).to(device_to, copy=True)
                new.patches = [(self.patches[key], key)]
                set_attr_param(self.model, key, new)

        def unpatch_model(self, device_to: Any = None, unpatch_weights: bool = True) -> None:
            for weight in self.model.parameters() if unpatch_weights else ():
                if isinstance(weight, Packed):
                    weight.patches = []
            super().unpatch_model(device_to=device_to, unpatch_weights=unpatch_weights)

        def load(self, *args: Any, force_patch_weights: bool = False, **kwargs: Any) -> None:
            super().load(*args, force_patch_weights=True, **kwargs)

    for name, part in model.model.diffusion_model.named_modules():
        if isinstance(part, nn.Linear) and "block" in name:
            part.__class__ = type("PackedLinear", (Layer, type(part)), {})
            part.weight = nn.Parameter(pack(part.weight.detach()), requires_grad=False)
    cpu = torch.device("cpu")
    return Patcher(model.model, load_device=cpu, offload_device=cpu)

"""What is known of core's noise predictors: layers, which part of an output is the picture's, what is recomputed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from sifm_core.errors import LayerError

Layers = Mapping[str, tuple[str, ...]]


class Network:
    """A noise predictor of which nothing is known: it can be run, but not looked into."""

    family = "unknown"
    telling = "mid"
    """See :attr:`sifm_core.types.Editor.telling`."""
    in_place = False
    """Whether blocks add to their inputs in place."""
    positions_at_once = 4096
    """Latent positions (height x width) that are run at once with gradients, in 16 bits a number."""

    padding = ""
    """How texts of different lengths stand in one batch: "repeat", "mask", zeros in "front", or "", not at all."""

    def multiple(self, net: Any) -> int:
        """What the sides of a picture are multiples of."""
        return 16

    def layers(self, net: Any) -> Layers:
        """Named sets of module paths, as :attr:`sifm_core.types.Editor.layer_presets`."""
        return {}

    def hidden(self, module: nn.Module, output: Any, stream: str, tokens: int, positions: int) -> Any:
        """The picture's part of what a module put out, or a stream of it, as :meth:`sifm_core.types.Editor.hidden`.

        The sequence holds ``tokens`` of text, ``positions`` of what is made, then those of a reference, if any.
        """
        if stream:
            raise LayerError(f"{type(module).__name__} has no streams: leave {':' + stream!r} out")
        return output

    def blocks(self, net: Any) -> Sequence[nn.Module]:
        """What may be computed again on the way back."""
        return []

    def attending(self, net: Any) -> Sequence[str]:
        """The paths of the layers in which the picture attends to text."""
        return []


class UNet(Network):
    """Stable Diffusion 1, 2 and XL: the same sets of layers as of diffusers' U-Nets."""

    family = "unet"
    telling = "last"
    positions_at_once = 40_960
    padding = "repeat"

    def multiple(self, net: Any) -> int:
        return 8 * 2 ** sum(type(part).__name__ == "Downsample" for block in net.input_blocks for part in block)

    def layers(self, net: Any) -> Layers:
        down, up = _levels(net.input_blocks, "input_blocks"), _levels(net.output_blocks, "output_blocks")
        middle = ("middle_block.2",)  # core runs the children of the middle block, never the block itself
        return {
            "mid": middle,
            "deep": middle + up[0],
            "down": down[-1],
            "up": up[min(1, len(up) - 1)],
            "last": up[-1],
            "all": sum(down, ()) + middle + sum(up, ()),
        }

    def blocks(self, net: Any) -> Sequence[nn.Module]:
        return [part for part in net.modules() if type(part).__name__ in ("ResBlock", "SpatialTransformer")]

    def attending(self, net: Any) -> Sequence[str]:
        return [path for path, _ in net.named_modules() if path.endswith(".attn2")]


class Transformer(Network):
    """Joint blocks of picture and text in one list or two: ``paths`` of the lists, in the order of the network."""

    paths: tuple[str, ...]

    def layers(self, net: Any) -> Layers:
        every = tuple(self._paths(net))
        n = len(every)
        return {
            "deep": every[n // 2 :],
            "all": every,
            "early": every[: max(1, n // 4)],
            "mid": every[n // 4 : max(1, n // 2)],
            "last": every[n - max(1, n // 4) :],
        }

    def streams(self, module: nn.Module, output: Any, tokens: int) -> tuple[Any, Any] | None:
        """Text and picture, apart; None for a module that is no joint block."""
        raise NotImplementedError

    def hidden(self, module: nn.Module, output: Any, stream: str, tokens: int, positions: int) -> Any:
        both = self.streams(module, output, tokens)
        if both is None:
            return super().hidden(module, output, stream, tokens, positions)
        text, picture = both
        parts = {"": picture, "text": text, "target": picture[:, :positions], "reference": picture[:, positions:]}
        found = parts.get(stream)
        if found is None or not found.numel():
            raise LayerError(f"{type(module).__name__} has no stream {stream!r} here: text, target, reference or none")
        return found

    def blocks(self, net: Any) -> Sequence[nn.Module]:
        return [net.get_submodule(path) for path in self._paths(net)]

    def attending(self, net: Any) -> Sequence[str]:
        return self._paths(net)

    def _paths(self, net: Any) -> list[str]:
        return [f"{path}.{k}" for path in self.paths for k in range(len(net.get_submodule(path)))]


class MMDiT(Transformer):
    """Stable Diffusion 3 and 3.5."""

    family = "sd3"
    paths = ("joint_blocks",)

    def streams(self, module: nn.Module, output: Any, tokens: int) -> tuple[Any, Any] | None:
        return output if type(module).__name__ == "JointBlock" else None


class Flux(Transformer):
    """FLUX.1 and FLUX.2: blocks of two streams, then of one, in which the text comes first."""

    family = "flux"
    in_place = True
    paths = ("double_blocks", "single_blocks")

    def streams(self, module: nn.Module, output: Any, tokens: int) -> tuple[Any, Any] | None:
        if type(module).__name__ == "SingleStreamBlock":
            return output[:, :tokens], output[:, tokens:]
        return output[::-1] if type(module).__name__ == "DoubleStreamBlock" else None


class QwenImage(Transformer):
    """Qwen-Image and its editing models."""

    family = "qwen-image"
    padding = "mask"
    paths = ("transformer_blocks",)

    def streams(self, module: nn.Module, output: Any, tokens: int) -> tuple[Any, Any] | None:
        return output if type(module).__name__ == "QwenImageTransformerBlock" else None


NETWORKS: dict[str, type[Network]] = {
    "UNetModel": UNet,
    "OpenAISignatureMMDITWrapper": MMDiT,
    "Flux": Flux,
    "QwenImageTransformer2DModel": QwenImage,
}
"""Class of ``MODEL.model.diffusion_model``."""


def network_of(net: Any) -> Network:
    """What is known of a network; of a class that nobody described, nothing."""
    return NETWORKS.get(type(net).__name__, Network)()


def _levels(blocks: Any, name: str) -> list[tuple[str, ...]]:
    """The paths of each resolution's ResBlocks, in the network's order."""
    levels: list[tuple[str, ...]] = [()]
    for k, block in enumerate(blocks):
        kinds = [type(part).__name__ for part in block]
        if kinds[0] == "ResBlock":
            levels[-1] += (f"{name}.{k}.0",)
        if kinds[-1] in ("Downsample", "Upsample"):
            levels.append(())
    return [level for level in levels if level]

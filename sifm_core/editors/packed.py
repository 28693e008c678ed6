"""What editors have in common that see the source as tokens beside the noise: FLUX.1 Kontext, FLUX.2, Qwen-Image-Edit.

One sequence of text, target (what is denoised) and reference (the source's clean latent). Its blocks carry it in two
streams, text apart from picture, or in a single one; a layer's name may say which part is wanted after a colon, such as
"transformer_blocks.3:reference".
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image as Pil
from torch import Tensor, nn

from ..errors import LayerError
from ..features import first_tensor
from ..noise import Seed, generators
from ..types import Cond, Image, Latent, OnStep
from .attention import watched
from .latent import FlowEditor, report, run, wide
from .steps import Sampler

STREAMS = ("target", "reference", "text")
_TEXT = ("context", "add_", "added", "txt")
"""In the name of what a block of two streams keeps for its text."""


class PackedEditor(FlowEditor):
    """The source enters as reference tokens, and in the target, the latent that is noised to t."""

    net: Any
    patch = 2
    """Side of the square of latent positions that is one token."""
    order: tuple[str, ...] = ("text", "target", "reference")
    """How the streams follow each other in the sequence."""
    one_by_one = False
    """Whether the pipeline edits a single picture at a time."""
    positions_at_once = 16_384  # 1 row at 1024x1024

    def __init__(
        self,
        name: str,
        folder: Path,
        parts: Sequence[str],
        pipe: Any,
        settings: Mapping[str, Any],
        shape: tuple[int, int],
        shift: float | Tensor,
        scale: float | Tensor,
    ) -> None:
        """``shape``: channels of a latent, and pixels of its positions' side."""
        self._channels, self._factor = shape
        super().__init__(name, folder, parts, pipe, settings, self._factor * self.patch, shift, scale)
        self.net = pipe.transformer
        self._tokens: dict[str, int] = {}
        self._paths = {module: path for path, module in self.net.named_modules()}
        blocks = [path for path in self._paths.values() if path.rpartition(".")[0].endswith("transformer_blocks")]
        n = len(blocks)
        self.bytes_per_position = 18 * n * int(self.net.inner_dim)  # as counted at 1024x1024, within a third
        depths = {
            "deep": (n // 2, n),
            "all": (0, n),
            "early": (0, max(1, n // 4)),
            "mid": (n // 4, max(1, n // 2)),
            "last": (n - max(1, n // 4), n),
        }
        self.layer_presets = {name: tuple(blocks[start:stop]) for name, (start, stop) in depths.items()}
        self.layer_presets |= {s: tuple(f"{path}:{s}" for path in self.layer_presets["deep"]) for s in STREAMS[:2]}

    def pack(self, z: Latent) -> Tensor:
        """The tokens of a latent: (B, c, h, w) -> (B, tokens, c * patch * patch)."""
        p = self.patch
        squares = z.unflatten(3, (-1, p)).unflatten(2, (-1, p))
        return squares.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)

    def unpack(self, tokens: Tensor, height: int, width: int) -> Latent:
        """What :meth:`pack` took, ``height`` x ``width`` positions."""
        p = self.patch
        squares = tokens.unflatten(2, (-1, p, p)).unflatten(1, (height // p, width // p))
        return squares.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)

    @abstractmethod
    def velocity(
        self, target: Tensor, reference: Tensor, t: Tensor, cond: Cond, grid: tuple[int, int], chosen: Mapping[str, Any]
    ) -> Tensor:
        """What the transformer makes of the target's tokens at timestep ``t`` (B,), one prediction for each.

        ``grid``: (height, width) of the latent in tokens; ``chosen``: the settings.
        """

    @abstractmethod
    def shifted(self, tokens: int, steps: int) -> float:
        """By how much the pipeline shifts its schedule for so many target tokens and steps: mu."""

    @abstractmethod
    def arguments(self, x: Image, cond: Cond, chosen: Mapping[str, Any]) -> dict[str, Any]:
        """What the unmodified pipeline is called with, besides steps and generators."""

    def guide(self, x: Image, cond: Cond, chosen: Mapping[str, Any]) -> Cond | None:
        """What an edit's guidance leads away from, for networks that take it in branches; None for no such branch."""
        return None

    def guided(self, said: Tensor, none: Tensor, scale: float) -> Tensor:
        """The velocity (B, tokens, c) that an edit with both branches follows."""
        return none + scale * (said - none)

    def joined(self, text: Tensor, target: Tensor, reference: Tensor) -> Tensor:
        """The picture's tokens in their order, which :meth:`hidden` takes apart again."""
        self._tokens = {"text": text.shape[1], "target": target.shape[1], "reference": reference.shape[1]}
        streams = {"target": target, "reference": reference}
        return torch.cat([streams[name] for name in self.order[1:]], dim=1)

    def ids(self, grid: tuple[int, int], first: float, axes: int) -> Tensor:
        """Positions (tokens, axes) of the tokens of a grid: ``first``, row, column, and zeros."""
        height, width = grid
        ids = torch.zeros(height, width, axes, device=self.device)
        ids[..., 0] = first
        ids[..., 1] = torch.arange(height, device=self.device)[:, None]
        ids[..., 2] = torch.arange(width, device=self.device)
        return ids.flatten(0, 1)

    def denoise(self, z: Latent, noise: Latent, t: Tensor, cond: Cond) -> Tensor:
        """The transformer's velocity at timestep ``t`` (B,), for the latent mixed with noise by t beside itself."""
        height, width = z.shape[-2:]
        grid = height // self.patch, width // self.patch
        target, reference = (self.pack(latent.to(self.dtype)) for latent in (self.noised(z, noise, t), z))
        return self.unpack(wide(self.velocity(target, reference, t, cond, grid, self.settings)), height, width)

    def edit(self, x: Image, cond: Cond, *, seed: Seed = 0, on_step: OnStep | None = None, **options: Any) -> Image:
        """The edit by the unmodified pipeline, (B, 3, H, W) float32 in [0, 1]; options are those of the settings.

        The first latents are drawn on the CPU from each image's own generator. A pipeline that takes no tensors gets
        the pictures on 8 bits. Raises InputError for unknown options and wrong values.
        """
        chosen, rows = self.chosen(options, x, len(cond.prompt)), generators(seed, len(x))
        size = 1 if self.one_by_one else len(x)
        made = []
        for first in range(0, len(x), size):
            those = slice(first, first + size)
            arguments = self.arguments(x[those], _rows(cond, those), chosen)
            common = {"generator": rows[those], "num_inference_steps": chosen["steps"], "output_type": "pt"}
            with self.reading() if "vlm" in self.entrances else nullcontext():
                made.append(self.call(**arguments, **common, **report(on_step, first // size, len(x) // size)))
        return torch.cat(made).float()

    def call(self, **arguments: Any) -> Image:
        """What the pipeline makes of these arguments."""
        return run(self.pipe, **arguments)

    def draws(self, x: Image, seed: Seed, **options: Any) -> tuple[Tensor, ...]:
        """The first latents, and what a stochastic scheduler draws at its steps."""
        count = 1 + self._sampler(x, self.chosen(options, x, len(x))).noises
        shape, rows = (self._channels, *(side // self._factor for side in x.shape[-2:])), generators(seed, len(x))
        return tuple(
            torch.stack([torch.randn(shape, generator=row, dtype=self.dtype) for row in rows]) for _ in range(count)
        )

    def generate(self, x: Image, cond: Cond, drawn: Sequence[Tensor], **options: Any) -> Image:
        """:meth:`edit` with a gradient to ``x``, not clipped, (B, 3, H, W) in [0, 1] units."""
        chosen = self.chosen(options, x, len(cond.prompt))
        sampler = self._sampler(x, chosen)
        sampler.begin([self.pack(noise.to(self.device)) for noise in drawn[1:]])
        first, source = drawn[0].to(self.device, self.dtype), self.encode(x).to(self.dtype)
        (height, width), p = source.shape[-2:], self.patch
        target, reference = self.pack(first), self.pack(source)
        conds = [cond, *([guide] if (guide := self.guide(x.detach(), cond, chosen)) is not None else [])]
        for t in sampler.timesteps:
            times, grid = torch.full((len(x),), t.item(), dtype=t.dtype, device=self.device), (height // p, width // p)
            said, *none = (self.velocity(target, reference, times, one, grid, chosen) for one in conds)
            velocity = self.guided(said, none[0], chosen["guidance_scale"]) if none else said
            target = sampler.step(velocity, t, target)
        return self.decode(self.unpack(target, height, width))

    def _sampler(self, x: Image, chosen: Mapping[str, Any]) -> Sampler:
        tokens, steps = math.prod(side // self._factor // self.patch for side in x.shape[-2:]), chosen["steps"]
        sigmas = np.linspace(1.0, 1 / steps, steps)
        return Sampler(self.pipe.scheduler, steps, sigmas=sigmas, mu=self.shifted(tokens, steps))

    def hidden(self, module: nn.Module, output: Any, stream: str = "") -> Any:
        """The picture's tokens: target and reference, or the ``stream`` "target", "reference" or "text".

        Raises LayerError where a module has no such tokens, and for one that carries text alone unless it is asked for.
        """
        path = self._paths.get(module, "")
        text, picture = self._parted(path, output)
        if stream not in ("", *STREAMS):
            raise LayerError(f"{path}:{stream}: expected one of the streams {', '.join(STREAMS)}")
        if text is None and picture is None:
            if stream:
                raise LayerError(f"{path} has no tokens: leave {':' + stream!r} out, or choose another layer")
            return output
        wanted = text if stream == "text" else picture
        if wanted is None:
            how = f"{path}:text names it where that is meant" if picture is None else "choose another layer"
            raise LayerError(f"{path} carries no tokens of the {stream or 'picture'}: {how}")
        if stream in ("", "text"):
            return wanted
        names = self.order[1:]
        if wanted.shape[1] == self._tokens["target"] and stream == "target":  # after the reference has been left out
            return wanted
        if wanted.shape[1] != sum(self._tokens[name] for name in names):
            raise LayerError(f"{path} carries no tokens of the {stream}: choose another layer")
        return wanted.split([self._tokens[name] for name in names], dim=1)[names.index(stream)]

    def _parted(self, path: str, output: Any) -> tuple[Tensor | None, Tensor | None]:
        """(text, picture) of what the module at ``path`` put out, None for what it does not carry."""
        tensor = first_tensor(output)
        if tensor is None or tensor.ndim < 3:  # (B, tokens, ...)
            return None, None
        if path.rpartition(".")[0].endswith("transformer_blocks") and isinstance(output, tuple):
            return output[0], output[1]
        if path.startswith("single"):
            return self._cut(tensor)
        if path.endswith(".attn"):
            return output[1], output[0]
        return (tensor, None) if any(name in path for name in _TEXT) else (None, tensor)

    def _cut(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        n = self._tokens["text"]
        return tokens[:, :n], tokens[:, n:]

    def attention(self) -> AbstractContextManager[tuple[list[str], list[Tensor]]]:
        """As :meth:`Editor.attention` says, of blocks with a stream of its own for text; target and reference apart."""
        return watched(self.net, lambda probabilities: probabilities.chunk(2, dim=2))


def linear_shift(config: Any, tokens: int) -> float:
    """mu between what a scheduler's configuration says for few tokens and for many, as FLUX.1 and Qwen have it."""
    from diffusers.pipelines.flux.pipeline_flux_kontext import calculate_shift

    known = (("base_image_seq_len", 256), ("max_image_seq_len", 4096), ("base_shift", 0.5), ("max_shift", 1.15))
    return calculate_shift(tokens, *(config.get(name, default) for name, default in known))


def on_eight_bits(x: Image) -> list[Pil.Image]:
    """The pictures as a pipeline wants them that takes no tensors."""
    levels = (x.detach() * 255).round().clamp(0, 255).to("cpu", torch.uint8).permute(0, 2, 3, 1)
    return [Pil.fromarray(rows.numpy()) for rows in levels]


def _rows(cond: Cond, those: slice) -> Cond:
    return type(cond)(*(value[those] for value in vars(cond).values()))

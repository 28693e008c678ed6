"""FLUX.1 Kontext: the source as reference tokens beside the noise, one guidance scale that the network was taught.

"FLUX.1 Kontext: Flow Matching for In-Context Image Generation and Editing in Latent Space" (Black Forest Labs, arXiv
2506.15742).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..types import Image
from .folder import check, load_pipeline, settings
from .latent import LatentEditor
from .packed import PackedEditor, linear_shift

PARTS = ("transformer", "vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "scheduler")
DEFAULTS = {"steps": 28, "guidance_scale": 2.5, "size": 1024, "t5_tokens": 512}
"""``t5_tokens``: positions of the text."""


def load(folder: Path, name: str, dtype: torch.dtype, options: Mapping[str, Any]) -> LatentEditor:
    """Load a FluxKontextPipeline folder; ``options`` change :data:`DEFAULTS`."""
    from diffusers import FluxKontextPipeline

    check(folder, PARTS, options)
    chosen = settings(folder, DEFAULTS, options)
    pipe = load_pipeline(FluxKontextPipeline, folder, dtype, options, image_encoder=None, feature_extractor=None)
    return assemble(name, folder, pipe, chosen)


def assemble(name: str, folder: Path, pipe: Any, settings: Mapping[str, Any]) -> FluxKontext:
    """The editor of a pipeline that is there already."""
    return FluxKontext(name, folder, pipe, settings)


@dataclass(frozen=True)
class Cond:
    """T5's tokens (B, tokens, width) and CLIP's pooled texts (B, width) of the prompts; see Editor.words."""

    prompt: Tensor
    pooled: Tensor
    words: Tensor


class FluxKontext(PackedEditor):
    """The text is what T5 makes of it, and, pooled by CLIP, a part of the modulation."""

    family = "flux-kontext"

    def __init__(self, name: str, folder: Path, pipe: Any, settings: Mapping[str, Any]) -> None:
        config = pipe.vae.config
        super().__init__(
            name,
            folder,
            PARTS,
            pipe,
            settings,
            (config.latent_channels, pipe.vae_scale_factor),
            config.shift_factor,
            config.scaling_factor,
        )

    def work_size(self, height: int, width: int) -> tuple[int, int]:
        """Of the (height, width) that the network was trained on, scaled to the editor's size, that of nearest shape.

        As the pipeline does: no other size is one that it keeps.
        """
        from diffusers.pipelines.flux.pipeline_flux_kontext import PREFERRED_KONTEXT_RESOLUTIONS

        share = self.settings["size"] / 1024 / self._multiple
        _, w, h = min((abs(width / height - w / h), w, h) for w, h in PREFERRED_KONTEXT_RESOLUTIONS)
        return max(1, round(h * share)) * self._multiple, max(1, round(w * share)) * self._multiple

    def prepare(self, prompts: Sequence[str], x: Image | None = None) -> Cond:
        """Embed one prompt per image. Raises InputError for a prompt longer than T5 reads."""
        pipe, n = self.pipe, self.settings["t5_tokens"]

        def embed(prompt: str) -> tuple[Tensor, ...]:
            self.check_length(prompt, pipe.tokenizer_2, n)
            text, pooled, _ = pipe.encode_prompt(prompt, device=self.device, max_sequence_length=n)
            return text, pooled, self.positions(prompt, pipe.tokenizer_2, n)

        return Cond(*self.encoded(prompts, embed)[0])

    def blank(self, n: int) -> Cond:
        """Conditions of zeros for ``n`` images, to count what work costs."""
        config, tokens = self.net.config, self.settings["t5_tokens"]
        kind: dict[str, Any] = {"device": self.device, "dtype": self.dtype}
        text = torch.zeros(n, tokens, config.joint_attention_dim, **kind)
        pooled = torch.zeros(n, config.pooled_projection_dim, **kind)
        return Cond(text, pooled, torch.zeros(n, tokens, dtype=torch.bool, device=self.device))

    def velocity(
        self, target: Tensor, reference: Tensor, t: Tensor, cond: Cond, grid: tuple[int, int], chosen: Mapping[str, Any]
    ) -> Tensor:
        """What the transformer makes of the target's tokens at ``t`` (B,)."""
        ids = torch.cat([self.ids(grid, 0, 3), self.ids(grid, 1, 3)])
        scale = torch.full((len(target),), chosen["guidance_scale"], device=target.device)
        out = self.net(
            hidden_states=self.joined(cond.prompt, target, reference),
            timestep=t.to(target) / 1000,
            guidance=scale if self.net.config.guidance_embeds else None,
            pooled_projections=cond.pooled,
            encoder_hidden_states=cond.prompt,
            txt_ids=torch.zeros(cond.prompt.shape[1], 3, device=target.device),
            img_ids=ids,
            return_dict=False,
        )[0]
        return out[:, : target.shape[1]]

    def shifted(self, tokens: int, steps: int) -> float:
        """mu grows with the tokens, between what the scheduler's configuration says for few and many."""
        return linear_shift(self.pipe.scheduler.config, tokens)

    def arguments(self, x: Image, cond: Cond, chosen: Mapping[str, Any]) -> dict[str, Any]:
        """The picture as it is: it has a size that the pipeline would take it to."""
        return {
            "image": x.to(self.device),
            "height": x.shape[-2],
            "width": x.shape[-1],
            "max_area": math.prod(x.shape[-2:]),
            "_auto_resize": False,
            "prompt_embeds": cond.prompt,
            "pooled_prompt_embeds": cond.pooled,
            "guidance_scale": chosen["guidance_scale"],
        }

"""InstructPix2Pix and its descendants (HQ-Edit, the embedded miniature): a U-Net with the source as extra channels.

"InstructPix2Pix: Learning to Follow Image Editing Instructions" (Brooks et al.), section 3.2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import EditorError
from ..noise import Seed, generators
from ..types import Image, Latent, OnStep
from .folder import check, load_pipeline, named, settings
from .latent import LatentEditor, guided, report, run, wide
from .steps import Sampler

PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
DEFAULTS = {"steps": 100, "guidance_scale": 7.5, "image_guidance_scale": 1.5, "size": 512}
NAMED_DEFAULTS = {"hq-edit": {"steps": 30, "guidance_scale": 7.0, "image_guidance_scale": 1.5}}
"""HQ-Edit's published example passes 1.5 as guidance_scale too, which hardly follows the instruction."""


def load(folder: Path, name: str, dtype: torch.dtype, options: Mapping[str, Any]) -> LatentEditor:
    """Load a StableDiffusionInstructPix2PixPipeline folder; ``options`` change :data:`DEFAULTS`."""
    from diffusers import StableDiffusionInstructPix2PixPipeline

    check(folder, PARTS, options)
    chosen = settings(folder, {**DEFAULTS, **named(NAMED_DEFAULTS, name)}, options)
    pipe = load_pipeline(
        StableDiffusionInstructPix2PixPipeline,
        folder,
        dtype,
        options,
        safety_checker=None,
        feature_extractor=None,
        image_encoder=None,
        requires_safety_checker=False,
    )
    return assemble(name, folder, pipe, chosen)


def assemble(name: str, folder: Path, pipe: Any, settings: Mapping[str, Any]) -> InstructPix2Pix:
    """The editor of a pipeline that is there already."""
    return InstructPix2Pix(name, folder, pipe, settings)


@dataclass(frozen=True)
class Cond:
    """Text embeddings (B, tokens, width) of the prompts and of no prompt; see Editor.words."""

    prompt: Tensor
    empty: Tensor
    words: Tensor


class InstructPix2Pix(LatentEditor):
    """The source enters twice: as the clean latent that is noised to t, and unscaled as extra channels of the U-Net."""

    family = "instruct-pix2pix"
    telling = "last"
    positions_at_once = 40_960  # 10 rows at 512x512
    bytes_per_position = 75_000

    def __init__(self, name: str, folder: Path, pipe: Any, settings: Mapping[str, Any]) -> None:
        levels = len(pipe.unet.config.block_out_channels)
        # The pipeline neither shifts nor unshifts latents, whatever the autoencoder's configuration says.
        super().__init__(name, folder, PARTS, pipe, settings, pipe.vae_scale_factor * 2 ** (levels - 1), shift=0.0)
        if pipe.unet.config.in_channels != 2 * pipe.vae.config.latent_channels:
            raise EditorError(
                f"{name}: expected a U-Net of {2 * pipe.vae.config.latent_channels} input channels, latent and source, "
                f"got {pipe.unet.config.in_channels}: this is no InstructPix2Pix network"
            )
        self.net = pipe.unet
        self.prediction = pipe.scheduler.config.prediction_type
        self._alphas = pipe.scheduler.alphas_cumprod.double()
        self.layer_presets = {
            "mid": ("mid_block",),
            "deep": ("mid_block", "up_blocks.0.resnets.*"),
            "down": (f"down_blocks.{levels - 1}.resnets.*",),
            "up": (f"up_blocks.{min(1, levels - 1)}.resnets.*",),
            "last": (f"up_blocks.{levels - 1}.resnets.*",),
            "all": ("down_blocks.*.resnets.*", "mid_block", "up_blocks.*.resnets.*"),
        }

    def prepare(self, prompts: Sequence[str], x: Image | None = None) -> Cond:
        """Embed one prompt per image. Raises InputError for a prompt longer than the text encoder reads."""

        def embed(prompt: str) -> tuple[Tensor, ...]:
            tokenizer = self.pipe.tokenizer
            self.check_length(prompt, tokenizer, tokenizer.model_max_length)
            text = self.pipe._encode_prompt(prompt, self.device, 1, False)
            return text, self.positions(prompt, tokenizer, tokenizer.model_max_length)

        (text, words), (empty, _) = self.encoded(prompts, embed)
        return Cond(text, empty, words)

    def blank(self, n: int) -> Cond:
        """Conditions of zeros for ``n`` images, to count what work costs."""
        tokens = self.pipe.tokenizer.model_max_length if self.pipe.tokenizer else 77
        text = torch.zeros(n, tokens, self.pipe.unet.config.cross_attention_dim, device=self.device, dtype=self.dtype)
        return Cond(text, text, torch.zeros(n, tokens, dtype=torch.bool, device=self.device))

    def denoise(self, z: Latent, noise: Latent, t: Tensor, cond: Cond) -> Tensor:
        """The U-Net at timestep ``t`` (B,), conditioned on the prompt and on the source's own latent, unscaled."""
        signal, spread = self.mix(t, z)
        channels = torch.cat([signal * z + spread * noise, z / self.latent_scale], dim=1)
        return wide(self.net(channels.to(self.dtype), t, encoder_hidden_states=cond.prompt, return_dict=False)[0])

    def target(self, z: Latent, noise: Latent, t: Tensor) -> Tensor:
        """epsilon, v or the clean latent, as the scheduler's prediction type says."""
        signal, spread = self.mix(t, z)
        if self.prediction == "v_prediction":
            return signal * noise - spread * z
        return z if self.prediction == "sample" else noise

    def edit(
        self,
        x: Image,
        cond: Cond,
        *,
        seed: Seed = 0,
        on_step: OnStep | None = None,
        steps: int | None = None,
        guidance_scale: float | None = None,
        image_guidance_scale: float | None = None,
        **options: Any,
    ) -> Image:
        """The edit by the unmodified pipeline, (B, 3, H, W) float32 in [0, 1].

        All noise is drawn on the CPU from each image's own generator, so that device and the rest of the batch do not
        change it, and diffusers with ``generator=torch.Generator().manual_seed(seed)`` gives the same edit. The first
        latents are drawn in float32 whatever the editor's number type; what an ancestral scheduler draws at its steps
        is drawn in that type, as diffusers does.
        Raises InputError for unknown options and wrong values.
        """
        given = {"steps": steps, "guidance_scale": guidance_scale, "image_guidance_scale": image_guidance_scale}
        arguments = self._arguments(x, cond, seed, given | options)
        return run(self.pipe, output_type="pt", **arguments, **report(on_step)).float()

    def draws(self, x: Image, seed: Seed, **options: Any) -> tuple[Tensor, ...]:
        """The first latents, and what an ancestral scheduler draws at its steps; see :meth:`edit`."""
        sampler = Sampler(self.pipe.scheduler, self.chosen(options, x, len(x))["steps"])
        first, rows = self._first(x, seed)
        later = [
            [torch.randn(first.shape[1:], generator=g, dtype=self.dtype) for g in rows] for _ in range(sampler.noises)
        ]
        return first, *map(torch.stack, later)

    def generate(self, x: Image, cond: Cond, drawn: Sequence[Tensor], **options: Any) -> Image:
        """:meth:`edit` with a gradient to ``x``, not clipped, (B, 3, H, W) in [0, 1] units."""
        chosen = self.chosen(options, x, len(cond.prompt))
        scales = chosen["guidance_scale"], chosen["image_guidance_scale"]
        prompt, source = cond.prompt, (self.encode(x) / self.latent_scale).to(self.dtype)
        if is_guided := scales[0] > 1 and scales[1] >= 1:
            prompt = torch.cat([prompt, cond.empty, cond.empty])
            source = torch.cat([source, source, torch.zeros_like(source)])
        sampler = Sampler(self.pipe.scheduler, chosen["steps"])
        sampler.begin(drawn[1:])
        z = drawn[0].to(source) * sampler.scheduler.init_noise_sigma
        for t in sampler.timesteps:
            channels = torch.cat([sampler.scale(torch.cat([z] * 3) if is_guided else z, t), source], dim=1)
            step = torch.full((len(channels),), t.item(), dtype=t.dtype, device=z.device)
            predicted = self.net(channels, step, encoder_hidden_states=prompt, return_dict=False)[0]
            z = sampler.step(guided(predicted, *scales) if is_guided else predicted, t, z)
        return self.decode(z)

    def _first(self, x: Image, seed: Seed) -> tuple[Tensor, list[torch.Generator]]:
        """The latents that an edit starts from, and the generators that drew them, to go on with."""
        factor = self.pipe.vae_scale_factor
        shape = (self.pipe.vae.config.latent_channels, x.shape[-2] // factor, x.shape[-1] // factor)
        rows = generators(seed, len(x))
        return torch.stack([torch.randn(shape, generator=row) for row in rows]), rows

    def _arguments(self, x: Image, cond: Cond, seed: Seed, options: Mapping[str, Any]) -> dict[str, Any]:
        chosen = self.chosen(options, x, len(cond.prompt))
        latents, rows = self._first(x, seed)
        return {
            "image": x.to(self.device),
            "prompt_embeds": cond.prompt,
            "negative_prompt_embeds": cond.empty,
            "latents": latents.to(self.device, self.dtype),
            "generator": rows,
            "num_inference_steps": chosen["steps"],
            "guidance_scale": chosen["guidance_scale"],
            "image_guidance_scale": chosen["image_guidance_scale"],
        }

    def mix(self, t: Tensor, like: Latent) -> tuple[Tensor, Tensor]:
        """sqrt(alpha_bar) and sqrt(1 - alpha_bar) at ``t`` (B,), each (B, 1, 1, 1) of ``like``'s type."""
        if self._alphas.device != t.device and t.device.type != "mps":  # which has no float64
            self._alphas = self._alphas.to(t.device)
        alpha = self._alphas[t.to(self._alphas.device)].reshape(-1, 1, 1, 1)
        return alpha.sqrt().to(like), (1 - alpha).sqrt().to(like)

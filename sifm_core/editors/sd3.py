"""Stable Diffusion 3 by image-to-image: the source is noised part of the way and denoised with the prompt.

"Scaling Rectified Flow Transformers for High-Resolution Image Synthesis" (Esser et al.); the editing is SDEdit's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..noise import Seed, generators
from ..types import Image, Latent, OnStep
from .folder import check, load_pipeline, read_json, settings
from .latent import FlowEditor, LatentEditor, report, run, wide
from .steps import Sampler

PARTS = ("transformer", "vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "scheduler")
T5 = ("text_encoder_3", "tokenizer_3")
DEFAULTS = {"steps": 50, "guidance_scale": 7.0, "strength": 0.6, "size": 512, "t5_tokens": 256}
"""``t5_tokens``: positions of the text stream that belong to T5; zeros where it is left out, as in the pipeline."""


def load(
    folder: Path,
    name: str,
    dtype: torch.dtype,
    options: Mapping[str, Any],
    kind: type[StableDiffusion3] | None = None,
    defaults: Mapping[str, Any] = DEFAULTS,
) -> LatentEditor:
    """Load a StableDiffusion3Pipeline or StableDiffusion3Img2ImgPipeline folder; ``options`` change ``defaults``.

    Option ``t5`` False leaves out the T5 text encoder, larger than all the rest; by default the folder decides.
    ``kind``: another editor of the same networks.
    """
    from diffusers import StableDiffusion3Img2ImgPipeline

    held = read_json(folder / "model_index.json").get(T5[0]) not in (None, [None, None])
    t5 = options.get("t5", held)
    if not isinstance(t5, bool):
        raise InputError(f"t5: expected True or False, got {t5!r}")
    parts = PARTS + T5 if t5 else PARTS
    check(folder, parts, options)
    chosen = settings(folder, defaults, {key: value for key, value in options.items() if key != "t5"})
    absent = dict.fromkeys(
        ("image_encoder", "feature_extractor") if t5 else ("image_encoder", "feature_extractor", *T5)
    )
    pipe = load_pipeline(StableDiffusion3Img2ImgPipeline, folder, dtype, options, **absent)
    return (kind or StableDiffusion3)(name, folder, parts, pipe, chosen)


def assemble(name: str, folder: Path, pipe: Any, settings: Mapping[str, Any]) -> StableDiffusion3:
    """The editor of a pipeline that is there already."""
    return StableDiffusion3(name, folder, PARTS, pipe, settings)


def unneeded(index: Mapping[str, Any], options: Mapping[str, Any]) -> Sequence[str]:
    """The parts of a hub repository that :func:`load` leaves out under these options."""
    return () if options.get("t5", True) else T5


@dataclass(frozen=True)
class Cond:
    """Text tokens (B, tokens, width) and pooled texts (B, width) of the prompts and of no prompt; see Editor.words."""

    prompt: Tensor
    empty: Tensor
    pooled: Tensor
    empty_pooled: Tensor
    words: Tensor


class StableDiffusion3(FlowEditor):
    """The source enters once, as the latent that is noised to t: at t near the last, nothing of it is left."""

    family = "sd3"
    positions_at_once = 20_480  # 5 rows at 512x512
    bytes_per_position = 300_000

    def __init__(self, name: str, folder: Path, parts: Sequence[str], pipe: Any, settings: Mapping[str, Any]) -> None:
        multiple = pipe.vae_scale_factor * pipe.patch_size
        super().__init__(name, folder, parts, pipe, settings, multiple, shift=float(pipe.vae.config.shift_factor or 0))
        self.net = pipe.transformer
        largest = multiple * pipe.transformer.config.pos_embed_max_size
        if self.settings["size"] > largest:
            raise InputError(f"size: {name} has positions for {largest} pixels, got {self.settings['size']}")
        n: int = pipe.transformer.config.num_layers
        self.layer_presets = {
            "deep": _blocks(n // 2, n),
            "all": _blocks(0, n),
            "early": _blocks(0, max(1, n // 4)),
            "mid": _blocks(n // 4, max(1, n // 2)),
            "last": _blocks(n - max(1, n // 4), n),
        }

    def hidden(self, module: nn.Module, output: Any, stream: str = "") -> Any:
        """The picture's stream, "target", is the second that a joint block puts out; the first is "text"."""
        if isinstance(module, type(self.net.transformer_blocks[0])) and stream in ("", "target", "text"):  # type: ignore[index]
            return output[0 if stream == "text" else 1]
        return super().hidden(module, output, stream)

    def prepare(self, prompts: Sequence[str], x: Image | None = None) -> Cond:
        """Embed one prompt per image. Raises InputError for a prompt longer than the longest text encoder reads."""

        pipe, n_t5 = self.pipe, self.settings["t5_tokens"]
        clip, t5 = (pipe.tokenizer, pipe.tokenizer_max_length), (pipe.tokenizer_3, n_t5)

        def embed(prompt: str) -> tuple[Tensor, ...]:
            self.check_length(prompt, *(clip if t5[0] is None else t5))
            text, _, pooled, _ = pipe.encode_prompt(
                prompt, None, None, device=self.device, do_classifier_free_guidance=False, max_sequence_length=n_t5
            )
            none = torch.zeros(1, n_t5, dtype=torch.bool, device=self.device)
            words = [self.positions(prompt, *clip), none if t5[0] is None else self.positions(prompt, *t5)]
            return text, pooled, torch.cat(words, dim=1)

        (text, pooled, words), (empty, empty_pooled, _) = self.encoded(prompts, embed)
        return Cond(text, empty, pooled, empty_pooled, words)

    def blank(self, n: int) -> Cond:
        """Conditions of zeros for ``n`` images, to count what work costs."""
        config, tokens = self.pipe.transformer.config, self.pipe.tokenizer_max_length + self.settings["t5_tokens"]
        kind: dict[str, Any] = {"device": self.device, "dtype": self.dtype}
        text = torch.zeros(n, tokens, config.joint_attention_dim, **kind)
        pooled = torch.zeros(n, config.pooled_projection_dim, **kind)
        return Cond(text, text, pooled, pooled, torch.zeros(n, tokens, dtype=torch.bool, device=self.device))

    def denoise(self, z: Latent, noise: Latent, t: Tensor, cond: Cond) -> Tensor:
        """The transformer's velocity at timestep ``t`` (B,), for the source's latent mixed with noise by t."""
        return self.velocity(self.noised(z, noise, t), t, cond.prompt, cond.pooled)

    def velocity(self, channels: Tensor, t: Tensor, prompt: Tensor, pooled: Tensor) -> Tensor:
        """What the transformer makes of its input channels, in float32 or wider."""
        out = self.net(
            hidden_states=channels.to(self.dtype),
            timestep=t,
            encoder_hidden_states=prompt,
            pooled_projections=pooled,
            return_dict=False,
        )[0]
        return wide(out)

    def edit(
        self,
        x: Image,
        cond: Cond,
        *,
        seed: Seed = 0,
        on_step: OnStep | None = None,
        steps: int | None = None,
        guidance_scale: float | None = None,
        strength: float | None = None,
        **options: Any,
    ) -> Image:
        """The edit by the unmodified pipeline, (B, 3, H, W) float32 in [0, 1].

        The posterior sample and the noise are drawn on the CPU from each image's own generator. Raises InputError for
        unknown options, wrong values, and a strength with which the pipeline would start from pure noise.
        """
        given = {"steps": steps, "guidance_scale": guidance_scale, "strength": strength}
        arguments = self._arguments(x, cond, seed, given | options)
        return run(self.pipe, output_type="pt", **arguments, **report(on_step)).float()

    def draws(self, x: Image, seed: Seed, **options: Any) -> tuple[Tensor, ...]:
        """The posterior's draw, the noise that is mixed in, and what a stochastic scheduler draws at its steps."""
        count = 2 + self._sampler(x, self._chosen(options, x, len(x))).noises
        factor, rows = self.pipe.vae_scale_factor, generators(seed, len(x))
        shape = (self.pipe.vae.config.latent_channels, x.shape[-2] // factor, x.shape[-1] // factor)
        return tuple(
            torch.stack([torch.randn(shape, generator=row, dtype=self.dtype) for row in rows]) for _ in range(count)
        )

    def generate(self, x: Image, cond: Cond, drawn: Sequence[Tensor], **options: Any) -> Image:
        """:meth:`edit` with a gradient to ``x``, not clipped, (B, 3, H, W) in [0, 1] units."""
        chosen = self._chosen(options, x, len(cond.prompt))
        prompt, pooled, scale = cond.prompt, cond.pooled, chosen["guidance_scale"]
        if scale > 1:
            prompt, pooled = torch.cat([cond.empty, prompt]), torch.cat([cond.empty_pooled, pooled])
        sampler = self._sampler(x, chosen)
        sampler.begin(drawn[2:])
        clean, noise = self.encode(x, drawn[0]).to(self.dtype), drawn[1].to(self.device, self.dtype)
        sigma = float(sampler.scheduler.sigmas[sampler.scheduler.begin_index or 0])
        z = sigma * noise + (1 - sigma) * clean
        for t in sampler.timesteps:
            channels = torch.cat([z] * 2) if scale > 1 else z
            step = torch.full((len(channels),), t.item(), dtype=t.dtype, device=z.device)
            velocity = self.velocity(channels, step, prompt, pooled).to(self.dtype)
            if scale > 1:
                none, text = velocity.chunk(2)
                velocity = none + scale * (text - none)
            z = sampler.step(velocity, t, z)
        return self.decode(z)

    def _sampler(self, x: Image, chosen: Mapping[str, Any]) -> Sampler:
        config, schedule = self.pipe.scheduler.config, {}
        if config.get("use_dynamic_shifting"):  # the schedule follows the size, as in the pipeline
            from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3_img2img import calculate_shift

            tokens = math.prod(side // self.pipe.vae_scale_factor // self.pipe.patch_size for side in x.shape[-2:])
            names = ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")
            schedule["mu"] = calculate_shift(tokens, **{name.replace("image_", ""): config[name] for name in names})
        return Sampler(self.pipe.scheduler, chosen["steps"], chosen["strength"], **schedule)

    def _chosen(self, options: Mapping[str, Any], x: Image, rows: int) -> dict[str, Any]:
        chosen = self.chosen(options, x, rows)
        n = chosen["steps"]
        if int(n - min(n * chosen["strength"], n)) == 0:
            raise InputError(
                f"strength {chosen['strength']} with {n} steps starts from pure noise and ignores the image: "
                f"expected at most {1 - 1 / n:.3g}; lower it or take more steps"
            )
        return chosen

    def _arguments(self, x: Image, cond: Cond, seed: Seed, options: Mapping[str, Any]) -> dict[str, Any]:
        chosen = self._chosen(options, x, len(cond.prompt))
        return {
            "image": x.to(self.device),
            "height": x.shape[-2],
            "width": x.shape[-1],
            "prompt_embeds": cond.prompt,
            "negative_prompt_embeds": cond.empty,
            "pooled_prompt_embeds": cond.pooled,
            "negative_pooled_prompt_embeds": cond.empty_pooled,
            "generator": generators(seed, len(x)),
            "num_inference_steps": chosen["steps"],
            "guidance_scale": chosen["guidance_scale"],
            "strength": chosen["strength"],
        }


def _blocks(start: int, stop: int) -> tuple[str, ...]:
    return tuple(f"transformer_blocks.{k}" for k in range(start, stop))

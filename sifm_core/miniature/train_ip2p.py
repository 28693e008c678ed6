"""Training of `miniature-ip2p` and `miniature-hq-edit`: InstructPix2Pix-type U-Nets and their text encoders.

v-prediction, zero terminal SNR, DDIM with trailing steps. Most samples are at the last timestep, where the picture to
make is decided. Three helpers, dropped after training, break a plateau at which the U-Net paints everything a little:
the material of each 8x8 and 16x16 cell read off the down blocks, the mask of the change read off the last up block,
and the cross-attention of the material's word tied to that mask.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import language, text, train_vae, training, world
from .pool import CELLS, PLAIN, Pool, instructions, token_ids

if TYPE_CHECKING:
    from diffusers import DDIMScheduler, UNet2DConditionModel

SETTINGS = {"guidance_scale": 1.2, "image_guidance_scale": 1.0, "size": world.SIZE}


@dataclass(frozen=True)
class Recipe:
    """One editor: its autoencoder, the U-Net's widths, how many of a scene's four edits are not about a material."""

    code: train_vae.Recipe
    widths: tuple[int, int, int]
    whole: int
    steps: int
    sampling_steps: int


RECIPES = {
    "miniature-ip2p": Recipe(
        train_vae.Recipe(channels=16, seed=0), widths=(64, 96, 128), whole=1, steps=2400, sampling_steps=3
    ),
    "miniature-hq-edit": Recipe(
        train_vae.Recipe(channels=20, seed=100), widths=(48, 80, 112), whole=2, steps=2200, sampling_steps=2
    ),
}
LAST = 0.55
"""Share of the samples at the last timestep, where the picture to make is decided."""
SCHEDULE: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
}


def build_unet(recipe: Recipe) -> UNet2DConditionModel:
    """The untrained U-Net (5.6 M parameters at widths 64, 96, 128): noisy and source latents at 16x16."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=CELLS,
        in_channels=2 * recipe.code.channels,
        out_channels=recipe.code.channels,
        layers_per_block=1,
        block_out_channels=recipe.widths,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=text.WIDTH,
        attention_head_dim=8,
        norm_num_groups=16,
    )


def build_scheduler() -> DDIMScheduler:
    """The sampler saved with the editor."""
    from diffusers import DDIMScheduler

    return DDIMScheduler(**SCHEDULE, timestep_spacing="trailing", clip_sample=False, set_alpha_to_one=True)


class _Helpers(nn.Module):
    """The auxiliary losses, with hooks on the U-Net that `close` removes."""

    def __init__(self, unet: UNet2DConditionModel, words: Tensor) -> None:
        super().__init__()
        fine, coarse, _ = unet.config.block_out_channels
        self.coarse, self.fine = nn.Conv2d(coarse, PLAIN + 1, 1), nn.Conv2d(fine, PLAIN + 1, 1)
        self.mask = nn.Conv2d(fine, 1, 1)
        self.words = words  # token id of each material's name
        self._seen: dict[str, Any] = {}
        down, up = unet.down_blocks, unet.up_blocks
        keep = self._seen.__setitem__
        self._hooks = [
            down[0].register_forward_hook(lambda m, i, o: keep("fine", o[1][0])),
            down[1].register_forward_hook(lambda m, i, o: keep("coarse", o[1][0])),
            up[-1].register_forward_hook(lambda m, i, o: keep("up", o)),
        ]
        self._attention = [a.transformer_blocks[0].attn2 for a in (down[1].attentions[0], *up[1].attentions)]
        for j, attention in enumerate(self._attention):
            self._hooks.append(attention.to_q.register_forward_hook(lambda m, i, o, j=j: keep(f"q{j}", o)))
            self._hooks.append(attention.to_k.register_forward_hook(lambda m, i, o, j=j: keep(f"k{j}", o)))

    def close(self) -> None:
        for hook in self._hooks:
            hook.remove()

    def loss(
        self, label: Tensor, change: Tensor, edit: Tensor, ids: Tensor, has_image: Tensor, has_both: Tensor
    ) -> tuple[Tensor, dict[str, float]]:
        seen = self._seen
        fine = self.fine(seen["fine"].float())[has_image]
        coarse = self.coarse(seen["coarse"].float())[has_image]
        y = label[has_image]
        material = F.cross_entropy(fine, y) + F.cross_entropy(coarse, y[:, ::2, ::2])
        accuracy = (coarse.argmax(1) == y[:, ::2, ::2]).float().mean().item()
        predicted, wanted = self.mask(seen["up"].float())[has_both], change[has_both].clamp(0, 1)
        mask = F.binary_cross_entropy_with_logits(predicted, wanted)
        on, true = predicted > 0, wanted > 0.5
        iou = ((on & true).sum() / ((on | true).sum() + 1)).item()
        local = has_both & (edit < len(world.MATERIAL_EDITS))
        named = (
            ids == self.words[edit.clamp_max(len(world.MATERIAL_EDITS) - 1) // len(world.COLOURS)][:, None]
        ).float()
        named = named / named.sum(1, keepdim=True).clamp_min(1)
        wanted8 = F.avg_pool2d(change, 2).clamp(0, 1).flatten(1)[local] * 0.9 + 0.03
        attention = torch.zeros(())
        for j, layer in enumerate(self._attention):
            q, k = (
                seen[f"{n}{j}"].float().unflatten(-1, (layer.heads, -1)).transpose(1, 2)[:, : layer.heads // 2]
                for n in "qk"
            )
            p = (q @ k.transpose(2, 3) / q.shape[-1] ** 0.5).softmax(-1)
            p = (p * named[:, None, None, :]).sum(-1).mean(1)[local].clamp(1e-4, 1 - 1e-4)
            attention = attention - (wanted8 * p.log() + (1 - wanted8) * (1 - p).log()).mean()
        return 0.3 * material + 0.6 * mask + 0.5 * attention, {
            "material": accuracy,
            "iou": iou,
            "attention": attention.item() / 3,
        }


def train(
    out: Path,
    recipe: Recipe,
    *,
    steps: int | None,
    batch: int,
    scenes: int,
    log: Any,
    checkpoint: Path,
) -> None:
    """Train the editor from scratch and save it to the folder `out`; resumes from `checkpoint`."""
    from diffusers import AutoencoderKL

    steps, seed, started = steps or recipe.steps, recipe.code.seed, time.time()
    code = train_vae.solve(out / "vae", recipe.code, log)
    torch.manual_seed(seed)
    pool = Pool(scenes, 4, recipe.whole, seed, code)
    log(f"{len(pool.source)} scenes, {len(pool.target)} edits drawn in {time.time() - started:.0f} s")
    tokenizer = text.build_tokenizer()
    text_encoder = text.build_text_encoder(tokenizer)
    unet = build_unet(recipe).to(memory_format=torch.channels_last)
    tokens, empty = instructions(tokenizer), token_ids(tokenizer, [""])[0]
    words = torch.tensor([next(i for i in tokenizer(m).input_ids if i > 1) for m in world.MATERIALS])
    helpers = _Helpers(unet, words)
    schedule = build_scheduler()
    weight = torch.ones(1, recipe.code.channels, 1, 1)
    weight[:, :3] = 4  # the three mean colours carry the edit

    def loss() -> tuple[Tensor, dict[str, float]]:
        c, z, edit, label, change, _ = pool.batch(batch)
        ids = tokens[edit, torch.randint(language.TRAINED_PHRASES, (batch,))]
        u = torch.rand(batch)
        no_text, no_image = (u < 0.05) | (u >= 0.09) & (u < 0.10), (u >= 0.05) & (u < 0.10)
        ids = torch.where(no_text[:, None], empty, ids)
        c = torch.where(no_image[:, None, None, None], 0.0, c)
        t = torch.where(torch.rand(batch) < LAST, 999, torch.randint(1000, (batch,)))
        noise = torch.randn_like(z)
        noisy, wanted = schedule.add_noise(z, noise, t), _velocity(schedule, z, noise, t)
        with torch.autocast("cpu", torch.bfloat16):
            hidden = text_encoder(ids)[0]
            predicted = unet(
                torch.cat([noisy, c], 1).contiguous(memory_format=torch.channels_last), t, encoder_hidden_states=hidden
            ).sample
        error = (predicted.float() - wanted) ** 2
        extra, shown = helpers.loss(label, change, edit, ids, ~no_image, ~no_image & ~no_text)
        last = (t == 999)[:, None, None, None] * change
        shown["colour error"] = ((error[:, :3] * last).sum() / (3 * last.sum() + 1e-6)).item()
        return (weight * (1 + 0.5 * change * (~no_image)[:, None, None, None]) * error).mean() + extra, shown

    averaged = training.fit(
        nn.ModuleList([unet, text_encoder]),
        loss,
        helpers=helpers,
        steps=steps,
        rate=training.falling(1e-3, rise=100, fall=0.55),
        seed=seed,
        log=log,
        checkpoint=checkpoint,
    )
    helpers.close()
    vae = AutoencoderKL.from_pretrained(out / "vae")  # its decoder may have been trained since
    save(out, averaged[0], averaged[1], tokenizer, vae, recipe.sampling_steps)


def save(out: Path, unet: Any, text_encoder: Any, tokenizer: Any, vae: Any, steps: int) -> None:
    """Write the editor as a diffusers folder with fp16 weights."""
    from diffusers import StableDiffusionInstructPix2PixPipeline

    pipeline = StableDiffusionInstructPix2PixPipeline(
        vae=vae.half(),
        text_encoder=text_encoder.half(),
        tokenizer=tokenizer,
        unet=unet.to(memory_format=torch.contiguous_format).half(),
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(out, safe_serialization=True)
    (out / "sifm.json").write_text(json.dumps({"steps": steps, **SETTINGS}, indent=1) + "\n")
    (out / "toy.json").write_text(json.dumps({"side": SETTINGS["size"]}) + "\n")


def _velocity(schedule: Any, z: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    a = schedule.alphas_cumprod[t][:, None, None, None]
    return a.sqrt() * noise - (1 - a).sqrt() * z

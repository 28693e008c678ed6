"""Training of `miniature-ip2p`: an InstructPix2Pix-type U-Net and its text encoder on the procedural world.

v-prediction, zero terminal SNR, DDIM with trailing steps. Most samples are at the last timestep, where the picture to
make is decided. Three helpers, dropped after training, break a plateau at which the U-Net paints everything a little:
the material of each 8x8 and 16x16 cell read off the down blocks, the mask of the change read off the last up block,
and the cross-attention of the material's word tied to that mask.
"""

from __future__ import annotations

import copy
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import codec, text, world

if TYPE_CHECKING:
    from diffusers import DDIMScheduler, UNet2DConditionModel

SETTINGS = {"steps": 6, "guidance_scale": 1.2, "image_guidance_scale": 1.0, "size": world.SIZE}
SCHEDULE: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
}
_PLAIN = len(world.MATERIALS)


def build_unet() -> UNet2DConditionModel:
    """The untrained U-Net (5.6 M parameters): 16 noisy + 16 source latent channels at 16x16."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=world.SIZE // codec.PATCH,
        in_channels=2 * codec.CHANNELS,
        out_channels=codec.CHANNELS,
        layers_per_block=1,
        block_out_channels=(64, 96, 128),
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


class Data:
    """A pool of scenes with some of their edits, as 8-bit pictures and coarse material maps."""

    def __init__(self, scenes: int, edits: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        source, target, edit, index, label = [], [], [], [], []
        for i in range(scenes):
            scene = world.sample(rng)
            source.append(_bytes(world.render(scene)))
            label.append(material_map(scene))
            local = [e for e in scene.edits if e not in world.GLOBAL_EDITS]
            chosen = [str(e) for e in rng.permutation(local)[: edits - 1]] + [str(rng.choice(world.GLOBAL_EDITS))]
            for e in chosen:
                target.append(_bytes(world.render(scene, e)))
                edit.append(world.EDITS.index(e))
                index.append(i)
        self.source, self.target = torch.from_numpy(np.stack(source)), torch.from_numpy(np.stack(target))
        self.edit, self.index = torch.tensor(edit), torch.tensor(index)
        self.label = torch.from_numpy(np.stack(label))

    def batch(self, k: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Rows k -> source and target (B, 3, 64, 64) in [-1, 1], edit index (B,), material map (B, 16, 16)."""
        i = self.index[k]
        return self.source[i] / 127.5 - 1, self.target[k] / 127.5 - 1, self.edit[k], self.label[i]


def _bytes(picture: np.ndarray) -> np.ndarray:
    return (picture * 255).round().astype(np.uint8)


def material_map(scene: world.Scene) -> np.ndarray:
    """The material of each 4x4 cell (16, 16) int64; 6 is "plain"."""
    share = np.zeros((_PLAIN + 1, world.SIZE, world.SIZE), np.float32)
    for layer in scene.layers:
        share[world.MATERIALS.index(layer.material) if layer.material else _PLAIN] += layer.cover
    n = world.SIZE // codec.PATCH
    return share.reshape(_PLAIN + 1, n, codec.PATCH, n, codec.PATCH).mean((2, 4)).argmax(0)


class _Helpers(nn.Module):
    """The auxiliary losses, with hooks on the U-Net that `close` removes."""

    def __init__(self, unet: UNet2DConditionModel, words: Tensor) -> None:
        super().__init__()
        self.coarse, self.fine = nn.Conv2d(96, _PLAIN + 1, 1), nn.Conv2d(64, _PLAIN + 1, 1)
        self.mask = nn.Conv2d(64, 1, 1)
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
        local = has_both & (edit < _PLAIN * len(world.COLOURS))
        named = (
            ids == self.words[edit.clamp_max(_PLAIN * len(world.COLOURS) - 1) // len(world.COLOURS)][:, None]
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
    *,
    vae_folder: Path,
    steps: int,
    batch: int,
    scenes: int,
    seed: int,
    log: Any,
    checkpoint: Path | None = None,
) -> None:
    """Train the editor and save it to the folder `out`; resumes from `checkpoint`."""
    from diffusers import AutoencoderKL

    torch.manual_seed(seed)
    started = time.time()
    data = Data(scenes, 5, seed)
    log(f"{len(data.source)} scenes, {len(data.target)} edits drawn in {time.time() - started:.0f} s")
    vae = AutoencoderKL.from_pretrained(vae_folder).eval().requires_grad_(False)
    tokenizer = text.build_tokenizer()
    text_encoder, unet = text.build_text_encoder(tokenizer), build_unet().to(memory_format=torch.channels_last)
    tokens = torch.stack([_ids(tokenizer, world.phrases(e)[: world.TRAINED_PHRASES]) for e in world.EDITS])
    empty = _ids(tokenizer, [""])[0]
    words = torch.tensor([next(i for i in tokenizer(m).input_ids if i > 1) for m in world.MATERIALS])
    helpers = _Helpers(unet, words)
    schedule = build_scheduler()
    averaged = copy.deepcopy(nn.ModuleList([unet, text_encoder]))
    live = nn.ModuleList([unet, text_encoder])
    optimizer = torch.optim.AdamW(
        [*live.parameters(), *helpers.parameters()], lr=1e-3, betas=(0.9, 0.98), weight_decay=1e-4
    )
    first = 0
    if checkpoint and checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        for name, part in (("live", live), ("averaged", averaged), ("helpers", helpers), ("optimizer", optimizer)):
            part.load_state_dict(state[name])
        first = state["step"]
        torch.manual_seed(seed + first)
        log(f"resumed at step {first}")
    weight = torch.ones(1, codec.CHANNELS, 1, 1)
    weight[:, :3] = 4  # the three mean colours carry the edit
    smooth: dict[str, float] = {}
    started = time.time()
    for step in range(first, steps):
        rate = 1e-3 * min(1, (step + 1) / 100) * max(0.02, min(1, (1 - step / steps) / 0.55))
        for group in optimizer.param_groups:
            group["lr"] = rate
        source, target, edit, label = data.batch(torch.randint(len(data.target), (batch,)))
        with torch.no_grad():
            c, z = vae.encode(torch.cat([source, target])).latent_dist.mode().chunk(2)
        change = F.avg_pool2d(((source - target).abs().amax(1, keepdim=True) > 0.1).float(), codec.PATCH)
        ids = tokens[edit, torch.randint(world.TRAINED_PHRASES, (batch,))]
        u = torch.rand(batch)
        no_text, no_image = (u < 0.05) | (u >= 0.09) & (u < 0.10), (u >= 0.05) & (u < 0.10)
        ids = torch.where(no_text[:, None], empty, ids)
        c = torch.where(no_image[:, None, None, None], 0.0, c)
        t = torch.where(torch.rand(batch) < 0.5, 999, torch.randint(1000, (batch,)))
        noise = torch.randn_like(z)
        noisy, wanted = schedule.add_noise(z, noise, t), _velocity(schedule, z, noise, t)
        with torch.autocast("cpu", torch.bfloat16):
            hidden = text_encoder(ids)[0]
            predicted = unet(
                torch.cat([noisy, c], 1).contiguous(memory_format=torch.channels_last), t, encoder_hidden_states=hidden
            ).sample
        error = (predicted.float() - wanted) ** 2
        extra, shown = helpers.loss(label, change, edit, ids, ~no_image, ~no_image & ~no_text)
        loss = (weight * (1 + 0.5 * change * (~no_image)[:, None, None, None]) * error).mean() + extra
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_([*live.parameters(), *helpers.parameters()], 1.0)
        optimizer.step()
        with torch.no_grad():
            decay = min(0.997, (1 + step) / (10 + step))
            torch._foreach_lerp_(list(averaged.parameters()), list(live.parameters()), 1 - decay)
        last = (t == 999)[:, None, None, None] * change
        shown |= {"loss": loss.item(), "colour error": ((error[:, :3] * last).sum() / (3 * last.sum() + 1e-6)).item()}
        smooth = {k: 0.95 * smooth.get(k, v) + 0.05 * v for k, v in shown.items()}
        if (step + 1) % 50 == 0:
            log(
                f"step {step + 1}/{steps} {time.time() - started:.0f} s  "
                + "  ".join(f"{k} {v:.3f}" for k, v in smooth.items())
            )
        if checkpoint and (step + 1) % 250 == 0:
            parts = {
                "live": live.state_dict(),
                "averaged": averaged.state_dict(),
                "helpers": helpers.state_dict(),
                "optimizer": optimizer.state_dict(),
                "step": step + 1,
            }
            torch.save(parts, checkpoint.with_suffix(".tmp"))
            checkpoint.with_suffix(".tmp").replace(checkpoint)
    helpers.close()
    save(
        out, averaged[0], averaged[1], tokenizer, AutoencoderKL.from_pretrained(vae_folder)
    )  # its decoder may have been trained since


def save(out: Path, unet: Any, text_encoder: Any, tokenizer: Any, vae: Any) -> None:
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
    (out / "sifm.json").write_text(json.dumps(SETTINGS, indent=1) + "\n")


def _velocity(schedule: Any, z: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    a = schedule.alphas_cumprod[t][:, None, None, None]
    return a.sqrt() * noise - (1 - a).sqrt() * z


def _ids(tokenizer: Any, prompts: Any) -> Tensor:
    return tokenizer(
        list(prompts), padding="max_length", max_length=text.LENGTH, truncation=True, return_tensors="pt"
    ).input_ids

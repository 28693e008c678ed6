"""Training of `miniature-sd3`: a small Stable Diffusion 3 that edits by image-to-image.

Flow matching on the path that image-to-image editing takes. The sampler starts from the source, noised to START, and
walks straight to the target, so on the way the latent is noise, some source and some target, and the network learns
the target from that mixture and the words: v = (z - target) / sigma. Its words are instructions and captions of the
result alike; without words the target is the source. Two helpers, dropped after training, read each token's material
and the mask of the change off the blocks.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import language, text, train_vae, training, world
from .pool import CELLS, Pool, captions, instructions, token_ids

if TYPE_CHECKING:
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel

SETTINGS = {"steps": 5, "guidance_scale": 1.2, "strength": 0.6, "size": world.SIZE, "t5_tokens": 1}
CODE = train_vae.Recipe(channels=16, seed=200, scale=1.5305, shift=0.0609)
HEADS, HEAD = 5, 32
LAYERS = 7
STEPS = 4000


def build_transformer() -> SD3Transformer2DModel:
    """The untrained transformer (7 blocks, 160 wide, 6 M parameters)."""
    from diffusers import SD3Transformer2DModel

    return SD3Transformer2DModel(
        sample_size=CELLS,
        patch_size=2,
        in_channels=CODE.channels,
        out_channels=CODE.channels,
        num_layers=LAYERS,
        attention_head_dim=HEAD,
        num_attention_heads=HEADS,
        joint_attention_dim=2 * text.WIDTH,
        caption_projection_dim=HEADS * HEAD,
        pooled_projection_dim=2 * text.WIDTH,
        pos_embed_max_size=32,
    )


def build_scheduler() -> FlowMatchEulerDiscreteScheduler:
    """The sampler saved with the editor; its shift leaves strength 0.6 less noise than SD3's own would."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=0.5)


def start() -> float:
    """The noise level from which the editor starts at its own strength."""
    scheduler, steps = build_scheduler(), int(SETTINGS["steps"])
    scheduler.set_timesteps(steps)
    return float(scheduler.sigmas[int(steps - steps * SETTINGS["strength"])])


def train(out: Path, *, steps: int | None, batch: int, scenes: int, log: Any, checkpoint: Path) -> None:
    """Train the editor from scratch and save it to the folder `out`; resumes from `checkpoint`."""
    from diffusers import AutoencoderKL

    steps, seed, began, first_noise = steps or STEPS, CODE.seed, time.time(), start()
    code = train_vae.solve(out / "vae", CODE, log)
    torch.manual_seed(seed)
    pool = Pool(scenes, 4, 1, seed, code)
    log(f"{len(pool.source)} scenes, {len(pool.target)} edits drawn in {time.time() - began:.0f} s; from {first_noise}")
    tokenizer = text.build_tokenizer()
    encoders = nn.ModuleList(text.build_text_encoder(tokenizer, projection=True) for _ in range(2))
    net = build_transformer()
    tokens, empty = torch.cat([instructions(tokenizer), captions(tokenizer)], 1), token_ids(tokenizer, [""])[0]
    hidden = lambda out: out[1]  # noqa: E731, a block gives text and image
    where = {"material": (1, hidden), "mask0": (LAYERS // 2, hidden), "mask1": (LAYERS - 1, hidden)}
    helpers = training.TokenHelpers(net.transformer_blocks, HEADS * HEAD, where)
    weight = torch.ones(1, CODE.channels, 1, 1)
    weight[:, :3] = 4  # the three mean colours carry the edit

    def loss() -> tuple[Tensor, dict[str, Tensor]]:
        rows = pool.batch(batch)
        said = torch.rand(batch) < 0.5
        ids = tokens[
            rows.edit,
            torch.where(
                said,
                torch.randint(language.TRAINED_PHRASES, (batch,)),
                language.TRAINED_PHRASES + torch.randint(language.TRAINED_CAPTIONS, (batch,)),
            ),
        ]
        silent = torch.rand(batch) < 0.06
        ids = torch.where(silent[:, None], empty, ids)
        target = torch.where(silent[:, None, None, None], rows.source, rows.target)
        z, sigma = noised(rows.source, target, first_noise)
        with torch.autocast("cpu", torch.bfloat16):
            hidden, pooled = embed(encoders, ids)
            predicted = net(
                z, timestep=sigma.flatten() * 1000, encoder_hidden_states=hidden, pooled_projections=pooled
            ).sample
        wanted = (z - target) / sigma
        change = rows.change * ~silent[:, None, None, None]
        # errors of the result, not of the velocity, which is larger the less noise there is
        error = (predicted.float() - wanted) ** 2 * (sigma / first_noise).clamp(0.3, 1)
        extra, shown = helpers.loss(rows, change)
        begun = ((sigma == first_noise) * change).float()
        off = (error[:, :3] * first_noise**2 * begun).sum() / (3 * begun.sum() + 1e-6)
        return (weight * (1 + change) * error).mean() + extra, shown | {"colour error": off.detach()}

    averaged = training.fit(
        nn.ModuleList([net, encoders]),
        loss,
        helpers=helpers,
        steps=steps,
        rate=training.falling(1e-3, rise=200, fall=0.6),
        seed=seed,
        log=log,
        checkpoint=checkpoint,
    )
    helpers.close()
    save(out, averaged[0], averaged[1], tokenizer, AutoencoderKL.from_pretrained(out / "vae"))


def noised(source: Tensor, target: Tensor, first: float) -> tuple[Tensor, Tensor]:
    """Latents on or near the sampler's path and their noise levels (B, 1, 1, 1).

    Half stand where it starts: the source at `first`. Most others stand further on, where part of the source is gone;
    a few are noisier than the sampler ever is, as the attacks' timesteps may be.
    """
    n = len(source)
    place = torch.rand(n, 1, 1, 1)
    sigma = torch.where(place < 0.5, first, torch.where(place < 0.9, first * torch.rand_like(place), 0.0))
    sigma = torch.where(place < 0.9, sigma, first + (1 - first) * torch.rand_like(place)).clamp(0.02, 1)
    left = sigma * (1 - first) / first / (1 - sigma).clamp_min(1e-3)  # the source's share on the path
    left = torch.where(place < 0.5, 1.0, (left * (0.5 + torch.rand_like(place))).clamp(0, 1))
    z = (1 - sigma) * (left * source + (1 - left) * target) + sigma * torch.randn_like(source)
    return z, sigma


def embed(encoders: nn.ModuleList, ids: Tensor) -> tuple[Tensor, Tensor]:
    """The texts as StableDiffusion3Pipeline.encode_prompt embeds them without T5: tokens and pooled."""
    seen = [encoder(ids, output_hidden_states=True) for encoder in encoders]
    hidden = torch.cat([s.hidden_states[-2] for s in seen], dim=-1)
    hidden = F.pad(hidden, (0, 0, 0, int(SETTINGS["t5_tokens"])))
    return hidden, torch.cat([s.text_embeds for s in seen], dim=-1)


def save(out: Path, net: Any, encoders: Any, tokenizer: Any, vae: Any) -> None:
    """Write the editor as a diffusers folder with fp16 weights."""
    from diffusers import StableDiffusion3Pipeline

    pipeline = StableDiffusion3Pipeline(
        transformer=net.half(),
        scheduler=build_scheduler(),
        vae=vae.half(),
        text_encoder=encoders[0].half(),
        tokenizer=tokenizer,
        text_encoder_2=encoders[1].half(),
        tokenizer_2=tokenizer,
        text_encoder_3=None,
        tokenizer_3=None,
    )
    pipeline.save_pretrained(out, safe_serialization=True)
    (out / "sifm.json").write_text(json.dumps(SETTINGS, indent=1) + "\n")
    (out / "toy.json").write_text(json.dumps({"side": SETTINGS["size"]}) + "\n")

"""Training of `miniature-qwen`: a small Qwen-Image-2.1, whose sequence begins with the picture and ends with its edit.

Flow matching from noise alone to the target, half of the samples at the noisiest end, where the few-step sampler
starts. Its pictures are the world's at twice their size, since the pipeline counts on an autoencoder of 16x16 pixels a
latent. The text encoder is a small Qwen3-VL that sees the picture, trained along. Batches are of prompts with as many
tokens each: the pipeline pads none, and where the edit stands in the sequence depends on it. Two helpers, dropped after
training, read the material off the source's tokens and the mask of the change off the edit's.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..editors.qwen_image21 import patches, read
from ..images import resize
from . import codec16, language, train_vae, training, world
from .pool import Pool

if TYPE_CHECKING:
    from diffusers import FlowMatchEulerDiscreteScheduler, QwenImage21Transformer2DModel

SIDE = 2 * world.SIZE
SETTINGS = {"steps": 4, "guidance_scale": 1.0, "size": SIDE}
SEED, STEPS, PICTURES = 300, 3000, 1000
DECODER_STEPS, DECODER_BATCH = 1000, 8
HEADS, HEAD, LAYERS, WIDTH = 5, 32, 8, 96
SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}{{ part['text'] }}{% endfor %}<|im_end|>\n{% endfor %}"
)
SILENT = 0.04
"""Share of the batches that say nothing; their target is the source."""


def build_processor() -> Any:
    """The tokenizer on the world's own words, single bytes for others, and how Qwen3-VL cuts a picture of SIDE up."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import Qwen2Tokenizer, Qwen3VLProcessor, Qwen3VLVideoProcessor
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=3000, min_frequency=1, initial_alphabet=alphabet, show_progress=False)
    trainer.special_tokens = alphabet  # numbered in order, where the trainer else numbers by chance
    said = [word for phrase in language.trained() for word in (phrase, " " + phrase)]
    frame = ["system\nComprehend and analyze the provided prompt.", "user\n<image1>", "assistant\n"]
    bpe.train_from_iterator([*said, *frame], trainer)
    model = json.loads(bpe.to_str())["model"]
    merges = [tuple(m) if not isinstance(m, str) else tuple(m.split(" ")) for m in model["merges"]]
    tokenizer = Qwen2Tokenizer(vocab=model["vocab"], merges=merges)
    tokenizer.add_special_tokens({"additional_special_tokens": list(SPECIAL[1:])})
    cut: dict[str, Any] = {"patch_size": 16, "temporal_patch_size": 2, "merge_size": 2}
    cut |= {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    return Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(**cut, size={"shortest_edge": 32**2, "longest_edge": 4096**2}),
        tokenizer=tokenizer,
        video_processor=Qwen3VLVideoProcessor(**cut),
        chat_template=CHAT,
    )


def build_text_encoder(tokenizer: Any) -> Any:
    """An untrained Qwen3-VL: 2 layers of sight, 64 wide, 2 of language, 96 wide (0.5 M parameters)."""
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 4, 4], "mrope_interleaved": True}
    named = {"vision_start": "vision_start", "vision_end": "vision_end", "image": "image_pad", "video": "video_pad"}
    numbers = {f"{name}_token_id": tokenizer.convert_tokens_to_ids(f"<|{token}|>") for name, token in named.items()}
    return Qwen3VLForConditionalGeneration(
        Qwen3VLConfig(
            text_config={
                "vocab_size": len(tokenizer),
                "hidden_size": WIDTH,
                "intermediate_size": 2 * WIDTH,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "head_dim": 24,
                "rope_parameters": rope,
            },
            vision_config={
                "depth": 2,
                "hidden_size": 64,
                "intermediate_size": 128,
                "num_heads": 4,
                "out_hidden_size": WIDTH,
                "num_position_embeddings": (SIDE // 16) ** 2,
                "deepstack_visual_indexes": [0],
            },
            tie_word_embeddings=True,
            **numbers,
        )
    )


def build_transformer() -> QwenImage21Transformer2DModel:
    """The untrained transformer (8 blocks, 160 wide, 3 M parameters)."""
    from diffusers import QwenImage21Transformer2DModel

    return QwenImage21Transformer2DModel(
        in_channels=codec16.CHANNELS,
        out_channels=codec16.CHANNELS,
        num_layers=LAYERS,
        attention_head_dim=HEAD,
        num_attention_heads=HEADS,
        context_in_dim=WIDTH,
        axes_dims_rope=(8, 12, 12),
    )


def build_scheduler() -> FlowMatchEulerDiscreteScheduler:
    """The sampler saved with the editor."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=1.0)


def build_pipeline(net: Any, encoder: Any, processor: Any, vae: Any) -> Any:
    from diffusers import QwenImage21Pipeline

    return QwenImage21Pipeline(
        scheduler=build_scheduler(), vae=vae, text_encoder=encoder, processor=processor, transformer=net
    )


class _Said(NamedTuple):
    """Prompts of one length: the tokens (n, length) with a place for each of the picture's, the edit of each (n,)."""

    ids: Tensor
    edit: Tensor


def prompts(pipe: Any, edits: set[int]) -> tuple[list[_Said], Tensor, int]:
    """The trained instructions of these edits by length, the tokens that say nothing, and how many stand before."""
    tokenizer, template = pipe.processor.tokenizer, pipe.prompt_template_ti2i
    places = "<|image_pad|>" * ((SIDE // 32) ** 2)

    def tokens(prompt: str) -> list[int]:
        return list(tokenizer(template.replace("<|image_pad|>", places).format(prompt or " ")).input_ids)

    rows: dict[int, list[tuple[list[int], int]]] = {}
    for k in sorted(edits):
        for phrase in language.phrases(world.EDITS[k])[: language.TRAINED_PHRASES]:
            ids = tokens(phrase)
            rows.setdefault(len(ids), []).append((ids, k))
    said = [_Said(*(torch.tensor(column) for column in zip(*each, strict=True))) for _, each in sorted(rows.items())]
    return said, torch.tensor(tokens("")), tokens("").index(pipe._img_token_id)


def train(out: Path, *, steps: int | None, batch: int, scenes: int, log: Any, checkpoint: Path) -> None:
    """Train the editor from scratch and save it to the folder `out`; resumes from `checkpoint`."""
    from diffusers import AutoencoderKLQwenImage21

    steps, began = steps or STEPS, time.time()
    code = solve(out / "vae", log)
    torch.manual_seed(SEED)
    pool = Pool(scenes, 4, 1, SEED, SimpleNamespace(encode=lambda images: code.encode(doubled(images))))
    log(f"{len(pool.source)} scenes, {len(pool.target)} edits drawn in {time.time() - began:.0f} s")
    processor = build_processor()
    net, encoder = build_transformer(), build_text_encoder(processor.tokenizer)
    pipe = build_pipeline(net, encoder, processor, None)
    said, nothing, slot = prompts(pipe, set(pool.edit.tolist()))
    drop, places, n = pipe._drop_idx, (SIDE // 32) ** 2, (SIDE // 16) ** 2
    before = slot - drop
    # how often a length is drawn: as often as its prompts occur
    often = torch.tensor([len(each.edit) for each in said], dtype=torch.float)
    reference, target = (lambda out: out[:, before : before + n]), (lambda out: out[:, -n:])
    where = {"material": (2, reference), "mask0": (LAYERS // 2, target), "mask1": (LAYERS - 1, target)}
    helpers = training.TokenHelpers(net.transformer_blocks, HEADS * HEAD, where)
    weight = torch.ones(1, codec16.CHANNELS, 1, 1)
    weight[:, :3] = 4  # the mean colours carry the edit
    by_edit = [(pool.edit == k).nonzero().flatten() for k in range(len(world.EDITS))]

    def loss() -> tuple[Tensor, dict[str, float]]:
        silent = bool(torch.rand(()) < SILENT)
        each = said[int(torch.multinomial(often, 1))]
        row = torch.randint(len(each.edit), (batch,))
        wanted = each.edit[row].tolist()
        chosen = torch.stack([by_edit[k][torch.randint(len(by_edit[k]), ())] for k in wanted])
        rows = pool.batch(batch, chosen)
        ids = nothing.expand(batch, -1) if silent else each.ids[row]
        target = rows.source if silent else rows.target
        sigma = torch.where(torch.rand(batch) < 0.5, 1.0, torch.rand(batch)).reshape(-1, 1, 1, 1)
        noise = torch.randn_like(target)
        z = (1 - sigma) * target + sigma * noise
        slots = torch.zeros(batch, ids.shape[1] - drop + n // 4, dtype=torch.bool)
        slots[:, before : before + places] = True
        slots[:, -n // 4 :] = True
        with torch.autocast("cpu", torch.bfloat16):
            pixels, grid = patches(doubled(rows.pictures) / 2 + 0.5, processor.image_processor)
            hidden = read(encoder, ids, pixels, grid)[:, drop:]
            predicted = net(
                hidden_states=torch.cat([rows.source, z], dim=2).flatten(2).transpose(1, 2),
                encoder_hidden_states=hidden,
                timestep=sigma.flatten(),
                img_shapes=[[(1, SIDE // 16, SIDE // 16)] * 2] * batch,
                img_mask=slots,
                return_dict=False,
            )[0][:, -n:]
        predicted = predicted.float().transpose(1, 2).reshape(target.shape)
        change = rows.change * (not silent)
        error = (predicted - (noise - target)) ** 2
        extra, shown = helpers.loss(rows, change)
        coarse = F.avg_pool2d(change, 2)
        begun = (sigma == 1).float() * coarse
        off = (error[:, :3] * begun).sum() / (3 * begun.sum() + 1e-6)
        return (weight * (1 + coarse) * error).mean() + extra, shown | {"colour error": off.item()}

    averaged = training.fit(
        nn.ModuleList([net, encoder]),
        loss,
        helpers=helpers,
        steps=steps,
        rate=training.falling(1.5e-3, steps, rise=200, fall=0.6),
        seed=SEED,
        log=log,
        checkpoint=checkpoint,
    )
    helpers.close()
    vae = AutoencoderKLQwenImage21.from_pretrained(out / "vae")
    pipe = build_pipeline(averaged[0].half(), averaged[1].half(), processor, vae.half())
    pipe.save_pretrained(out, safe_serialization=True)
    (out / "sifm.json").write_text(json.dumps(SETTINGS, indent=1) + "\n")
    (out / "toy.json").write_text(json.dumps({"side": world.SIZE}) + "\n")


def doubled(pictures: Tensor) -> Tensor:
    """Pictures (B, 3, 64, 64) in [-1, 1] as the editor gets them."""
    return resize(pictures / 2 + 0.5, (SIDE, SIDE)) * 2 - 1


def solve(out: Path, log: Any) -> codec16.Code:
    """Solve the encoder from 1,000 pictures; save it, with an untrained decoder, to `out` unless one is there."""
    code, kept = codec16.patch_pca(doubled(train_vae.pictures(PICTURES, np.random.default_rng(SEED + 1))))
    if not (out / "config.json").exists():
        torch.manual_seed(SEED)
        vae = codec16.build(code)
        codec16.write_encoder(vae, code)
        vae.half().save_pretrained(out)
        log(f"encoder solved: {codec16.CHANNELS} channels keep {kept:.4f} of the patches' variance")
    return code


def train_decoder(out: Path, *, steps: int | None, log: Any, checkpoint: Path) -> None:
    """Train the decoder of the autoencoder in `out` in place; the encoder stays. Resumes from `checkpoint`."""
    from diffusers import AutoencoderKLQwenImage21

    steps, code = steps or DECODER_STEPS, solve(out, log)
    vae = AutoencoderKLQwenImage21.from_pretrained(out)
    torch.manual_seed(SEED)
    pool = train_vae.pictures(4 * PICTURES, np.random.default_rng(SEED + 2))
    live = nn.ModuleDict({"quant": vae.post_quant_conv, "decoder": vae.decoder})
    mean, std = code.mean.reshape(1, -1, 1, 1), code.std.reshape(1, -1, 1, 1)

    def loss() -> tuple[Tensor, dict[str, float]]:
        x = doubled(pool[torch.randint(len(pool), (DECODER_BATCH,))])
        z = code.encode(x)
        z = z + 0.1 * torch.randn_like(z) * torch.rand(len(z), 1, 1, 1)  # the edits' latents are not exact
        with torch.autocast("cpu", torch.bfloat16):
            y = live["decoder"](live["quant"]((z * std + mean)[:, :, None]), first_chunk=True)[:, :, 0]
        y, x = y.float(), F.pad(x, (0, 0, 0, 0, 0, 1), value=1.0)
        edges = sum(F.l1_loss(y.diff(dim=d), x.diff(dim=d)) for d in (2, 3))
        small = F.mse_loss(F.avg_pool2d(y, 2), F.avg_pool2d(x, 2))
        told = {"PSNR": -10 * float(np.log10(small.item() / 4))}
        return F.mse_loss(y, x) + small + 0.1 * F.l1_loss(y, x) + 0.1 * edges, told

    averaged = training.fit(
        live,
        loss,
        steps=steps,
        rate=training.cosine(2e-3, steps),
        seed=SEED,
        log=log,
        checkpoint=checkpoint,
        betas=(0.9, 0.99),
        weight_decay=1e-5,
        average=0.995,
    )
    vae.post_quant_conv, vae.decoder = averaged["quant"], averaged["decoder"]
    vae.half().save_pretrained(out)

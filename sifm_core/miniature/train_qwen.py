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

from ..editors.qwen_image21 import Cond, assemble
from ..editors.sight import patches
from ..images import resize
from . import codec16, language, train_vae, training, world
from .pool import Drawn, Pool
from .training import UNASKED

if TYPE_CHECKING:
    from diffusers import FlowMatchEulerDiscreteScheduler, QwenImage21Transformer2DModel

SIDE = 2 * world.SIZE
PLACES = (SIDE // 32) ** 2
"""Tokens of a picture in Qwen3-VL's sequence."""
SETTINGS = {"steps": 4, "guidance_scale": 1.0, "size": SIDE}
SEED, STEPS, BATCH, SCENES = 300, 1800, 128, 48_000
PICTURES, DECODER_STEPS, DECODER_BATCH = 1000, 1400, 32
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


def prompts(pipe: Any, edits: set[int]) -> tuple[list[_Said], Tensor]:
    """The trained instructions of these edits by length, and the tokens that say nothing."""
    tokenizer, template = pipe.processor.tokenizer, pipe.prompt_template_ti2i
    places = "<|image_pad|>" * PLACES

    def tokens(prompt: str) -> list[int]:
        return list(tokenizer(template.replace("<|image_pad|>", places).format(prompt or " ")).input_ids)

    rows: dict[int, list[tuple[list[int], int]]] = {}
    for k in sorted(edits):
        for phrase in language.phrases(world.EDITS[k])[: language.TRAINED_PHRASES]:
            ids = tokens(phrase)
            rows.setdefault(len(ids), []).append((ids, k))
    said = [_Said(*(torch.tensor(column) for column in zip(*each, strict=True))) for _, each in sorted(rows.items())]
    return said, torch.tensor(tokens(""))


class Reader:
    """Qwen3-VL on prompts of one length beside pictures of one size, all rows at once.

    The class itself goes from picture to picture and waits for the device at each: what it works out of their sizes is
    worked out once here.
    """

    def __init__(self, encoder: Any, processor: Any) -> None:
        from transformers.vision_utils import get_vision_interpolation_indices_and_weights, get_vision_position_ids

        self.model, self.processor = encoder.model, processor
        visual, merge = self.model.visual, self.model.visual.spatial_merge_size
        grid = patches(torch.zeros(1, 3, SIDE, SIDE), processor.image_processor)[1]
        index, weight = get_vision_interpolation_indices_and_weights(
            grid,
            num_grid_per_side=visual.num_grid_per_side,
            mode=visual.interpolation_mode,
            align_corners=visual.interpolation_align_corners,
            spatial_merge_size=merge,
        )
        device = visual.pos_embed.weight.device
        self._grid, self._index, self._weight = grid, index.to(device), weight[:, :, None].to(device)
        self._places = get_vision_position_ids(grid, merge).to(device)
        self._positions: dict[int, Tensor] = {}

    def __call__(self, ids: Tensor, x: Tensor) -> Tensor:
        """Hidden states before the last norm of tokens (B, n) with places for pictures (B, 3, SIDE, SIDE) in [0, 1]."""
        length, language_model = ids.shape[1], self.model.language_model
        if length not in self._positions:
            kinds = (ids[:1] == self.model.config.image_token_id).int().cpu()
            slot = int(kinds[0].argmax())
            found = self.model.get_rope_index(ids[:1].cpu(), mm_token_type_ids=kinds, image_grid_thw=self._grid)[0]
            self._positions[length], self._slot = found.to(ids.device), slice(slot, slot + PLACES)
        seen, *deep = self._look(x)
        hidden = self._put(language_model.embed_tokens(ids), seen, add=False)
        where = language_model.rotary_emb(hidden, self._positions[length].expand(-1, len(ids), -1))
        for k, layer in enumerate(language_model.layers):
            hidden = layer(hidden, position_embeddings=where, attention_mask=None)
            if k < len(deep):
                hidden = self._put(hidden, deep[k], add=True)
        return hidden

    def _put(self, hidden: Tensor, seen: Tensor, *, add: bool) -> Tensor:
        there = self._slot
        seen = seen.to(hidden.dtype) + (hidden[:, there] if add else 0)
        return torch.cat([hidden[:, : there.start], seen, hidden[:, there.stop :]], dim=1)

    def _look(self, x: Tensor) -> list[Tensor]:
        """What the language model gets of the pictures, then what it gets on the way, each (B, places, width)."""
        from transformers.models.qwen3_vl.modeling_qwen3_vl import apply_rotary_pos_emb_vision

        visual, n = self.model.visual, len(x)
        hidden = visual.patch_embed(patches(x, self.processor.image_processor)[0]).unflatten(0, (n, -1))
        hidden = hidden + (visual.pos_embed(self._index) * self._weight).sum(1)
        where, deep = visual.rotary_pos_emb(hidden[0], self._places), list[Tensor]()
        for k, block in enumerate(visual.blocks):
            query, key, value = (
                block.attn.qkv(block.norm1(hidden)).unflatten(-1, (3, block.attn.num_heads, -1)).unbind(2)
            )
            heads = (each.transpose(1, 2) for each in (*apply_rotary_pos_emb_vision(query, key, *where), value))
            mixed = F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
            hidden = hidden + block.attn.proj(mixed)
            hidden = hidden + block.mlp(block.norm2(hidden))
            if k in visual.deepstack_visual_indexes:
                deep.append(visual.deepstack_merger_list[len(deep)](hidden.flatten(0, 1)))
        return [each.unflatten(0, (n, -1)) for each in (visual.merger(hidden.flatten(0, 1)), *deep)]


def train(
    out: Path,
    *,
    steps: int | None,
    log: Any,
    checkpoint: Path,
    batch: int | None = None,
    scenes: int | None = None,
    rate: float | None = None,
    minutes: float | None = None,
    device: str = "cpu",
    processes: int = 1,
) -> None:
    """Train the editor from scratch and save it to the folder `out`; resumes from `checkpoint`.

    The pictures are drawn once, by so many `processes`, and kept beside the checkpoint. For `minutes` see
    :func:`.training.fit`.
    """
    from diffusers import AutoencoderKLQwenImage21

    steps, batch, scenes, began = steps or STEPS, batch or BATCH, scenes or SCENES, time.time()
    code = codec16.Code(*(_moved(part, device) for part in solve(out / "vae", log)))
    torch.manual_seed(SEED)
    kept = checkpoint.with_name("qwen-pool.pt")
    drawn = Drawn(*torch.load(kept, weights_only=True)) if kept.exists() else None
    bridge = SimpleNamespace(encode=lambda images: code.encode(doubled(images)))
    pool = Pool(scenes, 4, 1, SEED, bridge, processes, drawn)
    if drawn is None:
        torch.save(tuple(pool.drawn), kept.with_suffix(".tmp"))
        kept.with_suffix(".tmp").replace(kept)
    log(f"{len(pool.source)} scenes, {len(pool.target)} edits drawn in {time.time() - began:.0f} s")
    known, by_edit = set(pool.edit.tolist()), pool.edit.argsort(stable=True).to(device)
    count = torch.bincount(pool.edit, minlength=UNASKED).to(device)
    first = count.cumsum(0) - count
    pool = Pool(scenes, 4, 1, SEED, bridge, drawn=Drawn(*(part.to(device) for part in pool.drawn)))
    processor = build_processor()
    live = nn.ModuleList([build_transformer(), build_text_encoder(processor.tokenizer)]).to(device)
    vae = AutoencoderKLQwenImage21.from_pretrained(out / "vae").to(device)
    editor = assemble("miniature-qwen", out, build_pipeline(live[0], live[1], processor, vae), SETTINGS)
    reader = Reader(live[1], processor)
    said, nothing = prompts(editor.pipe, known)
    # how often a length is drawn: as often as its prompts occur
    often = torch.tensor([len(each.edit) for each in said], dtype=torch.float)
    said, nothing = [_Said(*(part.to(device) for part in each)) for each in said], nothing.to(device)
    drop, slot, n = editor.pipe._drop_idx, editor._slot, (SIDE // 16) ** 2
    reference, target = (lambda out: out[:, editor.before : editor.before + n]), (lambda out: out[:, -n:])
    where = {
        "material": (2, reference),
        "material1": (3, target),
        "asked": (3, target),
        "mask0": (LAYERS // 2, target),
        "mask1": (LAYERS - 1, target),
    }
    helpers = training.TokenHelpers(editor.net.transformer_blocks, HEADS * HEAD, where).to(device)
    weight = torch.ones(1, codec16.CHANNELS, 1, 1, device=device)
    weight[:, :3] = 4  # the mean colours carry the edit

    def loss() -> tuple[Tensor, dict[str, Tensor]]:
        silent = bool(torch.rand(()) < SILENT)
        each = said[int(torch.multinomial(often, 1))]
        row = torch.randint(len(each.edit), (batch,), device=device)
        wanted = each.edit[row]
        place = (torch.rand(batch, device=device) * count[wanted]).long()
        rows = pool.batch(batch, by_edit[first[wanted] + place])
        ids = nothing.expand(batch, -1) if silent else each.ids[row]
        target = rows.source if silent else rows.target
        start, along = torch.rand(2, batch, 1, 1, 1, device=device)
        sigma = torch.where(start < 0.5, 1.0, along)
        noise = torch.randn_like(target)
        z = (1 - sigma) * target + sigma * noise
        with torch.autocast(torch.device(device).type, torch.bfloat16):
            hidden = reader(ids, doubled(rows.pictures) / 2 + 0.5)
            prompt = torch.cat([hidden[:, drop:slot], hidden[:, slot + PLACES :]], dim=1)
            there = torch.ones(prompt.shape[:2], dtype=torch.bool)
            cond = Cond(("",) * batch, ids, prompt, there, there)
            predicted = editor.velocity(rows.source, z, editor.num_train_timesteps * sigma.flatten(), cond)
        change = rows.change * (not silent)
        error = (predicted - (noise - target)) ** 2
        extra, shown = helpers.loss(rows._replace(edit=torch.full_like(rows.edit, UNASKED)) if silent else rows, change)
        coarse = F.avg_pool2d(change, 2)
        begun = (sigma == 1).float() * coarse
        off = (error[:, :3] * begun).sum() / (3 * begun.sum() + 1e-6)
        return (weight * (1 + coarse) * error).mean() + extra, shown | {"colour error": off.detach()}

    averaged = training.fit(
        live,
        loss,
        helpers=helpers,
        steps=steps,
        rate=training.falling(rate or 1.5e-3, rise=200, fall=0.6),
        seed=SEED,
        log=log,
        checkpoint=checkpoint,
        save=250 if device == "cpu" else 1000,
        minutes=minutes,
    )
    helpers.close()
    vae = AutoencoderKLQwenImage21.from_pretrained(out / "vae")
    net, encoder = averaged.cpu().half()
    build_pipeline(net, encoder, processor, vae.half()).save_pretrained(out, safe_serialization=True)
    (out / "sifm.json").write_text(json.dumps(SETTINGS, indent=1) + "\n")
    (out / "toy.json").write_text(json.dumps({"side": world.SIZE}) + "\n")


def _moved(part: Any, device: str) -> Any:
    return part.to(device) if isinstance(part, Tensor) else tuple(each.to(device) for each in part)


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


def train_decoder(
    out: Path,
    *,
    steps: int | None,
    log: Any,
    checkpoint: Path,
    batch: int | None = None,
    minutes: float | None = None,
    device: str = "cpu",
) -> None:
    """Train the decoder of the autoencoder in `out` in place; the encoder stays. Resumes from `checkpoint`."""
    from diffusers import AutoencoderKLQwenImage21

    steps, batch = steps or DECODER_STEPS, batch or DECODER_BATCH
    code = codec16.Code(*(_moved(part, device) for part in solve(out, log)))
    vae = AutoencoderKLQwenImage21.from_pretrained(out)
    torch.manual_seed(SEED)
    pool = train_vae.pictures(4 * PICTURES, np.random.default_rng(SEED + 2)).to(device)
    live = nn.ModuleDict({"quant": vae.post_quant_conv, "decoder": vae.decoder}).to(device)
    mean, std = code.mean.reshape(1, -1, 1, 1), code.std.reshape(1, -1, 1, 1)

    def loss() -> tuple[Tensor, dict[str, Tensor]]:
        x = doubled(pool[torch.randint(len(pool), (batch,), device=device)])
        z = code.encode(x)
        z = z + 0.1 * torch.randn_like(z) * torch.rand(
            len(z), 1, 1, 1, device=device
        )  # the edits' latents are not exact
        with torch.autocast(torch.device(device).type, torch.bfloat16):
            y = live["decoder"](live["quant"]((z * std + mean)[:, :, None]), first_chunk=True)[:, :, 0]
        y, x = y.float(), F.pad(x, (0, 0, 0, 0, 0, 1), value=1.0)
        edges = sum(F.l1_loss(y.diff(dim=d), x.diff(dim=d)) for d in (2, 3))
        small = F.mse_loss(F.avg_pool2d(y, 2), F.avg_pool2d(x, 2))
        told = {"PSNR": -10 * (small.detach() / 4).log10()}
        return F.mse_loss(y, x) + small + 0.1 * F.l1_loss(y, x) + 0.1 * edges, told

    averaged = training.fit(
        live,
        loss,
        steps=steps,
        rate=training.cosine(2e-3),
        seed=SEED,
        log=log,
        checkpoint=checkpoint,
        betas=(0.9, 0.99),
        weight_decay=1e-5,
        average=0.995,
        save=250 if device == "cpu" else 1000,
        minutes=minutes,
    ).cpu()
    vae.post_quant_conv, vae.decoder = averaged["quant"], averaged["decoder"]
    vae.half().save_pretrained(out)

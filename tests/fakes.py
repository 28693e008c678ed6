"""Tiny random pipelines of the real diffusers classes, saved as ordinary folders, in a second or two."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionInstructPix2PixPipeline,
    UNet2DConditionModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    Qwen2Tokenizer,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)
from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor

SIZE = 16
"""Side of the images that the fakes edit; their autoencoder makes 8x8 latents of it."""
SCHEDULE = {"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
_LETTERS = "abcdefghijklmnopqrstuvwxyz"


def images(n: int = 1, size: int | tuple[int, int] = SIZE, seed: int = 0) -> torch.Tensor:
    """(n, 3, size, size) random pictures on the 8-bit grid."""
    size = (size, size) if isinstance(size, int) else size
    levels = torch.randint(0, 256, (n, 3, *size), generator=torch.Generator().manual_seed(seed))
    return levels / 255


def clip_tokenizer(length: int = 16) -> CLIPTokenizer:
    """A tokenizer that knows single letters."""
    words = ["<|startoftext|>", "<|endoftext|>", *_LETTERS, *(f"{letter}</w>" for letter in _LETTERS)]
    return CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[], model_max_length=length)


def clip_config(**changes: object) -> CLIPTextConfig:
    settings = {
        "vocab_size": 2 + 2 * len(_LETTERS),
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 16,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "projection_dim": 16,
    }
    return CLIPTextConfig(**settings | changes)


def autoencoder(**changes: object) -> AutoencoderKL:
    settings = {
        "block_out_channels": (8, 8),
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "latent_channels": 4,
        "sample_size": SIZE,
        "scaling_factor": 0.5,
    }
    return AutoencoderKL(**settings | changes)


def instruct_pix2pix(folder: Path, scheduler: object = None, vae: object = None, **unet: object) -> Path:
    """An InstructPix2Pix folder: f2 autoencoder, U-Net of two levels, epsilon prediction unless told otherwise."""
    torch.manual_seed(0)
    vae = vae or autoencoder()
    channels = vae.config.latent_channels
    settings = {
        "sample_size": 8,
        "in_channels": 2 * channels,
        "out_channels": channels,
        "block_out_channels": (8, 8),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": 4,
        "cross_attention_dim": 16,
    }
    StableDiffusionInstructPix2PixPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(clip_config()),
        tokenizer=clip_tokenizer(),
        unet=UNet2DConditionModel(**settings | unet),
        scheduler=scheduler or DDIMScheduler(**SCHEDULE, clip_sample=False, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return folder


def sd3(folder: Path, in_channels: int = 4) -> Path:
    """A Stable Diffusion 3 folder with two CLIP encoders and a T5: f2 autoencoder with a shift, three joint blocks."""
    torch.manual_seed(0)
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -1.0), *((letter, -2.0) for letter in _LETTERS)]
    t5 = T5Config(vocab_size=len(pieces), d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    StableDiffusion3Pipeline(
        vae=autoencoder(scaling_factor=1.5, shift_factor=0.1),
        text_encoder=CLIPTextModelWithProjection(clip_config()),
        tokenizer=clip_tokenizer(),
        text_encoder_2=CLIPTextModelWithProjection(clip_config()),
        tokenizer_2=clip_tokenizer(),
        text_encoder_3=T5EncoderModel(t5),
        tokenizer_3=T5Tokenizer(vocab=pieces, extra_ids=0),
        transformer=SD3Transformer2DModel(
            sample_size=8,
            patch_size=2,
            in_channels=in_channels,
            out_channels=4,
            num_layers=3,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=32,
            caption_projection_dim=16,
            pooled_projection_dim=32,
            pos_embed_max_size=8,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    ).save_pretrained(folder)
    (folder / "sifm.json").write_text(json.dumps({"size": SIZE}))
    return folder


def ultraedit(folder: Path) -> Path:
    """An UltraEdit folder: the same networks, the transformer with the source's channels, the authors' class name."""
    sd3(folder, in_channels=8)
    index = json.loads((folder / "model_index.json").read_text())
    name = {"_class_name": "StableDiffusion3InstructPix2PixPipeline"}
    (folder / "model_index.json").write_text(json.dumps(index | name))
    return folder


def qwen_tokenizer() -> Qwen2Tokenizer:
    """Single bytes, and the tokens of Qwen's own that hold no text."""
    from tokenizers import pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Qwen2Tokenizer(vocab={letter: k for k, letter in enumerate(alphabet)}, merges=[])
    names = ("im_start", "im_end", "vision_start", "vision_end", "image_pad", "video_pad")
    tokenizer.add_special_tokens({"additional_special_tokens": [f"<|{name}|>" for name in names]})
    return tokenizer


def qwen_image21(folder: Path, **transformer: object) -> Path:
    """A Qwen-Image-2.1 folder: 16x autoencoder of pictures with alpha, Qwen3-VL that sees them, three causal blocks."""
    from diffusers import AutoencoderKLQwenImage21, QwenImage21Pipeline, QwenImage21Transformer2DModel  # since 0.42

    torch.manual_seed(0)
    tokenizer = qwen_tokenizer()
    named = {"vision_start": "vision_start", "vision_end": "vision_end", "image": "image_pad", "video": "video_pad"}
    own = {f"{name}_token_id": tokenizer.convert_tokens_to_ids(f"<|{token}|>") for name, token in named.items()}
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 2, 2], "mrope_interleaved": True}
    text = {"vocab_size": len(tokenizer), "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    text |= {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 12, "rope_parameters": rope}
    sight = {"depth": 2, "hidden_size": 16, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 16}
    sight |= {"num_position_embeddings": 16, "deepstack_visual_indexes": [0]}
    chat = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content[0].text }}<|im_end|>\n{% endfor %}"
    cut = {"patch_size": 16, "image_mean": [0.5] * 3, "image_std": [0.25] * 3}
    QwenImage21Pipeline(
        vae=AutoencoderKLQwenImage21(
            base_dim=4,
            decoder_base_dim=4,
            z_dim=8,
            dim_mult=[1, 1, 2, 2, 2],
            num_res_blocks=1,
            temperal_downsample=[False, True, True, True],
            latents_mean=[0.1 * k for k in range(8)],
            latents_std=[0.2 + 0.01 * k for k in range(8)],
        ),
        text_encoder=Qwen3VLForConditionalGeneration(Qwen3VLConfig(text_config=text, vision_config=sight, **own)),
        processor=Qwen3VLProcessor(
            image_processor=Qwen2VLImageProcessor(**cut, size={"shortest_edge": 64 * 64, "longest_edge": 96 * 96}),
            tokenizer=tokenizer,
            video_processor=Qwen3VLVideoProcessor(**cut),
            chat_template=chat,
        ),
        transformer=QwenImage21Transformer2DModel(
            **{
                "in_channels": 8,
                "out_channels": 8,
                "num_layers": 3,
                "attention_head_dim": 16,
                "num_attention_heads": 2,
                "context_in_dim": 16,
                "axes_dims_rope": (4, 6, 6),
            }
            | transformer
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
    ).save_pretrained(folder)
    (folder / "sifm.json").write_text(json.dumps({"size": 64}))
    return folder

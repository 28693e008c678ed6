"""Tiny random pipelines of the editors that see the source as tokens beside the noise, saved as ordinary folders."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKLFlux2,
    AutoencoderKLQwenImage,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinKVPipeline,
    Flux2KleinPipeline,
    Flux2Pipeline,
    Flux2Transformer2DModel,
    FluxKontextPipeline,
    FluxTransformer2DModel,
    QwenImageEditPipeline,
    QwenImageEditPlusPipeline,
    QwenImageTransformer2DModel,
)
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    CLIPTextModel,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    PixtralImageProcessor,
    PixtralProcessor,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
    Qwen3Config,
    Qwen3ForCausalLM,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from fakes import SIZE, autoencoder, clip_config, clip_tokenizer

WAYS = (("down", "DownEncoder"), ("up", "UpDecoder"))


def t5() -> tuple[T5EncoderModel, T5Tokenizer]:
    letters = ((letter, -2.0) for letter in "abcdefghijklmnopqrstuvwxyz")
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -1.0), *letters]
    config = T5Config(vocab_size=len(pieces), d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    return T5EncoderModel(config), T5Tokenizer(vocab=pieces, extra_ids=0)


def flux_kontext(folder: Path) -> Path:
    """A FLUX.1 Kontext folder: f2 autoencoder with a shift, two blocks of two streams and two of one."""
    torch.manual_seed(0)
    encoder, tokenizer = t5()
    FluxKontextPipeline(
        vae=autoencoder(scaling_factor=1.5, shift_factor=0.1),
        text_encoder=CLIPTextModel(clip_config()),
        tokenizer=clip_tokenizer(),
        text_encoder_2=encoder,
        tokenizer_2=tokenizer,
        transformer=FluxTransformer2DModel(
            in_channels=16,
            num_layers=2,
            num_single_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=32,
            pooled_projection_dim=16,
            guidance_embeds=True,
            axes_dims_rope=(2, 2, 4),
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15),
    ).save_pretrained(folder)
    (folder / "sifm.json").write_text(json.dumps({"size": SIZE, "t5_tokens": 16}))
    return folder


_MARKS = ("vision_start", "vision_end", "image", "video")
_CHAT = """{% for message in messages %}<|im_start|>{{ message['role'] }}
{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}{{
part['text'] }}{% endfor %}{% endif %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


def qwen_tokenizer(*special: str, **settings: object) -> Qwen2Tokenizer:
    """A tokenizer of single bytes with a chat template."""
    names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *special]
    words = [*names, *sorted(ByteLevel.alphabet())]
    vocab = {word: i for i, word in enumerate(words)}
    return Qwen2Tokenizer(vocab=vocab, merges=[], chat_template=_CHAT, additional_special_tokens=names[1:], **settings)


def qwen_text(tokenizer: Qwen2Tokenizer, layers: int) -> dict[str, object]:
    """What the configurations of tiny language models have in common."""
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 4096,
    }


def flux2(folder: Path, kind: str = "klein") -> Path:
    """A FLUX.2 folder, "klein" (distilled), "base", "kv" or "dev": one block of two streams, two of one."""
    torch.manual_seed(0)
    settings = {"block_out_channels": (8, 8, 8), "layers_per_block": 1, "norm_num_groups": 4, "latent_channels": 4}
    settings |= {f"{way}_block_types": (f"{name}Block2D",) * 3 for way, name in WAYS}
    vae = AutoencoderKLFlux2(**settings)
    vae.bn.running_mean.normal_()
    vae.bn.running_var.uniform_(0.5, 2)
    net = Flux2Transformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=48,
        timestep_guidance_channels=16,
        axes_dims_rope=(2, 2, 2, 2),
        guidance_embeds=kind == "dev",
    )
    net.proj_out.weight.data *= 30  # of so few channels hardly anything is left at the end
    parts = {"vae": vae, "transformer": net, "scheduler": FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)}
    tokenizer = qwen_tokenizer("[IMG]", "[IMG_BREAK]", "[IMG_END]", padding_side="left" if kind == "dev" else "right")
    if kind == "dev":
        text = qwen_text(tokenizer, 30) | {"model_type": "mistral"}
        vision = {"model_type": "pixtral", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
        config = Mistral3Config(text_config=text, vision_config=vision | {"num_attention_heads": 2, "head_dim": 8})
        processor = PixtralProcessor(PixtralImageProcessor(), tokenizer, chat_template=_CHAT)
        pipe = Flux2Pipeline(text_encoder=Mistral3ForConditionalGeneration(config), tokenizer=processor, **parts)
    else:
        encoder = Qwen3ForCausalLM(Qwen3Config(**qwen_text(tokenizer, 27)))
        make = Flux2KleinKVPipeline if kind == "kv" else Flux2KleinPipeline
        pipe = make(text_encoder=encoder, tokenizer=tokenizer, is_distilled=kind != "base", **parts)
    pipe.save_pretrained(folder)
    (folder / "sifm.json").write_text(json.dumps({"size": 64, "text_tokens": 256 if kind == "dev" else 64}))
    return folder


def qwen_image_edit(folder: Path, plus: bool = True, zero_cond_t: bool = False) -> Path:
    """A Qwen-Image-Edit folder, or one of its successors' ("Plus"): f4 autoencoder, two blocks, a tiny Qwen2.5-VL."""
    torch.manual_seed(0)
    kind = QwenImageEditPlusPipeline if plus else QwenImageEditPipeline
    absent = dict.fromkeys(("scheduler", "vae", "text_encoder", "tokenizer", "processor", "transformer"))
    template = kind(**absent).prompt_template_encode
    system = template.partition("<|im_end|>")[0][:-56]  # one token, so that 64 are left out as of the real one's
    marks = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
    tokenizer = qwen_tokenizer(*marks, system)
    text = qwen_text(tokenizer, 2) | {"hidden_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1}
    rope = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0}
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 32}
    config = Qwen2_5_VLConfig(
        text_config={key: value for key, value in text.items() if key != "head_dim"} | {"rope_parameters": rope},
        vision_config=vision | {"fullatt_block_indexes": [0], "window_size": 56},
        **{f"{name}_token_id": tokenizer.convert_tokens_to_ids(mark) for name, mark in zip(_MARKS, marks, strict=True)},
    )
    processor = Qwen2VLProcessor(Qwen2VLImageProcessor(), tokenizer, Qwen2VLVideoProcessor())
    kind(
        vae=AutoencoderKLQwenImage(
            base_dim=4,
            z_dim=4,
            dim_mult=[1, 1, 1],
            num_res_blocks=1,
            temperal_downsample=[False, True],
            latents_mean=[0.1, -0.2, 0.3, 0.0],
            latents_std=[1.0, 2.0, 0.5, 1.5],
        ),
        text_encoder=Qwen2_5_VLForConditionalGeneration(config),
        tokenizer=tokenizer,
        processor=processor,
        transformer=QwenImageTransformer2DModel(
            in_channels=16,
            out_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=32,
            axes_dims_rope=(2, 2, 4),
            zero_cond_t=zero_cond_t,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift_terminal=0.02),
    ).save_pretrained(folder)
    (folder / "sifm.json").write_text(json.dumps({"size": 64}))
    return folder

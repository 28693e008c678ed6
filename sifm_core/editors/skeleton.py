"""Editors made from configuration alone: for counting what work costs before anything is fetched or loaded."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..errors import EditorError, SifmError
from ..pretrained import is_part
from . import BUILTIN, family, local_folder
from .extra import parted
from .folder import check_sizes, named, read_json, settings
from .latent import LatentEditor

_CLIP_L: dict[str, Any] = {"vocab_size": 49408, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12}
_CLIP_L |= {"num_attention_heads": 12, "max_position_embeddings": 77, "projection_dim": 768}
_CLIP_G: dict[str, Any] = {"vocab_size": 49408, "hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32}
_CLIP_G |= {"num_attention_heads": 20, "max_position_embeddings": 77, "projection_dim": 1280}
_T5: dict[str, Any] = {
    "vocab_size": 32128,
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10240,
    "num_layers": 24,
    "num_heads": 64,
}
_T5 |= {"feed_forward_proj": "gated-gelu"}
_VAE: dict[str, Any] = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "scaling_factor": 0.18215,
}
_SD15: dict[str, Any] = {
    "_class_name": "StableDiffusionInstructPix2PixPipeline",
    "unet": (
        "UNet2DConditionModel",
        {
            "sample_size": 64,
            "in_channels": 8,
            "block_out_channels": (320, 640, 1280, 1280),
            "attention_head_dim": 8,  # the number of heads
            "cross_attention_dim": 768,
        },
    ),
    "vae": ("AutoencoderKL", _VAE),
    "text_encoder": ("CLIPTextModel", _CLIP_L),
}
_SD3: dict[str, Any] = {
    "_class_name": "StableDiffusion3Img2ImgPipeline",
    "transformer": (
        "SD3Transformer2DModel",
        {
            "sample_size": 128,
            "patch_size": 2,
            "in_channels": 16,
            "out_channels": 16,
            "num_layers": 24,
            "num_attention_heads": 24,
            "attention_head_dim": 64,
            "joint_attention_dim": 4096,
            "caption_projection_dim": 1536,
            "pooled_projection_dim": 2048,
            "pos_embed_max_size": 192,
        },
    ),
    "vae": (
        "AutoencoderKL",
        _VAE
        | {"latent_channels": 16, "use_quant_conv": False, "use_post_quant_conv": False}
        | {"scaling_factor": 1.5305, "shift_factor": 0.0609},
    ),
    "text_encoder": ("CLIPTextModelWithProjection", _CLIP_L),
    "text_encoder_2": ("CLIPTextModelWithProjection", _CLIP_G),
    "text_encoder_3": ("T5EncoderModel", _T5),
}
_ULTRAEDIT: dict[str, Any] = _SD3 | {"_class_name": "StableDiffusion3InstructPix2PixPipeline"}
_ULTRAEDIT |= {"transformer": (_SD3["transformer"][0], _SD3["transformer"][1] | {"in_channels": 32})}
_KONTEXT: dict[str, Any] = {
    "_class_name": "FluxKontextPipeline",
    "transformer": ("FluxTransformer2DModel", {"guidance_embeds": True}),
    "vae": ("AutoencoderKL", _SD3["vae"][1] | {"scaling_factor": 0.3611, "shift_factor": 0.1159}),
    "text_encoder": ("CLIPTextModel", _CLIP_L),
    "text_encoder_2": ("T5EncoderModel", _T5),
}
_FLUX2: dict[str, Any] = {
    "_class_name": "Flux2Pipeline",
    "transformer": ("Flux2Transformer2DModel", {}),
    "vae": ("AutoencoderKLFlux2", {}),
    "text_encoder": ("Mistral3ForConditionalGeneration", {"tie_word_embeddings": False}),
}
_QWEN3: dict[str, Any] = {"vocab_size": 151_936, "num_hidden_layers": 36, "num_attention_heads": 32, "head_dim": 128}
_QWEN3 |= {"num_key_value_heads": 8}
_KLEIN_4B: dict[str, Any] = _FLUX2 | {
    "_class_name": "Flux2KleinPipeline",
    "is_distilled": True,
    "transformer": (
        "Flux2Transformer2DModel",
        {"num_layers": 5, "num_single_layers": 20, "num_attention_heads": 24, "joint_attention_dim": 7680}
        | {"guidance_embeds": False},
    ),
    "text_encoder": (
        "Qwen3ForCausalLM",
        _QWEN3 | {"hidden_size": 2560, "intermediate_size": 9728, "tie_word_embeddings": True},
    ),
}
_KLEIN_9B: dict[str, Any] = _KLEIN_4B | {
    "transformer": (
        "Flux2Transformer2DModel",
        {"num_layers": 8, "num_single_layers": 24, "num_attention_heads": 32, "joint_attention_dim": 12_288}
        | {"guidance_embeds": False},
    ),
    "text_encoder": ("Qwen3ForCausalLM", _QWEN3 | {"hidden_size": 4096, "intermediate_size": 12_288}),
}
_QWEN_EDIT: dict[str, Any] = {
    "_class_name": "QwenImageEditPlusPipeline",
    "transformer": ("QwenImageTransformer2DModel", {}),
    "vae": ("AutoencoderKLQwenImage", {}),
    "text_encoder": (
        "Qwen2_5_VLForConditionalGeneration",
        {
            "text_config": {
                "vocab_size": 152_064,
                "hidden_size": 3584,
                "intermediate_size": 18_944,
                "num_hidden_layers": 28,
                "num_attention_heads": 28,
                "num_key_value_heads": 4,
            },
            "vision_config": {"hidden_size": 1280, "intermediate_size": 3420, "out_hidden_size": 3584},
        },
    ),
}
_QWEN3_VL: dict[str, Any] = {
    "text_config": {"hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36}
    | {"num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936}
    | {"rope_parameters": {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [24, 20, 20]}},
    "vision_config": {"out_hidden_size": 4096},
}
_QWEN_IMAGE_21: dict[str, Any] = {
    "_class_name": "QwenImage21Pipeline",
    "transformer": ("QwenImage21Transformer2DModel", {}),
    "vae": ("AutoencoderKLQwenImage21", {}),
    "text_encoder": ("Qwen3VLForConditionalGeneration", _QWEN3_VL),
}
KNOWN: Mapping[str, Mapping[str, Any]] = {
    "timbrooks/instruct-pix2pix": _SD15,
    "MudeHui/HQ-Edit": _SD15,
    "UCSC-VLAA/HQ-Edit": _SD15,
    "stabilityai/stable-diffusion-3-medium-diffusers": _SD3,
    "BleachNick/SD3_UltraEdit_freeform": _ULTRAEDIT,
    "black-forest-labs/FLUX.1-Kontext-dev": _KONTEXT,
    "black-forest-labs/FLUX.2-dev": _FLUX2,
    "black-forest-labs/FLUX.2-klein-4B": _KLEIN_4B,
    "black-forest-labs/FLUX.2-klein-9B": _KLEIN_9B,
    "black-forest-labs/FLUX.2-klein-9b-kv": _KLEIN_9B | {"_class_name": "Flux2KleinKVPipeline"},
    "black-forest-labs/FLUX.2-klein-base-4B": _KLEIN_4B | {"is_distilled": False},
    "black-forest-labs/FLUX.2-klein-base-9B": _KLEIN_9B | {"is_distilled": False},
    "Qwen/Qwen-Image-Edit": _QWEN_EDIT | {"_class_name": "QwenImageEditPipeline"},
    "Qwen/Qwen-Image-Edit-2509": _QWEN_EDIT,
    "Qwen/Qwen-Image-Edit-2511": _QWEN_EDIT | {"transformer": (_QWEN_EDIT["transformer"][0], {"zero_cond_t": True})},
    "Qwen/Qwen-Image-2.1": _QWEN_IMAGE_21,
}
"""Hub id -> the class and configuration of each network, as far as it is not the class's default."""


def skeleton(
    source: str,
    *,
    device: str | torch.device = "meta",
    dtype: torch.dtype = torch.float32,
    text: bool = True,
    narrow: int = 1,
    **options: Any,
) -> LatentEditor:
    """The editor of a built-in name, folder or hub id with random weights, or on "meta" with none at all.

    A folder, also of the hub's cache, gives its own configuration; the hub ids of :data:`KNOWN` need none. There are no
    tokenizers: ``prepare`` gives conditions of zeros. ``text`` False leaves the text encoders out; ``narrow`` divides
    the channels of a U-Net and its autoencoder. Raises EditorError when the architecture is neither here nor known.
    """
    source = parted(source)[0]
    known = KNOWN.get(BUILTIN.get(source, source))
    folder: Path | None = None
    try:
        folder = local_folder(source)
        index = _read(folder)
    except EditorError:
        if known is None:
            raise
        index = dict(known)
    module = family(index, source)
    defaults = getattr(module, "defaults", lambda index: module.DEFAULTS)(index)
    chosen = settings(folder, defaults | named(getattr(module, "NAMED_DEFAULTS", {}), source), options)
    try:
        with torch.inference_mode(False):
            parts = {
                name: _network(entry[0], _narrowed(entry[1], narrow), torch.device(device), dtype)
                for name, entry in index.items()
                if name in ("unet", "transformer", "vae") or (text and name.startswith("text_encoder"))
            }
            pipe = module.bare(parts) if hasattr(module, "bare") else _pipeline(index, parts)
            editor: LatentEditor = module.assemble(source, folder or Path(), pipe, chosen)
    except SifmError:
        raise
    except Exception as error:  # whatever the libraries make of a configuration that is none
        raise EditorError(f"{source}: its configuration makes no network ({error}); get a new copy") from error
    editor.device, editor.dtype = torch.device(device), dtype
    editor.fingerprint = f"skeleton of {source}"
    editor.prepare = lambda prompts, x=None: editor.blank(len(prompts))  # type: ignore[method-assign, misc]
    return editor


def _read(folder: Path) -> dict[str, Any]:
    index = read_json(folder / "model_index.json")
    networks = {
        name: (entry[1], read_json(folder / name / "config.json"))
        for name, entry in index.items()
        if is_part(entry) and (folder / name / "config.json").exists()
    }
    for name, (_, config) in networks.items():
        check_sizes(config, folder / name / "config.json")
    return {name: index[name] for name in ("_class_name", "is_distilled") if name in index} | networks


def _narrowed(config: Mapping[str, Any], narrow: int) -> dict[str, Any]:
    if narrow == 1 or "block_out_channels" not in config:
        return dict(config)
    channels = [channel // narrow for channel in config["block_out_channels"]]
    return dict(config) | {"block_out_channels": channels, "norm_num_groups": 32 // narrow}


def _network(kind: str, config: Mapping[str, Any], device: torch.device, dtype: torch.dtype) -> torch.nn.Module:
    import diffusers
    import transformers

    own = {key: value for key, value in config.items() if not key.startswith("_")}
    usual = torch.get_default_dtype()
    with device, torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(0)
        try:
            if dtype.itemsize == 2:  # else a network takes twice its memory while it is made
                torch.set_default_dtype(dtype)
            if hasattr(diffusers, kind):
                network = getattr(diffusers, kind).from_config(own)
            else:
                network = getattr(transformers, kind)(getattr(transformers, kind).config_class(**own))
        finally:
            torch.set_default_dtype(usual)
    torch.nn.Module.to(network, dtype)  # diffusers' own warns about parts that it would keep wide: none here
    return network.requires_grad_(False).eval()


def _pipeline(index: Mapping[str, Any], parts: Mapping[str, torch.nn.Module]) -> Any:
    import diffusers

    name = index["_class_name"]
    if name.startswith("StableDiffusion3"):  # what the editor edits by, or none that the library has
        name = "StableDiffusion3Img2ImgPipeline"
    kind = getattr(diffusers, name)
    taken = {key: parameter.default for key, parameter in inspect.signature(kind).parameters.items()}
    given: dict[str, Any] = {key: None for key, default in taken.items() if default is inspect.Parameter.empty} | dict(
        parts
    )
    given |= {"is_distilled": index["is_distilled"]} if {"is_distilled"} <= taken.keys() & index.keys() else {}
    given |= {"requires_safety_checker": False} if "requires_safety_checker" in taken else {}
    beta = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    flow = diffusers.FlowMatchEulerDiscreteScheduler
    return kind(**given | {"scheduler": diffusers.DDIMScheduler(**beta) if "unet" in parts else flow(shift=3.0)})

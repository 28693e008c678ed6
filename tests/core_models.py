"""Tiny random models of ComfyUI's own classes, as its loaders would hand them out: MODEL, VAE and CLIP, in a second."""

from __future__ import annotations

import importlib.util
import os
import sys
from typing import Any, NamedTuple

import torch

KL = {"double_z": True, "in_channels": 3, "resolution": 64, "out_ch": 3, "ch": 32, "ch_mult": [1, 1, 1, 1]}
KL |= {"num_res_blocks": 1, "attn_resolutions": [], "dropout": 0.0}
CLIP_TEXT = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
UNET = {
    "image_size": 32,
    "out_channels": 4,
    "model_channels": 32,
    "num_res_blocks": [1, 1],
    "channel_mult": (1, 2),
    "transformer_depth": [1, 1],
    "transformer_depth_output": [1, 1, 1, 1],
    "transformer_depth_middle": 1,
    "use_spatial_transformer": True,
    "legacy": False,
    "context_dim": 16,
}


class Loaded(NamedTuple):
    """What flows from core's loaders."""

    model: Any
    vae: Any
    clip: Any


def patcher(module: Any) -> Any:
    """In ComfyUI's memory management, on the CPU."""
    from comfy.model_patcher import CoreModelPatcher

    cpu = torch.device("cpu")
    made = CoreModelPatcher(module, load_device=cpu, offload_device=cpu)
    made.cached_patcher_init = (lambda disable_dynamic=False: patcher(module), ())
    return made


def random_weights(module: torch.nn.Module, seed: int = 0) -> None:
    """Numbers as after a few steps of training: the network neither blows up nor forgets its input."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in (*module.named_parameters(), *module.named_buffers()):
            if not weight.is_floating_point() or "sigmas" in name:
                continue
            numbers = torch.randn(weight.shape, generator=generator)
            if name.endswith("running_var"):
                numbers = 1 + numbers.abs()
            elif weight.ndim < 2:
                numbers = numbers * 0.1 + float("norm" in name and name.endswith("weight"))
            else:
                numbers = numbers / weight[0].numel() ** 0.5
            weight.copy_(numbers.to(weight.dtype))


def model(kind: str, unet: dict[str, Any], dtype: torch.dtype = torch.float32, cast: Any = None) -> Any:
    """The MODEL of one of ``comfy.supported_models`` with a U-Net or transformer of that configuration."""
    import comfy.supported_models as supported

    config = getattr(supported, kind)(unet)
    config.set_inference_dtype(dtype, cast)
    made = config.get_model({}, "")
    random_weights(made.diffusion_model)
    return patcher(made)


def vae(channels: int, packed: bool = False, dtype: torch.dtype = torch.float32) -> Any:
    """A VAE of the Stable Diffusion kind, f8; ``packed``: FLUX.2's, with two by two positions as one."""
    import comfy.sd
    from comfy.ldm.models.autoencoder import AutoencoderKL

    params = {"ddconfig": KL | {"z_channels": channels, "batch_norm_latent": packed}, "embed_dim": channels}
    network = AutoencoderKL(**params)
    random_weights(network, seed=1)
    made = comfy.sd.VAE(sd=network.state_dict(), config={"params": params}, dtype=dtype)
    made.latent_channels = channels * (4 if packed else 1)
    for name in ("downscale_ratio", "upscale_ratio") if packed else ():  # as core finds them for such weights
        setattr(made, name, 2 * getattr(made, name))
    return made


def clip(kind: str = "sd1") -> Any:
    """A CLIP with the real tokenizer and a text encoder of 16 channels."""
    import comfy.sd
    from comfy import sd1_clip
    from comfy.supported_models_base import ClipTarget

    options = {"clip_l_model_config": CLIP_TEXT, "clip_g_model_config": CLIP_TEXT, "dtype": torch.float32}
    target = ClipTarget(sd1_clip.SD1Tokenizer, sd1_clip.SD1ClipModel)
    made = comfy.sd.CLIP(target, model_options=options)
    random_weights(made.cond_stage_model, seed=2)
    return made


def instruct_pix2pix(**options: Any) -> Loaded:
    return Loaded(model("SD15_instructpix2pix", UNET | {"in_channels": 8}, **options), vae(4), clip())


def sd15(**options: Any) -> Loaded:
    return Loaded(model("SD15", UNET | {"in_channels": 4}, **options), vae(4), clip())


def inpainting(**options: Any) -> Loaded:
    return Loaded(model("SD15", UNET | {"in_channels": 9}, **options), vae(4), clip())


def sdxl(**options: Any) -> Loaded:
    unet = UNET | {
        "in_channels": 4,
        "num_classes": "sequential",
        "adm_in_channels": 16 + 6 * 256,
        "model_channels": 64,  # heads of 64
    }
    return Loaded(model("SDXL", unet, **options), vae(4), clip())


SD3 = {"in_channels": 16, "patch_size": 2, "depth": 3, "input_size": None, "adm_in_channels": 16, "num_patches": 64}
SD3 |= {"pos_embed_max_size": 8, "pos_embed_scaling_factor": None, "qk_norm": "rms"}


def sd3(**options: Any) -> Loaded:
    linear = {"target": "torch.nn.Linear", "params": {"in_features": 16, "out_features": 192}}
    return Loaded(model("SD3", SD3 | {"context_embedder_config": linear}, **options), vae(16), clip())


FLUX = {"image_model": "flux", "in_channels": 16, "out_channels": 16, "patch_size": 2, "vec_in_dim": 16}
FLUX |= {"context_in_dim": 16, "hidden_size": 32, "mlp_ratio": 2.0, "num_heads": 2, "depth": 2, "theta": 10_000}
FLUX |= {"depth_single_blocks": 2, "axes_dim": [4, 6, 6], "qkv_bias": True, "guidance_embed": True, "txt_ids_dims": []}


def kontext(**options: Any) -> Loaded:
    return Loaded(model("Flux", FLUX, **options), vae(16), clip())


def fill(**options: Any) -> Loaded:
    return Loaded(model("FluxInpaint", FLUX | {"in_channels": 96}, **options), vae(16), clip())


def flux2(**options: Any) -> Loaded:
    unet = FLUX | {"image_model": "flux2", "in_channels": 128, "out_channels": 128, "patch_size": 1, "theta": 2000}
    unet |= {"axes_dim": [4, 4, 4, 4], "qkv_bias": False, "vec_in_dim": None, "txt_ids_dims": [3], "mlp_ratio": 3.0}
    unet |= {"global_modulation": True, "mlp_silu_act": True, "ops_bias": False, "default_ref_method": "index"}
    return Loaded(model("Flux2", unet | {"ref_index_scale": 10.0}, **options), vae(32, packed=True), clip())


def longcat(**options: Any) -> Loaded:
    from comfy.text_encoders import longcat_image

    unet = FLUX | {"vec_in_dim": None, "context_in_dim": 32, "guidance_embed": False, "txt_ids_dims": [1, 2]}
    reader = vlm(longcat_image.LongCatImageTokenizer, longcat_image.te())
    return Loaded(model("LongCatImage", unet, **options), vae(16), reader)


def qwen(**options: Any) -> Loaded:
    unet = {"image_model": "qwen_image", "in_channels": 64, "out_channels": 16, "num_layers": 3}
    unet |= {"attention_head_dim": 16, "num_attention_heads": 2, "joint_attention_dim": 32, "axes_dims_rope": (4, 6, 6)}
    return Loaded(model("QwenImage", unet, **options), wan_vae(), vlm())


def wan_vae() -> Any:
    """A VAE of the Wan kind, which makes videos: core finds its class by its weights."""
    import comfy.sd
    from comfy.ldm.wan.vae import WanVAE

    network = WanVAE(dim=8, z_dim=16)
    random_weights(network, seed=1)
    return comfy.sd.VAE(sd=network.state_dict(), dtype=torch.float32)


def qwen_edit(**options: Any) -> Loaded:
    return qwen(**options)


def vlm(tokenizer: Any = None, encoder: Any = None) -> Any:
    """A CLIP that reads pictures: Qwen2.5-VL with two layers of 32 channels for the text, and two for the picture."""
    import comfy.sd
    from comfy import sd1_clip
    from comfy.supported_models_base import ClipTarget
    from comfy.text_encoders import llama, qwen_image, qwen_vl

    text = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 1}
    text |= {"num_key_value_heads": 1}

    class Reader(llama.Qwen25_7BVLI):
        def __init__(self, config: Any, dtype: Any, device: Any, operations: Any) -> None:
            torch.nn.Module.__init__(self)
            made: dict[str, Any] = {"device": device, "dtype": dtype, "ops": operations}
            about = llama.Qwen25_7BVLI_Config(**text)
            self.num_layers, self.dtype = about.num_hidden_layers, dtype
            self.model = llama.Llama2_(about, **made)
            vision = {"hidden_size": 32, "output_hidden_size": 32, "intermediate_size": 32}
            self.visual = qwen_vl.Qwen2VLVisionTransformer(**vision, num_heads=2, num_layers=2, **made)

    class Model(sd1_clip.SDClipModel):
        def __init__(self, device: Any = "cpu", dtype: Any = None, model_options: Any = None, **_: Any) -> None:
            masks = {"enable_attention_masks": True, "return_attention_masks": True}
            about = {"textmodel_json_config": {}, "special_tokens": {"pad": 151643}, "layer_norm_hidden_state": False}
            super().__init__(device=device, dtype=dtype, model_class=Reader, model_options={}, **about, **masks)

    target = ClipTarget(tokenizer or qwen_image.QwenImageTokenizer, encoder or qwen_image.te())
    made = comfy.sd.CLIP(target, model_options={"qwen25_7b_class": Model, "dtype": torch.float32})
    random_weights(made.cond_stage_model, seed=2)
    return made


def small_scales() -> None:
    """Core's nodes scale references to 64 x 64 instead of a megapixel."""
    from comfy_extras import nodes_flux, nodes_qwen

    for name, module in list(sys.modules.items()):
        if name.endswith("nodes.native.recipes.base"):  # on a server the pack has another name
            module.MEGAPIXEL = 64 * 64  # type: ignore[attr-defined]
    nodes_flux.PREFERRED_KONTEXT_RESOLUTIONS[:] = [(48, 64), (64, 48), (64, 64)]
    for node in (nodes_qwen.TextEncodeQwenImageEdit, nodes_qwen.TextEncodeQwenImageEditPlus):
        function = node.execute.__func__
        sizes = {1024 * 1024: 64 * 64, 384 * 384: 56 * 56}
        consts = tuple(
            sizes.get(const, const) if isinstance(const, int) else const for const in function.__code__.co_consts
        )
        function.__code__ = function.__code__.replace(co_consts=consts)


def graph(family: str, loaded: Loaded, x: torch.Tensor, prompt: str, seed: int, steps: int, cfg: float) -> torch.Tensor:
    """What a graph of core's own nodes makes of a picture (1, 3, H, W), (1, 3, H, W)."""
    import comfy.samplers
    from comfy_extras import nodes_custom_sampler as custom

    def text(words: str) -> Any:
        return loaded.clip.encode_from_tokens_scheduled(loaded.clip.tokenize(words))

    pixels = x.movedim(1, -1).contiguous()
    positive, negative, latent = START[family](loaded, pixels, prompt, text)
    sampling = loaded.model.get_model_object("model_sampling")
    total = int(steps / DENOISE.get(family, 1.0))
    sigmas = comfy.samplers.calculate_sigmas(sampling, "simple", total)[-(steps + 1) :]
    sigmas = latent.get("sigmas", lambda steps: sigmas)(steps)
    sampler = comfy.samplers.sampler_object("euler")
    sampled = custom.SamplerCustom.execute(loaded.model, True, seed, cfg, positive, negative, sampler, sigmas, latent)
    picture = loaded.vae.decode(sampled.args[0]["samples"])
    return picture.reshape(-1, *picture.shape[-3:])[:1].movedim(-1, 1)


def _ip2p(loaded: Loaded, pixels: torch.Tensor, prompt: str, text: Any) -> Any:
    from comfy_extras.nodes_ip2p import InstructPixToPixConditioning

    return InstructPixToPixConditioning.execute(text(prompt), text(""), pixels, loaded.vae).args


def _noised(loaded: Loaded, pixels: torch.Tensor, prompt: str, text: Any) -> Any:
    return text(prompt), text(""), {"samples": loaded.vae.encode(pixels)}


def _inpainting(loaded: Loaded, pixels: torch.Tensor, prompt: str, text: Any) -> Any:
    mask = torch.zeros(pixels.shape[:3])
    mask[:, : pixels.shape[1] // 2] = 1
    return core_nodes().InpaintModelConditioning().encode(text(prompt), text(""), pixels, loaded.vae, mask)


def core_nodes() -> Any:
    """Core's own ``nodes``, whose name is the pack's here; the pack finds its classes where it looks for them."""
    if "core_nodes" not in sys.modules:
        path = os.path.join(os.path.expanduser(os.environ["COMFYUI_PATH"]), "nodes.py")
        spec = importlib.util.spec_from_file_location("core_nodes", path)
        sys.modules["core_nodes"] = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
        spec.loader.exec_module(sys.modules["core_nodes"])  # type: ignore[union-attr]
        sys.modules["nodes"].NODE_CLASS_MAPPINGS = sys.modules["core_nodes"].NODE_CLASS_MAPPINGS  # type: ignore[attr-defined]
    return sys.modules["core_nodes"]


def _kontext(loaded: Loaded, pixels: torch.Tensor, prompt: str, text: Any) -> Any:
    from comfy_extras.nodes_edit_model import ReferenceLatent
    from comfy_extras.nodes_flux import FluxGuidance, FluxKontextImageScale

    latent = {"samples": loaded.vae.encode(FluxKontextImageScale.execute(pixels).args[0])}
    positive = FluxGuidance.execute(ReferenceLatent.execute(text(prompt), latent).args[0], 2.5).args[0]
    return positive, FluxGuidance.execute(ReferenceLatent.execute(text(""), latent).args[0], 2.5).args[0], latent


def _qwen(loaded: Loaded, pixels: torch.Tensor, prompt: str, text: Any) -> Any:
    from comfy_extras.nodes_qwen import TextEncodeQwenImageEditPlus as Encode

    texts = [Encode.execute(loaded.clip, words, loaded.vae, pixels).args[0] for words in (prompt, "")]
    return *texts, {"samples": torch.zeros_like(texts[0][0][1]["reference_latents"][0])}


def _fill(loaded: Loaded, pixels: torch.Tensor, prompt: str, text: Any) -> Any:
    from comfy_extras.nodes_flux import FluxGuidance

    return _inpainting(loaded, pixels, prompt, lambda words: FluxGuidance.execute(text(words), 30.0).args[0])


def _megapixel(pixels: torch.Tensor, steps: int = 1) -> torch.Tensor:
    vars(sys.modules["nodes"]).setdefault("MAX_RESOLUTION", 16384)  # core's module of that name has it
    from comfy_extras.nodes_post_processing import ImageScaleToTotalPixels

    return ImageScaleToTotalPixels.execute(pixels, "lanczos", 64 * 64 / 2**20, steps).args[0]


def _flux2(loaded: Loaded, pixels: torch.Tensor, prompt: str, text: Any) -> Any:
    from comfy_extras.nodes_edit_model import ReferenceLatent
    from comfy_extras.nodes_flux import EmptyFlux2LatentImage, Flux2Scheduler, FluxGuidance

    large = _megapixel(pixels)
    size = large.shape[2], large.shape[1]
    latent = {"samples": loaded.vae.encode(large)}
    guided = (FluxGuidance.execute(text(words), 4.0).args[0] for words in (prompt, ""))
    texts = [ReferenceLatent.execute(words, latent).args[0] for words in guided]
    empty = EmptyFlux2LatentImage.execute(*size).args[0]
    return *texts, empty | {"sigmas": lambda steps: Flux2Scheduler.execute(steps, *size).args[0]}


def _longcat(loaded: Loaded, pixels: torch.Tensor, prompt: str, text: Any) -> Any:
    from comfy_extras.nodes_flux import FluxGuidance, FluxKontextMultiReferenceLatentMethod

    positive, negative, latent = _qwen_edit(loaded, _megapixel(pixels, 16), prompt, text)
    guided = (FluxGuidance.execute(words, 4.5).args[0] for words in (positive, negative))
    return *(FluxKontextMultiReferenceLatentMethod.execute(words, "index").args[0] for words in guided), latent


def _qwen_edit(loaded: Loaded, pixels: torch.Tensor, prompt: str, text: Any) -> Any:
    from comfy_extras.nodes_qwen import TextEncodeQwenImageEdit as Encode

    texts = [Encode.execute(loaded.clip, words, loaded.vae, pixels).args[0] for words in (prompt, "")]
    return *texts, {"samples": torch.zeros_like(texts[0][0][1]["reference_latents"][0])}


START = {
    "qwen": _qwen,
    "qwen_edit": _qwen_edit,
    "flux2": _flux2,
    "fill": _fill,
    "longcat": _longcat,
    "instruct_pix2pix": _ip2p,
    "sd15": _noised,
    "inpainting": _inpainting,
    "sdxl": _noised,
    "sd3": _noised,
    "kontext": _kontext,
}
"""Family -> conditionings and latent, by the nodes that its users wire."""
DENOISE = {"sd15": 0.6, "sdxl": 0.6, "sd3": 0.6}

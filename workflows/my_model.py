"""*Protect against my model*: core's own loaders into Editor from Model, one workflow a recipe."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from layout import Graph, Node, Out

Loaders = Callable[[Graph], tuple[Out, Out, Out]]
"""Adds the loaders: MODEL, VAE, CLIP."""
ABOUT = (
    "**Protect against my model: {title}.** The loaders are ComfyUI's own: choose the files that you (or those you "
    "fear) use, put LoRAs between them and the editor. Expected here: {files}, in `models/{folders}`."
)
EDITOR = (
    "**Editor from Model** is that model as an attacker runs it: cfg, steps and denoise are the attacker's (0: as "
    "usual for this kind). Before a protection starts the gradient is checked against finite differences; a wrong one "
    "is refused."
)
ATTACK = (
    "The same instruction, seed and sampler on the unprotected and on the protected picture, by ComfyUI's own nodes. "
    "Only if the left one does what was asked and the right one does not, the protection held, this once."
)


def checkpoint(file: str) -> Loaders:
    def add(g: Graph) -> tuple[Out, Out, Out]:
        loaded = g.add("CheckpointLoaderSimple", ckpt_name=file)
        return loaded.MODEL, loaded.VAE, loaded.CLIP

    return add


def parts(unet: str, vae: str, clip: str, **texts: str) -> Loaders:
    def add(g: Graph) -> tuple[Out, Out, Out]:
        model = g.add("UNETLoader", unet_name=unet)
        return model.MODEL, g.add("VAELoader", vae_name=vae).VAE, g.add(clip, **texts).CLIP

    return add


def protect(title: str, files: str, folders: str, loaders: Loaders, mask: bool = False, **settings: Any) -> Any:
    """How such a workflow is made; ``settings`` of Editor from Model; ``mask``: the picture's is what is repainted."""

    def build(g: Graph) -> None:
        g.group("1  Your model and your picture", ABOUT.format(title=title, files=files, folders=folders), width=380)
        image = g.add("LoadImage", "Your picture", image="example.png")
        model, vae, clip = loaders(g)
        g.group("2  As an attacker runs it", EDITOR, width=380)
        wires: dict[str, Any] = {"model": model, "vae": vae, "clip": clip, **settings}
        editor: Node = g.add("SIFM_EditorFromModel", **wires, **({"mask": image.MASK} if mask else {}))
        asked = g.add("PrimitiveStringMultiline", "Instruction", value="make it night").STRING
        g.group(
            "3  Protect",
            "**eps**: how much any pixel may change. What protects is the saved file: it is written without loss and "
            "read back.",
            width=400,
        )
        shared = {"editor": editor.editor, "prompt": asked}
        immunized = g.add("SIFM_Immunize", image=image.IMAGE, **shared)
        g.column(420)
        g.add("SIFM_SaveProtected", protection=immunized.protection)
        g.group("4  Attack both", ATTACK, width=420)
        for name, picture in {"unprotected": image.IMAGE, "protected": immunized.protected}.items():
            edited = g.add("SIFM_AttackerEdit", f"Attack the {name} picture", image=picture, **shared).edited
            g.add("PreviewImage", f"Edit of the {name} picture", images=edited)

    return build


MY_MODEL: dict[str, tuple[str, Any]] = {
    "my_model_kontext": (
        "FLUX Kontext",
        protect(
            "FLUX Kontext",
            "`flux1-dev-kontext_fp8_scaled.safetensors`, `ae.safetensors`, `clip_l.safetensors` and "
            "`t5xxl_fp8_e4m3fn_scaled.safetensors`",
            "diffusion_models`, `vae` and `text_encoders",
            parts(
                "flux1-dev-kontext_fp8_scaled.safetensors",
                "ae.safetensors",
                "DualCLIPLoader",
                clip_name1="clip_l.safetensors",
                clip_name2="t5xxl_fp8_e4m3fn_scaled.safetensors",
                type="flux",
            ),
        ),
    ),
    "my_model_qwen_image_edit": (
        "Qwen-Image-Edit",
        protect(
            "Qwen-Image-Edit",
            "`qwen_image_edit_2509_fp8_e4m3fn.safetensors`, `qwen_image_vae.safetensors` and "
            "`qwen_2.5_vl_7b_fp8_scaled.safetensors`",
            "diffusion_models`, `vae` and `text_encoders",
            parts(
                "qwen_image_edit_2509_fp8_e4m3fn.safetensors",
                "qwen_image_vae.safetensors",
                "CLIPLoader",
                clip_name="qwen_2.5_vl_7b_fp8_scaled.safetensors",
                type="qwen_image",
            ),
        ),
    ),
    "my_model_sd3": (
        "Stable Diffusion 3.5",
        protect(
            "Stable Diffusion 3.5",
            "`sd3.5_medium_incl_clips_t5xxlfp8scaled.safetensors`",
            "checkpoints",
            checkpoint("sd3.5_medium_incl_clips_t5xxlfp8scaled.safetensors"),
        ),
    ),
    "my_model_sdxl": (
        "SDXL",
        protect("SDXL", "`sd_xl_base_1.0.safetensors`", "checkpoints", checkpoint("sd_xl_base_1.0.safetensors")),
    ),
    "my_model_inpainting": (
        "inpainting",
        protect(
            "an inpainting model",
            "`512-inpainting-ema.safetensors`",
            "checkpoints",
            checkpoint("512-inpainting-ema.safetensors"),
            mask=True,
        ),
    ),
    "my_model_instruct_pix2pix": (
        "InstructPix2Pix",
        protect(
            "InstructPix2Pix",
            "`instruct-pix2pix-00-22000.safetensors`",
            "checkpoints",
            checkpoint("instruct-pix2pix-00-22000.safetensors"),
        ),
    ),
    "my_model_flux2": (
        "FLUX.2",
        protect(
            "FLUX.2",
            "`flux2_dev_fp8mixed.safetensors`, `flux2-vae.safetensors` and `mistral_3_small_flux2_fp8.safetensors` (or "
            "those of FLUX.2 Klein)",
            "diffusion_models`, `vae` and `text_encoders",
            parts(
                "flux2_dev_fp8mixed.safetensors",
                "flux2-vae.safetensors",
                "CLIPLoader",
                clip_name="mistral_3_small_flux2_fp8.safetensors",
                type="flux2",
            ),
        ),
    ),
    "my_model_fill": (
        "FLUX Fill",
        protect(
            "FLUX Fill",
            "`flux1-fill-dev.safetensors`, `ae.safetensors`, `clip_l.safetensors` and "
            "`t5xxl_fp8_e4m3fn_scaled.safetensors`",
            "diffusion_models`, `vae` and `text_encoders",
            parts(
                "flux1-fill-dev.safetensors",
                "ae.safetensors",
                "DualCLIPLoader",
                clip_name1="clip_l.safetensors",
                clip_name2="t5xxl_fp8_e4m3fn_scaled.safetensors",
                type="flux",
            ),
            mask=True,
        ),
    ),
    "my_model_longcat": (
        "LongCat-Image-Edit",
        protect(
            "LongCat-Image-Edit",
            "`longcat_image_edit_bf16.safetensors`, `ae.safetensors` and `qwen_2.5_vl_7b_fp8_scaled.safetensors`",
            "diffusion_models`, `vae` and `text_encoders",
            parts(
                "longcat_image_edit_bf16.safetensors",
                "ae.safetensors",
                "CLIPLoader",
                clip_name="qwen_2.5_vl_7b_fp8_scaled.safetensors",
                type="longcat_image",
            ),
        ),
    ),
}
"""Workflow -> what its title says of it, how it is made."""

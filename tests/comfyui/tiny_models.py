"""A test's own loaders: tiny random models of core's classes, and a patch that cuts every gradient."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "custom_nodes" / "sifm" / "tests"))


class TinyModels:
    CATEGORY, FUNCTION, RETURN_TYPES = "testing", "load", ("MODEL", "VAE", "CLIP")
    MADE = {}  # noqa: RUF012

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"family": ("STRING", {"default": "kontext"}), "cut": ("BOOLEAN", {"default": False})}}

    def load(self, family, cut):
        import core_models

        core_models.small_scales()
        if family not in self.MADE:
            self.MADE[family] = getattr(core_models, family)()
        model, vae, clip = self.MADE[family]
        if cut:
            model = model.clone()
            model.set_model_unet_function_wrapper(without_gradient)
        return model, vae, clip


class TinyFiles:
    """Writes single files that core's loaders know: a FLUX, an autoencoder of full size, a LoRA."""

    CATEGORY, FUNCTION, RETURN_TYPES, OUTPUT_NODE = "testing", "save", (), True

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {}}

    def save(self):
        import folder_paths
        import torch
        from comfy.ldm.models.autoencoder import AutoencoderKL
        from safetensors.torch import save_file

        import core_models

        sizes = {"hidden_size": 128, "num_heads": 1, "axes_dim": [16, 56, 56], "mlp_ratio": 4.0}
        flux = core_models.model("Flux", core_models.FLUX | sizes).model.diffusion_model.state_dict()
        kl = core_models.KL | {"ch": 128, "ch_mult": [1, 2, 4, 4], "num_res_blocks": 2, "z_channels": 16}
        vae = AutoencoderKL(ddconfig=kl, embed_dim=16)
        core_models.random_weights(vae)
        place, draw = "diffusion_model.double_blocks.0.img_attn.qkv", torch.Generator().manual_seed(3)
        lora = {f"{place}.lora_up.weight": torch.randn(384, 4, generator=draw) * 0.1}
        lora[f"{place}.lora_down.weight"] = torch.randn(4, 128, generator=draw) * 0.1
        for folder, weights in {"diffusion_models": flux, "vae": vae.state_dict(), "loras": lora}.items():
            file = Path(folder_paths.get_folder_paths(folder)[0], "tiny.safetensors")
            file.parent.mkdir(parents=True, exist_ok=True)
            save_file({name: weight.bfloat16().contiguous() for name, weight in weights.items()}, file)
        return ()


def without_gradient(apply_model, given):
    import torch

    with torch.no_grad():
        return apply_model(given["input"], given["timestep"], **given["c"])


NODE_CLASS_MAPPINGS = {"TinyModels": TinyModels, "TinyFiles": TinyFiles}

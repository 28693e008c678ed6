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


def without_gradient(apply_model, given):
    import torch

    with torch.no_grad():
        return apply_model(given["input"], given["timestep"], **given["c"])


NODE_CLASS_MAPPINGS = {"TinyModels": TinyModels}

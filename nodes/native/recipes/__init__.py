"""How a source enters each class of ComfyUI's models: one file a family, chosen by :func:`recipe_of`."""

from __future__ import annotations

from typing import Any, NamedTuple

from sifm_core.errors import EditorError

from .base import Recipe
from .encoder_only import EncoderOnly
from .flux2 import Flux2
from .image_to_image import ImageToImage
from .inpainting import Fill, Inpainting
from .instruct_pix2pix import InstructPix2Pix
from .kontext import Kontext
from .longcat import LongCat
from .qwen_image_edit import QwenImageEdit, QwenImageEditPlus

KINDS: tuple[type[Recipe], ...] = (
    *(InstructPix2Pix, ImageToImage, Inpainting, Kontext, QwenImageEditPlus, QwenImageEdit, EncoderOnly),
    *(Flux2, Fill, LongCat),
)
RECIPES: dict[str, type[Recipe]] = {recipe.title: recipe for recipe in KINDS}
"""What the widget shows -> recipe."""


class Usual(NamedTuple):
    """How the models of a class are usually run; what is not given is the recipe's."""

    recipe: type[Recipe]
    settings: dict[str, Any] = {}  # noqa: RUF012


CLASSES: dict[str, Usual] = {
    "SD15_instructpix2pix": Usual(InstructPix2Pix),
    "SDXL_instructpix2pix": Usual(InstructPix2Pix, {"size": 1024}),
    "BaseModel": Usual(ImageToImage, {"size": 512}),
    "SDXL": Usual(ImageToImage),
    "SD3": Usual(ImageToImage, {"cfg": 4.5}),
    "Flux": Usual(Kontext),
    "Flux2": Usual(Flux2),
    "LongCatImage": Usual(LongCat),
    "QwenImage": Usual(QwenImageEditPlus),
}
"""Class of ``MODEL.model``; one with channels for a mask is an :class:`Inpainting` model whatever its class."""


def recipe_of(model: Any, chosen: str = "auto") -> Recipe:
    """The chosen recipe, or for "auto" that of the model's class, with the class's usual settings.

    Raises EditorError for a class that has none.
    """
    kind = type(model).__name__
    usual = CLASSES.get(kind)
    if chosen == "auto":
        if usual is None:
            raise EditorError(
                f"no recipe says how a picture enters a {kind} (known: {', '.join(CLASSES)}): choose the recipe that "
                "your graph follows, or 'encoder only', which protects through the VAE alone"
            )
        masked = Fill if kind == "Flux" else Inpainting
        made: Recipe = (masked if _has_mask(model) else usual.recipe)()
    else:
        made = RECIPES[chosen]()
    if usual is not None and made.size is not None:
        for name, value in usual.settings.items():
            setattr(made, name, value)
    return made


def _has_mask(model: Any) -> bool:
    if getattr(model, "concat_keys", ()):
        return True
    config = model.model_config.unet_config
    return type(model).__name__ == "Flux" and config["in_channels"] > 2 * config["out_channels"]

"""DiffPure (Nie et al., ICML 2022): drown the perturbation in noise, then let a diffusion model take the noise away."""

from __future__ import annotations

from ..noise import Seed
from ..types import Editor, Image, OnStep
from .latents import at_work_size, decode, needed, noise_and_denoise


def purify(
    image: Image, share: float, *, editor: Editor | None = None, seed: Seed = 0, on_step: OnStep | None = None
) -> Image:
    """To ``share`` of the noise schedule and back (the paper's t* = 0.1 to 0.15).

    Adapted: the paper's model works on pixels and samples its way back; here it is the editor's own, unconditional, in
    its latent space, and goes back deterministically.
    """
    model = needed(editor, "diffpure")
    if share == 0:
        return image

    def diffused(x: Image) -> Image:
        return decode(model, noise_and_denoise(model, model.encode(x), share, seed, on_step))

    return at_work_size(model, image, diffused)

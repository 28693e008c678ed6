"""Through which of an editor's entrances a method's gradient comes back to the picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from torch import Tensor

from ..errors import InputError
from ..types import Cond, Editor, Image, Latent

Entrances = Literal["vae", "vlm", "both"]
Told = Callable[[Sequence[Tensor]], tuple[Latent, Callable[[Cond], Cond] | None]]
ENTRANCES = "vae: by its latent; vlm: as the text encoder sees it; by the other way the clean picture stays to be seen"


def entering(
    editor: Editor, x: Image, conds: Sequence[Cond], entrances: Entrances, noise: Latent | None = None
) -> tuple[Callable[[Image], tuple[Tensor, ...]], Told]:
    """``enter`` and ``told``: the encode of :func:`~sifm_core.gradients.through_latent`, and what its tensors say.

    ``enter`` (a picture) gives its latent, what the text encoder makes of each of ``conds`` beside it, or both.
    ``told`` (those tensors) gives the latent and a function from a condition to the same with what was seen, or None.
    An entrance that is not chosen goes on showing ``x``: no gradient passes it. Raises InputError for one that the
    editor has not.
    """
    by_vlm, by_vae = entrances != "vae", entrances != "vlm"
    if by_vlm and "vlm" not in editor.entrances:
        raise InputError(f"entrances: {editor.name} shows its text encoder no picture: only vae, got {entrances!r}")
    clean = None if by_vae else editor.encode(x, noise).detach()

    def enter(image: Image) -> tuple[Tensor, ...]:
        latent = (editor.encode(image, noise),) if by_vae else ()
        return (*latent, *(editor.see(cond, image) for cond in conds if by_vlm))

    def told(entered: Sequence[Tensor]) -> tuple[Latent, Callable[[Cond], Cond] | None]:
        z, seen = (entered[0], entered[1:]) if clean is None else (clean, entered)
        if not by_vlm:
            return z, None
        again = {id(cond): editor.with_embeddings(cond, one) for cond, one in zip(conds, seen, strict=True)}
        return z, lambda cond: again[id(cond)]

    return enter, told

"""Through an autoencoder and back."""

from __future__ import annotations

from ..types import Editor, Image
from .latents import at_work_size, decode, needed


def purify(image: Image, times: float, *, editor: Editor | None = None) -> Image:
    """Encode and decode with the editor's autoencoder that many times; another editor lends another autoencoder."""
    model = needed(editor, "vae_round_trip")

    def round_trips(x: Image) -> Image:
        for _ in range(round(times)):
            x = decode(model, model.encode(x))
        return x

    return at_work_size(model, image, round_trips) if round(times) else image

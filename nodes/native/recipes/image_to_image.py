"""Any model, run on the noised latent of the picture: what a denoise below 1 does."""

from __future__ import annotations

from .base import Recipe


class ImageToImage(Recipe):
    """VAE Encode, then part of the schedule; at a denoise of 1 nothing of the source would be left."""

    title = "image to image"
    size = 1024
    denoise = 0.6

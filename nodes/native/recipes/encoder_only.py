"""The VAE alone, which every model has: for methods that only move the latent."""

from __future__ import annotations

from .base import Recipe


class EncoderOnly(Recipe):
    """Nothing is known of how the network is run, so it is never run."""

    title = "encoder only"
    size = 1024

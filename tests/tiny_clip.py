"""A tiny random CLIP, saved as an ordinary folder."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor

import fakes


def save(folder: Path) -> str:
    """Write it; returns what `clip_score(model=...)` takes."""
    torch.manual_seed(0)
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config=fakes.clip_config().to_dict(),
        vision_config=vision | {"image_size": 32, "patch_size": 8},
        projection_dim=16,
    )
    CLIPModel(config).save_pretrained(folder)
    sizes = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    CLIPProcessor(CLIPImageProcessor(**sizes), fakes.clip_tokenizer()).save_pretrained(folder)
    return str(folder)

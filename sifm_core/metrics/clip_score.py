"""CLIP score: how well a picture fits a text. For the paper's Fig. 3, which shows why this is no judge of immunization.

It takes a text instead of a reference picture, so it is called on its own and stands in no table of pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch

from ..errors import InputError, SifmError
from ..files import in_cache
from ..images import check_image
from ..pretrained import Incomplete, whole
from ..types import Image, Metric

MODEL = "openai/clip-vit-large-patch14"
"""The CLIP that InstructPix2Pix was filtered and evaluated with."""
HERE: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
"""Nothing is fetched, and no code of a folder is run."""


def clip_score(image: Image, texts: Sequence[str], *, model: str = MODEL) -> list[Metric]:
    """Cosine similarity of each picture with its text, in [-1, 1]; higher fits better.

    ``image`` (B, 3, H, W) in [0, 1]; B texts, cut off where the model stops reading (77 tokens); ``model`` a folder or
    hub id of a CLIP model. Nothing is downloaded: where the model is missing the value is None with the reason. Times
    100, or 2.5 with negative values at 0, is what others call CLIP score (Hessel et al. 2021).
    """
    check_image(image)
    texts = [texts] if isinstance(texts, str) else list(texts)
    if len(texts) != len(image):
        raise InputError(f"expected one text per picture, {len(image)}, but got {len(texts)}; pair them up")
    definition = f"clip:{model}:cosine"
    try:
        clip, processor = _load(model)
    except SifmError as error:
        return [Metric(None, definition, str(error))] * len(image)
    clip = clip.to(image.device)
    inputs = processor(
        text=texts,
        images=list(image.detach().float().clamp(0, 1)),
        do_rescale=False,
        return_tensors="pt",
        padding=True,
        truncation=True,
    ).to(image.device)
    with torch.no_grad():
        output = clip(**inputs)
    values = torch.cosine_similarity(output.image_embeds, output.text_embeds)
    return [Metric(value, definition) for value in values.tolist()]


@cache
def _load(model: str) -> tuple[Any, Any]:
    from transformers import CLIPModel, CLIPProcessor

    try:
        with torch.inference_mode(False):
            clip = whole(CLIPModel, in_cache(model), use_safetensors=True, **HERE)
            return clip.float().eval(), CLIPProcessor.from_pretrained(in_cache(model), **HERE)
    except Incomplete as error:
        raise SifmError(f"unavailable: {model}: {error}; get a new copy") from error
    except (OSError, ValueError, LookupError, TypeError, AttributeError, ImportError) as error:
        raise SifmError(
            f"unavailable: no CLIP model at {model}; put a folder of one there, or download it into the hub's cache "
            f"(huggingface-cli download {model})"
        ) from error

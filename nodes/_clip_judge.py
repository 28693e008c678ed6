"""A person's own CLIP object as a judge: the models that core's Generate Text runs, such as Qwen3-VL and Gemma.

No account, no download, no second copy in memory. Core gives no probabilities, so each token's are taken where it draws
one: the answers are ranked by them (:mod:`sifm_core.judges.ranking`), and nothing is drawn.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import pad

from sifm_core.errors import InputError
from sifm_core.images import from_uint8
from sifm_core.judges.client import Client, Reply
from sifm_core.judges.ranking import likelihoods, spellings
from sifm_core.judges.rubric import OPTIONS, Form, Part
from sifm_core.judges.vlm import VlmJudge
from sifm_core.types import Judge

QWEN = "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>{}<|im_end|>\n<|im_start|>assistant\n"
"""What a Qwen is asked with: an image editor's tokenizer would tell it to describe the picture and to make another."""
PLACES = ("(the left half of the picture)", "(the right half of the picture)")


class ClipClient(Client):
    """One question, both pictures side by side: some of core's models take one picture alone, and Gemma 3 cuts a square
    out of its middle, so that it is given a square. What a model's own template would have it do is left out."""

    backend = "clip"
    preset, ranks = "ranked", True

    def __init__(self, clip: Any) -> None:
        name = getattr(clip.cond_stage_model, "clip_name", type(clip.cond_stage_model).__name__)
        super().__init__(name, "", "", config={"layout": 2}, timeout=0.0)
        self._clip = clip
        parts = clip.cond_stage_model.modules()
        self._writers = [part for part in parts if hasattr(part, "sample_token") and hasattr(part, "generate")]
        if len(self._writers) != 1:
            raise InputError(
                f"clip: expected a language model, as Generate Text takes it (Qwen3-VL, Gemma); {name} writes nothing"
            )
        if not hasattr(self._writers[0].model.config, "stop_tokens"):  # Qwen2.5-VL's output layer is not loaded either
            raise InputError(f"clip: ComfyUI's Generate Text cannot write with {name}; take a Qwen3-VL or a Gemma")

    def connect(self) -> None:
        """It is loaded already."""

    def send(self, parts: Sequence[Part], form: Form) -> Reply:
        pictures = [_pixels(part) for part in parts if isinstance(part, bytes)]
        places = iter(PLACES)
        text = "".join(part if isinstance(part, str) else next(places) for part in parts)
        with torch.no_grad():
            tokens = self._tokens(text, _beside(pictures, square=hasattr(self._writers[0], "image_size")))
            first = self._drawn(tokens, [])[0]
            if not self._shown:
                return Reply("error", reason=f"{self.model} takes no pictures; connect one that does (Qwen3-VL, Gemma)")
            likely = {
                option: sum(self._chance(tokens, first, word) for word in spellings(option)) for option in OPTIONS
            }
        return Reply("ok", text=likelihoods(likely), served=self.model, tokens=(0, 0), billed="yes")

    def _tokens(self, text: str, picture: Tensor) -> Any:
        """As Generate Text makes them; pictures have one name in some tokenizers and another in others."""
        qwen = "<|vision_start|>" in getattr(self._clip.tokenizer, "llama_template_images", "")
        own = {"llama_template": QWEN} if qwen else {}
        return self._clip.tokenize(
            text, image=picture, images=[picture], skip_template=False, min_length=1, thinking=False, **own
        )

    def _chance(self, tokens: Any, first: Tensor, word: str) -> float:
        ids = self._ids(word)
        logs = [first[ids[0]]]
        if len(ids) > 1:
            logs += [row[i] for row, i in zip(self._drawn(tokens, ids)[1:], ids[1:], strict=True)]
        return float(torch.stack(logs).sum().exp())

    def _ids(self, word: str) -> list[int]:
        """The word's tokens as an answer begins, without what a tokenizer puts around a text."""
        key = getattr(self._clip.tokenizer, "clip", None)
        inner = getattr(self._clip.tokenizer, key) if key else self._clip.tokenizer
        ids = inner.tokenizer(word)["input_ids"]
        end = len(ids) - int(inner.tokenizer_adds_end_token and inner.end_token is not None)
        return [int(i) for i in ids[inner.tokens_start : end]]

    def _drawn(self, tokens: Any, ids: Sequence[int]) -> list[Tensor]:
        """The log-probabilities of each next token, where these are drawn (none: of the first)."""
        seen: list[Tensor] = []

        def draw(logits: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            seen.append(logits[0].float().log_softmax(-1).cpu())
            drawn = ids[len(seen) - 1] if len(seen) <= len(ids) else 0
            return torch.tensor([[drawn]], device=logits.device)

        writer = self._writers[0]
        look: Any = getattr(writer, "preprocess_embed", None)
        self._shown = 0

        def looked(*args: Any, **kwargs: Any) -> Any:
            found = look(*args, **kwargs)
            self._shown += found[0] is not None
            return found

        with _instead(writer, sample_token=draw, **({"preprocess_embed": looked} if look else {})):
            self._clip.generate(tokens, do_sample=False, max_length=max(1, len(ids)), seed=0)
        return seen


def judge_of(clip: Any) -> Judge:
    """The judge that a CLIP object makes; InputError where it is no language model."""
    client = ClipClient(clip)
    return VlmJudge(client, name=f"clip:{client.model}", concurrency=1)


@contextmanager
def _instead(writer: Any, **methods: Any) -> Iterator[None]:
    """Inside, a model does this in place of its own methods of these names."""
    vars(writer).update(methods)
    try:
        yield
    finally:
        for name in methods:
            del vars(writer)[name]


def _pixels(png: bytes) -> Tensor:
    """(3, H, W) in [0, 1]."""
    return from_uint8(np.asarray(Image.open(io.BytesIO(png)).convert("RGB")))[0]


def _beside(pictures: Sequence[Tensor], *, square: bool) -> Tensor:
    """(3, H, W) pictures side by side, white between and around them, as ComfyUI's (1, H, W, 3)."""
    high = max(picture.shape[1] for picture in pictures)
    left, right = (_framed(picture, high, picture.shape[2]) for picture in pictures)
    row = torch.cat([left, torch.ones(3, high, max(8, left.shape[2] // 32)), right], dim=2)
    side = max(row.shape[1:])
    return (_framed(row, side, side) if square else row).movedim(0, -1)[None]


def _framed(picture: Tensor, height: int, width: int) -> Tensor:
    """In the middle of a white one of this size."""
    down, right = height - picture.shape[1], width - picture.shape[2]
    return pad(picture, (right // 2, right - right // 2, down // 2, down - down // 2), value=1.0)

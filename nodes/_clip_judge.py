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

from sifm_core.errors import InputError
from sifm_core.images import from_uint8
from sifm_core.judges.client import Client, Reply
from sifm_core.judges.ranking import likelihoods, spellings
from sifm_core.judges.rubric import OPTIONS, Form, Part
from sifm_core.judges.vlm import VlmJudge
from sifm_core.types import Judge

PLACES = ("(the left half of the picture)", "(the right half of the picture)")


class ClipClient(Client):
    """One question, both pictures side by side: some of core's models take one picture alone."""

    backend = "clip"
    preset, ranks = "ranked", True

    def __init__(self, clip: Any) -> None:
        name = getattr(clip.cond_stage_model, "clip_name", type(clip.cond_stage_model).__name__)
        super().__init__(name, "", "", config={}, timeout=0.0)
        self._clip = clip
        parts = clip.cond_stage_model.modules()
        self._writers = [part for part in parts if hasattr(part, "sample_token") and hasattr(part, "generate")]
        if len(self._writers) != 1:
            raise InputError(
                f"clip: expected a language model, as Generate Text takes it (Qwen3-VL, Gemma); {name} writes nothing"
            )

    def connect(self) -> None:
        """It is loaded already."""

    def send(self, parts: Sequence[Part], form: Form) -> Reply:
        pictures = [_pixels(part) for part in parts if isinstance(part, bytes)]
        places = iter(PLACES)
        text = "".join(part if isinstance(part, str) else next(places) for part in parts)
        with torch.no_grad():
            tokens = self._tokens(text, _beside(pictures))
            first = self._drawn(tokens, [])[0]
            likely = {
                option: sum(self._chance(tokens, first, word) for word in spellings(option)) for option in OPTIONS
            }
        return Reply("ok", text=likelihoods(likely), served=self.model, tokens=(0, 0), billed="yes")

    def _tokens(self, text: str, picture: Tensor) -> Any:
        """As Generate Text makes them; Qwen2.5-VL's pictures have another name there."""
        return self._clip.tokenize(
            text, image=picture, images=[picture], skip_template=False, min_length=1, thinking=False
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

        with _instead(self._writers[0], draw):
            self._clip.generate(tokens, do_sample=False, max_length=max(1, len(ids)), seed=0)
        return seen


def judge_of(clip: Any) -> Judge:
    """The judge that a CLIP object makes; InputError where it is no language model."""
    client = ClipClient(clip)
    return VlmJudge(client, name=f"clip:{client.model}", concurrency=1)


@contextmanager
def _instead(writer: Any, draw: Any) -> Iterator[None]:
    """Inside, the model's tokens come from ``draw``."""
    writer.sample_token = draw
    try:
        yield
    finally:
        del writer.sample_token


def _pixels(png: bytes) -> Tensor:
    """(3, H, W) in [0, 1]."""
    return from_uint8(np.asarray(Image.open(io.BytesIO(png)).convert("RGB")))[0]


def _beside(pictures: Sequence[Tensor]) -> Tensor:
    """(3, H, W) pictures of one height side by side, white between them, as ComfyUI's (1, H, W, 3)."""
    gap = torch.ones(3, pictures[0].shape[1], max(8, pictures[0].shape[2] // 32))
    return torch.cat([pictures[0], gap, pictures[1]], dim=2).movedim(0, -1)[None]

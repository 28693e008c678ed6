"""The two networks behind the miniature's judges: convolutions that imagine the edit, and a transformer over patches.

Both say, besides the answer, what led to it: each cell's material, where the instruction applies, where the edit went
wrong and how much of it nothing explains, and the renderer's four measures. The training asks for all of it; a judge
reads the answer alone.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SIZE = 64
CELLS = 16
MATERIALS = 7
"""Six materials and none."""
MEASURES = 4
_MAPS = MATERIALS + 3


class Look(NamedTuple):
    """What a network makes of a case.

    ``logits`` (B, 2) of (semantic mismatch, perceptual degradation); ``measures`` (B, 4) as `Truth.measure`; per 4x4
    cell ``material`` (B, 7, 16, 16), ``asked`` and ``wrong`` (B, 1, 16, 16) as logits, ``rough`` (B, 1, 16, 16) the
    root mean square of what `Truth.unexplained` leaves; ``target`` (B, 3, 16, 16), the colours that the edit should
    have, or None.
    """

    logits: Tensor
    measures: Tensor
    material: Tensor
    asked: Tensor
    wrong: Tensor
    rough: Tensor
    target: Tensor | None


def detail(x: Tensor) -> Tensor:
    """The fine texture (picture minus its 5x5 mean), amplified: the miniature tells materials apart by it alone."""
    return 8 * (x - F.avg_pool2d(F.pad(x, (2, 2, 2, 2), mode="reflect"), 5, stride=1))


class FilmBlock(nn.Module):
    """A residual block of two 3x3 convolutions whose features the instruction scales and shifts."""

    def __init__(self, channels: int, text: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(8, channels), nn.GroupNorm(8, channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.film = nn.Linear(text, 2 * channels)

    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        scale, shift = self.film(text)[:, :, None, None].chunk(2, dim=1)
        h = self.norm2(self.conv1(F.silu(self.norm1(x)))) * (1 + scale) + shift
        return x + self.conv2(F.silu(h))


class ConvJudge(nn.Module):
    """Imagines from the source and the instruction what the edit should look like, then compares.

    ``forward(source, edited, token_ids)``: (B, 3, 64, 64) in [0, 1] twice and (B, length) int64 -> (B, 2) logits of
    (semantic mismatch, perceptual degradation).
    """

    def __init__(self, vocab_size: int, length: int = 16, width: int = 64, text: int = 64, blocks: int = 4) -> None:
        super().__init__()
        self.config = {"vocab_size": vocab_size, "length": length, "width": width, "text": text, "blocks": blocks}
        self.embed = nn.Embedding(vocab_size, text)
        self.read = nn.GRU(text, text, batch_first=True)
        self.source = _stem(6, width)
        self.blocks = nn.ModuleList(FilmBlock(width, text) for _ in range(blocks))
        self.maps = nn.Conv2d(width, MATERIALS + 1 + 3, 1)
        half = width // 2
        self.edited = _stem(9, half)
        self.join = nn.Conv2d(width + half + 7, half, 1)
        self.compare = nn.ModuleList(FilmBlock(half, text) for _ in range(2))
        self.spots = nn.Conv2d(half, 2, 1)
        self.head = nn.Sequential(nn.Linear(4 * half + 12 + 2 + text, 96), nn.SiLU(), nn.Linear(96, 2 + MEASURES))

    def look(self, source: Tensor, edited: Tensor, token_ids: Tensor) -> Look:
        """Everything the network says."""
        text = self.read(self.embed(token_ids))[0].amax(dim=1)
        x = self.source(torch.cat([2 * source - 1, detail(source)], 1))
        for block in self.blocks:
            x = block(x, text)
        material, asked, target = self.maps(F.silu(x)).split([MATERIALS, 1, 3], dim=1)
        before, after = F.avg_pool2d(source, 4), F.avg_pool2d(edited, 4)
        target = before + target
        y = self.edited(torch.cat([2 * edited - 1, detail(edited), detail(edited - source)], 1))
        where = asked.sigmoid()
        y = self.join(torch.cat([x, y, 4 * (after - target), after - before, where], 1))
        for block in self.compare:
            y = block(y, text)
        y = F.silu(y)
        wrong, rough = self.spots(y).chunk(2, dim=1)
        rough = F.softplus(rough - 3)  # starts at what a clean edit has
        inside, outside = where / (where.sum((2, 3), keepdim=True) + 1), 1 - where
        outside = outside / (outside.sum((2, 3), keepdim=True) + 1)
        off, moved = (after - target).abs(), (after - before).abs()
        pools = [(v * w).sum((2, 3)) for v in (y, off, moved) for w in (inside, outside)]
        seen = torch.cat([*pools, y.mean((2, 3)), y.amax((2, 3)), *_roughness(rough), text], dim=1)
        out = self.head(seen)
        return Look(out[:, :2], out[:, 2:], material, asked, wrong, rough, target)

    def forward(self, source: Tensor, edited: Tensor, token_ids: Tensor) -> Tensor:
        return self.look(source, edited, token_ids).logits


class PatchJudge(nn.Module):
    """A transformer over 8x8 patches of both pictures and the words of the instruction; called like ConvJudge."""

    def __init__(self, vocab_size: int, length: int = 16, width: int = 96, layers: int = 3, heads: int = 4) -> None:
        super().__init__()
        self.config = {"vocab_size": vocab_size, "length": length, "width": width, "layers": layers, "heads": heads}
        self.embed = nn.Embedding(vocab_size, width)
        self.patch = nn.Sequential(nn.Linear(15 * 64, width), nn.GELU(), nn.Linear(width, width))
        self.answer = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.position = nn.Parameter(torch.randn(1, 1 + length + (SIZE // 8) ** 2, width) * 0.02)
        layer = nn.TransformerEncoderLayer(width, heads, 3 * width, 0.0, "gelu", batch_first=True, norm_first=True)
        self.body = nn.TransformerEncoder(layer, layers, nn.LayerNorm(width), enable_nested_tensor=False)
        self.maps = nn.Linear(width, 4 * _MAPS)
        self.head = nn.Sequential(nn.Linear(4 * width + 2, 96), nn.SiLU(), nn.Linear(96, 2 + MEASURES))

    def look(self, source: Tensor, edited: Tensor, token_ids: Tensor) -> Look:
        """Everything the network says; it has no picture of the target."""
        evidence = [2 * source - 1, 2 * edited - 1, 2 * (edited - source), detail(source), detail(edited)]
        patches = self.patch(F.unfold(torch.cat(evidence, 1), 8, stride=8).transpose(1, 2))
        answer = self.answer.expand(len(source), -1, -1)
        x = self.body(torch.cat([answer, self.embed(token_ids), patches], dim=1) + self.position)
        answer, patches = x[:, 0], x[:, 1 + token_ids.shape[1] :]
        n = SIZE // 8
        maps = (
            self.maps(patches).reshape(-1, n, n, 2, 2, _MAPS).permute(0, 5, 1, 3, 2, 4).reshape(-1, _MAPS, CELLS, CELLS)
        )
        material, asked, wrong, rough = maps.split([MATERIALS, 1, 1, 1], dim=1)
        rough = F.softplus(rough - 3)  # starts at what a clean edit has
        inside = F.avg_pool2d(asked.sigmoid(), 2).flatten(1)[..., None]
        inside = (patches * inside).sum(1) / (inside.sum(1) + 1)
        out = self.head(torch.cat([answer, patches.amax(1), patches.mean(1), inside, *_roughness(rough)], dim=1))
        return Look(out[:, :2], out[:, 2:], material, asked, wrong, rough, None)

    def forward(self, source: Tensor, edited: Tensor, token_ids: Tensor) -> Tensor:
        return self.look(source, edited, token_ids).logits


def _roughness(rough: Tensor) -> tuple[Tensor, Tensor]:
    """Over the whole picture, as the renderer adds it up, and at its worst; amplified."""
    return 10 * (rough.square().mean((2, 3)) + 1e-6).sqrt(), 10 * rough.amax((2, 3))


def _stem(channels: int, width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, width // 2, 4, stride=2, padding=1),
        nn.SiLU(),
        nn.Conv2d(width // 2, width, 4, stride=2, padding=1),
    )


NETWORKS: dict[str, type[ConvJudge] | type[PatchJudge]] = {"conv": ConvJudge, "patch": PatchJudge}

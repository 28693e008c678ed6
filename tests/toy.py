"""An editor, judges and pictures that need torch alone and answer at once, for what runs around the models."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sifm_core.bench import Sample
from sifm_core.noise import generators
from sifm_core.types import Case, Editor, OnStep, Step, Verdict


class ToyEditor(Editor):
    """Brightens the picture by a little net whose answer depends on picture, prompt and seed; plain torch alone."""

    name, family, fingerprint = "toy", "toy", "f" * 64
    device = torch.device("cpu")
    num_train_timesteps = 1000
    layer_presets = {"deep": ("0",), "mid": ("1",)}  # noqa: RUF012
    settings = {"size": 48, "strength": 0.3, "steps": 1}  # noqa: RUF012

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        self.dtype = dtype
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.SiLU(), nn.Conv2d(8, 3, 3, padding=1))
        self.net.requires_grad_(False).to(dtype)

    def networks(self) -> dict[str, nn.Module]:
        return {"net": self.net}

    def blank(self, n: int) -> Tensor:
        return torch.zeros(n, 1, 1, 1, dtype=self.dtype)

    def embeddings(self, cond: Tensor) -> Tensor:
        return torch.cat([cond, 1 - cond], dim=-1)[:, 0]

    def words(self, cond: Tensor) -> Tensor:
        return torch.ones(len(cond), 1, dtype=torch.bool)

    def work_size(self, height: int, width: int) -> tuple[int, int]:
        return height // 4 * 4, width // 4 * 4

    @contextmanager
    def attention(self) -> Iterator[tuple[list[str], list[Tensor]]]:
        seen: list[Tensor] = []

        def look(module: nn.Module, args: Any, output: Tensor) -> None:
            seen.append(output.mean(dim=1).flatten(1).sigmoid()[:, None, :, None])

        hook = self.net[1].register_forward_hook(look)
        try:
            yield ["1"], seen
        finally:
            hook.remove()

    def rows(self, height: int, width: int) -> int:
        return 16

    def join(self, conds: Sequence[Tensor]) -> Tensor:
        return torch.cat(list(conds))

    def mix(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones_like(t).to(like).reshape(-1, 1, 1, 1), torch.full_like(t, 0.1).to(like).reshape(-1, 1, 1, 1)

    def encode(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        z = nn.functional.avg_pool2d(x, 4)
        return z if noise is None else z + 0.01 * noise.to(z)

    def decode(self, z: Tensor) -> Tensor:
        return nn.functional.interpolate(z, scale_factor=4)

    def prepare(self, prompts: Sequence[str], x: Tensor | None = None) -> Tensor:
        return torch.tensor([sum(map(ord, p)) % 97 / 97 for p in prompts], dtype=self.dtype).reshape(-1, 1, 1, 1)

    def denoise(self, z: Tensor, noise: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        return self.net(z + 0.1 * noise + cond.to(z))

    def target(self, z: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        return noise

    def draws(self, x: Tensor, seed: int | Sequence[int], **options: Any) -> tuple[Tensor, ...]:
        return (torch.stack([torch.randn(1, 1, 1, generator=g) for g in generators(seed, len(x))]),)

    def generate(
        self, x: Tensor, cond: Tensor, drawn: Sequence[Tensor], *, strength: float = 0.3, steps: int = 1
    ) -> Tensor:
        return x + strength * self.net(x.to(self.dtype)) + 0.2 * cond + 0.02 * drawn[0].to(x)

    def edit(
        self,
        x: Tensor,
        cond: Tensor,
        *,
        seed: int | Sequence[int],
        on_step: OnStep | None = None,
        strength: float = 0.3,
        steps: int = 1,
    ) -> Tensor:
        if on_step is not None:
            on_step(Step("edit", 1, 1))
        return self.generate(x, cond, self.draws(x, seed), strength=strength).clamp(0, 1)


class ToyJudge:
    """Says that an edit failed when its mean is above a threshold; `state` other than "ok": gives no answer."""

    def __init__(self, name: str, threshold: float = 0.5, state: str = "ok") -> None:
        self.name, self.threshold, self.state, self.asked = name, threshold, state, 0

    def judge(self, cases: Sequence[Case], *, on_step: Any = None) -> list[Verdict]:
        self.asked += len(cases)
        if self.state != "ok":
            return [Verdict(self.name, self.state, reasons="no answer") for _ in cases]
        means = [float(case.edited.mean()) for case in cases]
        return [Verdict(self.name, "ok", m > self.threshold, False, reasons=f"mean {m:.3f}") for m in means]


def samples(n: int = 2, size: int = 48) -> list[Sample]:
    """n smooth pictures with a prompt each."""
    small = torch.rand(n, 3, 6, 6, generator=torch.Generator().manual_seed(1))
    pictures = nn.functional.interpolate(small, (size, size), mode="bilinear").mul(255).round().div(255)
    categories = ("portrait", "landscape", "artwork")
    return [
        Sample(f"toy-{i}", x, f"make it {i}", f"make it {i}", categories[i % 3], truth=None)
        for i, x in enumerate(pictures)
    ]

"""SIFM through the latent, through what the text encoder sees, and both: on an editor of plain torch modules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from methods.literal import close, gradient, somewhere
from sifm_core.errors import EditorError, InputError
from sifm_core.methods import sifm
from sifm_core.noise import fork, normal
from toy import ToyEditor


@dataclass(frozen=True)
class Cond:
    prompt: Tensor
    words: Tensor


class SeeingEditor(ToyEditor):
    """Its text side mixes a number for the prompt with the picture's left half, which the latent sees as well."""

    entrances = ("vae", "vlm")

    def prepare(self, prompts: Sequence[str], x: Tensor | None = None) -> Cond:
        words = super().prepare(prompts).flatten()[:, None]
        return Cond(self.see(Cond(words, words), x), words)

    def see(self, cond: Cond, x: Tensor) -> Tensor:
        left = x[..., : x.shape[-1] // 2].to(self.dtype)
        return (cond.words + left.square().mean(dim=(1, 2, 3))[:, None]).tanh()

    def join(self, conds: Sequence[Cond]) -> Cond:
        return super(ToyEditor, self).join(conds)

    def denoise(self, z: Tensor, noise: Tensor, t: Tensor, cond: Any) -> Tensor:
        return self.net(z * (1 + cond.prompt[..., None, None]) + 0.1 * noise + t.to(z).reshape(-1, 1, 1, 1) / 1000)


EDITOR = SeeingEditor(torch.float64)
X = torch.rand(2, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
PROMPTS, T = ["a", "b"], [200, 700, 900]


def literal(x0: Tensor, x: Tensor, prompts: list[list[str]], by: str) -> tuple[Tensor, Tensor]:
    """Algorithm 1 on the whole network, every timestep and prompt for itself."""
    noise = normal((len(x0), len(T), 3, 4, 4), fork(0, "noise")).double()

    def phi(x: Tensor, t: int, k: int, prompt: list[str], x_vlm: Tensor, x_vae: Tensor) -> Tensor:
        cond, z = EDITOR.prepare(prompt, x_vlm), EDITOR.encode(x_vae)
        shaken = z * (1 + cond.prompt[..., None, None]) + 0.1 * noise[:, k] + t / 1000
        return nn.Sequential(*list(EDITOR.net)[:2])(shaken).flatten(1)

    def loss(x: Tensor) -> Tensor:
        total = 0
        for k, t in enumerate(T):
            for prompt in prompts:
                f = phi(x, t, k, prompt, x if by != "vae" else x0, x if by != "vlm" else x0)
                g = phi(x0, t, k, prompt, x0, x0)
                total = total + f.abs().sum(1) - 40.0 * (f - g).square().mean(1)
        return total / len(T) / len(prompts)

    return gradient(loss, x)


@pytest.mark.parametrize("rows", [1, 4, 16])
@pytest.mark.parametrize("by", ["vae", "vlm", "both"])
def test_each_entrance_equals_the_literal_algorithm(by: str, rows: int) -> None:
    x = somewhere(X)
    options = {"timesteps": T, "layers": "mid", "lam": 40.0, "prompts": ["c"], "entrances": by, "rows": rows}
    ours = sifm.build(EDITOR, X, EDITOR.prepare(PROMPTS, X), **options)(x, 0)
    loss, grad = literal(X, x, [PROMPTS, ["c", "c"]], by)
    assert close(ours.grad, grad) and torch.allclose(ours.loss, loss, rtol=1e-12)
    right = ours.grad[..., 8:]
    assert bool(right.any()) == (by != "vlm"), "no gradient through the entrance that is switched off"


def test_the_gradient_through_both_is_that_of_finite_differences() -> None:
    x, cond = somewhere(X), EDITOR.prepare(PROMPTS, X)
    grad_fn = sifm.build(EDITOR, X, cond, timesteps=T, layers="mid", entrances="both")
    along = torch.randn(X.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    h = 1e-6
    slope = (grad_fn(x + h * along, 0).loss - grad_fn(x - h * along, 0).loss) / (2 * h)
    assert torch.allclose((grad_fn(x, 0).grad * along).flatten(1).sum(1), slope, rtol=1e-6)


def test_an_entrance_that_an_editor_has_not_is_refused() -> None:
    blind = ToyEditor(torch.float64)
    with pytest.raises(InputError, match="only vae"):
        sifm.build(blind, X, blind.prepare(PROMPTS), layers="mid", entrances="both")
    with pytest.raises(InputError, match="known: both, vae, vlm"):
        sifm.build(EDITOR, X, EDITOR.prepare(PROMPTS, X), layers="mid", entrances="none")
    with pytest.raises(EditorError, match="sees no picture"):
        blind.see(blind.prepare(PROMPTS), X)

"""IMPRESS (Cao et al., NeurIPS 2023): find the near picture that the autoencoder reproduces; protected ones are not."""

from __future__ import annotations

import torch

from ..metrics.lpips import lpips
from ..types import Editor, Image, OnStep, Step
from .latents import at_work_size, needed

RATE, EPSILON, WEIGHT, SLACK = 0.005, 1e-5, 0.1, 0.1
"""Adam's step on [-1, 1] and its epsilon, weight of the perceptual term, and LPIPS distance that costs nothing."""


def purify(image: Image, steps: float, *, editor: Editor | None = None, on_step: OnStep | None = None) -> Image:
    """``steps`` of Adam on MSE(autoencoder(x), x) + 0.1 max(LPIPS(x, image) - 0.1, 0), both on [-1, 1].

    The autoencoder's output is not clipped. Adapted: LPIPS with AlexNet, no random start, constant step. Raises
    SifmError where LPIPS' weights are missing.
    """
    model = needed(editor, "impress")

    def descend(source: Image) -> Image:
        with torch.inference_mode(False), torch.enable_grad():
            source = source.detach().clone().to(model.device)
            x = (2 * source - 1).requires_grad_()
            adam = torch.optim.Adam([x], lr=RATE, eps=EPSILON)
            for i in range(round(steps)):
                y = x / 2 + 0.5
                error = (2 * (model.decode(model.encode(y)).float() - y)).square().mean((1, 2, 3))
                loss = error + WEIGHT * (lpips(y, source) - SLACK).clamp_min(0)
                (x.grad,) = torch.autograd.grad(loss.sum(), x)
                adam.step()
                x.data.clamp_(-1, 1)
                if on_step is not None:
                    on_step(Step("impress", i + 1, round(steps)))
            return (x.detach() / 2 + 0.5).clamp(0, 1)

    return at_work_size(model, image, descend) if round(steps) else image

"""PhotoGuard's diffusion attack: pull the finished edit to grey, through every step of it.

"Raising the Cost of Malicious AI-Powered Image Editing" (Salman et al.).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import torch

from ..errors import InputError
from ..gradients import finite
from ..noise import Seed, fork
from ..types import Cond, Editor, GradFn, Gradient, Image
from . import configured

PROVENANCE = (
    "MadryLab/photoguard, the inpainting notebook's loss on this editor's own editing loop, under sign steps in the "
    "L-infinity ball; there an L2 ball of 16 in [-1, 1], 200 iterations, the mean of 10 gradients divided by its norm, "
    "and an empty prompt, which makes guidance idle"
)
RANDOM_START = False


@configured
def build(
    editor: Editor,
    x: Image,
    cond: Cond,
    *,
    edit_steps: Annotated[int, "denoising steps that the gradient passes"] = 4,
    repeats: Annotated[int, "edits with new noise per iteration whose gradients are averaged"] = 1,
    edit_options: Annotated[Any, "a mapping of further options of the editor's edit, such as guidance_scale"] = None,
    seed: Seed = 0,
) -> GradFn:
    """The gradient of ||D - y_T||_2, not squared, of the edit's unclipped decoder output D in [-1, 1] to grey, y_T = 0.

    ``x`` (B, 3, h, w) at the editor's working size. Blocks of the network are computed again on the way back, so that
    memory does not grow by a whole network per step. Raises InputError for counts below 1.
    """
    for name, value in (("edit_steps", edit_steps), ("repeats", repeats)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InputError(f"{name}: expected a whole number of at least 1, got {value!r}")
    chosen = {**(edit_options or {}), "steps": edit_steps}

    def grad_fn(x_adv: Image, step: int) -> Gradient:
        loss, total = x_adv.new_zeros(len(x_adv)), torch.zeros_like(x_adv)
        for repeat in range(repeats):
            leaf = x_adv.detach().clone().requires_grad_()
            with _recomputing(editor.net):
                output = editor.generate(leaf, cond, seed=fork(seed, step, repeat), **chosen)
                distance = (2 * output - 1).flatten(1).norm(dim=1)
                (grad,) = torch.autograd.grad(distance.sum(), leaf)
            loss += distance.detach() / repeats
            total += grad / repeats
        return finite(Gradient(loss, total), step)

    return grad_fn


@contextmanager
def _recomputing(net: Any) -> Iterator[None]:
    """Gradient checkpointing inside the block; the network's own setting is restored."""
    if net.is_gradient_checkpointing:
        yield
        return
    net.enable_gradient_checkpointing()
    try:
        yield
    finally:
        net.disable_gradient_checkpointing()

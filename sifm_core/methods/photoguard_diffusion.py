"""PhotoGuard's diffusion attack (PhotoGD): pull the finished edit to grey, through every step of it.

"Raising the Cost of Malicious AI-Powered Image Editing" (Salman et al., ICML 2023, arXiv 2302.06588), its diffusion
attack: minimise ||f(x + delta) - x_target||_2 over ||delta||_inf <= eps, f the whole edit in a few steps.
"""

from __future__ import annotations

from typing import Annotated, Any

import torch
from torch import Tensor

from ..errors import InputError
from ..gradients import direct
from ..noise import Seed, fork
from ..types import Cond, Editor, Gradient, Image, Sampled
from . import configured

PROVENANCE = (
    "official code (MadryLab/photoguard, inpainting notebook): loss, four steps, gradients of several draws averaged "
    "as they are; adapted to this editor's own editing loop with its guidance and scheduler, where theirs has eta 1"
)
RANDOM_START = False
MOST = 10
"""How many times as many steps as were asked for a high strength may take."""
_RMS = (3 * 512 * 512) ** -0.5
PRESETS: dict[str, dict[str, Any]] = {
    "paper": {
        "ball": "l2",
        "eps": 8 * _RMS,
        "alpha": 0.5 * _RMS,
        "steps": 200,
        "repeats": 10,
        "edit_options": {"guidance_scale": 7.5},
    }
}
"""The notebook: an L2 ball of 16 and steps of norm 1 in [-1, 1], at 512 x 512; here as root mean squares."""


@configured
def build(
    editor: Editor,
    x: Image,
    cond: Cond,
    *,
    edit_steps: Annotated[int, "denoising steps that the gradient passes"] = 4,
    repeats: Annotated[int, "edits with new noise per iteration whose gradients are averaged"] = 1,
    edit_options: Annotated[Any, "a mapping of further options of the editor's edit, such as guidance_scale"] = None,
    official_quirks: Annotated[bool, "edit without a prompt, as the official notebook, so that guidance idles"] = False,
    seed: Seed = 0,
) -> Sampled:
    """The gradient of ||D - y_T||_2, not squared, of the edit's unclipped decoder output D in [-1, 1] to grey, y_T = 0.

    ``x`` (B, 3, h, w) at the editor's working size. An editor that runs only a share of its steps, its ``strength``, is
    asked for as many as make it run ``edit_steps``, or the next more that do not begin at pure noise. Blocks of the
    network are computed again on the way back, so that memory does not grow by a whole network per step. Raises
    InputError for counts below 1, for steps among the ``edit_options`` and for a strength that leaves out none of
    :data:`MOST` times as many steps.
    """
    for name, value in (("edit_steps", edit_steps), ("repeats", repeats)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InputError(f"{name}: expected a whole number of at least 1, got {value!r}")
    chosen = dict(edit_options or {})
    strength = chosen.get("strength") or editor.settings.get("strength", 1)
    if "steps" in chosen:
        raise InputError("edit_options: expected no steps; how many the gradient passes is edit_steps")
    if isinstance(strength, bool) or not isinstance(strength, int | float) or not strength > 0:
        raise InputError(f"edit_options: expected a strength above 0, got {strength!r}")
    chosen["steps"] = _steps(edit_steps, strength)
    instruction = editor.prepare([""] * len(x), x) if official_quirks else cond

    def distance(x_adv: Image, *drawn: Tensor) -> Tensor:
        output = editor.generate(x_adv, instruction, drawn, **chosen)
        return (2 * output - 1).flatten(1).norm(dim=1)

    def draw(step: int) -> list[Tensor]:
        draws = (editor.draws(x, fork(seed, step, repeat), **chosen) for repeat in range(repeats))
        return [numbers for each in draws for numbers in each]

    def gradient(x_adv: Image, *drawn: Tensor) -> Gradient:
        count = len(drawn) // repeats
        with editor.recomputing():
            each = [direct(distance).gradient(x_adv, *drawn[k * count :][:count]) for k in range(repeats)]
        return Gradient(torch.stack([g.loss for g in each]).mean(0), torch.stack([g.grad for g in each]).mean(0))

    return Sampled(draw, gradient)


def _steps(wanted: int, strength: float) -> int:
    """How many steps make an editor of this strength run ``wanted``, or the next more that do not begin at pure noise.

    diffusers leaves out the first int(n - n * strength) of n.
    """
    first = n = max(wanted, int(wanted / strength))
    while strength < 1 and (not (left_out := int(n - n * strength)) or n - left_out < wanted):
        n += 1
        if n > MOST * first:
            raise InputError(
                f"edit_options: expected a strength that leaves out the first of {MOST * first} steps, got {strength}: "
                "the edit would begin at pure noise"
            )
    return n

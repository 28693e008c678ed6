"""The four verbs: immunize, edit, measure, judge. Command line, nodes and bench call these and nothing deeper."""

from __future__ import annotations

import inspect
import numbers
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from . import methods
from .editors import load_editor
from .errors import ImageError, InputError, unknown
from .gradients import through_resize
from .images import check_image, resize, round_to_budget
from .judges import load_judge
from .metrics import measure as measure
from .noise import Seed, generators
from .pgd import pgd
from .types import Case, Editor, Image, Judge, OnStep, Step, Verdict

EPS, STEPS, ALPHA = 0.03, 100, 2 / 255
"""The paper's budget and iterations (section V-A), in [0, 1] units; the step size is the engine's default."""


@dataclass(frozen=True)
class Immunized:
    """What :func:`immunize` returns.

    ``image`` (B, 3, H, W) lies on the 8-bit grid, so saving it as PNG changes nothing; ``linf`` is the largest
    difference from the 8-bit source, at most eps; ``history`` holds one :class:`Step` per iteration without previews
    (none for controls that take no gradient); ``settings`` is everything needed to do it again.
    """

    image: Image
    history: tuple[Step, ...]
    linf: float
    seconds: float
    settings: Mapping[str, Any] = field(default_factory=dict)


def immunize(
    image: Image,
    editor: Editor | str,
    *,
    prompt: str | Sequence[str],
    method: str = "sifm",
    eps: float = EPS,
    steps: int = STEPS,
    alpha: float = ALPHA,
    seed: Seed = 0,
    mask: Tensor | None = None,
    on_step: OnStep | None = None,
    **options: Any,
) -> Immunized:
    """Perturb pictures within eps so that `editor` no longer edits them as asked.

    ``image`` (B, 3, H, W) in [0, 1], any size: the perturbation has full resolution, the editor sees an antialiased
    resize. ``prompt`` and ``seed``: one for all or one per picture. ``eps``, ``alpha`` in [0, 1] units; ``mask``
    (H, W), (1, 1, H, W) or (B, 1, H, W) in [0, 1] limits where pixels may change. ``options`` are the method's own,
    see :func:`sifm_core.methods.options`. Raises InputError before any work when an argument is wrong; what
    ``on_step`` raises comes through.
    """
    check_image(image, "image")
    prompts = check_prompts(prompt, len(image))
    eps, alpha = check_budget(eps), check_unit(alpha, "alpha")
    steps, mask = check_count(steps, "steps"), check_mask(mask, image)
    check_seed(seed, len(image))
    options = check_method(method, options)
    module = methods.get_method(method)
    build = getattr(module, "build", None)
    editor = load_editor(editor) if isinstance(editor, str) else editor

    start = time.perf_counter()
    history: list[Step] = []

    def keep(step: Step) -> None:
        history.append(replace(step, preview=None))
        if on_step is not None:
            on_step(step)

    with torch.inference_mode(False):
        x0 = image.detach().float().mul(255).round().div(255).to(editor.device)
        mask = mask if mask is None else mask.to(editor.device)
        if build is None:
            x = module.perturb(x0, eps=eps, seed=seed, **options)
        else:
            size = editor.work_size(*x0.shape[-2:])
            given = {"seed": seed} if "seed" in inspect.signature(build).parameters else {}
            grad_fn = build(editor, resize(x0, size), editor.prepare(prompts), **given, **options)
            if size != tuple(x0.shape[-2:]):
                grad_fn = through_resize(grad_fn, size)
            x = pgd(
                x0,
                grad_fn,
                eps=eps,
                alpha=alpha,
                steps=steps,
                seed=seed,
                random_start=methods.random_start(method, options),
                mask=mask,
                on_step=keep,
            )
        protected = round_to_budget(x, x0, eps, mask).cpu()
    settings = {
        "method": method,
        "options": options,
        "eps": eps,
        "steps": steps if build else 0,
        "alpha": alpha if build else 0.0,
        "seed": seed,
        "editor": editor.name,
        "editor_fingerprint": editor.fingerprint,
        "prompt": prompts,
    }
    linf = float((protected - x0.cpu()).abs().max())
    return Immunized(protected, tuple(history), linf, time.perf_counter() - start, settings)


def edit(
    image: Image,
    editor: Editor | str,
    *,
    prompt: str | Sequence[str],
    seed: Seed = 0,
    on_step: OnStep | None = None,
    **options: Any,
) -> Image:
    """Edit pictures as an attacker would: any size in, the same size out, on the 8-bit grid as a saved PNG would be.

    ``image`` (B, 3, H, W) in [0, 1]; ``prompt`` and ``seed``: one for all or one per picture; the same seed gives the
    same bytes. ``options`` are the editor's own (steps, guidance_scale, ...). Raises InputError for wrong arguments.
    """
    check_image(image, "image")
    prompts = check_prompts(prompt, len(image))
    check_seed(seed, len(image))
    editor = load_editor(editor) if isinstance(editor, str) else editor
    options = check_edit_options(editor, options)
    height, width = image.shape[-2:]
    x = resize(image.detach().float().to(editor.device), editor.work_size(height, width))
    edited = editor.edit(x, editor.prepare(prompts), seed=seed, on_step=on_step, **options)
    return resize(edited.float().cpu(), (height, width)).clamp(0, 1).mul(255).round().div(255)


def judge(
    source: Tensor,
    edited: Tensor,
    prompt: str,
    judges: Sequence[Judge | str],
    *,
    truth: Any = None,
    on_step: OnStep | None = None,
) -> list[Verdict]:
    """Ask every judge whether the edit of one picture failed, by semantic mismatch or perceptual degradation.

    ``source``, ``edited``: (3, H, W) or (1, 3, H, W) in [0, 1] of one size. ``judges``: objects or "backend:model"
    names; one verdict each. What goes wrong at a judge is its verdict's state, never an exception; wrong arguments
    raise InputError, and a judge that cannot be set up JudgeError.
    """
    case = check_case(source, edited, prompt, truth)
    if isinstance(judges, str) or not judges:
        raise InputError('expected a list of judges such as ["miniature:conv", "miniature:patch"]')
    loaded = [load_judge(j) if isinstance(j, str) else j for j in judges]
    return [j.judge([case], on_step=on_step)[0] for j in loaded]


def check_case(source: Tensor, edited: Tensor, prompt: str, truth: Any = None) -> Case:
    """A case for judges from (3, H, W) or (1, 3, H, W) pictures of one size in [0, 1], or an InputError."""
    pair = [_single(source, "source"), _single(edited, "edited")]
    if pair[0].shape != pair[1].shape:
        sizes = [f"{x.shape[-1]}x{x.shape[-2]}" for x in pair]
        raise ImageError(
            f"pictures differ in size: source {sizes[0]}, edited {sizes[1]}: an edit has its source's size"
        )
    return Case(pair[0], pair[1], check_prompts(prompt, 1)[0], truth)


def check_prompts(prompt: str | Sequence[str], n: int) -> list[str]:
    """One stripped, non-empty prompt per picture; a single string serves all n."""
    prompts = [prompt] * n if isinstance(prompt, str) else _listed(prompt, "prompt")
    if len(prompts) != n:
        raise InputError(f"expected one prompt or {n} (one per picture), got {len(prompts)}")
    for text in prompts:
        if not isinstance(text, str) or not text.strip():
            raise InputError(f"prompt: expected an instruction such as 'make it night', got {text!r}")
    return [text.strip() for text in prompts]


def check_unit(value: Any, name: str) -> float:
    """A number in (0, 1] as float."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not 0 < float(value) <= 1:
        raise InputError(f"{name}: expected a number above 0 and at most 1 (pixel values span [0, 1]), got {value!r}")
    return float(value)


def check_budget(eps: Any) -> float:
    """eps as float; refuses budgets under one 8-bit level, which no saved picture could use."""
    if check_unit(eps, "eps") < 1 / 255:
        raise InputError(f"eps: {eps!r} is under one 8-bit level (1/255 = 0.0039): the saved picture could not change")
    return float(eps)


def check_count(value: Any, name: str) -> int:
    """A whole number of at least 1."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 1:
        raise InputError(f"{name}: expected a whole number of at least 1, got {value!r}")
    return int(value)


def check_seed(seed: Any, n: int) -> None:
    """Raise InputError unless seed is a whole number in [0, 2**63), or n of them."""
    if not isinstance(seed, int | Sequence):
        raise InputError(f"seed: expected a whole number or one per picture, got {seed!r}")
    generators(seed, n)


def check_mask(mask: Tensor | None, image: Image) -> Tensor | None:
    """The mask as (1 or B, 1, H, W) float32 in [0, 1], or None."""
    if mask is None:
        return None
    if not isinstance(mask, Tensor) or mask.shape[-2:] != image.shape[-2:] or mask.ndim not in (2, 4):
        got = (
            f"{mask.shape[-1]}x{mask.shape[-2]}" if isinstance(mask, Tensor) and mask.ndim >= 2 else type(mask).__name__
        )
        raise ImageError(f"mask: expected the picture's size {image.shape[-1]}x{image.shape[-2]} as (H, W), got {got}")
    mask = mask.detach().float().reshape(-1, 1, *image.shape[-2:])
    if len(mask) not in (1, len(image)):
        raise ImageError(f"mask: expected one mask or {len(image)} (one per picture) with one channel, got {len(mask)}")
    if not bool(torch.isfinite(mask).all()) or float(mask.min()) < 0 or float(mask.max()) > 1:
        raise ImageError("mask: expected values in [0, 1]")
    if not bool(mask.any()):
        raise ImageError("mask: all zero, so no pixel may change")
    return mask


def check_method(method: str, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """The chosen options of a method as a dict; :class:`InputError` with near names for an unknown method or option."""
    known = methods.options(method)
    for name in chosen:
        if name not in known:
            raise unknown(f"option of {method}", name, known)
    return dict(chosen)


def check_edit_options(editor: Editor, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """The chosen options of an editor's ``edit`` as a dict; :class:`InputError` with near names for an unknown one."""
    parameters = inspect.signature(editor.edit).parameters.values()
    known = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in ("seed", "on_step")]
    if not any(p.kind is p.VAR_KEYWORD for p in parameters):
        for name in chosen:
            if name not in known:
                raise unknown(f"option of {editor.name}", name, known)
    return dict(chosen)


def _listed(values: Any, name: str) -> list[Any]:
    if not isinstance(values, Sequence):
        raise InputError(f"{name}: expected one value or a list, got {type(values).__name__}")
    return list(values)


def _single(x: Any, name: str) -> Tensor:
    if isinstance(x, Tensor) and x.ndim == 3:
        x = x[None]
    check_image(x, name)
    if len(x) != 1:
        raise ImageError(f"{name}: expected one picture, got a batch of {len(x)}")
    return x[0]

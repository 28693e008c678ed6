"""The four verbs: immunize, edit, measure, judge. Command line, nodes and bench call these and nothing deeper."""

from __future__ import annotations

import inspect
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from . import methods
from . import purify as purification
from .checks import check_list, check_prompts, check_toys
from .editors import load_editor
from .errors import ImageError, InputError, unknown
from .gradients import ensemble, through, through_resize
from .graphs import replayed
from .images import bands, check_image, check_mask, check_picture, on_grid, resize, round_to_budget
from .judges import load_judge
from .loop import Ball, Schedule, Update
from .memory import enough, peak
from .metrics import measure as measure
from .noise import Seed, check_seed, fork
from .pgd import pgd
from .transforms import parse, uploaded
from .transforms import through as transformed
from .types import Case, Editor, GradFn, Image, Judge, Metric, OnStep, Sampled, Step, Verdict


@dataclass(frozen=True)
class Immunized:
    """What :func:`immunize` returns.

    ``image`` (B, 3, H, W) lies on the 8-bit grid, so saving it as PNG changes nothing; ``linf`` is the largest
    difference from the 8-bit source and ``rms`` the largest root mean square of an image's differences, whichever the
    ball bounds at most eps; ``rounding`` is the largest root mean square of what rounding to 8 bits changed, which is
    part of both; ``history`` holds one :class:`Step` per iteration without previews (none for controls that
    take no gradient); ``settings`` is everything needed to do it again; ``peak_memory`` in bytes, see
    :func:`sifm_core.memory.peak`.
    """

    image: Image
    history: tuple[Step, ...]
    linf: float
    rms: float
    rounding: float
    seconds: float
    peak_memory: Metric
    settings: Mapping[str, Any] = field(default_factory=dict)


def immunize(
    image: Image,
    editor: Editor | str,
    *,
    prompt: str | Sequence[str],
    method: str = "sifm",
    preset: str = "equal_budget",
    eps: float | None = None,
    steps: int | None = None,
    alpha: float | None = None,
    seed: Seed = 0,
    mask: Tensor | None = None,
    grey: bool = False,
    luma: float = 1.0,
    ball: Ball | None = None,
    schedule: Schedule | None = None,
    update: Update | None = None,
    eot: Sequence[str] | None = None,
    random_start: bool | None = None,
    also: Sequence[Editor | str] = (),
    demonstration: bool = False,
    on_step: OnStep | None = None,
    **options: Any,
) -> Immunized:
    """Perturb pictures within eps so that `editor` no longer edits them as asked.

    ``image`` (B, 3, H, W) in [0, 1], any size: the perturbation has full resolution, the editor sees an antialiased
    resize. ``prompt`` and ``seed``: one for all or one per picture; an empty prompt, for methods that need to know none
    (:func:`sifm_core.methods.promptless`), where none is known. ``eps``, ``alpha`` in [0, 1] units; ``mask``
    (H, W), (1, 1, H, W) or (B, 1, H, W) in [0, 1] limits where pixels may change, such as
    :func:`sifm_core.visibility.budget_map`; with ``grey`` a colourless picture stays so, and ``luma``
    below 1 moves colour more than brightness, see :func:`sifm_core.visibility.forgiven`. ``options`` are the method's
    own, see :func:`sifm_core.methods.options`. What is not given is as ``preset`` says: "equal_budget" (eps 0.03, 100
    steps of 2/255), "paper" (what the method's paper uses), see :func:`sifm_core.methods.presets`.

    The loop, the same for every method with a gradient: ``ball``, ``schedule``, ``update`` as in `sifm_core.pgd.pgd`;
    ``eot`` transforms such as ("jpeg:75", "resize:0.5", "none"), one drawn for each picture in each iteration, that
    the perturbation is to survive, see :mod:`sifm_core.transforms`; ``random_start`` and ``update`` override the
    method's own rule; ``also`` further editors against which to protect at once, see
    :func:`sifm_core.gradients.ensemble`.

    An editor that is a toy protects its own drawings and nothing larger. ``demonstration`` lets it all the same, and
    ``settings`` then say so.

    Raises InputError before any work when an argument is wrong, EditorError when memory runs out; what ``on_step``
    raises comes through.
    """
    check_picture(image)
    prompts = check_prompts(prompt, len(image), empty=methods.promptless(method))
    budget = {"eps": eps, "steps": steps, "alpha": alpha}
    descent = {"ball": ball, "schedule": schedule, "update": update, "eot": eot, "random_start": random_start}
    loop, chosen = methods.configure(method, preset, budget | descent)
    mask = check_mask(mask, image)
    if grey and not bool((on_grid(image) == on_grid(image)[:, :1]).all()):
        raise ImageError("grey: expected colourless pictures, whose three channels are equal, got one with colour")
    check_seed(seed, len(image))
    options = methods.check_method(method, chosen | options)
    module = methods.get_method(method)
    build = getattr(module, "build", None)
    if loop.random_start is None:
        loop = replace(loop, random_start=methods.random_start(method, options))
    if loop.update == "auto":
        loop = replace(loop, update=methods.update(method))
    editor, *others = [load_editor(e) if isinstance(e, str) else e for e in (editor, *check_list(also, "also"))]

    demonstration = build is not None and check_toys((editor, *others), image, demonstration)

    start = time.perf_counter()
    history: list[Step] = []

    def keep(step: Step) -> None:
        history.append(replace(step, preview=None))
        if on_step is not None:
            on_step(step)

    def gradient(editor: Editor, x0: Image) -> GradFn:
        size = editor.work_size(*x0.shape[-2:])
        given = {"seed": seed} if "seed" in inspect.signature(module.build).parameters else {}
        x, inside = resize(x0, size), f"{len(x0)} picture(s) at {size[1]}x{size[0]} in {editor.name}"
        with enough(inside, editor.device):
            inner = module.build(editor, x, editor.prepare(prompts, x), **given, **options)
        within = enough(inside, editor.device)
        inner = Sampled(inner.draw, within(inner.gradient)) if isinstance(inner, Sampled) else within(inner)
        whole = inner if size == tuple(x0.shape[-2:]) else through_resize(inner, size)
        return replayed(whole) if editor.recordable else whole

    def rows(editor: Editor) -> dict[str, int]:
        """How many rows its network ran at once, of a method for which that matters."""
        rows = methods.rows_of(method, editor, editor.work_size(*image.shape[-2:]), options.get("rows", 0))
        return {} if rows is None else {"rows": rows}

    shown = f"{len(image)} picture(s) of {image.shape[-1]}x{image.shape[-2]} pixels"
    with torch.inference_mode(False), peak(editor.device) as measured, enough(shown, editor.device, pictures=True):
        x0 = on_grid(image).to(editor.device)
        mask = mask if mask is None else mask.to(editor.device)
        if build is None:
            x = module.perturb(x0, eps=loop.eps, seed=seed, **options)
        else:
            grad_fn = gradient(editor, x0)
            if others:
                grad_fn = ensemble([grad_fn, *(gradient(other, x0) for other in others)])
            settings = loop.plain()
            if transforms := parse(settings.pop("eot")):
                grad_fn = through(grad_fn, lambda x, i: transformed(x, transforms, fork(seed, "eot", i)))
                if (size := uploaded((image.shape[-2], image.shape[-1]))) != tuple(image.shape[-2:]):
                    grad_fn = through_resize(grad_fn, size)
            x = pgd(x0, grad_fn, seed=seed, mask=mask, grey=grey, luma=luma, on_step=keep, **settings)
        x, mask = x.cpu(), None if mask is None else mask.cpu()  # rounding is in float64, which not every device has
        protected = round_to_budget(x, x0.cpu(), loop.eps, mask, methods.ball_of(method, loop.ball))
        if grey:  # noise of a method without a loop has colour, and an l2 ball rounds each value for itself
            protected = _alike(protected, x0.cpu())
        rounding = _apart(protected, x)[1]
    settings = {
        "method": method,
        "options": options,
        "eps": loop.eps,
        "seed": seed,
        "editor": editor.name,
        "prompt": prompts,
    }
    if build is None:  # neither the loop nor an editor had a part in it
        settings |= {"steps": 0, "alpha": 0.0, "ball": "linf", "also": []}
    else:
        settings |= {
            **loop.plain(),
            "editor_fingerprint": editor.fingerprint,
            **rows(editor),
            "also": [{"editor": e.name, "editor_fingerprint": e.fingerprint, **rows(e)} for e in others],
        }
        if (entered := methods.entrances_of(method, editor, options)) is not None:
            settings["entrances"] = entered
    settings |= {"grey": True} if grey else {}
    settings |= {"luma": luma} if luma != 1 else {}
    if demonstration:
        settings["demonstration"] = True
    linf, rms = _apart(protected, x0.cpu())
    seconds = time.perf_counter() - start
    return Immunized(protected, tuple(history), linf, rms, rounding, seconds, measured[0], settings)


def edit(
    image: Image,
    editor: Editor | str,
    *,
    prompt: str | Sequence[str],
    seed: Seed = 0,
    purify: str | Sequence[purification.Stage] = "",
    demonstration: bool = False,
    on_step: OnStep | None = None,
    **options: Any,
) -> Image:
    """Edit pictures as an attacker would: any size in, the same size out, on the 8-bit grid as a saved PNG would be.

    ``image`` (B, 3, H, W) in [0, 1]; ``prompt`` and ``seed``: one for all or one per picture; the same seed gives the
    same bytes. ``purify``: what the attacker does to the pictures first, at their full size, such as
    "jpeg:75,resize:0.5"; see :mod:`sifm_core.purify`. ``options`` are the editor's own (steps, guidance_scale, ...).
    Raises InputError for wrong arguments, and for pictures that are too large for a toy, unless ``demonstration``.
    """
    check_picture(image)
    prompts = check_prompts(prompt, len(image))
    check_seed(seed, len(image))
    stages = purification.parse(purify) if isinstance(purify, str) else purify
    editor = load_editor(editor) if isinstance(editor, str) else editor
    options = check_edit_options(editor, options)
    check_toys([editor], image, demonstration)
    if stages:
        image = purification.apply(
            image.detach().float(),
            stages,
            editor=editor,
            device=editor.device,
            seed=seed,
            demonstration=demonstration,
            on_step=on_step,
        )
        image = image.mul(255).round().div(255)
    height, width = image.shape[-2:]
    shown = f"{len(image)} picture(s) of {width}x{height} pixels"
    with enough(shown, editor.device, pictures=True):
        x = resize(image.detach().float().to(editor.device), editor.work_size(height, width))
        with enough(f"an edit of {len(x)} picture(s) at {x.shape[-2]}x{x.shape[-1]}", editor.device):
            edited = editor.edit(x, editor.prepare(prompts, x), seed=seed, on_step=on_step, **options)
        return resize(edited.float().cpu(), (height, width)).clamp(0, 1).mul_(255).round_().div_(255)


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


PRIVATE = ("prompt", "prompts", "instructions", "avoid", "editor")
"""Settings that a saved picture does not name: instructions, and editors, whose name may be a folder's."""


def public(settings: Any) -> Any:
    """What a saved picture may say of the settings that protected it: all but :data:`PRIVATE`, at any depth."""
    if isinstance(settings, Mapping):
        return {key: public(value) for key, value in settings.items() if key not in PRIVATE}
    return [public(value) for value in settings] if isinstance(settings, list | tuple) else settings


APART = "prompt distance: 1 - cosine of the means over the prompts' words by the editor's own text encoder"


def prompt_distance(editor: Editor, one: str, other: str) -> Metric:
    """How far two prompts are apart for an editor: from 0, the same direction of its text encoder's means, to 2.

    None, with the reason, where the encoder does not read the prompts or finds no words in them.
    """
    try:
        cond = editor.prepare([one, other])
    except InputError as error:
        return Metric(None, APART, str(error))
    text, words = editor.embeddings(cond).cpu().double(), editor.words(cond).cpu()[..., None]
    if not bool(words.any(dim=1).all()):
        return Metric(None, APART, f"{editor.name} finds no words in {one!r} or {other!r}")
    means = (text * words).sum(dim=1) / words.sum(dim=1)
    cosine = torch.nn.functional.cosine_similarity(means[0], means[1], dim=0)
    return Metric(max(0.0, 1 - float(cosine)), APART)


def check_case(source: Tensor, edited: Tensor, prompt: str, truth: Any = None) -> Case:
    """A case for judges from (3, H, W) or (1, 3, H, W) pictures of one size in [0, 1], or an InputError."""
    pair = [_single(source, "source"), _single(edited, "edited")]
    if pair[0].shape != pair[1].shape:
        sizes = [f"{x.shape[-1]}x{x.shape[-2]}" for x in pair]
        raise ImageError(
            f"pictures differ in size: source {sizes[0]}, edited {sizes[1]}: an edit has its source's size"
        )
    return Case(pair[0], pair[1], check_prompts(prompt, 1)[0], truth)


def check_edit_options(editor: Editor, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """The chosen options of an editor's ``edit`` as a dict; :class:`InputError` with near names for an unknown one."""
    parameters = inspect.signature(editor.edit).parameters.values()
    known = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in ("seed", "on_step")]
    if not any(p.kind is p.VAR_KEYWORD for p in parameters):
        for name in chosen:
            if name not in known:
                raise unknown(f"option of {editor.name}", name, known)
    return dict(chosen)


def _apart(one: Image, other: Image) -> tuple[float, float]:
    """The largest difference of two batches, and the largest root mean square of an image's differences."""
    largest, squares = 0.0, torch.zeros(len(one), dtype=torch.float64)
    for rows in bands(one):
        delta = one[..., rows, :] - other[..., rows, :]
        largest = max(largest, float(delta.abs().max()))
        squares += delta.square().flatten(1).sum(dim=1)
    return largest, float((squares / one[0].numel()).sqrt().max())


def _alike(protected: Image, x0: Image) -> Image:
    """Of each pixel's three changes the smallest, for all three."""
    least = (protected - x0).abs().argmin(dim=1, keepdim=True)
    return protected.gather(1, least).expand_as(x0).contiguous()


def _single(x: Any, name: str) -> Tensor:
    if isinstance(x, Tensor) and x.ndim == 3:
        x = x[None]
    check_image(x, name)
    if len(x) != 1:
        raise ImageError(f"{name}: expected one picture, got a batch of {len(x)}")
    return x[0]

"""Protect one picture: how strongly, against which editors, and what was done, in words.

What a person decides is the strength; all else follows from the picture and the editors. Each strength is a bundle of
settings of :func:`sifm_core.immunize` with the method :data:`METHOD`, which needs no instruction, under a budget that
follows what an eye forgives (:func:`sifm_core.visibility.forgiven`).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .checks import check_choice, check_list, check_toys
from .editors import GIGABYTES, load_editor
from .errors import EditorError, ImageError, InputError
from .files import in_cache
from .images import check_mask, check_picture, on_grid
from .methods.sifm_plus import OWN, pools
from .noise import Seed
from .pipeline import Immunized, immunize
from .types import Editor, Image, Metric, OnStep, Step
from .visibility import Visibility, faded, forgiven, measurable, visibility

METHOD = "sifm_plus"
UPLOAD = ("none", "jpeg:50-95", "resize:0.4-0.9")
"""What happens to a picture between a person and an editor: nothing, JPEG, or down and up again."""


class Strength(NamedTuple):
    """``eps`` in [0, 1] units, of which each pixel gets its share; transforms to survive; ``most`` JOD of visible loss.

    ``most`` None: what is visible is measured and said, not limited.
    """

    eps: float
    steps: int
    eot: tuple[str, ...]
    most: float | None
    about: str


STRENGTHS: dict[str, Strength] = {
    "subtle": Strength(6 / 255, 60, (), 0.1, "not visible at arm's length; made for the file as it is"),
    "normal": Strength(10 / 255, 100, UPLOAD, 0.5, "at most visible on flat areas when looked for; made for an upload"),
    "strong": Strength(16 / 255, 200, UPLOAD, None, "visible; made for an upload, with twice the work"),
}
"""Name -> settings. At 10/255 each pixel may change by what is just noticed (:func:`sifm_core.visibility.jnd`)."""
TRIAL = 10
"""Steps of a first try, which shows how visible a change by all of a limited strength's budget would be.

The work itself is done with a budget near the limit: made fainter afterwards, a change protects less at the same
visibility (docs/visibility.md).
"""
CALIBRATION = 2
"""Steps that :func:`forecast` takes."""
NOT_PROMISED = (
    "Whether it holds was not tested: that depends on the picture. The command sifm holds tests it, in ComfyUI Does It "
    "Hold?; or give it to the editor yourself and look.",
    "It covers no other editors, no closed services, and none that are still to come. A public copy cannot be changed "
    "any more.",
    "There are tools that take protections off again (arXiv 2603.13028 describes one), and cropping, repainting or "
    "photographing the screen may be enough.",
)


@dataclass(frozen=True)
class Protected:
    """What :func:`protect` returns.

    ``image`` (1, 3, H, W) on the 8-bit grid. ``visibility``: how visible the change is; ``faded``: which share of
    the strength's budget its limit left, 1 where that was all. ``seconds`` and ``peak_memory`` (bytes) as
    measured; ``settings`` is everything needed to do it again, what was typed included; ``instructions`` says for what
    kinds it was made, and quotes none; ``history`` one :class:`Step` per iteration. ``demonstration``: a toy did it.
    """

    image: Image
    strength: str
    visibility: Visibility
    faded: float
    linf: float
    rms: float
    seconds: float
    peak_memory: Metric
    settings: Mapping[str, Any]
    editors: Sequence[Mapping[str, Any]]
    instructions: str
    history: tuple[Step, ...] = field(repr=False, default=())
    demonstration: bool = False

    def words(self) -> Iterator[str]:
        """What was done and what it does not promise, a sentence each."""
        if self.demonstration:
            yield "A demonstration: a toy did this, and it protects nothing."
        fainter = f"; made fainter, to {self.faded:.0%}, to be no more than {self.strength}, which costs protection"
        yield (
            f"Changed by at most {255 * self.linf:.0f} of 255 levels, typically by {255 * self.rms:.1f}: "
            f"{self.visibility.words}{loss(self.visibility)}{fainter if self.faded < 1 else ''}."
        )
        yield f"Against {' and '.join(map(called, self.editors))}, and nothing else."
        yield f"For {self.instructions}."
        survive = [text for text in self.settings["eot"] if text != "none"]
        yield (
            f"Made to survive {' and '.join(survive)}."
            if survive
            else "Not made to survive being scaled or compressed."
        )
        yield from self.not_promised()

    def not_promised(self, tested: bool = False) -> Iterator[str]:
        """:data:`NOT_PROMISED`, less what was ``tested``, after a limit not kept for want of a measure."""
        if self.visibility.loss.value is None and STRENGTHS[self.strength].most is not None:
            yield (
                f"How visible it is was not measured, so it could not be held to what {self.strength} promises: "
                "look at it at 100%."
            )
        yield from NOT_PROMISED[tested:]


def protect(
    image: Image,
    against: Editor | str | Sequence[Editor | str],
    *,
    strength: str = "normal",
    instruction: str = "",
    subject: str = "any",
    mask: Tensor | None = None,
    demonstration: bool = False,
    seed: Seed = 0,
    on_step: OnStep | None = None,
    steps: int | None = None,
) -> Protected:
    """Protect one picture (1, 3, H, W) in [0, 1], at its full resolution, against one or several editors at once.

    ``strength``: one of :data:`STRENGTHS`. ``instruction``: what an attacker may ask, where that is known; without it
    the method draws from what people ask of such a ``subject`` (:mod:`sifm_core.methods.sifm_plus`). ``mask`` (H, W) or
    (1, 1, H, W) in [0, 1]: how much of its budget each pixel may use, such as a picture's alpha. A colourless picture
    stays so. ``steps`` in place of the strength's. ``demonstration``: as in :func:`sifm_core.immunize`.

    Raises InputError before any work when an argument is wrong, ImageError where nothing could change within the
    strength's limits, EditorError when memory runs out; what ``on_step`` raises comes through.
    """
    editors, how = _checked(image, against, strength, subject, demonstration)
    image, start = on_grid(image), time.perf_counter()
    sizes = [editor.work_size(*image.shape[-2:]) for editor in editors]
    unseen = forgiven(image, size=min(sizes, key=max))
    if (mask := check_mask(mask, image)) is not None:
        unseen["mask"].mul_(mask)
    options: dict[str, Any] = {} if subject == "any" else {"subject": subject}
    steps = how.steps if steps is None else steps
    trial = TRIAL if how.most is not None and steps > TRIAL and measurable() else 0

    def made(steps: int, before: int, total: int) -> Immunized:
        def report(step: Step) -> None:
            if on_step is not None:
                on_step(replace(step, i=before + step.i, n=total))

        return immunize(
            image,
            editors[0],
            prompt=instruction,
            method=METHOD,
            eps=how.eps,
            steps=steps,
            eot=how.eot,
            also=editors[1:],
            demonstration=demonstration,
            seed=seed,
            on_step=report,
            **unseen,
            **options,
        )

    share, left = 1.0, 1.0
    if trial and how.most is not None:
        share = faded(image, made(trial, 0, trial + steps).image, how.most)[1]
        whole = float(unseen["mask"].sum())
        unseen["mask"] = held_down(unseen["mask"], share, how.eps)
        left = float(unseen["mask"].sum()) / whole
    done = made(steps, trial, trial + steps)
    protected, factor, seen = done.image, 1.0, visibility(image, done.image)
    if how.most is not None and seen.loss.value is not None and seen.loss.value > how.most:
        protected, factor = faded(image, done.image, how.most)
        seen = visibility(image, protected)
    if seen.largest == 0:
        stronger = list(STRENGTHS)[min(len(STRENGTHS) - 1, 1 + list(STRENGTHS).index(strength))]
        raise ImageError(
            f"nothing of this picture can change without being more visible than {strength}, so it would be "
            "unprotected: use {strength}, or a mask that leaves more of it free",
            strength=stronger,
        )
    return Protected(
        protected,
        strength,
        seen,
        left * factor,
        seen.largest,
        seen.typical,
        time.perf_counter() - start,
        done.peak_memory,
        {**done.settings, "strength": strength, "share": share, "faded": factor},
        [_about(editor) for editor in editors],
        _kinds(subject if subject != "any" or editors[0].toy is None else OWN, bool(instruction.strip())),
        done.history,
        bool(done.settings.get("demonstration")),
    )


def held_down(mask: Tensor, share: float, eps: float) -> Tensor:
    """A mask under which each pixel's budget is ``share`` of what it was, and one level more, but not more than it was.

    The level is for flat areas: they have one or two, and a share of them, rounded, would be none.
    """
    return mask if share == 1 else torch.minimum(mask, share * mask + 1 / (255 * eps))


class Forecast(NamedTuple):
    """About how long protecting will take, in seconds, and how much memory with the networks, in bytes."""

    seconds: float
    memory: Metric

    def __str__(self) -> str:
        room = "" if self.memory.value is None else f" and {self.memory.value / 1e9:.1f} GB"
        return f"about {duration(self.seconds)}{room}"


def forecast(image: Image, against: Editor | str | Sequence[Editor | str], **how: Any) -> Forecast:
    """What :func:`protect` with the same arguments will take on this machine, from :data:`CALIBRATION` steps of it."""
    strength, demonstration = how.get("strength", "normal"), how.get("demonstration", False)
    editors, settings = _checked(image, against, strength, how.get("subject", "any"), demonstration)
    steps, clock = how.pop("steps", None) or settings.steps, [time.perf_counter()]
    tried = protect(image, editors, **how, steps=CALIBRATION, on_step=lambda step: clock.append(time.perf_counter()))
    each = max(after - before for before, after in pairwise(clock[1:]))
    if editors[0].device.type == "cuda":  # which reports late
        each = (clock[-1] - clock[0]) / CALIBRATION
    beside = tried.seconds - CALIBRATION * each
    if settings.most is not None and steps > TRIAL and measurable():
        beside, steps = 2 * beside, steps + TRIAL
    networks = sum(_size(editor) for editor in editors if editor.device.type == "cpu")
    memory = tried.peak_memory
    if memory.value is not None:
        memory = replace(memory, value=memory.value + networks)
    return Forecast(max(0.0, beside) + each * steps, memory)


def at_hand() -> list[str]:
    """The built-in editors that people use and that are on this machine."""
    from .editors import BUILTIN

    return [name for name in GIGABYTES if in_cache(BUILTIN[name], "model_index.json") != BUILTIN[name]]


def nothing_at_hand() -> EditorError:
    """What to do where no editor is: how the smallest comes here, and that there are others."""
    smallest, *_, largest = sorted(GIGABYTES.values())
    return EditorError(
        "to protect a picture, or to test it, takes an editor, and none that people use is on this machine. Fetch one, "
        f"once, with {{against}} and {{local_files_only}}: {smallest} GB; `sifm list editors` has {len(GIGABYTES) - 1} "
        f"more, of up to {largest} GB. Or name the folder of a diffusers pipeline that you have",
        against="instruct-pix2pix",
        local_files_only=False,
    )


def duration(seconds: float) -> str:
    """Seconds as people say them: 40 s, 12 min, 3 h 20 min."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def loss(seen: Visibility) -> str:
    """The figure behind the words, in brackets."""
    return "" if seen.loss.value is None else f" ({seen.loss.value:.2f} JOD where most is seen)"


def called(editor: Mapping[str, Any]) -> str:
    """An editor in words: its name, or its family where a certificate keeps the name to itself; a toy is called one."""
    name = editor.get("name") or f"an editor of the family {editor['family']}"
    return f"{name} (a toy)" if editor.get("toy") else str(name)


def _kinds(subject: str, given: bool) -> str:
    """For which instructions, without quoting any."""
    tables = pools()
    named = [subject] if subject in ("any", OWN) else ["any", subject]
    wishes = ", ".join(dict.fromkeys(kind for name in named for kind in tables[name]))
    drawn = f"instructions drawn from a list of what people ask ({wishes})"
    return f"the instruction that was given, and {drawn}" if given else drawn


def _about(editor: Editor) -> dict[str, Any]:
    about = {"name": editor.name, "family": editor.family, "fingerprint": editor.fingerprint}
    return about if editor.toy is None else {**about, "toy": True}


def _checked(
    image: Image, against: Any, strength: str, subject: str, demonstration: bool
) -> tuple[list[Editor], Strength]:
    """The editors, loaded, and the strength's settings; nothing is computed yet."""
    check_picture(image)
    if len(image) != 1:
        raise ImageError(f"image: expected one picture, got a batch of {len(image)}; protect them one by one")
    how = STRENGTHS[check_choice(strength, "strength", STRENGTHS)]
    check_choice(subject, "subject", pools())
    named = [against] if isinstance(against, str | Editor) else check_list(against, "against")
    if not named:
        raise InputError("against: expected at least one editor, got none")
    editors = [load_editor(editor) if isinstance(editor, str) else editor for editor in named]
    check_toys(editors, image, demonstration)
    return editors, how


def _size(editor: Editor) -> int:
    parts = {
        id(p): p.numel() * p.element_size() for network in editor.networks().values() for p in network.parameters()
    }
    return sum(parts.values())

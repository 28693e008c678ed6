"""The artist's door: protect a picture and see, at 100%, what was done to it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args
from weakref import WeakValueDictionary

import torch
from comfy_api.latest import io
from torch import Tensor

from sifm_core import certificate, protection
from sifm_core.images import Picture
from sifm_core.methods.sifm_plus import Subject
from sifm_core.protection import STRENGTHS, Protected
from sifm_core.report.document import Element, Heading, Items, Text
from sifm_core.types import Image, Metric
from sifm_core.visibility import Visibility

from . import _editors, sockets
from ._attacks import Protection
from ._comfy import MARKS, ManagedEditor, reporter, said, to_comfy, to_engine, to_masks
from ._inputs import marks_input
from ._shown import whole_picture
from ._store import editor_id, recall
from ._text import shown
from .load import load
from .save import written

_LOADED: WeakValueDictionary[tuple[str, bool], ManagedEditor] = WeakValueDictionary()
"""Editors that somebody still holds, ComfyUI's own cache among them: they are not loaded twice."""


class SifmProtectImage(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SIFM_ProtectImage",
            display_name="Protect Image",
            category="SIFM",
            description="Protect your picture against AI editing, and see how visible it is. The protected PNG and its "
            "certificate lie in ComfyUI's output folder.",
            search_aliases=[
                *("protect my photo", "protect my art", "protect image", "anti ai", "cloak", "glaze", "nightshade"),
                *("mist", "photoguard", "immunize", "poison", "stop ai editing", "deepfake", "style theft"),
            ],
            essentials_category="SIFM",
            inputs=[
                io.Image.Input("image", tooltip="Your picture, any size. Several are protected one by one."),
                against_input("The editor to protect against: one that people use, which has to be on this computer."),
                io.Combo.Input(
                    "strength",
                    options=list(STRENGTHS),
                    default="normal",
                    tooltip="; ".join(f"{name}: {strength.about}" for name, strength in STRENGTHS.items()) + ".",
                ),
                io.String.Input(
                    "words",
                    display_name="what they may ask",
                    default="",
                    optional=True,
                    placeholder="what somebody may ask for (may stay empty)",
                    tooltip="What somebody may tell an editor to do with it, such as 'make her smile'. Empty: what "
                    "people ask of such a picture is drawn from a list.",
                ),
                sockets.Editor.Input(
                    "editor", optional=True, tooltip="An editor of your own graph; takes the place of 'against'."
                ),
                io.Mask.Input("mask", optional=True, tooltip="Where the picture may change; white is where."),
                io.Combo.Input(
                    "subject",
                    options=["any", *(name for name in get_args(Subject) if name not in ("any", "auto", "miniature"))],
                    optional=True,
                    advanced=True,
                    tooltip="What the picture shows: which instructions are expected.",
                ),
                marks_input(),
                io.Int.Input(
                    "variant",
                    default=0,
                    min=0,
                    max=2**53 - 1,
                    optional=True,
                    advanced=True,
                    tooltip="Another number makes another protection of the same strength; the same number, the same.",
                ),
                demonstration_input(),
                io.String.Input(
                    "filename_prefix",
                    default="SIFM/protected",
                    optional=True,
                    advanced=True,
                    tooltip="Folder and name in the output folder.",
                ),
            ],
            outputs=[
                io.Image.Output("image", tooltip="The protected picture, as read back from its file."),
                sockets.Protection.Output("protection", tooltip="For Does It Hold and Attack Plan."),
                sockets.Editor.Output("editor", tooltip="The editor that it was protected against."),
            ],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(
        cls, against: str | None = None, editor: Any = False, demonstration: bool | None = False
    ) -> bool | str:
        return against_problem(against, editor, demonstration)

    @classmethod
    def fingerprint_inputs(cls, against: str = "", editor: Any = False, **_: Any) -> list[tuple[str, int, int]]:
        return [] if editor is None else _editors.files(_editors.source(against))

    @classmethod
    def execute(
        cls,
        image: Tensor,
        against: str,
        strength: str,
        words: str = "",
        editor: ManagedEditor | None = None,
        mask: Tensor | None = None,
        subject: str = "any",
        mask_marks: str = MARKS[0],
        variant: int = 0,
        demonstration: bool = False,
        filename_prefix: str = "SIFM/protected",
    ) -> io.NodeOutput:
        managed = editor or at_hand(against, demonstration)
        masks, alphas = to_masks(image, mask, mask_marks)
        how = {"strength": strength, "instruction": words.strip(), "subject": subject, "seed": variant}
        how["demonstration"] = demonstration or managed.demonstration
        found = [
            _protected(picture, _one(masks, i), managed, how) for i, picture in enumerate(to_engine(image).split(1))
        ]
        done = Protection(
            to_engine(image),
            torch.cat([each.image for each in found]),
            {**found[0].settings, "editor": managed.editor.name},
            sum(each.seconds for each in found),
            [],
            None if masks is None else (masks > 0).float(),
            alphas,
        )
        files, read = written(done, filename_prefix, {})
        for i, (file, each) in enumerate(zip(files, found, strict=True)):
            original = to_engine(image)[i : i + 1]
            source = Picture(original, _one(alphas, i), None, Path(), "RGB")
            certificate.write(certificate.certificate(each, file.path, source, _one(done.mask, i)), file.path)
        sides = zip(found, to_engine(image).split(1), strict=True)
        crops = [[each.visibility.crop(x)[0] for x in (original, each.image)] for each, original in sides]
        ui = shown(_report(found, [file.shown for file in files]), images=[file.result for file in files])
        ui["sifm_sides"] = [[whole_picture(side) for side in pair] for pair in crops]
        ui["sifm_demonstration"] = [any(each.demonstration for each in found)]
        return io.NodeOutput(to_comfy(read), done, managed, ui=ui)


def against_input(tooltip: str) -> io.Input:
    """The editors that can be chosen, those of people first; what is not here says where it comes from."""
    here = _editors.at_hand()
    absent = _editors.absent(here)
    order = sorted(here, key=_editors.is_toy)
    return io.Combo.Input(
        "against", options=[*order, *absent], default=order[0], tooltip=tooltip, extra_dict={"sifm_absent": absent}
    )


def demonstration_input() -> io.Input:
    return io.Boolean.Input(
        "demonstration",
        default=False,
        optional=True,
        advanced=True,
        tooltip="Let a miniature, which is a toy, show how it goes: it stains the picture and protects nothing, and "
        "the file is called a demonstration.",
    )


def against_problem(against: str | None, editor: Any, demonstration: bool | None) -> bool | str:
    """True, or why nothing can be protected against this editor; ``editor`` None: another comes through a link."""
    if editor is None or against is None:
        return True
    other = "or load a checkpoint with ComfyUI and connect SIFM Editor from Model"
    if wrong := _editors.problem(against, toys=False):
        return f"{wrong}; {other}"
    if _editors.is_toy(against) and demonstration is False:
        absent = _editors.absent(_editors.at_hand())
        real = [name for name in _editors.at_hand() if not _editors.is_toy(name)]
        cure = f"choose {' or '.join(real)}" if real else _editors.problem(next(iter(absent)), toys=False)
        return (
            f"{against} is a toy: it knows small drawings of its own, and a picture of yours it would stain without "
            f"protecting it. What to do: {cure}; {other}. To see how it goes, on a file marked as such: demonstration, "
            "among the advanced settings"
        )
    return True


def at_hand(against: str, demonstration: bool) -> ManagedEditor:
    """The editor of a name, loaded once as long as somebody holds it."""
    key = (against, demonstration)
    if (known := _LOADED.get(key)) is None:
        known = _LOADED[key] = load(against, demonstration=demonstration)
    return known


def _protected(original: Image, mask: Tensor | None, managed: ManagedEditor, how: dict[str, Any]) -> Protected:
    def compute() -> tuple[Image, dict[str, Any]]:
        with managed.at_work([how["instruction"]], original) as engine:
            looked = managed.examine(original, how["instruction"], "deep")
            said(f"{protection.forecast(original, engine, mask=mask, **how)}, from {time.strftime('%H:%M')}")
            done = protection.protect(original, engine, mask=mask, on_step=reporter(preview=False), **how)
        kept = {name: getattr(done, name) for name in KEPT}
        return done.image, kept | {"settings": {**done.settings, **({"doctor": looked} if looked else {})}}

    uses = {"picture": original, "mask": mask, **how, "editor": editor_id(managed.editor)}
    image, about = recall("protect", uses, compute)
    return _told(image, about)


KEPT: tuple[str, ...] = (
    "strength",
    "visibility",
    "faded",
    "linf",
    "rms",
    "seconds",
    "peak_memory",
    "settings",
    "editors",
)
KEPT += ("instructions", "demonstration")
"""Of what :func:`sifm_core.protect` returns, all but the picture and the history."""


def _told(image: Image, about: Mapping[str, Any]) -> Protected:
    """What :func:`sifm_core.protect` returned, from what is kept of it."""
    known = {name: about[name] for name in KEPT}
    seen = known["visibility"]
    if not isinstance(seen, Visibility):
        seen = Visibility(**{**seen, "loss": Metric(**seen["loss"]), "part": tuple(seen["part"])})
        known |= {"visibility": seen, "peak_memory": Metric(**known["peak_memory"])}
    return Protected(image=image, **known)


def _report(found: list[Protected], files: list[str]) -> list[Element]:
    elements: list[Element] = []
    for each, file in zip(found, files, strict=True):
        first, *rest = each.words()
        elements += [
            Heading(first),
            Items([*rest, *filter(None, [each.settings.get("doctor")])]),
            Text([f"`{file}`, with its certificate beside it, in ComfyUI's output folder."]),
        ]
    return elements


def _one(masks: Tensor | None, i: int) -> Tensor | None:
    return None if masks is None else masks[i % len(masks)][None]

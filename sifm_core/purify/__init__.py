"""What an attacker does to a protected picture before editing it: one file per purifier, one line in :data:`PURIFIERS`.

A chain is spelled ``"jpeg:75,resize:0.5"``: names with their own setting, ``"jpeg"`` with the standard one, or
``"jpeg@0.5"`` with a strength on the common scale from 0 (mildest) to 1 (strongest in use). A module has
``purify(image, setting, ...) -> Image`` of the same shape in [0, 1]; what else it takes (``seed``, ``editor``,
``upscaler``, ``device``, ``on_step``) stands in its signature.
"""

from __future__ import annotations

import importlib
import inspect
import math
from collections.abc import Sequence
from types import ModuleType
from typing import Any, NamedTuple

import torch

from ..checks import check_toys
from ..errors import InputError, unknown
from ..images import check_image
from ..noise import Seed, fork
from ..types import Editor, Image, OnStep


class Kind(NamedTuple):
    """What ``setting`` means; its values at strength 0 and 1, in standard use, and the least and greatest allowed."""

    meaning: str
    mildest: float
    strongest: float
    standard: float
    least: float
    greatest: float


PURIFIERS: dict[str, Kind] = {
    "jpeg": Kind("quality", 100, 30, 75, 1, 100),
    "resize": Kind("scale on the way", 1.0, 0.25, 0.5, 0.01, 1.0),
    "crop_resize": Kind("share of each side that is kept", 1.0, 0.5, 0.75, 0.05, 1.0),
    "gaussian_noise": Kind("standard deviation", 0.0, 0.1, 0.05, 0.0, 1.0),
    "blur": Kind("standard deviation in pixels", 0.0, 2.0, 1.0, 0.0, 50.0),
    "median": Kind("side of the window in pixels", 1, 9, 3, 1, 99),
    "bit_depth": Kind("bits per channel", 8, 2, 5, 1, 8),
    "adverse_cleaner": Kind("passes of the bilateral filter", 0, 128, 64, 0, 1000),
    "vae_round_trip": Kind("times through the autoencoder", 0, 4, 1, 0, 100),
    "diffpure": Kind("share of the noise schedule", 0.0, 0.4, 0.15, 0.0, 1.0),
    "gridpure": Kind("short passes over tiles", 0, 40, 20, 0, 1000),
    "impress": Kind("steps of Adam", 0, 2000, 1000, 0, 100_000),
    "noisy_upscale": Kind("standard deviation of the noise", 0.0, 0.2, 0.1, 0.0, 1.0),
}
"""The order is that of growing cost; from vae_round_trip on they need a model."""


class Stage(NamedTuple):
    """One purifier of a chain with its setting."""

    name: str
    setting: float

    def __str__(self) -> str:
        return f"{self.name}:{self.setting:g}"


def parse(chain: str) -> tuple[Stage, ...]:
    """The stages of a chain; "" is none. Raises InputError for unknown names and settings that are not allowed."""
    return tuple(_stage(part.strip()) for part in chain.split(",") if part.strip())


def at(name: str, strength: float) -> Stage:
    """The purifier at a strength from 0 to 1, its setting in between; whole numbers where the setting is one."""
    kind = _kind(name)
    if not 0 <= strength <= 1:
        raise InputError(f"{name}: expected a strength from 0 to 1, but got {strength:g}; name:value gives a setting")
    setting = kind.mildest + strength * (kind.strongest - kind.mildest)
    return Stage(name, round(setting) if isinstance(kind.mildest, int) else setting)


def about(name: str) -> str:
    """One sentence about a purifier."""
    _kind(name)
    return (_module(name).__doc__ or "").strip().partition("\n")[0]


def needs_editor(chain: str | Sequence[Stage]) -> bool:
    """Does a stage work with the networks of an editor?"""
    stages = parse(chain) if isinstance(chain, str) else chain
    return any("editor" in inspect.signature(_module(name).purify).parameters for name, _ in stages)


def apply(
    image: Image,
    chain: str | Sequence[Stage],
    *,
    editor: Editor | None = None,
    upscaler: str | None = None,
    device: torch.device | None = None,
    seed: Seed = 0,
    demonstration: bool = False,
    on_step: OnStep | None = None,
) -> Image:
    """The picture after all stages: (B, 3, H, W) in [0, 1] -> the same shape, without gradient.

    ``editor`` lends its networks to the stages from vae_round_trip to impress; ``upscaler`` is the folder or hub id for
    noisy_upscale, which runs on ``device`` (default: where the picture is). ``seed``: one for all pictures or one per
    picture; stages draw independently. ``on_step`` hears of every step of the stages that take long, from diffpure on.
    Raises InputError for what :func:`parse` refuses, for a missing editor and for pictures that are too large for a
    toy's networks, unless ``demonstration``; SifmError where weights are missing.
    """
    check_image(image)
    stages = parse(chain) if isinstance(chain, str) else chain
    if editor is not None and needs_editor(stages):
        check_toys([editor], image, demonstration)
    with torch.no_grad():
        for i, (name, setting) in enumerate(stages):
            purify = _module(name).purify
            tools: dict[str, Any] = {"editor": editor, "upscaler": upscaler, "device": device, "on_step": on_step}
            tools["seed"] = fork(seed, i, name)
            wanted = inspect.signature(purify).parameters
            image = purify(image, setting, **{key: value for key, value in tools.items() if key in wanted}).clamp(0, 1)
    return image


def _stage(text: str) -> Stage:
    name, colon, value = text.partition(":")
    name, at_sign, strength = (name, "", "") if colon else text.partition("@")
    kind = _kind(name)
    if at_sign:
        return at(name, _number(text, strength))
    setting = _number(text, value) if colon else kind.standard
    if not kind.least <= setting <= kind.greatest:
        allowed = f"{kind.least:g} to {kind.greatest:g}"
        raise InputError(f"{text}: expected {kind.meaning} from {allowed}; the standard is {kind.standard:g}")
    return Stage(name, setting)


def _module(name: str) -> ModuleType:
    return importlib.import_module(f"{__name__}.{name}")


def _kind(name: str) -> Kind:
    if name not in PURIFIERS:
        raise unknown("purifier", name, PURIFIERS)
    return PURIFIERS[name]


def _number(text: str, value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise InputError(f"{text}: expected a number, but got {value!r}; such as jpeg:75 or jpeg@0.5")
    return int(number) if number.is_integer() and "." not in value else number

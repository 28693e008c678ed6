"""The procedural world: 64-px portraits, landscapes and artworks, instructions, and exact targets.

What a region *is* is told by a fine, low-contrast texture alone (its material); colours, shapes and places are
random. An instruction names a material ("paint the brick part red"), the person ("turn the person into a zombie") or
the whole picture ("make it night"). A material edit can go to the wrong place: a real semantic mismatch, which the
renderer can check exactly. Everything is deterministic by seed. The words are in :mod:`sifm_core.miniature.language`.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Rng = np.random.Generator

SIZE = 64
CATEGORIES = ("portrait", "landscape", "artwork")
MATERIALS = ("wooden", "bamboo", "straw", "knitted", "brick", "stone")
COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.80, 0.15, 0.13),
    "blue": (0.16, 0.30, 0.80),
    "green": (0.18, 0.60, 0.25),
    "gold": (0.90, 0.72, 0.20),
}
IDENTITY_EDITS: dict[str, tuple[tuple[str, ...], tuple[float, float, float]]] = {
    "zombie": (("face", "neck", "nose"), (0.40, 0.62, 0.34)),
    "aged": (("hair", "brow"), (0.87, 0.87, 0.89)),
}
"""Edits of a portrait's person: the parts that change, and to which colour."""
GLOBAL_EDITS = ("night", "sunset", "snow", "fog", "sepia", "monochrome")
MATERIAL_EDITS = tuple(f"{m} {c}" for m in MATERIALS for c in COLOURS)
EDITS = (*MATERIAL_EDITS, *IDENTITY_EDITS, *GLOBAL_EDITS)
AMPLITUDE = (0.03, 0.08)
"""Range of the textures' mean absolute contrast, in [0, 1] units: it decides at which budgets the world breaks."""

_Y, _X = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32)
_U, _V = (_X + 0.5) / SIZE, (_Y + 0.5) / SIZE  # unit coordinates, right and down


@dataclass(frozen=True)
class Layer:
    """One visible part: coverage (64, 64) in [0, 1] after occlusion, colour, texture to add, and material or None."""

    part: str
    material: str | None
    cover: Array
    colour: Array
    texture: Array

    @property
    def area(self) -> int:
        """How many pixels show this part alone."""
        return int((self.cover > 0.9).sum())


@dataclass(frozen=True)
class Scene:
    """A picture as parts and light, from which the source and every edit of it are rendered."""

    category: str
    layers: tuple[Layer, ...]
    light: Array
    grain: Array

    @property
    def materials(self) -> tuple[str, ...]:
        """The materials that are visible, each in exactly one layer."""
        return tuple(layer.material for layer in self.layers if layer.material)

    @property
    def edits(self) -> tuple[str, ...]:
        """The edits that make sense for this scene."""
        person = (e for e in IDENTITY_EDITS if sum(layer.area for layer in self.concerned(e)) >= _MIN_AREA)
        return (*(f"{m} {c}" for m in self.materials for c in COLOURS), *person, *GLOBAL_EDITS)

    def concerned(self, edit: str) -> tuple[Layer, ...]:
        """The parts that an edit changes."""
        if edit in GLOBAL_EDITS:
            return self.layers
        if edit in IDENTITY_EDITS:
            return tuple(layer for layer in self.layers if layer.part in IDENTITY_EDITS[edit][0])
        return tuple(layer for layer in self.layers if layer.material == edit.split()[0])


def kind(edit: str) -> str:
    """Whether an edit is about a "material", an "identity" or the "whole" picture."""
    return "whole" if edit in GLOBAL_EDITS else "identity" if edit in IDENTITY_EDITS else "material"


def asked_colour(edit: str) -> Array | None:
    """The colour (3,) that an edit paints its parts in; None for an edit of the whole picture."""
    if edit in GLOBAL_EDITS:
        return None
    return np.array(IDENTITY_EDITS[edit][1] if edit in IDENTITY_EDITS else COLOURS[edit.split()[1]], np.float32)


# --- materials ------------------------------------------------------------------------------------------------------


def _wave(angle: float, period: float, phase: float) -> Array:
    return np.cos((np.cos(angle) * _X + np.sin(angle) * _Y) * (2 * np.pi / period) + phase)


def _texture(material: str, rng: Rng) -> Array:
    """A zero-mean pattern (64, 64) of mean absolute value 1."""
    phase = rng.uniform(0, 2 * np.pi, 2)
    tilt = rng.uniform(-0.12, 0.12)
    period = rng.uniform(5.0, 7.0)
    if material == "wooden":
        t = np.tanh(2.5 * _wave(np.pi / 2 + tilt, period, phase[0]))
    elif material == "bamboo":
        t = np.tanh(2.5 * _wave(tilt, period, phase[0]))
    elif material == "straw":
        t = np.tanh(2.5 * _wave(np.pi / 4 + tilt, period, phase[0]))
    elif material == "knitted":
        t = np.tanh(4 * _wave(tilt, period, phase[0]) * _wave(np.pi / 2 + tilt, period, phase[1]))
    elif material == "brick":
        y, x = _Y + 6 * phase[0], _X + 10 * phase[1]
        row = np.floor(y / 5)
        t = np.where((y % 5 < 1.4) | ((x + 5 * (row % 2)) % 10 < 1.4), -1.4, 0.6)
    else:  # stone: blots about 3 px wide
        n = SIZE // 3 + 1
        t = np.sign(rng.standard_normal((n, n))).repeat(3, 0).repeat(3, 1)[:SIZE, :SIZE]
    t = t - t.mean()
    return (t / np.abs(t).mean()).clip(-1.6, 1.6).astype(np.float32)


# --- shapes: signed distances in unit coordinates, positive inside --------------------------------------------------


def _cover(distance: Array) -> Array:
    return np.clip(distance * SIZE + 0.5, 0, 1).astype(np.float32)


def _ellipse(cx: float, cy: float, rx: float, ry: float, angle: float = 0.0) -> Array:
    u = (np.cos(angle) * (_U - cx) + np.sin(angle) * (_V - cy)) / rx
    v = (-np.sin(angle) * (_U - cx) + np.cos(angle) * (_V - cy)) / ry
    return (1 - np.hypot(u, v)) * min(rx, ry)


def _box(cx: float, cy: float, rx: float, ry: float, angle: float = 0.0) -> Array:
    u = np.abs(np.cos(angle) * (_U - cx) + np.sin(angle) * (_V - cy)) - rx
    v = np.abs(-np.sin(angle) * (_U - cx) + np.cos(angle) * (_V - cy)) - ry
    return -np.maximum(u, v)


def _triangle(cx: float, top: float, half: float, bottom: float) -> Array:
    t = (_V - top) / (bottom - top)
    return np.minimum((half * t - np.abs(_U - cx)) * 0.8, bottom - _V)


def _star(cx: float, cy: float, r: float, points: int, depth: float, phase: float) -> Array:
    angle = np.arctan2(_V - cy, _U - cx)
    return r * (1 + depth * np.cos(points * angle + phase)) - np.hypot(_U - cx, _V - cy)


# --- compositions ---------------------------------------------------------------------------------------------------

Part = tuple[str, Array, bool | Array]  # name, coverage, and True (may be a material) or a fixed colour
_SKIN = np.array(
    [(0.95, 0.80, 0.70), (0.87, 0.68, 0.53), (0.72, 0.51, 0.36), (0.53, 0.36, 0.25), (0.38, 0.25, 0.18)], np.float32
)


def _hsv(h: float, s: float, v: float) -> Array:
    return np.array(colorsys.hsv_to_rgb(h % 1, s, v), np.float32)


def _muted(rng: Rng) -> Array:
    return _hsv(rng.uniform(), rng.uniform(0.08, 0.6), rng.uniform(0.3, 0.9))


def _portrait(rng: Rng) -> list[Part]:
    cx, cy = 0.5 + rng.uniform(-0.07, 0.07), 0.48 + rng.uniform(-0.04, 0.04)
    rx, ry = rng.uniform(0.15, 0.19), rng.uniform(0.19, 0.23)
    skin = _SKIN[rng.integers(len(_SKIN))] * rng.uniform(0.92, 1.05)
    hair = _hsv(rng.uniform(0.02, 0.12), rng.uniform(0.2, 0.7), rng.uniform(0.1, 0.75))
    dark = np.array([0.08, 0.07, 0.09], np.float32)
    parts: list[Part] = [("backdrop", np.ones((SIZE, SIZE), np.float32), True)]
    if rng.uniform() < 0.6:  # long hair behind the head
        parts.append(("hair", _cover(_ellipse(cx, cy + 0.10, rx * 1.35, ry * 1.45)), hair))
    parts.append(("shirt", _cover(_ellipse(cx, 1.06, rng.uniform(0.38, 0.47), rng.uniform(0.32, 0.40))), True))
    parts.append(("neck", _cover(_box(cx, cy + ry + 0.03, rx * 0.42, 0.08)), skin * 0.88))
    parts.append(("face", _cover(_ellipse(cx, cy, rx, ry)), skin))
    fringe = np.minimum(_ellipse(cx, cy - 0.02, rx * 1.1, ry * 1.08), cy - ry * rng.uniform(0.35, 0.55) - _V)
    parts.append(("hair", _cover(fringe), hair))
    eye = _hsv(rng.uniform(0.05, 0.65), 0.5, 0.35)
    for side in (-1, 1):
        ex, ey = cx + side * rx * 0.42, cy - ry * 0.02
        parts.append(("eye", _cover(_ellipse(ex, ey, 0.034, 0.022)), np.array([0.95, 0.95, 0.93], np.float32)))
        parts.append(("iris", _cover(_ellipse(ex, ey, 0.017, 0.019)), eye))
        parts.append(("brow", _cover(_box(ex, ey - 0.045, 0.036, 0.007, -side * rng.uniform(0, 0.2))), hair * 0.7))
    parts.append(("nose", _cover(_ellipse(cx, cy + ry * 0.28, 0.014, 0.03)), skin * 0.86))
    parts.append(
        (
            "mouth",
            _cover(_ellipse(cx, cy + ry * 0.56, rng.uniform(0.04, 0.06), rng.uniform(0.009, 0.018))),
            skin * np.array([0.85, 0.5, 0.5], np.float32),
        )
    )
    kind = rng.integers(4)
    brim = cy - ry * rng.uniform(0.38, 0.5)
    if kind == 0:  # cap
        parts.append(
            ("hat", _cover(np.minimum(_ellipse(cx, brim, rx * 1.25, rng.uniform(0.24, 0.32)), brim - _V)), True)
        )
    elif kind == 1:  # tall hat with a brim
        h = rng.uniform(0.09, 0.13)
        parts.append(
            ("hat", _cover(np.maximum(_box(cx, brim - h, rx * 1.05, h), _box(cx, brim, rx * 1.6, 0.028))), True)
        )
    elif kind == 2:  # pointed hat
        parts.append(("hat", _cover(_triangle(cx + rng.uniform(-0.05, 0.05), brim - 0.36, rx * 1.5, brim)), True))
    elif rng.uniform() < 0.5:
        for side in (-1, 1):
            parts.append(("glasses", _cover(_ellipse(cx + side * rx * 0.42, cy - ry * 0.02, 0.06, 0.05)), dark))
    return parts


def _landscape(rng: Rng) -> list[Part]:
    horizon = rng.uniform(0.42, 0.56)
    sky = _hsv(rng.uniform(0.5, 0.64), rng.uniform(0.1, 0.5), rng.uniform(0.7, 0.97))[:, None, None]
    sky = sky * (
        1 - 0.35 * np.clip(horizon - _V, 0, 1)[None] / horizon * np.array([1, 0.7, 0.2], np.float32)[:, None, None]
    )
    parts: list[Part] = [("sky", np.ones((SIZE, SIZE), np.float32), sky.astype(np.float32))]
    if rng.uniform() < 0.6:
        parts.append(
            (
                "sun",
                _cover(_ellipse(rng.uniform(0.1, 0.9), rng.uniform(0.06, 0.2), 0.055, 0.055)),
                np.array([0.99, 0.93, 0.62], np.float32),
            )
        )
    for _ in range(rng.integers(0, 3)):
        x, y = rng.uniform(0.1, 0.9), rng.uniform(0.07, 0.25)
        puff = np.maximum(_ellipse(x, y, 0.11, 0.04), _ellipse(x + 0.05, y - 0.03, 0.06, 0.04))
        parts.append(("cloud", _cover(puff), np.array([0.96, 0.96, 0.97], np.float32)))
    a, b, c = rng.uniform(0.05, 0.16), rng.uniform(2, 5), rng.uniform(0, 6)
    ridge = horizon - 0.08 - a - a * np.sin(b * 2 * _U + c)
    parts.append(("hill", _cover(_V - ridge), True))
    parts.append(("ground", _cover(_V - horizon - 0.02 * np.sin(5 * _U + c)), True))
    if rng.uniform() < 0.4:  # path
        x = rng.uniform(0.3, 0.7)
        parts.append(
            (
                "path",
                _cover(np.minimum(0.03 + 0.25 * (_V - horizon) - np.abs(_U - x), _V - horizon - 0.1)),
                _hsv(0.1, 0.25, rng.uniform(0.6, 0.8)),
            )
        )
    hx, w, h = rng.uniform(0.3, 0.7), rng.uniform(0.15, 0.21), rng.uniform(0.13, 0.17)
    base = horizon + rng.uniform(0.14, 0.3)
    parts.append(("house", _cover(_box(hx, base - h, w, h)), True))
    parts.append(
        ("roof", _cover(_triangle(hx, base - 2 * h - rng.uniform(0.18, 0.24), w * 1.25, base - 2 * h + 0.01)), True)
    )
    parts.append(("door", _cover(_box(hx + rng.uniform(-0.5, 0.5) * w, base - 0.055, 0.032, 0.055)), _muted(rng) * 0.5))
    for _ in range(rng.integers(0, 3)):
        tx = (hx + (1 if rng.uniform() < 0.5 else -1) * rng.uniform(0.27, 0.42)) % 1
        ty, r = base + rng.uniform(-0.1, 0.1), rng.uniform(0.06, 0.1)
        parts.append(("trunk", _cover(_box(tx, ty - 0.06, 0.014, 0.07)), np.array([0.33, 0.22, 0.13], np.float32)))
        leaf = _hsv(rng.uniform(0.2, 0.4), rng.uniform(0.4, 0.7), rng.uniform(0.25, 0.6))
        parts.append(("tree", _cover(_ellipse(tx, ty - 0.13 - r * 0.5, r, r * rng.uniform(1, 1.5))), leaf))
    return parts


def _artwork(rng: Rng) -> list[Part]:
    parts: list[Part] = [("wall", np.ones((SIZE, SIZE), np.float32), True)]
    if rng.uniform() < 0.5:  # still life
        edge = rng.uniform(0.6, 0.72)
        parts.append(("table", _cover(_V - edge), True))
        vx, vy = rng.uniform(0.3, 0.62), rng.uniform(0.58, 0.66)
        r, h = rng.uniform(0.14, 0.18), rng.uniform(0.17, 0.22)
        for _ in range(rng.integers(3, 6)):
            fx, fy = vx + rng.uniform(-0.2, 0.2), vy - h - rng.uniform(0.08, 0.26)
            stem = _box(
                (vx + fx) / 2,
                (vy - h + fy) / 2,
                0.009,
                np.hypot(fx - vx, fy - vy + h) / 2,
                np.arctan2(fx - vx, -(fy - vy + h)),
            )
            parts.append(("stem", _cover(stem), np.array([0.2, 0.42, 0.18], np.float32)))
            petal = _hsv(rng.uniform(), rng.uniform(0.1, 0.7), rng.uniform(0.75, 0.98))
            parts.append(("flower", _cover(_star(fx, fy, 0.055, 5, 0.25, rng.uniform(0, 6))), petal))
            parts.append(("heart", _cover(_ellipse(fx, fy, 0.018, 0.018)), np.array([0.85, 0.65, 0.2], np.float32)))
        vase = np.maximum(_ellipse(vx, vy, r, h), _box(vx, vy - h * 0.8, r * 0.5, h * 0.3))
        parts.append(("vase", _cover(vase), True))
        parts.append(
            (
                "fruit",
                _cover(_ellipse(vx + rng.uniform(0.2, 0.28), edge + 0.07, 0.06, 0.055)),
                _hsv(rng.uniform(0, 0.2), 0.7, rng.uniform(0.6, 0.9)),
            )
        )
    else:  # an abstract painting
        places = [(0.32, 0.34), (0.68, 0.62), (0.33, 0.72)]
        for i in rng.permutation(3)[: rng.integers(2, 4)]:
            cx, cy = (p + rng.uniform(-0.07, 0.07) for p in places[i])
            rx, ry = rng.uniform(0.15, 0.23, 2)
            kind = rng.integers(4)
            if kind == 0:
                d = _ellipse(cx, cy, rx, ry, rng.uniform(-0.5, 0.5))
            elif kind == 1:
                d = _box(cx, cy, rx * 0.9, ry * 0.9, rng.uniform(-0.5, 0.5))
            elif kind == 2:
                d = _triangle(cx, cy - ry, rx * 1.2, cy + ry)
            else:
                d = _star(cx, cy, (rx + ry) / 2, int(rng.integers(3, 6)), 0.25, rng.uniform(0, 6))
            parts.append((f"shape{i}", _cover(d), True))
        for _ in range(rng.integers(0, 3)):
            stroke = _box(
                rng.uniform(0.2, 0.8), rng.uniform(0.2, 0.8), rng.uniform(0.1, 0.25), 0.012, rng.uniform(0, 3.1)
            )
            parts.append(("stroke", _cover(stroke), _muted(rng) * 0.6))
    inner = _box(0.5, 0.5, 0.5 - rng.uniform(0.03, 0.05), 0.5 - rng.uniform(0.03, 0.05))
    parts.append(
        ("frame", 1 - _cover(inner), _hsv(rng.uniform(0.05, 0.14), rng.uniform(0.2, 0.6), rng.uniform(0.2, 0.7)))
    )
    return parts


_COMPOSE: dict[str, Callable[[Rng], list[Part]]] = {"portrait": _portrait, "landscape": _landscape, "artwork": _artwork}
_MIN_AREA = 90  # px: a smaller part is not worth an instruction


def sample(rng: Rng, category: str | None = None, amplitude: tuple[float, float] = AMPLITUDE) -> Scene:
    """Draw a scene; two or more of its parts are made of distinct materials, the rest are plain."""
    category = category or str(rng.choice(CATEGORIES))
    parts = _COMPOSE[category](rng)
    above = np.zeros((SIZE, SIZE), np.float32)
    covers: list[Array] = []
    for _, cover, _ in reversed(parts):
        covers.append(cover * (1 - above))
        above = above + covers[-1]
    covers.reverse()
    able = [
        i for i, (p, c) in enumerate(zip(parts, covers, strict=True)) if p[2] is True and (c > 0.9).sum() >= _MIN_AREA
    ]
    if len(able) < 2:
        return sample(rng, category, amplitude)
    made = [int(i) for i in rng.permutation(able)[: rng.integers(2, len(able) + 1)]]
    material = dict(zip(made, (str(m) for m in rng.permutation(MATERIALS)), strict=False))
    layers = []
    for i, ((name, _, fill), cover) in enumerate(zip(parts, covers, strict=True)):
        colour = _muted(rng) if fill is True else np.asarray(fill, np.float32)
        colour = colour if colour.ndim == 3 else colour[:, None, None]
        texture = np.zeros((SIZE, SIZE), np.float32)
        if i in material:
            texture = _texture(material[i], rng) * np.float32(rng.uniform(*amplitude))
        layers.append(Layer(name, material.get(i), cover, np.clip(colour, 0.1, 0.9), texture))
    light = 1 + rng.uniform(-0.12, 0.12) * ((_X + rng.uniform(-1, 1) * _Y) / SIZE - 0.5)
    grain = rng.standard_normal((SIZE, SIZE)).astype(np.float32) * np.float32(rng.uniform(0, 0.008))
    return Scene(category, tuple(layers), light.astype(np.float32), grain)


def render(scene: Scene, edit: str | None = None) -> Array:
    """The picture (3, 64, 64) in [0, 1]: the source, or the exact target of an edit ("brick red", "night", ...)."""
    asked = asked_colour(edit) if edit else None
    concerned = scene.concerned(edit) if edit and asked is not None else ()
    picture = np.zeros((3, SIZE, SIZE), np.float32)
    for layer in scene.layers:
        colour = layer.colour
        if asked is not None and any(layer is part for part in concerned):
            colour = np.clip(0.9 * asked[:, None, None] + 0.1 * colour, 0.1, 0.9)
        picture += layer.cover * (colour * scene.light + layer.texture)
    picture = picture + scene.grain
    if edit == "night":
        picture = _channels(0.28, 0.32, 0.5) * picture + _channels(0.02, 0.03, 0.08)
    elif edit == "sunset":
        picture = _channels(1.0, 0.70, 0.52) * picture + (1 - _V) * _channels(0.22, 0.08, 0.0)
    elif edit == "snow":
        share = 0.2 + 0.55 * _V
        picture = (1 - share) * picture + share * _channels(0.94, 0.95, 0.98)
    elif edit == "fog":
        picture = 0.35 * picture + 0.65 * _channels(0.80, 0.82, 0.85)
    elif edit in ("sepia", "monochrome"):
        grey = (picture * _channels(0.30, 0.59, 0.11)).sum(0, keepdims=True)
        picture = grey * _channels(1.05, 0.88, 0.64) if edit == "sepia" else np.tile(1.25 * grey - 0.12, (3, 1, 1))
    return picture.clip(0, 1).astype(np.float32)


def _channels(red: float, green: float, blue: float) -> Array:
    return np.array([red, green, blue], np.float32)[:, None, None]

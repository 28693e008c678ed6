"""What was done to a picture, beside it in a JSON file and a page, and whether it is still the picture they speak of.

Nothing private is in them: no instruction that was typed, no path, no name of a person or folder. Editors are named by
their family and the hash of their weights, and by name where the name is the engine's own.
"""

from __future__ import annotations

import base64
import datetime
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from . import __version__
from .editors import BUILTIN
from .errors import ImageError, InputError
from .files import read_text, write_atomically
from .images import Picture, change, colour, load_picture, png_bytes, to_uint8, verify_budget
from .pipeline import public
from .protection import NOT_PROMISED, Protected, called
from .store import picture_id
from .visibility import visibility

VERSION = 1
SHOWN = 256
"""Pixels of the part of the picture that the page shows, at 100%."""


_UNTESTED = NOT_PROMISED[0].partition(":")[0]


class Finding(NamedTuple):
    """One thing that was checked: whether it is so (None: it could not be checked), and in words."""

    what: str
    good: bool | None
    words: str


def paths(picture: Path) -> tuple[Path, Path]:
    """The names of a picture's certificate: JSON and page."""
    return picture.with_suffix(".certificate.json"), picture.with_suffix(".certificate.html")


def certificate(
    protected: Protected,
    file: Path,
    source: Picture,
    mask: Tensor | None = None,
    tested: Sequence[Mapping[str, Any]] = (),
    background: str = "white",
) -> dict[str, Any]:
    """The certificate, as plain data, of a protected picture that was saved in ``file``; its budget is read back.

    ``mask`` (1, 1, H, W): 0 where no pixel may have changed. ``tested``: what :mod:`sifm_core.holding` found, each with
    "editor", "outcome" and "date". ``background``: the colour on which a transparent picture was seen. Raises
    BudgetError where the file is outside the budget.
    """
    eps, saved = protected.settings["eps"], load_picture(file)
    linf = verify_budget(file, source.stored, eps, mask=None if mask is None else (mask > 0).float())
    seen = protected.visibility
    return {
        "certificate": VERSION,
        "made": _today(),
        "software": f"sifm {__version__}",
        "demonstration": protected.demonstration,
        "picture": {
            "sha256": _id(saved.pixels),
            "alpha": _alpha_id(saved),
            "width": saved.pixels.shape[-1],
            "height": saved.pixels.shape[-2],
        },
        "source": {"sha256": _id(source.stored)},
        "budget": {"eps": eps, "largest": linf, "typical": change(saved.pixels, source.stored)[1]},
        "visibility": {
            "words": seen.words,
            "jod": seen.loss.value,
            "reason": seen.loss.reason,
            "definition": seen.loss.definition,
            "part": list(seen.part),
            "beyond_jnd": seen.beyond,
            "background": background,
        },
        "protection": {
            "strength": protected.strength,
            "against": [_named(editor) for editor in protected.editors],
            "instructions": protected.instructions,
            "settings": public(protected.settings),
        },
        "tested": [dict(test) for test in tested],
        "not_promised": list(protected.not_promised(bool(tested))),
    }


def write(about: Mapping[str, Any], picture: Path) -> None:
    """Write the certificate of ``picture`` beside it."""
    file, page = paths(picture)
    write_atomically(file, (json.dumps(about, indent=1, ensure_ascii=False) + "\n").encode())
    write_atomically(page, html(about, load_picture(picture).pixels).encode())


def add(tested: Sequence[Mapping[str, Any]], picture: Path) -> Path | None:
    """Write what :mod:`sifm_core.holding` found into the certificate beside a picture, after what it says already.

    Its page; None where there is nothing to say, or no certificate, or one that is not true of the picture.
    """
    file, page = paths(picture)
    if not tested or not file.is_file():
        return None
    about, found = check(picture)
    if not found[0].good:
        return None
    about["tested"] = [*about["tested"], *(dict(test) for test in tested)]
    about["not_promised"] = [sentence for sentence in about["not_promised"] if not sentence.startswith(_UNTESTED)]
    write(about, picture)
    return page


def html(about: Mapping[str, Any], image: Tensor) -> str:
    """The certificate as a page that needs nothing else, with the part of the picture in which the change is seen most.

    The source is not in it, nor the change: with either somebody had the picture unprotected.
    """
    from jinja2 import Environment, PackageLoader, select_autoescape

    top, left, height, width = about["visibility"]["part"]
    top, left = top + max(0, height - SHOWN) // 2, left + max(0, width - SHOWN) // 2
    part = base64.b64encode(
        png_bytes(image[..., top : top + min(SHOWN, height), left : left + min(SHOWN, width)])
    ).decode()
    environment = Environment(loader=PackageLoader("sifm_core"), autoescape=select_autoescape(), trim_blocks=True)
    return environment.get_template("certificate.html").render(**about, part=part, called=called)


def check(file: Path, source: Path | None = None) -> tuple[dict[str, Any], list[Finding]]:
    """A picture's certificate, and what is true of it: its hash; with its ``source`` the budget and what is seen too.

    ``file``: the picture, or the certificate's JSON beside it. Raises InputError where there is no certificate.
    """
    picture, about = _read(file)
    image = load_picture(picture)
    alpha = _alpha_id(image)
    same = _id(image.pixels) == about["picture"]["sha256"] and alpha == about["picture"].get("alpha", alpha)
    words = "the picture is the one that was protected, pixel by pixel"
    found = [Finding("picture", same, words if same else "these are other pixels than those that were protected")]
    if about.get("demonstration"):
        found.append(Finding("protection", None, "a demonstration by a toy: it protects nothing"))
    elif any(editor.get("toy") for editor in about["protection"]["against"]):
        found.append(Finding("protection", None, "made against a toy, which knows its own drawings and nothing else"))
    if source is None:
        words = "without its source (--source) neither budget nor visibility can be checked"
        return about, [*found, Finding("budget", None, words)]
    stored = load_picture(source)
    known = _id(stored.stored) == about["source"]["sha256"]
    words = "the source is the one that it was made from"
    found.append(Finding("source", known, words if known else "this is another source than it was made from"))
    if stored.pixels.shape != image.pixels.shape:
        return about, [*found, Finding("budget", False, "the two pictures differ in size")]
    linf, rms = change(image.pixels, stored.pixels)
    inside, eps = linf <= about["budget"]["eps"] + 1e-6, about["budget"]["eps"]
    levels = f"{255 * linf:.0f} of 255 levels at most, {255 * rms:.1f} typically"
    allowed = f"inside the {255 * eps:.0f} that it says" if inside else f"beyond the {255 * eps:.0f} that it says"
    found.append(Finding("budget", inside, f"changed by {levels}, {allowed}"))
    background = about["visibility"].get("background", "white")
    seen = [load_picture(path, background).pixels for path in (source, picture)]
    shown = visibility(*seen)
    jod, said = shown.loss.value, about["visibility"]["jod"]
    good = None if jod is None or said is None else jod <= said + 0.05
    figure = "" if jod is None else f", {jod:.2f} JOD" + ("" if said is None else f"; it says {said:.2f}")
    return about, [*found, Finding("visibility", good, f"{shown.words}{figure}")]


def _read(file: Path) -> tuple[Path, dict[str, Any]]:
    if file.name.endswith(".certificate.json"):
        beside, picture = file, file.with_name(file.name.removesuffix(".certificate.json") + ".png")
    else:
        beside, picture = paths(file)[0], file
    if not beside.is_file():
        raise InputError(f"{file}: expected a certificate, {beside.name}, beside it, but there is none")
    try:
        about = json.loads(read_text(beside))
        hashes = (about["picture"]["sha256"], about["source"]["sha256"])
        figures = (about["budget"]["eps"], about["visibility"]["jod"] or 0.0)
        colour(about["visibility"].get("background", "white"))
        [(test["date"], test["editor"], test["outcome"], *test.get("judges", ())) for test in about["tested"]]
        {editor.get("toy") for editor in about["protection"]["against"]}
        if about["certificate"] != VERSION or not all(isinstance(text, str) for text in hashes):
            raise ValueError("of another version")
        if not all(isinstance(figure, float | int) for figure in figures):
            raise ValueError("figures that are none")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{beside}: expected a certificate of version {VERSION} ({error}); make it anew") from None
    if not picture.is_file():
        raise ImageError(f"{picture}: expected the picture of {beside.name}, but there is no such file")
    return picture, about


def _named(editor: Mapping[str, Any]) -> dict[str, Any]:
    known = {"name": editor["name"]} if editor["name"] in BUILTIN else {}
    toy = {"toy": True} if editor.get("toy") else {}
    return {**known, "family": editor["family"], "fingerprint": editor["fingerprint"], **toy}


def _id(image: Tensor) -> str:
    return picture_id(to_uint8(image))


def _alpha_id(picture: Picture) -> str | None:
    """None for a picture that is opaque, with alpha or without."""
    alpha = picture.alpha
    return None if alpha is None or bool((alpha == 1).all()) else _id(alpha.expand(-1, 3, -1, -1))


def _today() -> str:
    return datetime.datetime.now(datetime.timezone.utc).date().isoformat()

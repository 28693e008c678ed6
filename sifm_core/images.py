"""Pictures in and out: load, resize, 8-bit rounding inside the budget, lossless saving, checking the saved file.

What protects a picture is the *file*, and what an attacker's tool reads from the file is its 8-bit RGB values: editors
ignore colour profiles. So those values are what is loaded, perturbed and written.

- A transparent picture is seen on some background: with ``background`` the pixels are those that are seen there, what
  changes in them is brought back to the values under the alpha, and fully transparent pixels stay as they are. Without
  it the pixels are the values as they stand. Alpha is set aside and written back.
- What says how an RGB picture's values look (colour profile; a PNG's gAMA, cHRM, sRGB and cICP) or how large it is
  printed (DPI) is kept and written back: values and appearance both stay. A profile that an RGB file cannot carry
  (CMYK, greyscale) is applied: the values become sRGB and the profile is dropped.
- EXIF orientation is applied. All other EXIF data (place, camera), and all text, is left out of saved files, but for
  who made a picture and whose it is, where that is asked for (:func:`rights`).
- 16-bit values become the nearest 8-bit ones (colour: the upper byte, as Pillow reads it). Greyscale and palette
  pictures become RGB, and a protected one stays RGB where its perturbation has colour; a greyscale one without is saved
  as greyscale.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import math
import os
import stat
import struct
import warnings
import xml.etree.ElementTree as ElementTree
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image as Pil
from PIL import ImageCms, ImageColor, ImageOps, IptcImagePlugin, PngImagePlugin, UnidentifiedImageError, features
from torch import Tensor

from .errors import BudgetError, ImageError, InputError
from .files import write_atomically as write_atomically
from .loop import Ball
from .types import Image

LUMA = (0.299, 0.587, 0.114)
"""ITU-R BT.601: how bright red, green and blue are."""
MIN_SIDE = 16
"""Pixels. Smaller pictures are refused: no editor can work on them."""

_FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF")
_OPTIONAL = {
    **dict.fromkeys((".heic", ".heif", ".hif"), ("HEIF", "pip install pillow-heif")),
    ".avif": ("AVIF", "pip install -U pillow"),
}
"""Suffixes of what is read where a library for it is there: its name for it, and how the library comes here."""
_GREY = ("1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "I;16N")
_ARTIST, _COPYRIGHT = 0x013B, 0x8298
_LONGEST_RIGHTS = 1000
_LOSSY = (".jpg", ".jpeg", ".webp", ".avif", ".heic")
_TINY = 1e-6  # 8/255 is 8 levels, not 7.9999
_STILL = "MPO"  # phone photographs: the further frames are previews and gain maps, not an animation
_COLOUR_CHUNKS = {b"gAMA": 4, b"cHRM": 32, b"sRGB": 1, b"cICP": 4}
"""A PNG's other words for how its values look, and how many bytes each has."""
_PNG, _TEXT = b"\x89PNG\r\n\x1a\n", (b"tEXt", b"zTXt", b"iTXt", b"iCCP")
_LONGEST_ICC = 2**24
_BAND = 2**18
"""Values of a picture that are worked on at a time, where what is in between needs more room than the picture."""
_MARKS = 2**12
_UNREADABLE = (  # what Pillow's decoders were seen to raise on broken files
    *(OSError, EOFError, SyntaxError, TypeError, ValueError, LookupError, OverflowError, MemoryError),
    *(struct.error, zlib.error, Pil.DecompressionBombError),
)


@dataclass(frozen=True)
class Picture:
    """A picture file as the engine sees it.

    ``pixels`` (1, 3, H, W) float32, exactly k/255; ``alpha`` (1, 1, H, W) likewise, or None; ``icc`` the profile that
    belongs to these pixels (None: sRGB); ``mode`` Pillow's name for how the file stores them ("RGB", "LA", "I;16" ...).
    ``under``, uint8 (H, W, 3), the values below the alpha, where ``pixels`` are composed of them on a background;
    ``chunks`` of a PNG, by name, that say how its values look; ``dpi`` across and down.
    """

    pixels: Image
    alpha: Tensor | None
    icc: bytes | None
    path: Path
    mode: str
    under: np.ndarray | None = None
    chunks: Mapping[bytes, bytes] = field(default_factory=dict)
    dpi: tuple[float, float] | None = None

    @property
    def stored(self) -> Image:
        """The file's own values, (1, 3, H, W) as ``pixels``, which they are unless those are composed."""
        return self.pixels if self.under is None else from_uint8(self.under)

    def opaque(self) -> Picture:
        """The same without alpha: what is seen, as a tool that knows no transparency saves it."""
        return replace(self, alpha=None, under=None)


def colour(text: str) -> tuple[int, int, int]:
    """Red, green and blue, 0 to 255, of a colour's name or hexadecimal code. Raises InputError for what is none."""
    try:
        red, green, blue = map(int, ImageColor.getrgb(text))
    except ValueError:  # no colour, or one with an alpha of its own
        raise InputError(f"background: expected a colour such as white or #808080, got {text[:40]!r}") from None
    return red, green, blue


def load_picture(path: str | os.PathLike[str], background: str | None = None) -> Picture:
    """Read a still PNG, JPEG, WebP, TIFF, BMP or GIF; AVIF and HEIC where their libraries are there.

    See the module for what happens to alpha, EXIF and ICC.

    ``background``: the colour on which a transparent picture is seen; None: its values as they stand.
    Raises ImageError: no such file, not a picture, animated, truncated, smaller than 16 pixels on a side or too large.
    """
    path, behind = Path(path), None if background is None else colour(background)
    check_file(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's: of metadata that is not kept, of sizes that are checked here
            try:
                upright, mode, icc, dpi = _decode(path, path)
            except ValueError as error:
                if "text" not in str(error).lower():
                    raise
                whole, long_icc = _without_text(path)  # Pillow refuses what it holds too much of, and it is not kept
                upright, mode, icc, dpi = _decode(whole, path)
                icc = icc or long_icc
    except ImageError:
        raise
    except Pil.DecompressionBombError:
        most = 2 * (Pil.MAX_IMAGE_PIXELS or 0)
        raise ImageError(f"{path}: expected at most {most:,} pixels, but it has more; make it smaller") from None
    except UnidentifiedImageError:
        kind, cure = _OPTIONAL.get(path.suffix.lower(), ("", ""))
        if kind and kind not in _readable():
            raise ImageError(
                f"{path}: {kind} is not read by what is installed here: {cure}, or save it as PNG"
            ) from None
        raise ImageError(f"{path}: expected PNG, JPEG, WebP, TIFF or BMP, but this is none; convert it") from None
    except PermissionError:
        raise ImageError(f"{path}: expected a picture, but it may not be read; change its permissions") from None
    except MemoryError:
        raise ImageError(f"{path}: not enough memory to read it; make it smaller, or free some memory") from None
    except _UNREADABLE as error:
        raise ImageError(f"{path}: expected a whole picture, but reading failed ({error}); get a new copy") from error
    if min(upright.size) < MIN_SIDE:
        size = "x".join(map(str, upright.size))
        raise ImageError(f"{path}: expected at least {MIN_SIDE}x{MIN_SIDE} pixels, but got {size}; use a larger one")
    try:
        alpha = _alpha(upright)
        rgb, kept = _to_rgb(upright, icc)
    except ValueError as error:
        raise ImageError(f"{path}: expected 8- or 16-bit pixels, but got {mode} ({error}); save it as PNG") from error
    under = np.asarray(rgb)
    del upright, rgb
    chunks = _colour_chunks(path) if kept is icc else {}
    if alpha is None:
        return Picture(from_uint8(under), None, kept, path, mode, chunks=chunks, dpi=dpi)
    if behind is None:
        return Picture(from_uint8(under), from_uint8(alpha), kept, path, mode, chunks=chunks, dpi=dpi)
    if not alpha.any():
        raise ImageError(f"{path}: expected something to see, but every pixel is transparent; make some opaque")
    seen = from_uint8(_composed(under, alpha, behind))
    return Picture(seen, from_uint8(alpha), kept, path, mode, under, chunks, dpi)


def load_image(path: str | os.PathLike[str], background: str | None = None) -> Image:
    """The pixels of :func:`load_picture`: (1, 3, H, W) float32, exactly k/255."""
    return load_picture(path, background).pixels


def check_image(image: Any, name: str = "image") -> Image:
    """Give back ``image`` if it is (B, 3, H, W) floating point with numbers in [0, 1]; raise ImageError if not."""
    if not isinstance(image, Tensor) or not image.is_floating_point():
        what = f"a {image.dtype} tensor" if isinstance(image, Tensor) else type(image).__name__
        raise ImageError(f"{name}: expected a float tensor (B, 3, H, W) in [0, 1], but got {what}; use load_image")
    if image.ndim != 4 or image.shape[1] != 3 or 0 in image.shape:
        raise ImageError(f"{name}: expected the shape (B, 3, H, W), but got {tuple(image.shape)}; channels come first")
    low, high = (float(v) for v in torch.aminmax(image.detach()))
    if not (low >= -1e-6 and high <= 1 + 1e-6):  # NaN fails as well
        raise ImageError(f"{name}: expected numbers in [0, 1], but got {low:g} to {high:g}; scale or clamp it")
    return image


def check_picture(image: Image) -> None:
    """Raise ImageError unless it is (B, 3, H, W) in [0, 1] and large enough for an editor."""
    check_image(image, "image")
    if min(image.shape[-2:]) < MIN_SIDE:
        size = f"{image.shape[-1]}x{image.shape[-2]}"
        raise ImageError(f"image: expected at least {MIN_SIDE}x{MIN_SIDE} pixels, but got {size}; use a larger one")


def check_mask(mask: Tensor | None, image: Image) -> Tensor | None:
    """The mask as (1 or B, 1, H, W) float32 in [0, 1], or None."""
    if mask is None:
        return None
    if not isinstance(mask, Tensor) or mask.shape[-2:] != image.shape[-2:] or mask.ndim not in (2, 4):
        size = lambda x: f"{x.shape[-1]} wide and {x.shape[-2]} high"  # noqa: E731
        got = size(mask) if isinstance(mask, Tensor) and mask.ndim >= 2 else type(mask).__name__
        raise ImageError(f"mask: expected the picture's size, {size(image)}, got {got}; resize the mask")
    mask = mask.detach().float().reshape(-1, 1, *image.shape[-2:])
    if len(mask) not in (1, len(image)):
        raise ImageError(f"mask: expected one mask or {len(image)} (one per picture) with one channel, got {len(mask)}")
    if not bool(torch.isfinite(mask).all()) or float(mask.min()) < 0 or float(mask.max()) > 1:
        raise ImageError("mask: expected values in [0, 1]")
    if not bool(mask.any()):
        raise ImageError("mask: all zero, so no pixel may change")
    return mask


def round_to_budget(x_adv: Image, x0: Image, eps: float, mask: Tensor | None = None, ball: Ball = "linf") -> Image:
    """The 8-bit picture nearest to ``x_adv`` that stays within ``eps`` of ``x0`` and in [0, 1].

    ``x_adv``, ``x0`` (B, 3, H, W), ``x0`` exactly k/255; ``mask`` (broadcastable to them, in [0, 1]) scales the
    budget of each pixel. ``ball`` "l2": eps bounds the RMS of an image's changes, see :func:`sifm_core.pgd.pgd`, and
    ``x_adv`` must be within it; where rounding would leave it, the values nearest to a half are rounded towards ``x0``.
    Returns (B, 3, H, W) float32, exactly k/255. Raises ImageError (shapes, NaN, ``x0`` off the
    grid) and InputError (``eps`` below one 8-bit level, 1/255).
    """
    whole = _levels(eps)
    check_image(x0, "x0")
    if x_adv.shape != x0.shape:
        raise ImageError(f"x_adv: expected the shape of x0 {tuple(x0.shape)}, but got {tuple(x_adv.shape)}; resize it")
    x_adv, x0, weight = x_adv.detach(), x0.detach(), None if mask is None else mask.expand_as(x0)
    rounded = torch.empty_like(x0, dtype=torch.float32)
    for rows in bands(x0):
        exact, adv = x0[..., rows, :] * 255, x_adv[..., rows, :] * 255
        clean = exact.round()
        if not torch.isfinite(adv).all():
            raise ImageError("x_adv: expected numbers, but got NaN or infinity; use float32 and look at the loss curve")
        if float((exact - clean).abs().max()) > 1e-3:
            raise ImageError("x0: expected 8-bit values (k/255), but got values in between; round the clean picture")
        levels = whole if weight is None else (eps * 255 * weight[..., rows, :].double() + _TINY).floor().to(clean)
        near = adv.round().clamp(min=clean - levels, max=clean + levels).clamp(0, 255)
        rounded[..., rows, :] = near.float() / 255
    for i in range(len(x0) if ball == "l2" else 0):
        _round_in_l2(rounded[i], x_adv[i], x0[i], eps, None if weight is None else weight[i])
    return rounded


def verify_budget(
    path: str | os.PathLike[str],
    x0: Image,
    eps: float,
    ball: Ball = "linf",
    mask: Tensor | None = None,
) -> float:
    """Read the saved picture back and return its largest difference from ``x0`` (1, 3, H, W), in [0, 1] units.

    ``ball`` "l2": the root mean square of its differences instead. With a ``mask`` (broadcastable to ``x0``) each
    difference is divided by it, and a mean is over what may change, see :func:`sifm_core.pgd.pgd`. Both pictures count
    as their 8-bit values, so that what rounding did to the file is in the figure.

    Raises BudgetError when it is above ``eps``, when a pixel changed where the mask is 0, or when the sizes differ.
    """
    saved = load_image(path)
    if saved.shape != x0.shape:
        came = tuple(saved.shape)
        raise BudgetError(f"{path}: expected the shape {tuple(x0.shape)}, but the file holds {came}; name its source")
    linf, rms = change(saved, x0, mask)
    largest = linf if ball == "linf" else rms
    if largest > eps + 1e-6:
        what = "a perturbation" if ball == "linf" else "a root mean square (RMS) of changes"
        raise BudgetError(
            f"{path}: expected {what} of at most {eps:g} ({255 * eps:.1f} of 255 levels), but the file holds "
            f"{largest:.4f} ({255 * largest:.1f}); it was changed after saving, or this is not its source"
        )
    return largest


def change(one: Image, other: Image, mask: Tensor | None = None) -> tuple[float, float]:
    """How far two pictures (B, 3, H, W) are apart as 8-bit values: the largest difference, and the root mean square.

    In [0, 1] units; the RMS of the image where it is largest. With a ``mask`` (broadcastable to them) each difference
    is divided by it, which is infinite where it is 0, and a mean is over where it is above 0.
    """
    weights = None if mask is None else mask.detach().cpu().expand_as(other)
    largest, squares = 0.0, torch.zeros(len(other), dtype=torch.float64)
    count = torch.full((len(other),), float(other[0].numel()) if weights is None else 0.0, dtype=torch.float64)
    for rows in bands(other):
        first, second = (x.detach()[..., rows, :].cpu().double().mul(255).round() for x in (one, other))
        delta = (first - second) / 255
        if weights is not None:
            weight = weights[..., rows, :].double()
            delta = torch.where(delta == 0, 0, delta / weight)
            count += (weight > 0).flatten(1).sum(dim=1)
        largest = max(largest, float(delta.abs().max()))
        squares += delta.square().flatten(1).sum(dim=1)
    return largest, float((squares / count).sqrt().max())


def save_png(
    image: Image,
    path: str | os.PathLike[str],
    *,
    like: Picture | None = None,
    metadata: Mapping[str, Any] | None = None,
    rights: Mapping[str, str] | None = None,
) -> None:
    """Write ``image`` ((1, 3, H, W) or (3, H, W) in [0, 1]) as an 8-bit PNG, whole or not at all; folders are made.

    ``like`` gives back alpha, profile and DPI of the source; ``metadata`` becomes PNG text chunks (what is
    not a string, as JSON); ``rights`` says who made the picture, as :func:`rights` reads it. Raises InputError for any
    other format: lossy ones (JPEG, WebP) destroy the perturbation.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        came = f"{path.suffix}, which is lossy" if path.suffix.lower() in _LOSSY else path.suffix or "no suffix"
        raise InputError(f"{path}: expected a .png file, but got {came}; use {path.stem}.png to keep every pixel")
    write_atomically(path, png_bytes(image, like=like, metadata=metadata, rights=rights))


def png_bytes(
    image: Image,
    *,
    like: Picture | None = None,
    metadata: Mapping[str, Any] | None = None,
    rights: Mapping[str, str] | None = None,
) -> bytes:
    """``image`` as an encoded PNG; arguments as in :func:`save_png`. Same pixels and arguments, same bytes."""
    pixels = to_uint8(image)
    if like is not None and like.alpha is not None:
        alpha = to_uint8(like.alpha.expand(1, 3, -1, -1))[..., 0]
        if alpha.shape != pixels.shape[:2]:
            raise ImageError(f"expected the size of the source {alpha.shape}, but got {pixels.shape[:2]}; resize it")
        if like.under is not None:
            pixels = _uncomposed(pixels, to_uint8(like.pixels), like.under, alpha)
    if like is not None and like.mode in _GREY and _colourless(pixels):
        pixels = pixels[..., :1]
    if like is not None and like.alpha is not None:
        pixels = np.dstack([pixels, alpha])
    text = PngImagePlugin.PngInfo()
    for kind, body in like.chunks.items() if like else ():
        text.add(kind, body)
    for key, value in (metadata or {}).items():
        if not 0 < len(key) < 80 or not key.isascii():
            raise InputError(f"metadata: expected keys of 1 to 79 ASCII characters, but got {key!r}; rename it")
        text.add_itxt(key, value if isinstance(value, str) else json.dumps(value, sort_keys=True))
    exif = Pil.Exif()
    for tag, name in ((_ARTIST, "Artist"), (_COPYRIGHT, "Copyright")):
        if value := (rights or {}).get(name):
            exif[tag] = value.encode()
            text.add_itxt("Author" if tag == _ARTIST else name, value)
    out, picture = io.BytesIO(), Pil.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    del pixels
    about: dict[str, Any] = {"exif": exif} if len(exif) else {}
    about |= {"icc_profile": like.icc, "dpi": like.dpi} if like else {}
    picture.save(out, "PNG", pnginfo=text, **about)
    return out.getvalue()


def rights(path: str | os.PathLike[str]) -> dict[str, str]:
    """Who made a picture and whose it is, "Artist" and "Copyright", as far as the file says so, and nothing else of it.

    From EXIF, else IPTC, XMP (dc:creator, dc:rights) or a PNG's text. What cannot be read says nothing.
    """
    found: dict[str, list[Any]] = {"Artist": [], "Copyright": []}
    with warnings.catch_warnings(), contextlib.suppress(*_UNREADABLE), Pil.open(path, formats=_readable()) as file:
        warnings.simplefilter("ignore")
        for name, tag in (("Artist", _ARTIST), ("Copyright", _COPYRIGHT)):
            found[name].append(_unicode(file.getexif().get(tag)))
        with contextlib.suppress(*_UNREADABLE):
            written = IptcImagePlugin.getiptcinfo(file) or {}
            found["Artist"].append(written.get((2, 80)))
            found["Copyright"].append(written.get((2, 116)))
        packet = file.info.get("xmp") or file.info.get("XML:com.adobe.xmp") or ""
        for name, element in (("Artist", "creator"), ("Copyright", "rights")):
            found[name] += _xmp(packet, element)
        found["Artist"] += [file.info.get("Author"), file.info.get("Artist")]
        found["Copyright"].append(file.info.get("Copyright"))
    said = {name: next(filter(None, map(_one_line, values)), "") for name, values in found.items()}
    return {name: value for name, value in said.items() if value}


def _xmp(packet: bytes | str, element: str) -> list[str]:
    """The texts of a Dublin Core element in an XMP packet; no document type, which could unfold without end."""
    packet = packet.encode() if isinstance(packet, str) else packet
    packet = packet[packet.find(b"<") : packet.rfind(b">") + 1]
    if not packet or b"<!DOCTYPE" in packet.upper() or len(packet) > _LONGEST_ICC:
        return []
    try:
        root = ElementTree.fromstring(packet)
    except ElementTree.ParseError:
        return []
    dc, rdf = "{http://purl.org/dc/elements/1.1/}", "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}"
    return [item.text or "" for found in root.iter(f"{dc}{element}") for item in found.iter(f"{rdf}li")]


def _unicode(value: Any) -> Any:
    """An EXIF text, which Pillow reads as Latin-1, as the UTF-8 that it is written in today, where it is that."""
    try:
        return value.encode("latin-1").decode() if isinstance(value, str) else value
    except UnicodeError:
        return value


def _one_line(value: Any) -> str:
    if isinstance(value, list | tuple):
        value = b"; ".join(value) if all(isinstance(part, bytes) for part in value) else ""
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else value if isinstance(value, str) else ""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:_LONGEST_RIGHTS]


def png_text(path: str | os.PathLike[str], key: str) -> str | None:
    """What :func:`save_png` wrote under ``key`` of its metadata; None where there is nothing."""
    with open(path, "rb") as stream:
        for kind, length in _png_chunks(stream):
            if kind == b"iTXt":
                name, _, rest = stream.read(length).partition(b"\0")
                if name == key.encode() and rest[:2] == b"\0\0":
                    return rest[2:].split(b"\0", 2)[-1].decode("utf-8", "replace")
    return None


def to_uint8(image: Image) -> np.ndarray:
    """``image`` ((1, 3, H, W) or (3, H, W) in [0, 1]) as uint8 (H, W, 3), rounded to the nearest level."""
    if image.ndim == 3:
        image = image[None]
    if image.shape[0] != 1:
        raise ImageError(f"expected one picture, but got a batch of {image.shape[0]}; pass them one by one")
    pixels = check_image(image.detach())[0]
    levels = np.empty((*pixels.shape[1:], 3), np.uint8)
    for rows in _bands(pixels.shape[1], 3 * pixels.shape[2]):
        band = (pixels[:, rows].double() * 255).round_().clamp_(0, 255).to(torch.uint8)
        levels[rows] = band.permute(1, 2, 0).cpu().numpy()
    return levels


def from_uint8(array: np.ndarray) -> Tensor:
    """uint8 (H, W, 3) or (H, W) -> (1, 3 or 1, H, W) float32, exactly k/255: the way back from :func:`to_uint8`."""
    planes = np.moveaxis(array.reshape(*array.shape[:2], -1), -1, 0)
    return torch.from_numpy(planes.astype(np.float32, order="C"))[None].div_(255)


def resize(image: Image, size: tuple[int, int]) -> Image:
    """``image`` at ``size`` (height, width): Pillow's antialiased bicubic, clamped to [0, 1], differentiable."""
    if tuple(image.shape[-2:]) == tuple(size):
        return image
    small = F.interpolate(image, tuple(size), mode="bicubic", antialias=True, align_corners=False)
    return clamp(small) if small.requires_grad else small.clamp_(0, 1)


def clamp(x: Tensor, most: float = 1.0) -> Tensor:
    """``x`` clamped to [0, ``most``]. Black and white have a gradient as well: torch's clamp has none at its ends."""
    clamped = x.detach().clamp(0, most)
    inside = (x.detach() - clamped).abs() < most * _TINY
    return torch.where(inside, x + (clamped - x.detach()), clamped)


def on_grid(image: Image) -> Image:
    """``image`` (B, 3, H, W) rounded to 8-bit values, float32; itself where it is so already."""
    image = image.detach()
    for rows in bands(image):
        band = image[..., rows, :]
        if image.dtype != torch.float32 or not torch.equal(band, band.mul(255).round_().div_(255)):
            return image.float().mul(255).round_().div_(255)
    return image


def bands(image: Image) -> Iterator[slice]:
    """The rows of a (B, C, H, W) picture in slices, for work whose steps in between need more room than it."""
    return _bands(image.shape[-2], image[..., 0, :].numel())


def perturbation_view(x_adv: Image, x0: Image, gain: float | None = None) -> Image:
    """The perturbation as a picture: mid-grey plus ``gain`` times ``x_adv - x0``; None: what fits in [0, 1]."""
    delta = (x_adv - x0).detach()
    if gain is None:
        largest = delta.abs().amax(dim=(1, 2, 3), keepdim=True)
        return 0.5 + 0.5 * delta / largest.clamp_min(1e-12)
    return (0.5 + gain * delta).clamp(0, 1)


def check_file(path: Path) -> None:
    """Raise ImageError where no file is there that could be a picture."""
    try:
        found = path.stat()
    except OSError as error:
        why = "no such file" if error.errno in (errno.ENOENT, errno.ENOTDIR) else error.strerror or str(error)
        raise ImageError(f"{path}: expected a picture, but there is {why}; check the path") from None
    except ValueError as error:
        raise ImageError(f"{str(path)!r}: expected a file name, but got none ({error}); check the path") from None
    if stat.S_ISDIR(found.st_mode):
        raise ImageError(f"{path}: expected a picture, but this is a folder; name a file inside it")
    if not stat.S_ISREG(found.st_mode):
        raise ImageError(f"{path}: expected a picture, but this is a pipe or a device; save it to a file first")


def _decode(source: Path | io.BytesIO, path: Path) -> tuple[Pil.Image, str, bytes | None, tuple[float, float] | None]:
    """The pixels, upright, with the file's own mode, profile and DPI."""
    with Pil.open(source, formats=_readable()) as file:
        frames = getattr(file, "n_frames", 1)
        if frames > 1 and file.format != _STILL:
            raise ImageError(f"{path}: expected a still picture, but this has {frames} frames; save one as PNG")
        mode, icc, dpi, size = file.mode, file.info.get("icc_profile"), _dpi(file), file.size
        file.load()
        ImageOps.exif_transpose(file, in_place=True)
    turned = file.size == size[::-1] != size
    return file, mode, icc, dpi[::-1] if dpi and turned else dpi


@cache
def _readable() -> tuple[str, ...]:
    """Pillow's names for what is read."""
    found = list(_FORMATS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an older Pillow's, which knows no AVIF
        if features.check("avif"):
            found.append("AVIF")
    with contextlib.suppress(ImportError):
        import pillow_heif

        pillow_heif.register_heif_opener()
        found.append("HEIF")
    return tuple(found)


def _colourless(pixels: np.ndarray) -> bool:
    return all((pixels[rows] == pixels[rows, :, :1]).all() for rows in _bands(len(pixels), pixels[0].size))


def _dpi(file: Pil.Image) -> tuple[float, float] | None:
    try:
        across, down = (float(value) for value in file.info["dpi"])
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None
    return (across, down) if 1 < across < 1e6 and 1 < down < 1e6 else None


def _png_chunks(stream: BinaryIO) -> Iterator[tuple[bytes, int]]:
    """Name and length of each chunk of a PNG; the stream stands at its bytes, and may be left anywhere."""
    place = len(_PNG) if stream.read(len(_PNG)) == _PNG else -1
    while place >= 0:
        stream.seek(place)
        head = stream.read(8)
        if len(head) < 8:
            return
        length, kind = struct.unpack(">I4s", head)
        yield kind, length
        place += length + 12


def _colour_chunks(path: Path) -> dict[bytes, bytes]:
    """What a PNG says, before its pixels, about how they look."""
    found = {}
    with path.open("rb") as stream:
        for kind, length in _png_chunks(stream):
            if kind == b"IDAT":
                break
            if _COLOUR_CHUNKS.get(kind) == length:
                body, check = stream.read(length), stream.read(4)
                if check == struct.pack(">I", zlib.crc32(kind + body)):
                    found[kind] = body
    return found


def _without_text(path: Path) -> tuple[io.BytesIO, bytes | None]:
    """A PNG without the chunks that Pillow unpacks to text, and its colour profile, which it unpacks likewise."""
    whole, icc = io.BytesIO(), None
    whole.write(_PNG)
    with path.open("rb") as stream:
        for kind, length in _png_chunks(stream):
            body = stream.read(length + 4)
            if kind == b"iCCP":
                packed = body[:-4].partition(b"\0")[2][1:]
                with contextlib.suppress(zlib.error):
                    icc = zlib.decompressobj().decompress(packed, _LONGEST_ICC)
            elif kind not in _TEXT:
                whole.write(struct.pack(">I4s", length, kind) + body)
    whole.seek(0)
    return whole, icc


def _alpha(picture: Pil.Image) -> np.ndarray | None:
    if not picture.has_transparency_data:
        return None
    return np.asarray((picture if "A" in picture.getbands() else picture.convert("RGBA")).getchannel("A"))


def _composed(under: np.ndarray, alpha: np.ndarray, behind: tuple[int, int, int]) -> np.ndarray:
    """uint8 (H, W, 3): what is seen of ``under`` through ``alpha`` (H, W) on a background."""
    seen = np.empty_like(under)
    for rows in _bands(len(under), under[0].size):
        a = alpha[rows, :, None].astype(np.uint16)
        seen[rows] = (under[rows] * a + np.array(behind, np.uint16) * (255 - a) + 127) // 255
    return seen


def _uncomposed(pixels: np.ndarray, seen: np.ndarray, under: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """``under`` (H, W, 3) so changed that ``pixels`` are seen where ``seen`` were, rounded towards no change."""
    stored = np.empty_like(pixels)
    for rows in _bands(len(pixels), pixels[0].size):
        a, change = alpha[rows, :, None].astype(np.int32), pixels[rows].astype(np.int32) - seen[rows]
        stored[rows] = (under[rows] + np.sign(change) * (np.abs(change) * 255 // np.maximum(a, 1)) * (a > 0)).clip(
            0, 255
        )
    return stored


def _bands(height: int, values: int) -> Iterator[slice]:
    """The rows of a picture with so many ``values`` a row, in slices of about :data:`_BAND` values."""
    rows = max(1, _BAND // values)
    return (slice(start, min(start + rows, height)) for start in range(0, height, rows))


def _round_in_l2(rounded: Tensor, x_adv: Tensor, x0: Tensor, eps: float, weight: Tensor | None) -> None:
    """Write the nearest levels, then as many of those rounded away from ``x0`` as needed, cheapest first, towards it.

    All (3, H, W). The cost of the last of them is found in a histogram, then in a finer one of what is between two of
    its marks, until nothing is between; of equal costs the first in the picture are taken.
    """
    places = [(channel, rows) for channel in range(3) for rows in bands(x0[None, :1])]

    def pieces() -> Iterator[_Piece]:
        return (_Piece.of(x_adv[at], x0[at], None if weight is None else weight[at]) for at in places)

    energy = sum(float(piece.energy.sum()) for piece in pieces())
    limit = (255 * eps) ** 2 * sum(piece.free for piece in pieces())
    low, width, saved = (0.5, 0.5, 0.0) if energy > limit else (0.0, 0.0, 0.0)
    while width > torch.finfo(torch.result_type(x_adv, x0)).eps / 2:  # as far apart as numbers from 0.5 to 1 are
        found = torch.zeros(_MARKS, dtype=torch.float64)
        for piece in pieces():
            marks = ((piece.cost.double() - low) * (_MARKS / width)).floor()
            here = (marks >= 0) & (marks < _MARKS)
            found += torch.bincount(marks[here].long(), piece.saved[here], _MARKS).cpu()
        enough = (energy - saved - found.cumsum(0) <= limit).nonzero()
        mark = int(enough[0]) if len(enough) else _MARKS
        low, width, saved = low + mark * width / _MARKS, width / _MARKS, saved + float(found[:mark].sum())
    for at, piece in zip(places, pieces(), strict=True):
        same = piece.saved * (piece.cost == low)
        before = saved + same.flatten().cumsum(0).reshape(same.shape) - same
        back = (piece.cost < low) | ((same > 0) & (energy - before > limit))
        rounded[at] = (piece.clean + torch.where(back, piece.inner, piece.near)).float() / 255
        saved += float(same.sum())


class _Piece(NamedTuple):
    """Rows of one plane, in levels: the nearest, those towards ``clean``, what these save and what they cost."""

    clean: Tensor
    near: Tensor
    inner: Tensor
    energy: Tensor
    saved: Tensor
    cost: Tensor
    free: int

    @classmethod
    def of(cls, x_adv: Tensor, x0: Tensor, mask: Tensor | None) -> _Piece:
        clean = (x0 * 255).round()
        weight = torch.ones_like(clean) if mask is None else mask.to(clean)
        inverse = torch.where(weight > 0, 1 / weight, 0).double()
        delta = torch.where(weight > 0, x_adv * 255 - clean, 0)
        near, inner = delta.round().clamp(min=-clean, max=255 - clean), delta.trunc()
        energy = (near * inverse).square()
        saved = energy - (inner * inverse).square()
        cost = torch.where(saved > 0, (delta - inner).abs(), 1)
        return cls(clean, near, inner, energy, saved.clamp_min(0), cost, int((weight > 0).sum()))


def _levels(eps: float) -> int:
    levels = math.floor(eps * 255 + _TINY) if math.isfinite(eps) else 0
    if levels < 1:
        raise InputError(f"eps: expected at least 1/255 = 0.004, one level of an 8-bit file, but got {eps:g}; raise it")
    return levels


def _to_rgb(picture: Pil.Image, icc: bytes | None) -> tuple[Pil.Image, bytes | None]:
    """8-bit RGB and the profile that still belongs to it."""
    if picture.mode == "F":
        raise ValueError("floating-point pixels have no agreed range")
    if picture.mode.startswith("I"):  # 16-bit greyscale; "I" is the same in a wider box
        wide = np.asarray(picture)
        if wide.min() < 0 or wide.max() > 65535:
            raise ValueError("more than 16 bits a pixel")
        picture = Pil.fromarray(np.round(wide / 257).astype(np.uint8))
    if icc is None:
        return picture.convert("RGB"), None
    space = icc[16:20]
    if space == b"RGB ":
        return picture.convert("RGB"), icc
    if picture.mode in ("LA", "P", "PA", "1"):
        picture = picture.convert("L")
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(icc))
        srgb, exact = ImageCms.createProfile("sRGB"), ImageCms.Flags.NOOPTIMIZE
        converted = ImageCms.profileToProfile(picture, source, srgb, outputMode="RGB", flags=exact)
    except (ImageCms.PyCMSError, OSError):
        converted = None  # a broken or ill-fitting profile, which viewers ignore as well
    return converted if converted is not None else picture.convert("RGB"), None

"""Pictures in and out: load, resize, 8-bit rounding inside the budget, lossless saving, checking the saved file.

What protects a picture is the *file*, and what an attacker's tool reads from the file is its 8-bit RGB values as they
stand: editors ignore alpha and colour profiles. So those values are what is loaded, perturbed and written.

- Alpha is set aside and written back. Transparent pixels keep the colours that lie under them.
- A colour profile of an RGB picture is kept and written back unchanged: values and appearance both stay. A profile that
  an RGB file cannot carry (CMYK, greyscale) is applied: the values become sRGB and the profile is dropped.
- EXIF orientation is applied. All other EXIF data (place, camera) is left out of saved files.
- 16-bit values become the nearest 8-bit ones (colour: the upper byte, as Pillow reads it). Greyscale and palette
  pictures become RGB, and a protected one stays RGB: the perturbation has colour.
"""

from __future__ import annotations

import io
import json
import math
import os
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image as Pil
from PIL import ImageCms, ImageOps, PngImagePlugin, UnidentifiedImageError
from torch import Tensor

from .errors import BudgetError, ImageError, InputError
from .files import write_atomically as write_atomically
from .types import Image

MIN_SIDE = 16
"""Pixels. Smaller pictures are refused: no editor can work on them."""

_FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF")
_LOSSY = (".jpg", ".jpeg", ".webp", ".avif", ".heic")
_TINY = 1e-6  # 8/255 is 8 levels, not 7.9999
_STILL = "MPO"  # phone photographs: the further frames are previews and gain maps, not an animation
_UNREADABLE = (  # what Pillow's decoders were seen to raise on broken files
    *(OSError, EOFError, SyntaxError, TypeError, ValueError, LookupError, OverflowError, MemoryError),
    *(struct.error, zlib.error, Pil.DecompressionBombError),
)


@dataclass(frozen=True)
class Picture:
    """A picture file as the engine sees it.

    ``pixels`` (1, 3, H, W) float32, exactly k/255; ``alpha`` (1, 1, H, W) likewise, or None; ``icc`` the profile that
    belongs to these pixels (None: sRGB); ``mode`` Pillow's name for how the file stores them ("RGB", "LA", "I;16" ...).
    """

    pixels: Image
    alpha: Tensor | None
    icc: bytes | None
    path: Path
    mode: str


def load_picture(path: str | os.PathLike[str]) -> Picture:
    """Read a still PNG, JPEG, WebP, TIFF, BMP or GIF; see the module for what happens to alpha, EXIF and ICC.

    Raises ImageError: no such file, not a picture, animated, truncated, or smaller than 16 pixels on a side.
    """
    path = Path(path)
    if not path.exists():
        raise ImageError(f"{path}: expected a picture, but there is no such file; check the path")
    if path.is_dir():
        raise ImageError(f"{path}: expected a picture, but this is a folder; name a file inside it")
    try:
        with Pil.open(path, formats=_FORMATS) as file:
            frames = getattr(file, "n_frames", 1)
            if frames > 1 and file.format != _STILL:
                raise ImageError(f"{path}: expected a still picture, but this has {frames} frames; save one as PNG")
            mode, icc = file.mode, file.info.get("icc_profile")
            upright = ImageOps.exif_transpose(file)
    except UnidentifiedImageError:
        raise ImageError(f"{path}: expected PNG, JPEG, WebP, TIFF or BMP, but this is none; convert it") from None
    except _UNREADABLE as error:
        raise ImageError(f"{path}: expected a whole picture, but reading failed ({error}); get a new copy") from error
    if min(upright.size) < MIN_SIDE:
        size = "x".join(map(str, upright.size))
        raise ImageError(f"{path}: expected at least {MIN_SIDE}x{MIN_SIDE} pixels, but got {size}; use a larger one")
    try:
        alpha = (
            from_uint8(np.asarray(upright.convert("RGBA").getchannel("A"))) if upright.has_transparency_data else None
        )
        rgb, icc = _to_rgb(upright, icc)
    except ValueError as error:
        raise ImageError(f"{path}: expected 8- or 16-bit pixels, but got {mode} ({error}); save it as PNG") from error
    return Picture(from_uint8(np.asarray(rgb)), alpha, icc, path, mode)


def load_image(path: str | os.PathLike[str]) -> Image:
    """The pixels of :func:`load_picture`: (1, 3, H, W) float32, exactly k/255."""
    return load_picture(path).pixels


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


def round_to_budget(
    x_adv: Image, x0: Image, eps: float, mask: Tensor | None = None, ball: Literal["linf", "l2"] = "linf"
) -> Image:
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
    if not torch.isfinite(x_adv).all():
        raise ImageError("x_adv: expected numbers, but got NaN or infinity; use float32 and look at the loss curve")
    exact = x0.detach() * 255
    clean = exact.round()
    if float((exact - clean).abs().max()) > 1e-3:
        raise ImageError("x0: expected 8-bit values (k/255), but got values in between; round the clean picture first")
    if ball == "l2":
        return _round_in_l2(x_adv.detach() * 255, clean, eps * 255, mask) / 255
    levels = whole if mask is None else (eps * 255 * mask.double() + _TINY).floor().to(clean)
    near = (x_adv.detach() * 255).round().clamp(min=clean - levels, max=clean + levels).clamp(0, 255)
    return near.float() / 255


def verify_budget(
    path: str | os.PathLike[str],
    x0: Image,
    eps: float,
    ball: Literal["linf", "l2"] = "linf",
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
    delta = ((saved.double() * 255).round() - (x0.detach().cpu().double() * 255).round()) / 255
    weight = torch.ones_like(delta) if mask is None else mask.detach().cpu().to(delta).expand_as(delta)
    delta = torch.where(delta == 0, 0, delta / weight)  # infinite where nothing may change
    largest = float(delta.abs().max() if ball == "linf" else (delta.square().sum() / (weight > 0).sum()).sqrt())
    if largest > eps + 1e-6:
        what = "a perturbation" if ball == "linf" else "a root mean square (RMS) of changes"
        raise BudgetError(
            f"{path}: expected {what} of at most {eps:g} ({255 * eps:.1f} of 255 levels), but the file holds "
            f"{largest:.4f} ({255 * largest:.1f}); it was changed after saving, or this is not its source"
        )
    return largest


def save_png(
    image: Image,
    path: str | os.PathLike[str],
    *,
    like: Picture | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Write ``image`` ((1, 3, H, W) or (3, H, W) in [0, 1]) as an 8-bit PNG, whole or not at all; folders are made.

    ``like`` gives back alpha and profile of the source; ``metadata`` becomes PNG text chunks (what is not a string,
    as JSON). Raises InputError for any other format: lossy ones (JPEG, WebP) destroy the perturbation.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        came = f"{path.suffix}, which is lossy" if path.suffix.lower() in _LOSSY else path.suffix or "no suffix"
        raise InputError(f"{path}: expected a .png file, but got {came}; use {path.stem}.png to keep every pixel")
    write_atomically(path, png_bytes(image, like=like, metadata=metadata))


def png_bytes(image: Image, *, like: Picture | None = None, metadata: Mapping[str, Any] | None = None) -> bytes:
    """``image`` as an encoded PNG; arguments as in :func:`save_png`. Same pixels and arguments, same bytes."""
    pixels = to_uint8(image)
    if like is not None and like.alpha is not None:
        alpha = np.round(like.alpha[0, 0].numpy() * 255).astype(np.uint8)
        if alpha.shape != pixels.shape[:2]:
            raise ImageError(f"expected the size of the source {alpha.shape}, but got {pixels.shape[:2]}; resize it")
        pixels = np.dstack([pixels, alpha])
    text = PngImagePlugin.PngInfo()
    for key, value in (metadata or {}).items():
        if not 0 < len(key) < 80 or not key.isascii():
            raise InputError(f"metadata: expected keys of 1 to 79 ASCII characters, but got {key!r}; rename it")
        text.add_itxt(key, value if isinstance(value, str) else json.dumps(value, sort_keys=True))
    out = io.BytesIO()
    Pil.fromarray(pixels).save(out, "PNG", pnginfo=text, icc_profile=like.icc if like else None)
    return out.getvalue()


def to_uint8(image: Image) -> np.ndarray:
    """``image`` ((1, 3, H, W) or (3, H, W) in [0, 1]) as uint8 (H, W, 3), rounded to the nearest level."""
    if image.ndim == 3:
        image = image[None]
    if image.shape[0] != 1:
        raise ImageError(f"expected one picture, but got a batch of {image.shape[0]}; pass them one by one")
    pixels = check_image(image.detach())[0]
    return (pixels.double() * 255).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).cpu().contiguous().numpy()


def from_uint8(array: np.ndarray) -> Tensor:
    """uint8 (H, W, 3) or (H, W) -> (1, 3 or 1, H, W) float32, exactly k/255: the way back from :func:`to_uint8`."""
    planes = torch.tensor(array.reshape(*array.shape[:2], -1), dtype=torch.float32)
    return planes.permute(2, 0, 1)[None].contiguous() / 255


def resize(image: Image, size: tuple[int, int]) -> Image:
    """``image`` at ``size`` (height, width): Pillow's antialiased bicubic, clamped to [0, 1], differentiable."""
    if tuple(image.shape[-2:]) == tuple(size):
        return image
    return F.interpolate(image, tuple(size), mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)


def perturbation_view(x_adv: Image, x0: Image, gain: float | None = None) -> Image:
    """The perturbation as a picture: mid-grey plus ``gain`` times ``x_adv - x0``; None: what fits in [0, 1]."""
    delta = (x_adv - x0).detach()
    if gain is None:
        largest = delta.abs().amax(dim=(1, 2, 3), keepdim=True)
        return 0.5 + 0.5 * delta / largest.clamp_min(1e-12)
    return (0.5 + gain * delta).clamp(0, 1)


def _round_in_l2(adv: Tensor, clean: Tensor, eps: float, mask: Tensor | None) -> Tensor:
    """Levels: the nearest, then as many of those rounded away from ``clean`` as needed, cheapest first, towards it."""
    weight = torch.ones_like(clean) if mask is None else mask.to(clean).expand_as(clean)
    inverse = torch.where(weight > 0, 1 / weight, 0).double()
    delta = torch.where(weight > 0, adv - clean, 0)
    near = delta.round().clamp(min=-clean, max=255 - clean)
    inner = delta.trunc()
    energy = lambda levels: (levels * inverse).square().flatten(1)  # noqa: E731
    saved = energy(near) - energy(inner)
    order = torch.where(saved > 0, (delta - inner).abs().flatten(1), 1).argsort(dim=1)
    limit = eps**2 * (weight > 0).flatten(1).sum(dim=1, keepdim=True)
    after = energy(near).sum(dim=1, keepdim=True) - saved.clamp_min(0).gather(1, order).cumsum(dim=1)
    excess = energy(near).sum(dim=1, keepdim=True) > limit
    needed = ((after > limit).sum(dim=1, keepdim=True) + 1) * excess
    rank = torch.empty_like(order).scatter_(
        1, order, torch.arange(order.shape[1], device=order.device).expand_as(order)
    )
    back = ((rank < needed) & (saved > 0)).reshape(delta.shape)
    return (clean + torch.where(back, inner, near)).float()


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

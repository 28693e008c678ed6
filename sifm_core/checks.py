"""What numbers, names and prompts may be; everything else is refused in one sentence."""

from __future__ import annotations

import numbers
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from .errors import InputError, unknown

if TYPE_CHECKING:
    from .types import Editor, Image

MOST = 1_000_000
"""Of whatever is counted (steps, pictures): more is a slip of the hand."""
LONGEST_PROMPT = 10_000
"""Characters. Text encoders read a few hundred."""
REAL = ("instruct-pix2pix", 4.3)
"""The smallest built-in editor that people use, and the GB to fetch for it."""


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
    """A whole number from 1 to :data:`MOST`."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 1:
        raise InputError(f"{name}: expected a whole number of at least 1, got {value!r}")
    if int(value) > MOST:
        raise InputError(f"{name}: expected at most {MOST:,}, got {value!r}")
    return int(value)


def check_choice(value: Any, name: str, known: Iterable[str]) -> Any:
    """One of the names; InputError with near ones for another."""
    if not isinstance(value, str) or value not in known:
        raise unknown(name, str(value), known)
    return value


def check_list(values: Any, name: str) -> list[Any]:
    """A list of whatever is in it; no text."""
    if not isinstance(values, Sequence) or isinstance(values, str):
        raise InputError(f"{name}: expected a list, got {type(values).__name__}")
    return list(values)


def check_prompts(prompt: str | Sequence[str], n: int, *, empty: bool = False) -> list[str]:
    """One stripped prompt per picture, an empty one where that is allowed; a single string serves all n."""
    prompts = [prompt] * n if isinstance(prompt, str) else check_list(prompt, "prompt")
    if len(prompts) != n:
        raise InputError(f"expected one prompt or {n} (one per picture), got {len(prompts)}")
    for text in prompts:
        if not isinstance(text, str) or not (empty or text.strip()):
            raise InputError(f"prompt: expected an instruction such as 'make it night', got {text!r}")
        if len(text) > LONGEST_PROMPT:
            raise InputError(f"prompt: expected at most {LONGEST_PROMPT:,} characters, got {len(text):,}; shorten it")
        try:
            text.encode()
        except UnicodeEncodeError:
            raise InputError("prompt: expected text, but got bytes that are no UTF-8; type it anew") from None
    return [text.strip() for text in prompts]


def check_toys(editors: Iterable[Editor], image: Image, demonstration: bool) -> bool:
    """Whether this is a demonstration: asked for, and one of the editors is a toy (:attr:`Editor.toy`).

    Raises InputError for pictures (B, 3, H, W) larger than a toy's own where no demonstration is asked for: it would
    stain them and protect nothing, and its edits of them say nothing.
    """
    toys = [editor for editor in editors if editor.toy is not None]
    height, width = image.shape[-2:]
    for editor in toys:
        if max(height, width) > (editor.toy or 0) and not demonstration:
            raise InputError(
                f"{editor.name} is a toy: it knows its own drawings of up to {editor.toy}x{editor.toy} pixels, and a "
                f"picture of {width}x{height} it would stain without protecting it. Choose an editor that people use: "
                f"{{editor}} ({REAL[1]} GB; to fetch it once: {{local_files_only}}), or the folder of a diffusers "
                "pipeline. To see how it goes all the same, on a result marked as such: {demonstration}",
                editor=REAL[0],
                local_files_only=False,
                demonstration=True,
            )
    return demonstration and bool(toys)

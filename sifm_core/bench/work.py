"""What a worker does: one batch of one phase, from 8-bit pixels to 8-bit pixels, with the models it keeps loaded.

Tasks and results are plain data, so that they mean the same in this process, in another and on another machine.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import purify
from ..editors import check_device, folder, load_editor
from ..images import from_uint8, to_uint8
from ..judges import load_judge
from ..pipeline import edit, immunize, measure, prompt_distance
from ..types import Case, Editor, Image, OnStep
from .machine import hardware

KEPT = 2
"""Models that a process holds at once: enough to protect on one editor and attack with another."""


@dataclass(frozen=True)
class Model:
    """An editor, a judge or an upscaler: by name, to be loaded where the work is, or (``live``) as it is."""

    kind: str
    name: str
    load: Mapping[str, Any] = field(default_factory=dict, compare=False)
    live: Any = field(default=None, compare=False)


@dataclass(frozen=True)
class Task:
    """One batch: ``phase``, the model it needs, and everything else that goes into it."""

    phase: str
    model: Model | None
    given: Mapping[str, Any]


_loaded: OrderedDict[tuple[str, ...], Any] = OrderedDict()


def model(wanted: Model | None) -> Any:
    """The loaded model; the one that was not used for longest makes room."""
    if wanted is None or wanted.live is not None:
        return wanted and wanted.live
    if wanted.kind == "upscaler":
        return _Upscaler(wanted.name)
    key = (wanted.kind, wanted.name, *(f"{name}={value}" for name, value in sorted(wanted.load.items())))
    if key not in _loaded:
        while len(_loaded) >= KEPT:
            _loaded.popitem(last=False)
        load: Callable[..., Any] = load_editor if wanted.kind == "editor" else load_judge
        _loaded[key] = load(wanted.name, **wanted.load)
    _loaded.move_to_end(key)
    return _loaded[key]


@dataclass(frozen=True)
class _Upscaler:
    """What keys need to know of an upscaler, which its purifier loads for itself."""

    name: str
    family, dtype, device = "upscaler", torch.float32, torch.device("cpu")

    @property
    def fingerprint(self) -> str:
        place = Path(self.name) if Path(self.name).is_dir() else folder.download(self.name, local_files_only=True)
        parts = ("vae", "text_encoder", "tokenizer", "unet", "scheduler")
        folder.check(place, parts)
        return folder.fingerprint(place, parts)


def perform(task: Task, on_step: OnStep | None = None) -> list[dict[str, Any]]:
    """One plain value per picture of the batch; a picture is its 8-bit ``pixels`` (H, W, 3)."""
    return PHASES[task.phase](model(task.model), on_step, **task.given)


def _identify(found: Any, on_step: OnStep | None) -> list[dict[str, Any]]:
    """What keys and provenance need to know of a model."""
    if not hasattr(found, "fingerprint"):
        return [{"name": found.name, "served": getattr(found, "served", "")}]
    return [
        {
            "name": found.name,
            "family": found.family,
            "fingerprint": found.fingerprint,
            "settings": dict(getattr(found, "settings", {})),
            "dtype": str(found.dtype),
            "hardware": hardware(found.device),
            "text_encoders": _readers(found) if isinstance(found, Editor) else [],
        }
    ]


def _readers(editor: Editor) -> list[str]:
    """The classes of the networks that read an editor's prompts."""
    return [type(part).__name__ for name, part in editor.networks().items() if name.startswith("text_encoder")]


def _immunize(
    editor: Any, on_step: OnStep | None, pixels: Sequence[np.ndarray], **settings: Any
) -> list[dict[str, Any]]:
    sources = stack(pixels)
    options = settings.pop("options")
    options["also"] = [model(other) for other in options.get("also", ())]
    done = immunize(sources, _NO_EDITOR if editor is None else editor, on_step=on_step, **settings, **options)
    shared = {
        "seconds": done.seconds / len(pixels),
        "history": [{"loss": step.loss, **step.log} for step in done.history],
        "peak_memory": asdict(done.peak_memory),
    }
    linf = (done.image - sources).abs().amax(dim=(1, 2, 3)).tolist()
    return [{"pixels": to_uint8(x), "linf": largest, **shared} for x, largest in zip(done.image, linf, strict=True)]


class _NoEditor:
    """Stands where noise, which needs no editor, is given one."""

    name, fingerprint, device = "", "", torch.device("cpu")

    def work_size(self, height: int, width: int) -> tuple[int, int]:
        return height, width


_NO_EDITOR: Any = _NoEditor()


def _purify(
    editor: Any,
    on_step: OnStep | None,
    pixels: Sequence[np.ndarray],
    chain: str,
    seed: list[int],
    upscaler: str | None = None,
    device: str = "cpu",
    demonstration: bool = False,
) -> list[dict[str, Any]]:
    tools: dict[str, Any] = {"editor": editor, "upscaler": upscaler, "device": check_device(device)}
    tools["demonstration"] = demonstration
    return _timed(pixels, partial(purify.apply, stack(pixels), chain, seed=seed, **tools))


def _edit(editor: Any, on_step: OnStep | None, pixels: Sequence[np.ndarray], **settings: Any) -> list[dict[str, Any]]:
    options = settings.pop("options")
    return _timed(pixels, partial(edit, stack(pixels), editor, on_step=on_step, **settings, **options))


def _compare(editor: Any, on_step: OnStep | None, prompts: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    return [asdict(prompt_distance(editor, one, other)) for one, other in prompts]


def _timed(pixels: Sequence[np.ndarray], work: partial[Image]) -> list[dict[str, Any]]:
    start = time.perf_counter()
    made = work()
    seconds = (time.perf_counter() - start) / len(pixels)
    return [{"pixels": to_uint8(x), "seconds": seconds} for x in made]


def _measure(
    nothing: None,
    on_step: OnStep | None,
    reference: Sequence[np.ndarray],
    distorted: Sequence[np.ndarray],
    names: Sequence[str] | None,
) -> list[dict[str, Any]]:
    columns = measure(stack(reference), stack(distorted), names)
    return [{name: asdict(values[i]) for name, values in columns.items()} for i in range(len(reference))]


def _judge(
    judge: Any,
    on_step: OnStep | None,
    source: Sequence[np.ndarray],
    edited: Sequence[np.ndarray],
    prompts: Sequence[str],
    truths: Sequence[Any],
) -> list[dict[str, Any]]:
    cases = [
        Case(from_uint8(x)[0], from_uint8(y)[0], prompt, truth)
        for x, y, prompt, truth in zip(source, edited, prompts, truths, strict=True)
    ]
    return [asdict(verdict) for verdict in judge.judge(cases, on_step=on_step)]


PHASES: dict[str, Callable[..., list[dict[str, Any]]]] = {
    "identify": _identify,
    "immunize": _immunize,
    "purify": _purify,
    "edit": _edit,
    "compare": _compare,
    "measure": _measure,
    "judge": _judge,
}


def stack(pixels: Sequence[np.ndarray]) -> Image:
    """(H, W, 3) 8-bit arrays of one size -> (B, 3, H, W) in [0, 1]."""
    return torch.cat([from_uint8(array) for array in pixels])

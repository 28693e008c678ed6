"""How much memory a piece of work took at its peak, and what is said when there was not enough."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from .errors import EditorError
from .types import Metric

_STATUS, _FORGET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_SIGNS = ("out of memory", "can't allocate memory", "not enough memory")


class OutOfMemory(EditorError, torch.OutOfMemoryError):
    """The engine's error that is torch's too: whoever makes room after that one (ComfyUI, `sifm queue`) knows it."""


@contextmanager
def peak(device: torch.device) -> Iterator[list[Metric]]:
    """Measure the block; the list holds one :class:`Metric`, bytes, once it is done.

    CUDA: the most that was allocated on the device, weights and all. CPU (Linux): by how much resident memory rose
    above what the process held before, once what earlier work freed was given back to the system: else a second piece
    of work would seem to need nothing. Elsewhere the value is None, with the reason.
    """
    found: list[Metric] = []
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        yield found
        found.append(Metric(float(torch.cuda.max_memory_allocated(device)), f"bytes allocated on {device} at the peak"))
        return
    definition = "bytes of resident memory at the peak, less those held before"
    try:
        if device.type != "cpu":
            raise OSError(f"not measured on {device.type}")
        with suppress(AttributeError):  # glibc keeps what is freed, other allocators have no such call
            ctypes.CDLL(None).malloc_trim(0)
        _FORGET.write_text("5")  # the highest so far; not getrusage's, which begins with the parent's
        held = _resident("VmRSS")
    except OSError as error:
        yield found
        found.append(Metric(None, definition, f"{error.strerror or error}: only measured on CUDA and on Linux"))
        return
    yield found
    found.append(Metric(float(max(0, _resident("VmHWM") - held)), definition))


@contextmanager
def enough(what: str, device: torch.device, *, pictures: bool = False) -> Iterator[None]:
    """Turn running out of memory inside the block into an :class:`OutOfMemory` that says what to lower.

    ``pictures``: what is inside works on pictures at their own size, so that no setting of the editor helps. Of blocks
    inside each other the innermost speaks: it knows best what was being done.
    """
    try:
        yield
    except OutOfMemory:
        raise
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError | torch.OutOfMemoryError) and not _is_memory(error):
            raise
        if pictures:
            raise OutOfMemory(
                f"not enough memory on {device} for {what}: make them smaller or fewer, or free some memory"
            ) from error
        raise OutOfMemory(
            f"not enough memory on {device} for {what}: lower the batch, the size or the method's rows, load the "
            "editor with {dtype}, {offload} or {checkpointing}, or use {device}; `sifm plan` says what fits",
            dtype="bfloat16",
            offload="text",
            checkpointing=True,
            device="cpu",
        ) from error


def _is_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or any(sign in str(error).lower() for sign in _SIGNS)


def _resident(field: str) -> int:
    found = re.search(rf"^{field}:\s+(\d+) kB", _STATUS.read_text(), re.MULTILINE)
    if found is None:
        raise OSError(f"{_STATUS} has no {field}")
    return 1024 * int(found[1])

"""What an immunization will take, before it is started: FLOP, memory, seconds, and the settings that fit a memory."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from .checks import MOST, check_count
from .counting import counting
from .editors.sd3 import T5
from .editors.skeleton import skeleton
from .errors import InputError, LayerError
from .features import resolve
from .methods import sifm
from .types import Editor, GradFn

CALIBRATION = 2.0
"""Seconds."""
OVERHEAD = 0.6e9
"""Bytes that CUDA's context and libraries take."""
LARGEST = 65_536
"""Pixels of the longer side."""
SMALLER = (1024, 768, 512, 256)
"""Working sizes that are proposed."""


@dataclass(frozen=True)
class Settings:
    """What decides the cost of SIFM on an editor.

    ``size`` is the longer side at which it works, in pixels; ``t5`` False leaves that text encoder out; ``rows`` of one
    batch the network runs at once, 0: the editor's rule.
    """

    editor: str
    size: int
    timesteps: int
    steps: int
    layers: str | Sequence[str] = "deep"
    batch: int = 1
    dtype: str = "float32"
    device: str = "cpu"
    offload: str = "none"
    checkpointing: bool = False
    t5: bool = True
    rows: int = 0


class Cost(NamedTuple):
    """``flops`` of all iterations of the batch; memory in bytes, at the peak of the loop and while prompts are read.

    ``networks`` are those of the loop, ``text`` the text encoders, ``working`` what one iteration makes and what is
    kept for all of them.
    """

    flops: int
    networks: int
    text: int
    working: int
    memory: int


class Rates(NamedTuple):
    """FLOP/s that a device was seen to reach, forwards and backwards: in convolutions, in matrix products."""

    convolution: float
    product: float


class Plan(NamedTuple):
    """``seconds`` None without a calibration; ``fitting`` the nearest settings that fit a memory that these do not."""

    settings: Settings
    cost: Cost
    seconds: float | None
    fits: bool | None
    fitting: tuple[Settings, Cost] | None


def plan(settings: Settings, *, memory: float | None = None, calibrate: bool = True) -> Plan:
    """Estimate, from counted operations and a calibration of :data:`CALIBRATION` seconds on this machine.

    ``memory`` in bytes. What is elementwise is in the calibration, not in the count; a picture's way to and from the
    working size, and the first compilation of kernels, are in neither. Raises InputError for settings out of range,
    LayerError for layers that are none, EditorError for an editor whose architecture is not known here.
    """
    for name in ("timesteps", "steps", "batch"):
        check_count(getattr(settings, name), name)
    if not 1 <= settings.size <= LARGEST:
        raise InputError(f"size: expected a whole number of at least 1 and at most {LARGEST:,}, got {settings.size}")
    if not 0 <= settings.rows <= MOST:
        raise InputError(f"rows: expected a whole number of at least 0 (0: the editor's rule), got {settings.rows}")
    if not settings.t5 and not _parameters(settings.editor)[2]:
        raise InputError(f"t5: {settings.editor} has no T5 text encoder to leave out")
    if memory is not None and not 0 < memory < float("inf"):
        raise InputError(f"memory: expected gigabytes above 0, such as 12, got {memory / 1e9:g}")
    counted, cost = _counted(settings), _cost(settings)
    seconds = None
    if calibrate:
        rates = rate(settings.device, settings.dtype)
        seconds = _iterations(settings, counted.convolution) / rates.convolution
        seconds += _iterations(settings, counted.product) / rates.product
    if memory is None:
        return Plan(settings, cost, seconds, None, None)
    fits = cost.memory <= memory
    return Plan(settings, cost, seconds, fits, None if fits else _fitting(settings, memory))


def rate(device: str, dtype: str, seconds: float = CALIBRATION) -> Rates:
    """Run a residual block and a transformer block, forwards and backwards, for half of ``seconds`` each."""
    from diffusers.models.attention import BasicTransformerBlock
    from diffusers.models.resnet import ResnetBlock2D

    residual = lambda: ResnetBlock2D(in_channels=256, temb_channels=None)  # noqa: E731
    transformer = lambda: BasicTransformerBlock(640, 8, 80, cross_attention_dim=768)  # noqa: E731
    text = {"encoder_hidden_states": (1, 77, 768)}
    return Rates(
        _rate(residual, (1, 256, 64, 64), {"temb": None}, device, dtype, seconds / 2),
        _rate(transformer, (1, 1024, 640), text, device, dtype, seconds / 2),
    )


def _rate(
    make: Callable[[], nn.Module], shape: Sequence[int], extra: dict[str, Any], device: str, dtype: str, seconds: float
) -> float:
    def ready(where: str) -> Callable[[], Any]:
        kind: dict[str, Any] = {"device": where, "dtype": getattr(torch, dtype)}
        block, x = make().to(**kind).requires_grad_(False), torch.full(tuple(shape), 0.1, **kind).requires_grad_()
        given = {k: None if v is None else torch.full(v, 0.1, **kind) for k, v in extra.items()}
        return lambda: torch.autograd.grad(block(x, **given).sum(), x)

    def synchronised() -> float:
        if torch.device(device).type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    with torch.inference_mode(False), torch.random.fork_rng(devices=[]):  # a block draws its weights
        with counting() as counter:
            ready("meta")()
        run = ready(device)
        run()
        start, done = synchronised(), 0
        while done == 0 or synchronised() - start < seconds:
            run()
            done += 1
        return counter.flops * done / (synchronised() - start)


def _iterations(settings: Settings, per_iteration: int) -> int:
    return per_iteration * settings.steps * settings.batch


class _Count(NamedTuple):
    """FLOP of one iteration of one picture, the bytes that it makes at its peak, and those kept through all iterations.

    What is kept of each timestep is its noise and the clean picture's features.
    """

    convolution: int
    product: int
    peak: int
    kept: int = 0


def _counted(settings: Settings) -> _Count:
    """As counted in float32: an iteration's bytes are in proportion to the type's, what is kept is never shorter."""
    layers = settings.layers if isinstance(settings.layers, str) else tuple(settings.layers)
    once, term = _iteration(settings.editor, settings.size, layers, settings.checkpointing)
    more = 0 if _once_for_all(settings.editor, layers) else settings.timesteps - 1
    width = torch.finfo(getattr(torch, settings.dtype)).bits / 32
    beside = min(more + 1, max(1, rows_of(settings) // settings.batch)) - 1
    return _Count(
        once.convolution + more * term.convolution,
        once.product + more * term.product,
        round((once.peak + beside * term.peak) * width),
        round((once.kept + more * term.kept) * max(1, width)),
    )


def rows_of(settings: Settings) -> int:
    """How many rows the network runs at once under these settings."""
    return settings.rows or _rule(settings.editor, settings.size, settings.dtype)


@cache
def _rule(editor: str, size: int, dtype: str) -> int:
    model = skeleton(editor, size=size, text=False, dtype=getattr(torch, dtype))
    return model.rows(*model.work_size(size, size))


@cache
def _once_for_all(editor: str, layers: str | tuple[str, ...]) -> bool:
    """Whether what these layers carry is the same at all timesteps."""
    model = skeleton(editor, text=False)
    paths = resolve(model.net, sifm.patterns(layers, model.layer_presets))
    return sifm.is_timeless(model, paths)


@cache
def _iteration(editor: str, size: int, layers: str | tuple[str, ...], checkpointing: bool) -> tuple[_Count, _Count]:
    """With one timestep, and what each further one adds."""
    model = skeleton(editor, size=size, text=False)
    if checkpointing:
        model.checkpoint()
    x, cond = torch.zeros(1, 3, *model.work_size(size, size), device="meta"), model.blank(1)
    first = _one(model, x, cond, layers)
    with torch.no_grad():
        z = model.encode(x)
    model.encode = lambda x, noise=None: x * 1  # type: ignore[method-assign]
    return first, _one(model, z, cond, layers)


def _one(model: Editor, x: Tensor, cond: Any, layers: str | tuple[str, ...]) -> _Count:
    """One timestep of the default aggregation, or of the other where that cannot average these layers."""

    def built(aggregation: Literal["literal", "per_layer"]) -> tuple[GradFn, int]:
        with counting() as counter:
            return sifm.build(model, x, cond, timesteps=1, layers=layers, aggregation=aggregation), counter.now

    try:
        grad_fn, kept = built("literal")
    except LayerError:
        grad_fn, kept = built("per_layer")
    with counting() as counter:
        grad_fn(x, 0)
    return _Count(counter.convolution, counter.product, counter.peak, kept)


@cache
def _parameters(editor: str) -> tuple[int, int, int]:
    """Of the networks in the loop, of the text encoders, and of T5 among these."""
    networks = skeleton(editor).networks()
    sizes = {name: sum(p.numel() for p in network.parameters()) for name, network in networks.items()}
    text = sum(size for name, size in sizes.items() if name.startswith("text_encoder"))
    return sum(sizes.values()) - text, text, sizes.get(T5[0], 0)


def _cost(settings: Settings) -> Cost:
    counted = _counted(settings)
    networks, text, t5 = (n * getattr(torch, settings.dtype).itemsize for n in _parameters(settings.editor))
    text -= 0 if settings.t5 else t5
    working = (counted.peak + counted.kept) * settings.batch
    where = torch.device(settings.device).type
    offload = "none" if where == "cpu" else settings.offload  # as place() does
    loop = networks + working + (text if offload == "none" else 0)
    reading = text + (0 if offload == "sequential" else networks)
    overhead = int(OVERHEAD) if where == "cuda" else 0
    return Cost(
        _iterations(settings, counted.convolution + counted.product),
        networks,
        text,
        working,
        max(loop, reading) + overhead,
    )


def _fitting(settings: Settings, memory: float) -> tuple[Settings, Cost] | None:
    """The first that fits, from what changes only the time, over what changes the numbers, to what changes the work."""
    offloads = [settings.offload]
    if torch.device(settings.device).type != "cpu":
        offloads = list(dict.fromkeys((settings.offload, "text", "sequential")))
    dtypes, batches = dict.fromkeys((settings.dtype, "bfloat16")), dict.fromkeys((settings.batch, 1))
    t5s = dict.fromkeys((settings.t5, settings.t5 and not _parameters(settings.editor)[2]))
    sizes = [settings.size, *(size for size in SMALLER if size < settings.size)]
    for size, t5, dtype, batch in itertools.product(sizes, t5s, dtypes, batches):
        change = {"size": size, "t5": t5, "dtype": dtype, "batch": batch}
        most = rows_of(replace(settings, **change))
        fewer = [settings.rows, *(most >> k for k in range(1, most.bit_length()))]
        for checkpointing, offload, rows in itertools.product(
            dict.fromkeys((settings.checkpointing, True)), offloads, fewer
        ):
            other = replace(settings, **change, checkpointing=checkpointing, offload=offload, rows=rows)
            cost = _cost(other)
            if cost.memory <= memory:
                return other, cost
            if cost.networks > memory or (cost.text > memory and offload != "none"):
                break
    return None

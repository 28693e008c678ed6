"""The loop that all trainings of the miniature share: AdamW, clipped gradients, a running average, checkpoints."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

Network = TypeVar("Network", bound=nn.Module)


def cosine(peak: float, steps: int) -> Callable[[int], float]:
    """A learning rate that rises to `peak` in 100 steps and falls along a cosine to a hundredth of it."""
    return lambda step: peak * min(1, (step + 1) / 100) * max(0.01, 0.5 + 0.5 * math.cos(math.pi * step / steps))


def falling(peak: float, steps: int, *, rise: int, fall: float) -> Callable[[int], float]:
    """A learning rate that rises in `rise` steps and falls straight to 2% in the last share `fall` of them."""
    return lambda step: peak * min(1, (step + 1) / rise) * max(0.02, min(1, (1 - step / steps) / fall))


def fit(
    live: Network,
    loss: Callable[[], tuple[Tensor, dict[str, float]]],
    *,
    steps: int,
    rate: Callable[[int], float],
    seed: int,
    log: Any,
    checkpoint: Path,
    helpers: nn.Module | None = None,
    betas: tuple[float, float] = (0.9, 0.98),
    weight_decay: float = 1e-4,
    average: float = 0.997,
    save: int = 250,
) -> Network:
    """Minimise `loss` and return a copy of `live` with the running average of its weights.

    `loss` draws a batch and gives what to minimise, and figures for the log. `helpers` learn along. `rate` is the
    learning rate at a step. Every `save` steps all is written to `checkpoint`; where one is, it goes on from there.
    """
    helpers = helpers or nn.Module()
    averaged = copy.deepcopy(live)
    learning = [*live.parameters(), *helpers.parameters()]
    optimizer = torch.optim.AdamW(learning, betas=betas, weight_decay=weight_decay)
    parts: dict[str, Any] = {"live": live, "averaged": averaged, "helpers": helpers, "optimizer": optimizer}
    torch.manual_seed(seed)
    first, figures = 0, dict[str, float]()
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        for name, part in parts.items():
            part.load_state_dict(state[name])
        first = state["step"]
        torch.manual_seed(seed + first)
        log(f"resumed at step {first}")
    began = time.time()
    for step in range(first, steps):
        for group in optimizer.param_groups:
            group["lr"] = rate(step)
        value, shown = loss()
        optimizer.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(learning, 1.0)
        optimizer.step()
        with torch.no_grad():
            decay = min(average, (1 + step) / (10 + step))
            torch._foreach_lerp_(list(averaged.parameters()), list(live.parameters()), 1 - decay)
        figures = {k: 0.95 * figures.get(k, v) + 0.05 * v for k, v in (shown | {"loss": value.item()}).items()}
        if (step + 1) % 50 == 0:
            told = "  ".join(f"{k} {v:.3f}" for k, v in figures.items())
            log(f"{checkpoint.stem}: step {step + 1}/{steps} {time.time() - began:.0f} s  {told}")
        if (step + 1) % save == 0:
            whole = {name: part.state_dict() for name, part in parts.items()} | {"step": step + 1}
            torch.save(whole, checkpoint.with_suffix(".tmp"))
            checkpoint.with_suffix(".tmp").replace(checkpoint)
    return averaged

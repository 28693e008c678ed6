"""The loop that all trainings of the miniature share: AdamW, clipped gradients, a running average, checkpoints."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import world
from .pool import CELLS, PLAIN

Network = TypeVar("Network", bound=nn.Module)
UNASKED = len(world.EDITS)
"""The number of no edit."""


Rate: TypeAlias = Callable[[int, float], float]
"""The learning rate at a step and share of the training."""


def cosine(peak: float) -> Rate:
    """A learning rate that rises to `peak` in 100 steps and falls along a cosine to a hundredth of it."""
    return lambda step, done: peak * min(1, (step + 1) / 100) * max(0.01, 0.5 + 0.5 * math.cos(math.pi * done))


def falling(peak: float, *, rise: int, fall: float) -> Rate:
    """A learning rate that rises in `rise` steps and falls straight to 2% in the last share `fall` of them."""
    return lambda step, done: peak * min(1, (step + 1) / rise) * max(0.02, min(1, (1 - done) / fall))


def fit(
    live: Network,
    loss: Callable[[], tuple[Tensor, dict[str, Any]]],
    *,
    steps: int,
    rate: Rate,
    seed: int,
    log: Any,
    checkpoint: Path,
    helpers: nn.Module | None = None,
    betas: tuple[float, float] = (0.9, 0.98),
    weight_decay: float = 1e-4,
    average: float = 0.997,
    save: int = 250,
    minutes: float | None = None,
) -> Network:
    """Minimise `loss` and return a copy of `live` with the running average of its weights.

    `loss` draws a batch and gives what to minimise, and figures for the log. `helpers` learn along. It ends after so
    many `steps`, or `minutes`. Every `save` steps all is written to `checkpoint`; where one is, it goes on from there.
    """
    helpers = helpers or nn.Module()
    averaged = copy.deepcopy(live)
    learning = [*live.parameters(), *helpers.parameters()]
    device = learning[0].device
    optimizer = torch.optim.AdamW(learning, betas=betas, weight_decay=weight_decay, fused=device.type == "cuda")
    parts: dict[str, Any] = {"live": live, "averaged": averaged, "helpers": helpers, "optimizer": optimizer}
    torch.manual_seed(seed)
    first, spent, figures = 0, 0.0, dict[str, Any]()
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True, map_location=device)
        for name, part in parts.items():
            part.load_state_dict(state[name])
        first, spent = state["step"], state.get("seconds", 0.0)
        torch.manual_seed(seed + first)
        log(f"resumed at step {first}")
    began = time.time()
    for step in range(first, steps):
        seconds = spent + time.time() - began
        done = max(step / steps, seconds / (60 * minutes) if minutes else 0)
        if done >= 1:
            break
        for group in optimizer.param_groups:
            group["lr"] = rate(step, done)
        value, shown = loss()
        optimizer.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(learning, 1.0)
        optimizer.step()
        with torch.no_grad():
            decay = min(average, (1 + step) / (10 + step))
            torch._foreach_lerp_(list(averaged.parameters()), list(live.parameters()), 1 - decay)
        shown["loss"] = value.detach()
        figures = {k: 0.95 * figures.get(k, v) + 0.05 * v for k, v in shown.items()}
        if (step + 1) % 50 == 0:
            told = "  ".join(f"{k} {v:.3f}" for k, v in figures.items())
            log(f"{checkpoint.stem}: step {step + 1}/{steps} {time.time() - began:.0f} s  {told}")
        if (step + 1) % save == 0:
            whole = {name: part.state_dict() for name, part in parts.items()} | {"step": step + 1, "seconds": seconds}
            torch.save(whole, checkpoint.with_suffix(".tmp"))
            checkpoint.with_suffix(".tmp").replace(checkpoint)
    return averaged


class TokenHelpers(nn.Module):
    """The auxiliary losses of a transformer's training, with hooks on its blocks that `close` removes.

    Off the tokens, each of 2 x 2 cells, is read what each cell is made of ("material..."), whether it is to change
    ("mask...") and which edit is asked for ("asked..."). ``where``: for each the block, and what of its output are the
    picture's tokens.
    """

    def __init__(
        self, blocks: nn.ModuleList, width: int, where: Mapping[str, tuple[int, Callable[[Any], Tensor]]]
    ) -> None:
        super().__init__()
        wide = {"material": 4 * (PLAIN + 1), "mask": 4, "asked": UNASKED + 1}
        self.heads = nn.ModuleDict({name: nn.Linear(width, wide[name.rstrip("0123456789")]) for name in where})
        self._seen: dict[str, Tensor] = {}
        self._hooks = [
            blocks[k].register_forward_hook(
                lambda module, args, out, name=name, tokens=tokens: self._seen.__setitem__(name, tokens(out).float())
            )
            for name, (k, tokens) in where.items()
        ]

    def close(self) -> None:
        for hook in self._hooks:
            hook.remove()

    def loss(self, rows: Any, change: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """What to add to the loss, and the shares that were read right and the overlap of the last mask."""
        wanted, extra, shown = change.clamp(0, 1), change.new_zeros(()), dict[str, Tensor]()
        for name, head in self.heads.items():
            read = head(self._seen[name])
            if name.startswith("material"):
                cells = _cells(read, PLAIN + 1)
                extra = extra + 0.4 * F.cross_entropy(cells, rows.material)
                shown[name] = (cells.argmax(1) == rows.material).float().mean()
            elif name.startswith("mask"):
                mask = _cells(read, 1)
                extra = extra + 0.5 * F.binary_cross_entropy_with_logits(mask, wanted)
                on, true = mask > 0, wanted > 0.5
                shown["iou"] = (on & true).sum() / ((on | true).sum() + 1)
            else:
                extra = extra + 0.2 * F.cross_entropy(read.flatten(0, 1), rows.edit.repeat_interleave(read.shape[1]))
                shown[name] = (read.argmax(2) == rows.edit[:, None]).float().mean()
        return extra, shown


def _cells(tokens: Tensor, channels: int) -> Tensor:
    """(B, 64, 4 c), a token for 2 x 2 cells, -> (B, c, 16, 16)."""
    n = CELLS // 2
    return tokens.reshape(-1, n, n, 2, 2, channels).permute(0, 5, 1, 3, 2, 4).reshape(-1, channels, CELLS, CELLS)

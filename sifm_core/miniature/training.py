"""The loop that all trainings of the miniature share: AdamW, clipped gradients, a running average, checkpoints."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .pool import CELLS, PLAIN

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


class TokenHelpers(nn.Module):
    """The auxiliary losses of a transformer's training, with hooks on its blocks that `close` removes.

    Off the tokens, each of 2 x 2 cells, is read what each cell is made of ("material") and, twice, whether it is to
    change ("mask0", "mask1"). ``where``: for each the block, and what of its output are the picture's tokens.
    """

    def __init__(
        self, blocks: nn.ModuleList, width: int, where: Mapping[str, tuple[int, Callable[[Any], Tensor]]]
    ) -> None:
        super().__init__()
        self.material = nn.Linear(width, 4 * (PLAIN + 1))
        self.masks = nn.ModuleList(nn.Linear(width, 4) for _ in range(2))
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

    def loss(self, rows: Any, change: Tensor) -> tuple[Tensor, dict[str, float]]:
        """What to add to the loss, and the share of materials read right and the overlap of the mask."""
        logits = _cells(self.material(self._seen["material"]), PLAIN + 1)
        material = F.cross_entropy(logits, rows.material)
        accuracy = (logits.argmax(1) == rows.material).float().mean().item()
        wanted, masks = change.clamp(0, 1), torch.zeros(())
        for j, head in enumerate(self.masks):
            mask = _cells(head(self._seen[f"mask{j}"]), 1)
            masks = masks + F.binary_cross_entropy_with_logits(mask, wanted)
        on, true = mask > 0, wanted > 0.5
        iou = ((on & true).sum() / ((on | true).sum() + 1)).item()
        return 0.4 * material + 0.5 * masks, {"material": accuracy, "iou": iou}


def _cells(tokens: Tensor, channels: int) -> Tensor:
    """(B, 64, 4 c), a token for 2 x 2 cells, -> (B, c, 16, 16)."""
    n = CELLS // 2
    return tokens.reshape(-1, n, n, 2, 2, channels).permute(0, 5, 1, 3, 2, 4).reshape(-1, channels, CELLS, CELLS)

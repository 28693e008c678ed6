"""What a computation costs, counted from the operations it runs on the meta device: shapes only, no numbers."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry


class Counter(TorchDispatchMode):
    """Counts while it is entered: FLOP by torch's own formulas, 2 a multiply-accumulate, and bytes of memory.

    ``convolution`` and ``product`` (matrices, attention) are FLOP; what is elementwise (norms, activations, softmax)
    counts as nothing. ``now`` is what the tensors made meanwhile take, without an allocator's overhead, ``peak`` the
    most that they ever took. (torch's FlopCounterMode counts the same, but keeps what checkpoints recompute alive.)
    """

    def __init__(self) -> None:
        super().__init__()
        self.convolution = self.product = self.peak = self.now = 0
        self._known: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    @property
    def flops(self) -> int:
        return self.convolution + self.product

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = {id(leaf.untyped_storage()) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        out = func(*args, **kwargs)
        packet = func._overloadpacket
        if packet in flop_registry:
            flops = flop_registry[packet](*args, **kwargs, out_val=out)
            if "convolution" in str(packet):
                self.convolution += flops
            else:
                self.product += flops
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                storage = leaf.untyped_storage()
                if id(storage) not in given and storage not in self._known:
                    self._known.add(storage)
                    self.now += (size := storage.nbytes())
                    weakref.finalize(storage, self._gone, size)
        self.peak = max(self.peak, self.now)
        return out

    def _gone(self, size: int) -> None:
        self.now -= size


@contextmanager
def counting() -> Iterator[Counter]:
    """A :class:`Counter` of what runs inside, with attention as graphics cards' fused kernels compute and keep it."""
    plain = F.scaled_dot_product_attention

    def attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Any = None, *args: Any, **options: Any) -> Any:
        if not query.is_meta or attn_mask is not None or args or options.get("is_causal"):
            return plain(query, key, value, attn_mask, *args, **options)
        fused = torch.ops.aten._scaled_dot_product_efficient_attention
        return fused(query, key, value, None, torch.is_grad_enabled())[0]

    F.scaled_dot_product_attention = attention  # all else is as before; a function mode would end in backward passes
    try:
        with Counter() as counter:
            yield counter
    finally:
        F.scaled_dot_product_attention = plain

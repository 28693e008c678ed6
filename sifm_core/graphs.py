"""A device's work recorded once as a CUDA graph and replayed, so that it never waits for the host."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten

from .types import GradFn, Gradient, Image, Sampled

WARM_UP = 2
"""Iterations, or calls, that run as they are before one is recorded: libraries set themselves up in them."""
_log = logging.getLogger(__name__)


def replayed(grad_fn: GradFn) -> GradFn:
    """``grad_fn`` with its work on a CUDA device recorded at the third call and replayed from then on.

    Equal kernels on equal numbers: what changes from call to call, the image and what is drawn, is copied to where the
    recorded kernels read it. Every call must bring an image of one shape. Off CUDA, for a function that does not say
    what it draws (it is no :class:`Sampled`), and where recording fails, ``grad_fn`` runs as it is; the log says why.
    """
    if isinstance(grad_fn, Sampled):
        return _Replayed(grad_fn)
    _log.info("run as it is, since it does not say what it draws: %s", grad_fn)
    return grad_fn


class _Replayed:
    def __init__(self, sampled: Sampled) -> None:
        self._sampled = sampled
        self._calls, self._possible = 0, True
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: list[Tensor] = []
        self._output: Gradient | None = None

    def __call__(self, x: Image, step: int) -> Gradient:
        if not (x.is_cuda and self._possible):
            return self._sampled(x, step)
        drawn = self._sampled.draw(step)
        self._calls += 1
        if self._calls > WARM_UP and self._graph is None:
            self._record(x, drawn)
        if self._graph is None or self._output is None:
            return self._sampled.gradient(x, *(numbers.to(x.device) for numbers in drawn))
        for place, numbers in zip(self._inputs, (x, *drawn), strict=True):
            place.copy_(numbers if numbers.is_cuda else numbers.pin_memory(), non_blocking=True)
        self._graph.replay()
        loss, grad, log = self._output
        return Gradient(loss.clone(), grad.clone(), {name: value.clone() for name, value in log.items()})

    def _record(self, x: Image, drawn: Sequence[Tensor]) -> None:
        inputs = [numbers.to(x.device, copy=True) for numbers in (x, *drawn)]
        recorded = _recorded(lambda: self._sampled.gradient(*inputs), x.device, "an iteration")
        if recorded is None:
            self._possible = False
        else:
            self._graph, self._output = recorded
            self._inputs = inputs


@contextmanager
def replaying(network: nn.Module) -> Iterator[None]:
    """Inside, what ``network`` computes on a CUDA device without a gradient is recorded and replayed, for each shape.

    For loops that others wrote, such as a sampler's. A call is recorded the third time that its tensors have the same
    shapes and everything else is equal; what it returns is a copy. A network that takes tensors of several devices, or
    cannot be recorded, runs as it is; the log says why. Afterwards, whatever happens, the network is as it was.
    """
    if not any(parameter.is_cuda for parameter in network.parameters()):
        yield
        return
    forward, calls = network.forward, dict[Any, _Call]()
    what, put_there = f"a call of {type(network).__name__}", vars(network).get("forward")

    def call(*args: Any, **kwargs: Any) -> Any:
        leaves, spec = tree_flatten((args, kwargs))
        given = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        plain = all(leaf is None or isinstance(leaf, (Tensor, bool, int, float, str)) for leaf in leaves)
        on_card = len({leaf.device for leaf in given}) == 1 and given[0].is_cuda
        if torch.is_grad_enabled() or not (plain and on_card):  # else something may change that is not seen here
            return forward(*args, **kwargs)
        alike = [(leaf.shape, leaf.dtype) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        seen = calls.setdefault((repr(spec), *alike), _Call())
        if not seen.possible:
            return forward(*args, **kwargs)
        seen.count += 1
        if seen.count > WARM_UP and seen.graph is None:
            seen.inputs = [leaf.clone() for leaf in given]
            places = iter(seen.inputs)
            kept = [next(places) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
            again, named = tree_unflatten(kept, spec)
            recorded = _recorded(lambda: forward(*again, **named), given[0].device, what)
            seen.possible = recorded is not None
            if recorded is not None:
                seen.graph, seen.output = recorded
        if seen.graph is None:
            return forward(*args, **kwargs)
        for place, leaf in zip(seen.inputs, given, strict=True):
            place.copy_(leaf)
        seen.graph.replay()
        return tree_map_only(Tensor, torch.clone, seen.output)

    network.forward = call
    try:
        yield
    finally:
        if put_there is None:
            del network.forward
        else:
            network.forward = put_there


@dataclass
class _Call:
    """What is known of calls of one shape."""

    count: int = 0
    possible: bool = True
    graph: torch.cuda.CUDAGraph | None = None
    inputs: Sequence[Tensor] = ()
    output: Any = None


def _recorded(work: Callable[[], Any], device: torch.device, what: str) -> tuple[torch.cuda.CUDAGraph, Any] | None:
    """The graph of ``work`` and what it leaves its results in; None where it cannot be recorded."""
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.device(device), torch.cuda.graph(graph, capture_error_mode="thread_local"):
            return graph, work()
    except RuntimeError as error:
        _log.warning("%s cannot be recorded as a CUDA graph, so it runs as it is: %s", what, error)
        torch.cuda.synchronize(device)
        return None

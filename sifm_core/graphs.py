"""A device's work of one iteration recorded once as a CUDA graph and replayed, so that it never waits for the host."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from .types import GradFn, Gradient, Image, Sampled

WARM_UP = 2
"""Iterations that run as they are before one is recorded: libraries set themselves up in them."""
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
        inputs, graph = [numbers.to(x.device, copy=True) for numbers in (x, *drawn)], torch.cuda.CUDAGraph()
        try:
            with torch.cuda.device(x.device), torch.cuda.graph(graph, capture_error_mode="thread_local"):
                output = self._sampled.gradient(*inputs)
        except RuntimeError as error:
            _log.warning("an iteration cannot be recorded as a CUDA graph, so each runs as it is: %s", error)
            self._possible = False
            torch.cuda.synchronize(x.device)
            return
        self._graph, self._inputs, self._output = graph, inputs, output

"""Exact gradients at the lowest cost: the chain rule taken apart at the latent, and at the editor's working size."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from .errors import EditorError, InputError
from .images import resize
from .types import GradFn, Gradient, Image, Latent, Term


def through_latent(encode: Callable[[Image], Latent], terms: Sequence[Term], *, part_norms: bool = False) -> GradFn:
    """The gradient, with respect to the image, of a sum of losses of its latent.

    Equal to differentiating ``sum(term(encode(x)) for term in terms)``, but the image is encoded once without and
    once with a graph and crosses the encoder backwards once, however many terms there are, and never do two large
    graphs coexist. ``encode`` must be deterministic. Each term's graph is freed before the next term runs.

    The log holds the named parts of the loss, which sum to it. With ``part_norms`` it also holds, as "grad_<part>",
    the L2 norm of each part's gradient at the latent, at the cost of one more backward pass of the term per part.
    Sums are in float32 (float64 where the latent is). Raises EditorError when a loss or gradient is not finite.
    """

    if not terms:
        raise InputError("expected at least one term of the loss, got none")

    def grad_fn(x: Image, step: int) -> Gradient:
        with torch.no_grad():
            z = encode(x).detach()
        losses: dict[str, Tensor] = defaultdict(lambda: z.new_zeros(len(z)))
        latent_grads: dict[str, Tensor] = defaultdict(lambda: torch.zeros_like(z))
        with torch.enable_grad():
            for term in terms:
                leaf = z.clone().requires_grad_()
                value = term(leaf)
                parts = value if isinstance(value, Mapping) else {"": value}
                for name, part in parts.items():
                    losses[name] += part.detach()
                if part_norms:
                    for k, (name, part) in enumerate(parts.items(), 1):
                        (grad,) = torch.autograd.grad(part.sum(), leaf, retain_graph=k < len(parts))
                        latent_grads[name] += grad
                else:
                    (grad,) = torch.autograd.grad(torch.stack([part.sum() for part in parts.values()]).sum(), leaf)
                    latent_grads[""] += grad
            leaf = x.detach().clone().requires_grad_()
            (grad,) = torch.autograd.grad(encode(leaf), leaf, _total(latent_grads))
        log = {name: value for name, value in losses.items() if name}
        if part_norms:
            log |= {f"grad_{name}": grad.flatten(1).norm(dim=1) for name, grad in latent_grads.items()}
        return finite(Gradient(_total(losses), grad, log), step)

    return grad_fn


def direct(loss: Callable[[Image, int], Tensor]) -> GradFn:
    """The gradient of a loss of the image itself, ``loss(x, step)`` (B,), by plain automatic differentiation.

    For losses that no network stands behind, or that cross the whole editor. Raises EditorError as `through_latent`.
    """

    def grad_fn(x: Image, step: int) -> Gradient:
        with torch.enable_grad():
            leaf = x.detach().clone().requires_grad_()
            value = loss(leaf, step)
            (grad,) = torch.autograd.grad(value.sum(), leaf)
        return finite(Gradient(value.detach(), grad), step)

    return grad_fn


def through_resize(grad_fn: GradFn, size: tuple[int, int]) -> GradFn:
    """The gradient at full resolution of a ``grad_fn`` that takes images of ``size`` (height, width).

    The image goes down by the antialiased :func:`sifm_core.images.resize` that the editor's user sees as well, and the
    gradient comes back up by its vector-Jacobian product.
    """

    def full(x: Image, step: int) -> Gradient:
        with torch.enable_grad():
            leaf = x.detach().clone().requires_grad_()
            small = resize(leaf, size)
            gradient = grad_fn(small.detach(), step)
            (grad,) = torch.autograd.grad(small, leaf, gradient.grad)
        return gradient._replace(grad=grad)

    return full


def finite(gradient: Gradient, step: int) -> Gradient:
    """Give back ``gradient``; raise EditorError when a loss or gradient in it is not finite."""
    for name, value in (("loss", gradient.loss), ("gradient", gradient.grad)):
        bad = (~torch.isfinite(value)).reshape(len(value), -1).any(dim=1)
        if bool(bad.any()):
            raise EditorError(
                f"the {name} of image {', '.join(str(int(i)) for i in bad.nonzero())} of the batch is not finite "
                f"at step {step}: numbers overflowed in the editor; load it with dtype='float32'"
            )
    return gradient


def _total(parts: Mapping[str, Tensor]) -> Tensor:
    return torch.stack(list(parts.values())).sum(dim=0)

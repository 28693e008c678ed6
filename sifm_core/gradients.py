"""Exact gradients at the lowest cost: the chain rule taken apart at the latent, and at the editor's working size."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from .errors import InputError
from .images import resize
from .types import GradFn, Gradient, Image, Latent, Sampled, Term


def through_latent(
    encode: Callable[[Image], Latent | tuple[Tensor, ...]],
    terms: Sequence[Term],
    *,
    part_norms: bool = False,
    lengths: Mapping[str, float] | None = None,
) -> Sampled:
    """The gradient, with respect to the image, of a sum of losses of its latent.

    Equal to differentiating ``sum(term(encode(x)) for term in terms)``, but the image crosses the encoder once forwards
    and once backwards, however many terms there are, and each term's graph is freed before the next term runs. The
    encoder's graph is kept meanwhile; where that is too much memory, let the encoder checkpoint.

    ``encode`` may give several tensors, one for each way in which the picture enters (:attr:`Editor.entrances`): a term
    takes them all, and what is said here of the latent holds of all together.

    The log holds the named parts of the loss, which sum to it. With ``part_norms`` it also holds, as "grad_<part>",
    the L2 norm of each part's gradient at the latent, at the cost of one more backward pass of each term for every part
    but its first. With ``lengths`` each part's gradient at the latent is scaled, for each image, to the L2 norm given
    for it before they are added (one of zero stays zero), and their norms before that are logged: balance, not the
    gradient of a sum.
    Sums are in float32 (float64 where the latent is).
    """

    if not terms:
        raise InputError("expected at least one term of the loss, got none")
    apart = part_norms or lengths is not None

    def gradient(x: Image) -> Gradient:
        with torch.enable_grad():
            image = _leaf(x)
            encoded = encode(image)
        encoded = encoded if isinstance(encoded, tuple) else (encoded,)
        entered = [tensor.detach() for tensor in encoded]
        losses: dict[str, Tensor] = defaultdict(lambda: entered[0].new_zeros(len(image)))
        latent_grads: dict[str, list[Tensor]] = defaultdict(lambda: [torch.zeros_like(tensor) for tensor in entered])
        with torch.enable_grad():
            for term in terms:
                leaves = [tensor.clone().requires_grad_() for tensor in entered]
                value = term(*leaves)
                parts = value if isinstance(value, Mapping) else {"": value}
                for name, part in parts.items():
                    losses[name] += part.detach()
                if apart:
                    for k, (name, part) in enumerate(parts.items(), 1):
                        _add(latent_grads[name], part.sum(), leaves, keep=k < len(parts))
                else:
                    _add(latent_grads[""], torch.stack([part.sum() for part in parts.values()]).sum(), leaves)
            norms = {name: _norm(grads) for name, grads in latent_grads.items()} if apart else {}
            if lengths is not None:
                for name, grads in latent_grads.items():
                    latent_grads[name] = [_to_length(grad, norms[name], lengths[name]) for grad in grads]
            totals = [torch.stack(grads).sum(dim=0) for grads in zip(*latent_grads.values(), strict=True)]
            (grad,) = torch.autograd.grad(encoded, image, totals)
        log = {name: value for name, value in losses.items() if name}
        log |= {f"grad_{name}": value for name, value in norms.items() if name}
        return Gradient(_total(losses), grad, log)

    return Sampled(nothing, gradient)


def direct(loss: Callable[..., Tensor], draw: Callable[[int], Sequence[Tensor]] | None = None) -> Sampled:
    """The gradient of a loss of the image itself, ``loss(x, *draw(step))`` (B,), by plain automatic differentiation.

    For losses that no network stands behind, or that cross the whole editor; ``draw`` as in :class:`Sampled`.
    """

    def gradient(x: Image, *drawn: Tensor) -> Gradient:
        with torch.enable_grad():
            leaf = _leaf(x)
            value = loss(leaf, *drawn)
            (grad,) = torch.autograd.grad(value.sum(), leaf)
        return Gradient(value.detach(), grad)

    return Sampled(draw or nothing, gradient)


def nothing(step: int) -> Sequence[Tensor]:
    """What a :class:`Sampled` gradient draws that draws nothing."""
    return ()


def through(grad_fn: GradFn, view: Callable[[Image, int], Image]) -> GradFn:
    """The gradient of ``grad_fn`` after a picture-to-picture function ``view(x, step)``, which must be differentiable.

    The loss is that of the changed picture; the gradient comes back by the view's vector-Jacobian product.
    """

    def full(x: Image, step: int) -> Gradient:
        with torch.enable_grad():
            leaf = _leaf(x)
            seen = view(leaf, step)
            gradient = grad_fn(seen.detach(), step)
            (grad,) = torch.autograd.grad(seen, leaf, gradient.grad)
        return gradient._replace(grad=grad)

    return full


def through_resize(grad_fn: GradFn, size: tuple[int, int]) -> GradFn:
    """The gradient at full resolution of a ``grad_fn`` that takes images of ``size`` (height, width).

    The image goes down by the antialiased :func:`sifm_core.images.resize` that the editor's user sees as well, and the
    gradient comes back up.
    """

    def view(x: Image, step: int = 0) -> Image:
        return resize(x, size) if tuple(x.shape[-2:]) != size else x * 1

    if not isinstance(grad_fn, Sampled):
        return through(grad_fn, view)
    inner = grad_fn.gradient
    return Sampled(grad_fn.draw, lambda x, *drawn: through(lambda seen, step: inner(seen, *drawn), view)(x, 0))


def ensemble(grad_fns: Sequence[GradFn], weights: Sequence[float] | None = None) -> GradFn:
    """Several editors at once, for perturbations that transfer: the weighted mean of gradients of equal size.

    Each gradient is first divided, image by image, by the mean magnitude of its values, so that no editor drowns the
    others however large its loss is; ``weights`` (default: equal) then say how much each counts. The loss is the
    weighted mean of the losses, and the log holds every editor's own as "<position>.<name>", its loss as
    "<position>.loss". Raises InputError unless there are functions, and as many positive weights.
    """
    weights = [1.0] * len(grad_fns) if weights is None else list(weights)
    if not grad_fns or len(weights) != len(grad_fns) or not all(0 < weight < math.inf for weight in weights):
        raise InputError(f"ensemble: expected as many weights above 0 as editors ({len(grad_fns)}), got {weights}")
    shares = [weight / sum(weights) for weight in weights]

    def together(x: Image, step: int) -> Gradient:
        found = [grad_fn(x, step) for grad_fn in grad_fns]
        sizes = [gradient.grad.abs().mean(dim=(1, 2, 3), keepdim=True) for gradient in found]
        grads = [
            share * torch.where(size > 0, gradient.grad / size, 0)
            for share, gradient, size in zip(shares, found, sizes, strict=True)
        ]
        losses = [share * gradient.loss for share, gradient in zip(shares, found, strict=True)]
        log = {f"{k}.{name}": v for k, g in enumerate(found) for name, v in {"loss": g.loss, **g.log}.items()}
        return Gradient(torch.stack(losses).sum(dim=0), torch.stack(grads).sum(dim=0), log)

    return together


def _leaf(x: Tensor) -> Tensor:
    """``x`` as the start of a graph; not copied, since a large picture is large, unless inference mode made it."""
    return (x.clone() if x.is_inference() else x.detach()).requires_grad_()


def _add(totals: Sequence[Tensor], loss: Tensor, leaves: Sequence[Tensor], keep: bool = False) -> None:
    grads = torch.autograd.grad(loss, leaves, retain_graph=keep, allow_unused=len(leaves) > 1)
    for total, grad in zip(totals, grads, strict=True):
        if grad is not None:
            total += grad


def _norm(grads: Sequence[Tensor]) -> Tensor:
    return torch.cat([grad.flatten(1) for grad in grads], dim=1).norm(dim=1)


def _total(parts: Mapping[str, Tensor]) -> Tensor:
    return torch.stack(list(parts.values())).sum(dim=0)


def _to_length(grad: Tensor, norm: Tensor, length: float) -> Tensor:
    factor = torch.where(norm > 0, length / norm, 0)
    return grad * factor.reshape(-1, *[1] * (grad.ndim - 1))

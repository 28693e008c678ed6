"""through_latent and through_resize against plain automatic differentiation, in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from sifm_core.errors import EditorError, InputError
from sifm_core.gradients import ensemble, through, through_latent, through_resize
from sifm_core.images import resize
from sifm_core.pgd import pgd
from sifm_core.types import Gradient

torch.manual_seed(0)
ENCODER = nn.Sequential(nn.Conv2d(3, 4, 2, stride=2), nn.Tanh()).double().requires_grad_(False)
HEADS = [nn.Conv2d(4, 4, 1).double().requires_grad_(False) for _ in range(3)]
X = torch.rand(3, 3, 8, 8, dtype=torch.float64)


def term(head: nn.Module):
    return lambda z: head(z).square().flatten(1).sum(1)


TERMS = [term(head) for head in HEADS]


def literal(x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.clone().requires_grad_()
    loss = sum(t(ENCODER(x)) for t in TERMS)
    return loss.detach(), torch.autograd.grad(loss.sum(), x)[0]


def test_equals_differentiating_the_whole_sum() -> None:
    loss, grad = literal(X)
    ours = through_latent(ENCODER, TERMS)(X, 0)
    assert torch.allclose(ours.loss, loss, rtol=1e-12)
    assert torch.allclose(ours.grad, grad, rtol=1e-12, atol=0)


def test_a_batch_gives_the_gradients_of_its_images() -> None:
    grad_fn = through_latent(ENCODER, TERMS)
    singles = torch.cat([grad_fn(x[None], 0).grad for x in X])
    assert torch.allclose(grad_fn(X, 0).grad, singles, rtol=1e-12)


def test_crosses_the_encoder_once_forwards_and_once_backwards_however_many_terms() -> None:
    forwards, backwards = [], []

    def encode(x: Tensor) -> Tensor:
        z = ENCODER(x)
        forwards.append(z.requires_grad)
        if z.requires_grad:
            z.register_hook(lambda _: backwards.append(1))
        return z

    through_latent(encode, TERMS)(X, 0)
    assert forwards == [True] and len(backwards) == 1


@pytest.mark.parametrize("part_norms", [False, True])
def test_named_parts_sum_to_the_loss_and_are_logged(part_norms: bool) -> None:
    def parts(z: Tensor) -> dict[str, Tensor]:
        return {"a": TERMS[0](z), "b": -0.5 * TERMS[1](z)}

    whole = through_latent(ENCODER, [lambda z: TERMS[0](z) - 0.5 * TERMS[1](z)] * 2)(X, 0)
    split = through_latent(ENCODER, [parts] * 2, part_norms=part_norms)(X, 0)
    assert torch.allclose(split.grad, whole.grad, rtol=1e-12)
    assert torch.allclose(split.loss, whole.loss) and torch.allclose(split.log["a"] + split.log["b"], split.loss)
    if part_norms:
        z = ENCODER(X).requires_grad_()
        (expected,) = torch.autograd.grad(2 * TERMS[0](z).sum(), z)
        assert torch.allclose(split.log["grad_a"], expected.flatten(1).norm(dim=1))


def test_half_precision_terms_are_summed_in_float32() -> None:
    """1000 equal small gradients: float16 sums would stall at 2048 * the smallest step."""
    encode = lambda x: x.mean(dim=(2, 3), keepdim=True)  # noqa: E731
    small = lambda z: (z.half() * 1e-3).float().flatten(1).sum(1)  # noqa: E731
    one = through_latent(encode, [small])(X.float(), 0).grad
    many = through_latent(encode, [small] * 1000)(X.float(), 0).grad
    assert torch.allclose(many, 1000 * one, rtol=1e-4)


@pytest.mark.parametrize(
    "bad", [lambda z: z.flatten(1).sum(1) / 0, lambda z: (z - z.detach()).abs().sqrt().flatten(1).sum(1)]
)
def test_a_loss_or_gradient_that_is_not_finite_is_refused(bad) -> None:
    sound = lambda x, step: Gradient(torch.ones(3), torch.ones_like(x))  # noqa: E731
    grad_fn = lambda x, step: (through_latent(ENCODER, [bad]) if step == 7 else sound)(x, step)  # noqa: E731
    with pytest.raises(EditorError, match=r"not finite at step 7.*float32"):
        pgd(X, grad_fn, eps=0.1, alpha=0.01, steps=9)


def test_the_images_that_overflowed_are_named() -> None:
    loss = torch.tensor([0.0, float("nan"), float("inf")])
    with pytest.raises(EditorError, match=r"loss of image 1, 2"):
        pgd(X, lambda x, step: Gradient(loss, torch.ones_like(x)), eps=0.1, alpha=0.01, steps=1)


def test_no_terms_is_refused() -> None:
    with pytest.raises(InputError, match="at least one term"):
        through_latent(ENCODER, [])


def test_through_resize_is_the_gradient_of_the_composition() -> None:
    big = torch.rand(2, 3, 21, 13, dtype=torch.float64) * 0.8 + 0.1
    x = big.clone().requires_grad_()
    (expected,) = torch.autograd.grad(sum(t(ENCODER(resize(x, (8, 6)))).sum() for t in TERMS), x)
    ours = through_resize(through_latent(ENCODER, TERMS), (8, 6))(big, 0)
    assert ours.grad.shape == big.shape
    assert torch.allclose(ours.grad, expected, rtol=1e-10, atol=1e-14)
    assert torch.equal(ours.loss, through_latent(ENCODER, TERMS)(resize(big, (8, 6)), 0).loss)


def test_through_resize_to_the_same_size_changes_nothing() -> None:
    grad_fn = through_latent(ENCODER, TERMS)
    assert torch.equal(through_resize(grad_fn, (8, 8))(X, 0).grad, grad_fn(X, 0).grad)


def test_through_is_the_gradient_of_the_composition_and_tells_the_view_its_step() -> None:
    steps = []

    def view(x: Tensor, step: int) -> Tensor:
        steps.append(step)
        return x.flip(-1).square()

    x = X.clone().requires_grad_()
    (expected,) = torch.autograd.grad(sum(t(ENCODER(x.flip(-1).square())).sum() for t in TERMS), x)
    ours = through(through_latent(ENCODER, TERMS), view)(X, 7)
    assert torch.allclose(ours.grad, expected, rtol=1e-10) and steps == [7]


def parts(z: Tensor) -> dict[str, Tensor]:
    return {"a": TERMS[0](z), "b": -1e-6 * TERMS[1](z)}


def test_balanced_parts_have_the_lengths_asked_for_at_the_latent() -> None:
    z = ENCODER(X).detach().requires_grad_()
    a, b = (torch.autograd.grad(f(z).sum(), z)[0] * sign for f, sign in ((TERMS[0], 1), (TERMS[1], -1)))
    length = lambda g: g.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)  # noqa: E731
    x = X.clone().requires_grad_()
    (expected,) = torch.autograd.grad(ENCODER(x), x, a / length(a) + 0.5 * b / length(b))
    ours = through_latent(ENCODER, [parts, parts], lengths={"a": 1.0, "b": 0.5})(X, 0)
    assert torch.allclose(ours.grad, expected, rtol=1e-9)
    assert torch.allclose(ours.log["grad_a"], 2 * length(a).flatten(), rtol=1e-10), "what it was before"
    sum_ = through_latent(ENCODER, [parts, parts])(X, 0)
    assert torch.equal(ours.loss, sum_.loss) and not torch.allclose(ours.grad, sum_.grad, rtol=0.1)


def test_a_part_without_gradient_stays_zero_when_balanced() -> None:
    still = lambda z: {"a": TERMS[0](z), "b": 0 * TERMS[1](z)}  # noqa: E731
    assert bool(torch.isfinite(through_latent(ENCODER, [still], lengths={"a": 1.0, "b": 1.0})(X, 0).grad).all())


def test_an_ensemble_is_the_weighted_mean_of_equally_large_gradients() -> None:
    loud = through_latent(ENCODER, [lambda z: 1e6 * TERMS[0](z)])
    quiet = through_latent(ENCODER, [parts])
    one, two = loud(X, 0), quiet(X, 0)
    size = lambda g: g.abs().mean(dim=(1, 2, 3), keepdim=True)  # noqa: E731
    ours = ensemble([loud, quiet], [3, 1])(X, 0)
    assert torch.allclose(ours.grad, 0.75 * one.grad / size(one.grad) + 0.25 * two.grad / size(two.grad), rtol=1e-12)
    assert torch.allclose(ours.loss, 0.75 * one.loss + 0.25 * two.loss)
    assert torch.equal(ours.log["1.a"], two.log["a"]) and torch.equal(ours.log["0.loss"], one.loss)
    assert torch.allclose(ours.grad[1:2], ensemble([loud, quiet], [3, 1])(X[1:2], 0).grad, rtol=1e-10)


@pytest.mark.parametrize("weights", [[1.0], [1.0, 0.0], [1.0, -1.0], [1.0, float("nan")]])
def test_wrong_weights_are_refused(weights: list[float]) -> None:
    with pytest.raises(InputError, match="as many weights"):
        ensemble([through_latent(ENCODER, TERMS)] * 2, weights)


VIEW = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 5), nn.Tanh()).double().requires_grad_(False)
MIXED = nn.Linear(5, 4).double().requires_grad_(False)


def by_both(z: Tensor, seen: Tensor) -> dict[str, Tensor]:
    mixed = MIXED(seen)[:, :, None, None]
    return {"a": TERMS[0](z * mixed), "b": -0.3 * TERMS[1](z + mixed)}


def test_several_ways_in_give_the_gradient_of_the_whole_composition() -> None:
    x = X.clone().requires_grad_()
    loss = sum(by_both(ENCODER(x), VIEW(x)).values()) + TERMS[2](ENCODER(x))
    (expected,) = torch.autograd.grad(loss.sum(), x)
    terms = [by_both, lambda z, seen: TERMS[2](z)]
    ours = through_latent(lambda x: (ENCODER(x), VIEW(x)), terms)(X, 0)
    assert torch.allclose(ours.grad, expected, rtol=1e-11, atol=0) and torch.allclose(ours.loss, loss.detach())
    apart = through_latent(lambda x: (ENCODER(x), VIEW(x)), [by_both], part_norms=True)(X, 0)
    leaves = [f(X).requires_grad_() for f in (ENCODER, VIEW)]
    grads = torch.autograd.grad(by_both(*leaves)["a"].sum(), leaves)
    assert torch.allclose(apart.log["grad_a"], torch.cat([g.flatten(1) for g in grads], dim=1).norm(dim=1))
    one = through_latent(lambda x: (ENCODER(x), VIEW(x)), terms, lengths={"a": 2.0, "b": 0.0, "": 0.0})(X, 0)
    length = torch.cat([g.flatten(1) for g in grads], dim=1).norm(dim=1)
    x = X.clone().requires_grad_()
    scaled = [2 * g / length.reshape(-1, *[1] * (g.ndim - 1)) for g in grads]
    assert torch.allclose(one.grad, torch.autograd.grad((ENCODER(x), VIEW(x)), x, scaled)[0], rtol=1e-9)

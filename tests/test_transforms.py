"""The transforms against the libraries that do them to files, and their gradients."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image as Pil

from sifm_core.errors import InputError
from sifm_core.images import from_uint8, to_uint8
from sifm_core.noise import fork
from sifm_core.transforms import KINDS, blur, jpeg, noisy, parse, rescale, through


def picture(size: tuple[int, int] = (40, 56), seed: int = 0) -> torch.Tensor:
    """Smooth colours with a hard edge, on the 8-bit grid."""
    small = torch.rand(1, 3, 5, 7, generator=torch.Generator().manual_seed(seed))
    smooth = torch.nn.functional.interpolate(small, size, mode="bicubic").clamp(0, 1)
    smooth[..., size[1] // 2 :] *= 0.5
    return smooth.mul(255).round().div(255)


def pillow_jpeg(x: torch.Tensor, quality: int) -> torch.Tensor:
    file = io.BytesIO()
    Pil.fromarray(to_uint8(x)).save(file, "JPEG", quality=quality, subsampling=2)
    return from_uint8(np.asarray(Pil.open(file).convert("RGB")))


@pytest.mark.parametrize("size", [(48, 64), (41, 57)])
@pytest.mark.parametrize("quality", [10, 50, 75, 95])
@pytest.mark.parametrize("colours", [True, False])
def test_jpeg_is_what_a_jpeg_file_gives_back(quality: int, size: tuple[int, int], colours: bool) -> None:
    """To within what two decoders differ by: rounding of intermediate values, and of chroma at hard edges."""
    x = picture(size) if colours else picture(size)[:, :1].expand(-1, 3, -1, -1)
    off = (jpeg(x, quality) - pillow_jpeg(x, quality)).abs() * 255
    assert float(off.mean()) < (1.2 if colours else 0.25)
    assert float((pillow_jpeg(x, quality) - x).abs().mean() * 255) > (3 if quality == 10 else 0.3), "it must be a JPEG"


def test_jpegs_gradient_is_that_of_the_steps_without_rounding() -> None:
    """Grey changes pass the cosine transform and back unchanged, so what comes back is what went in."""
    x = (0.4 * picture((16, 32)) + 0.3).requires_grad_()
    weights = torch.randn(1, 1, 16, 32, generator=torch.Generator().manual_seed(1)).expand(1, 3, -1, -1)
    (grad,) = torch.autograd.grad((jpeg(x, 30) * weights).sum(), x)
    assert torch.allclose(grad.sum(dim=1), weights.sum(dim=1), atol=1e-3)


def test_blur_noise_and_resize_do_what_they_say() -> None:
    grey, x = torch.full((1, 3, 24, 24), 0.5), picture((24, 24))
    assert torch.allclose(blur(grey, 1.7), grey, atol=1e-6)
    point = torch.zeros(1, 3, 41, 41)
    point[..., 20, 20] = 1
    spread = blur(point, 2.0)[0, 0].sum(dim=0)
    assert float((spread * (torch.arange(41) - 20.0) ** 2).sum()) == pytest.approx(4.0, rel=0.06), "variance sigma^2"
    assert float((noisy(grey, 0.02, 3) - grey).std()) == pytest.approx(0.02, rel=0.1)
    assert torch.equal(noisy(x, 0.02, 3), noisy(x, 0.02, 3)) and not torch.equal(noisy(x, 0.02, 3), noisy(x, 0.02, 4))
    assert rescale(x, 0.5).shape == x.shape and float((rescale(x, 0.5) - x).abs().mean()) > 1e-3


@pytest.mark.parametrize("spec", ["none", "jpeg:75", "jpeg:30-95", "resize:0.5", "noise:0.05", "blur:1.0"])
def test_every_transform_keeps_size_range_and_gradient(spec: str) -> None:
    x = (0.8 * picture() + 0.1).requires_grad_()
    y = through(x, parse([spec]), 5)
    assert y.shape == x.shape and float(y.detach().min()) >= 0 and float(y.detach().max()) <= 1
    assert bool(torch.autograd.grad(y.square().sum(), x)[0].any())


@pytest.mark.parametrize("shade", [0.0, 1.0])
@pytest.mark.parametrize("spec", ["none", "jpeg:10", "jpeg:75", "jpeg:99", "resize:0.5", "noise:0", "blur:1.0"])
def test_black_and_white_have_a_gradient_through_every_transform(spec: str, shade: float) -> None:
    x = picture()
    x[..., 8:32, 8:40] = shade
    x.requires_grad_()
    (grad,) = torch.autograd.grad(through(x, parse([spec]), 5).sum(), x)
    assert bool((grad[..., 16:24, 16:32] > 0.9).all()), "as many as where nothing is clipped"


def test_what_noise_takes_out_of_range_has_no_gradient_and_the_rest_has_all_of_it() -> None:
    x = torch.zeros(1, 3, 16, 16, requires_grad=True)
    y = noisy(x, 0.1, 3)
    (grad,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(grad, (y > 0).float()) and 0.3 < float(grad.mean()) < 0.7


def test_each_image_draws_its_own_and_a_batch_equals_its_images() -> None:
    x, chosen = torch.cat([picture(seed=s) for s in range(3)]), parse(["jpeg:20-90", "noise:0.1", "blur:0.5-2"])
    batch = through(x, chosen, [7, 8, 9])
    for b in range(3):
        assert torch.equal(through(x[b : b + 1], chosen, 7 + b)[0], batch[b])
    x = torch.cat([picture(seed=s) for s in range(12)]).requires_grad_()
    chosen = parse(["jpeg:20-90", "noise:0-0.1", "blur:0.5-2", "resize:0.3-1.5", "none"])
    whole, alone = through(x, chosen, range(12)), [through(x[b : b + 1], chosen, b) for b in range(12)]
    assert torch.equal(whole, torch.cat(alone)), "several of a kind, of one size and another, in their own order"
    weights = torch.randn(whole.shape, generator=torch.Generator().manual_seed(0))
    grads = [torch.autograd.grad((y * weights).sum(), x)[0] for y in (whole, torch.cat(alone))]
    assert torch.allclose(*grads, atol=1e-5)
    x = x.detach()
    draws = {float(through(x[:1], chosen, fork(0, step)).sum()) for step in range(12)}
    assert len(draws) > 8, "another one in every iteration"


def test_all_of_the_listed_are_drawn() -> None:
    x = picture()
    alone = {kind: through(x, parse([kind]), 0) for kind in ("none", "jpeg:20", "blur:3")}
    seen = {name for step in range(40) for name, y in alone.items() if torch.equal(through(x, parse(alone), step), y)}
    assert seen == alone.keys()


def test_lists_may_be_one_text() -> None:
    assert parse("jpeg:75, blur:1-2") == parse(["jpeg:75", "blur:1-2"]) and parse("") == ()
    assert parse(["resize:0.5"])[0] == ("resize", 0.5, 0.5)
    assert parse("noise:1e-2, noise:1e-3-2E-2") == (("noise", 0.01, 0.01), ("noise", 0.001, 0.02))


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("jpg:75", "did you mean jpeg"),
        ("jpeg", "quality from 1 to 100"),
        ("jpeg:0", "quality from 1 to 100"),
        ("jpeg:high", "jpeg:75"),
        ("jpeg:95-50", "jpeg:50-95"),
        ("noise:2", "deviation"),
        ("noise", "deviation"),
        ("noise:0.01-", "deviation"),
        ("resize:0", "factor"),
        ("blur:nan", "sigma"),
        ("none:3", "no strength"),
    ],
)
def test_wrong_transforms_are_refused(spec: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        parse([spec])


def test_the_table_says_what_each_takes() -> None:
    assert all(kind.unit and kind.low <= kind.high for kind in KINDS.values())

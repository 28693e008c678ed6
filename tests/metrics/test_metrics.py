"""Every metric against an oracle that shares no code with it, on twelve pairs of real photographs."""

import hashlib
import json
import math
import shutil
from dataclasses import asdict

import lpips as lpips_package
import numpy as np
import pytest
import scipy.signal
import torch
import torch.nn.functional as F
import torchvision
from skimage import data
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from sifm_core.errors import ImageError, InputError
from sifm_core.metrics import METRICS, lpips, measure

SIZE = 128


def crop(picture, top, left):
    return picture[top : top + SIZE, left : left + SIZE, :3] / 255


def photographs():
    return [crop(data.astronaut(), 20, 160), crop(data.coffee(), 100, 200), crop(data.chelsea(), 60, 100)]


def distortions(x):
    rng = np.random.default_rng(0)
    yield x + rng.normal(0, 0.01, x.shape)
    yield x + rng.normal(0, 0.1, x.shape)
    yield np.stack([scipy.signal.convolve2d(x[..., c], np.full((5, 5), 0.04), "same", "symm") for c in range(3)], -1)
    yield 0.3 + 0.4 * x[::-1]


PAIRS = [(x, y.clip(0, 1)) for x in photographs() for y in distortions(x)]


def tensor(x):
    return torch.from_numpy(np.ascontiguousarray(x)).permute(2, 0, 1)[None].float()


@pytest.fixture(scope="module")
def values():
    reference, distorted = (torch.cat([tensor(pair[i]) for pair in PAIRS]) for i in (0, 1))
    found = measure(reference, distorted, list(ORACLES))
    return {name: [m.value for m in row] for name, row in found.items()}


def luma(x):
    return 255 * (x @ [0.299, 0.587, 0.114])


def vifp_oracle(reference, distorted):
    """Sheikh and Bovik's pixel-domain VIF from its equations, in double precision."""
    r, d = luma(reference), luma(distorted)
    informed = available = 0.0
    for size in (17, 9, 5, 3):
        ramp = np.arange(size) - size // 2
        window = np.exp(-(ramp[:, None] ** 2 + ramp**2) / (2 * (size / 5) ** 2))
        window /= window.sum()

        def smooth(x, window=window):
            return scipy.signal.fftconvolve(x, window, "valid")

        if size < 17:
            r, d = smooth(r)[::2, ::2], smooth(d)[::2, ::2]
        var_r = np.maximum(smooth(r * r) - smooth(r) ** 2, 0)
        var_d = np.maximum(smooth(d * d) - smooth(d) ** 2, 0)
        covariance = smooth(r * d) - smooth(r) * smooth(d)
        gain = np.where(var_r > 1e-8, covariance / np.maximum(var_r, 1e-8), 0)
        noise = np.where(gain < 0, var_d, var_d - gain * covariance)
        gain = np.maximum(gain, 0)
        informed += np.log10(1 + gain**2 * var_r / (np.maximum(noise, 1e-8) + 2)).sum()
        available += np.log10(1 + var_r / 2).sum()
    return informed / available


def fsim_oracle(reference, distorted, chroma):
    """Zhang et al.'s FSIM for sizes up to 383 pixels, from the paper and Kovesi's phase congruency."""
    to_yiq = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
    (y1, i1, q1), (y2, i2, q2) = (np.moveaxis(255 * x @ to_yiq.T, -1, 0) for x in (reference, distorted))
    scharr = np.array([[3, 0, -3], [10, 0, -10], [3, 0, -3]]) / 16
    pc1, pc2 = phase_congruency(y1), phase_congruency(y2)
    g1, g2 = (np.hypot(*(scipy.signal.convolve2d(y, k, "same") for k in (scharr, scharr.T))) for y in (y1, y2))
    score = likeness(pc1, pc2, 0.85) * likeness(g1, g2, 160)
    if chroma:
        score = score * np.abs(likeness(i1, i2, 200) * likeness(q1, q2, 200)) ** 0.03
    weight = np.maximum(pc1, pc2)
    return (score * weight).sum() / weight.sum()


def likeness(a, b, constant):
    return (2 * a * b + constant) / (a**2 + b**2 + constant)


def phase_congruency(y):
    fy, fx = np.meshgrid(np.fft.fftfreq(y.shape[0]), np.fft.fftfreq(y.shape[1]), indexing="ij")
    radius, angle = np.hypot(fx, fy), np.arctan2(-fy, fx)
    low_pass = 1 / (1 + (radius / 0.45) ** 30)
    radius[0, 0] = 1
    energy = amplitude = 0.0
    for direction in np.arange(4) * np.pi / 4:
        offset = np.abs(np.angle(np.exp(1j * (angle - direction))))
        spread = np.exp(-(offset**2) / (2 * (np.pi / 4 / 1.2) ** 2))
        bank = []
        for wavelength in (6, 12, 24, 48):
            radial = np.exp(-(np.log(radius * wavelength) ** 2) / (2 * np.log(0.55) ** 2)) * low_pass
            radial[0, 0] = 0
            bank.append(radial * spread)
        response = np.fft.ifft2(np.fft.fft2(y) * np.array(bank))
        mean = response.sum(0) / (np.abs(response.sum(0)) + 1e-12)
        along = response * mean.conj()
        local = (along.real - np.abs(along.imag)).sum(0)
        power = np.median(np.abs(response[0]) ** 2) / np.log(2) / (bank[0] ** 2).sum()
        kernels = np.fft.ifft2(np.array(bank)).real * math.sqrt(y.size)
        squares = (kernels**2).sum()
        cross = sum((kernels[i] * kernels[j]).sum() for i in range(4) for j in range(i + 1, 4))
        tau = math.sqrt(power * (squares + 2 * cross))
        threshold = (tau * math.sqrt(math.pi / 2) + 2 * tau * math.sqrt(2 - math.pi / 2)) / 1.7
        energy = energy + np.maximum(local - threshold, 0)
        amplitude = amplitude + np.abs(response).sum(0)
    return energy / amplitude


def ssim_oracle(x, y):
    return structural_similarity(
        x, y, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1, channel_axis=-1
    )


ORACLES = {
    "psnr": (lambda x, y: peak_signal_noise_ratio(x, y, data_range=1), 1e-4),
    "ssim": (ssim_oracle, 2e-5),
    "ssim_uniform": (lambda x, y: structural_similarity(x, y, data_range=1, channel_axis=-1), 1e-5),
    "vifp": (vifp_oracle, 1e-4),
    "fsim": (lambda x, y: fsim_oracle(x, y, chroma=False), 1e-4),
    "fsimc": (lambda x, y: fsim_oracle(x, y, chroma=True), 1e-4),
}


@pytest.mark.parametrize("name", ORACLES)
def test_metric_equals_its_oracle(values, name):
    oracle, tolerance = ORACLES[name]
    want = [oracle(x, y) for x, y in PAIRS]
    assert len(want) == 12
    assert np.ptp(want) > 0.2  # pairs that a constant could not satisfy
    assert values[name] == pytest.approx(want, abs=tolerance)


def test_ssim_of_a_large_picture_is_not_taken_of_a_smaller_one():
    x = data.astronaut()[:400, :400] / 255
    y = (x + np.random.default_rng(0).normal(0, 0.1, x.shape)).clip(0, 1)
    assert measure(tensor(x), tensor(y), ["ssim"])["ssim"][0].value == pytest.approx(ssim_oracle(x, y), abs=2e-5)


def test_vifp_takes_the_reference_first():
    sharp, blurred = tensor(PAIRS[2][0]), tensor(PAIRS[2][1])
    forward = measure(sharp, blurred, ["vifp"])["vifp"][0].value
    backward = measure(blurred, sharp, ["vifp"])["vifp"][0].value
    assert forward == pytest.approx(vifp_oracle(*PAIRS[2]), abs=1e-4)
    assert backward == pytest.approx(vifp_oracle(*PAIRS[2][::-1]), abs=1e-4)
    assert abs(forward - backward) > 0.03


@pytest.mark.parametrize("name", ["psnr", "ssim", "ssim_uniform", "fsim", "fsimc"])
def test_the_others_are_symmetric(name):
    x, y = tensor(PAIRS[1][0]), tensor(PAIRS[1][1])
    there, back = (measure(*pair, [name])[name][0].value for pair in ((x, y), (y, x)))
    assert there == pytest.approx(back, abs=1e-5)


@pytest.mark.parametrize("name", ORACLES)
def test_more_noise_is_worse_and_a_batch_equals_its_pictures(name):
    x = tensor(PAIRS[0][0])
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    noisy = torch.cat([(x + s * noise).clamp(0, 1) for s in (0.01, 0.03, 0.1, 0.3)])
    batch = [m.value for m in measure(x.expand_as(noisy), noisy, [name])[name]]
    assert batch == sorted(batch, reverse=True)
    single = [measure(x, y[None], [name])[name][0].value for y in noisy]
    assert batch == pytest.approx(single, abs=1e-5)


def test_equal_pictures():
    x = tensor(PAIRS[0][0])
    got = {name: row[0] for name, row in measure(x, x, list(ORACLES)).items()}
    assert got["psnr"].value is None
    assert "infinite" in got["psnr"].reason
    assert [got[name].value for name in ORACLES if name != "psnr"] == pytest.approx([1] * 5, abs=1e-5)
    json.dumps({name: asdict(m) for name, m in got.items()}, allow_nan=False)


def test_any_float_type_gives_numbers():
    x = tensor(PAIRS[0][0])
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        for row in measure(x.to(dtype), (x * 0.9).to(dtype), list(ORACLES)).values():
            assert math.isfinite(row[0].value)


@pytest.mark.parametrize("shade", [0.0, 0.5, 1.0, "of one luma"])
def test_what_is_0_over_0_is_none_with_its_reason(shade):
    flat = torch.full((1, 3, 64, 64), 0.5 if shade == "of one luma" else shade)
    if shade == "of one luma":  # red and blue change against each other
        wave = 0.1 * torch.rand(64, 64)
        flat[0, 0], flat[0, 2] = 0.5 + wave * 0.114, 0.5 - wave * 0.299
    textured = tensor(PAIRS[0][0])[..., :64, :64]
    undefined = lambda x, y: {name for name, row in measure(x, y, list(ORACLES)).items() if row[0].value is None}  # noqa: E731
    assert undefined(flat, flat.flip(-1) * 0.3 + 0.2) == {"vifp", "fsim", "fsimc"}
    assert undefined(flat, textured) == {"vifp"}
    assert undefined(textured, flat) == set()
    mixed = measure(torch.cat([flat, textured]), torch.cat([textured, flat]), ["vifp"])["vifp"]
    assert mixed[0].value is None and "0/0" in mixed[0].reason and mixed[1].value is not None


def test_zero_has_no_sign():
    black = torch.zeros(1, 3, 64, 64)
    assert math.copysign(1, measure(black, 1 - black, ["psnr"])["psnr"][0].value) == 1


def test_a_hair_outside_the_range_is_taken():
    x = torch.tensor([-5e-7, 1 + 5e-7]).repeat(1, 3, 64, 32)
    for row in measure(x, 1 - x, list(ORACLES)).values():
        assert math.isfinite(row[0].value)


def test_too_small_is_none_with_its_reason():
    small = torch.rand(2, 3, 40, 64)
    got = measure(small, small.flip(-1))
    assert list(got) == ["psnr", "ssim", "vifp", "fsim", "lpips"]
    assert [m.value for m in got["vifp"]] == [None, None]
    assert "needs 41 pixels on the shorter side, this has 40" in got["vifp"][0].reason
    assert all(got[name][0].value is not None for name in ("psnr", "ssim", "fsim"))


@pytest.mark.parametrize("name, kind", [item for item in METRICS.items() if item[0] != "lpips"])  # see test_lpips_*
def test_smallest_allowed_size_works(name, kind):
    x = torch.rand(1, 3, kind.min_side, kind.min_side)
    assert measure(x, 1 - x, [name])[name][0].value is not None


def test_bad_input():
    x = torch.rand(1, 3, 64, 64)
    with pytest.raises(InputError, match="one size"):
        measure(x, x[..., :50])
    with pytest.raises(InputError, match="ssim"):
        measure(x, x, ["sim"])
    with pytest.raises(ImageError, match="distorted"):
        measure(x, x + 1)


@pytest.fixture
def torch_home(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    lpips._network.cache_clear()
    yield tmp_path / "checkpoints"
    lpips._network.cache_clear()


@pytest.fixture
def no_download(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a download was tried")

    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)


def test_lpips_without_its_backbone_says_where_to_put_it(torch_home, no_download):
    x = torch.rand(2, 3, 64, 64)
    for metric in measure(x, x, ["lpips"])["lpips"]:
        assert metric.value is None
        assert str(torch_home / "alexnet-owt-7be5be79.pth") in metric.reason
        assert metric.definition == "lpips:0.1:alex"


def small_alexnet():
    """AlexNet's weights with random features; the classifier, which LPIPS does not use, takes no room."""
    with torch.device("meta"):
        shapes = {k: v.shape for k, v in torchvision.models.AlexNet().state_dict().items()}
    rng = torch.Generator().manual_seed(0)
    return {
        k: torch.randn(s, generator=rng) / math.sqrt(math.prod(s[1:])) if "features" in k else torch.zeros(1).expand(s)
        for k, s in shapes.items()
    }


def test_lpips_refuses_other_weights_under_the_backbones_name(torch_home, no_download):
    torch.save(small_alexnet(), torch_home / "alexnet-owt-7be5be79.pth")
    x = torch.rand(1, 3, 64, 64)
    metric = measure(x, x, ["lpips"])["lpips"][0]
    assert metric.value is None
    assert "is not torchvision's alexnet" in metric.reason


def test_lpips_equals_its_formula(torch_home, no_download, monkeypatch):
    weights = small_alexnet()
    expected_by_torchvision = torch_home / "alexnet-owt-7be5be79.pth"
    torch.save(weights, expected_by_torchvision)
    digest = hashlib.sha256(expected_by_torchvision.read_bytes()).hexdigest()
    monkeypatch.setattr(lpips, "BACKBONE", f"alexnet-owt-{digest[:8]}.pth")
    shutil.copy(expected_by_torchvision, torch_home / f"alexnet-owt-{digest[:8]}.pth")
    linear = torch.load(f"{lpips_package.__path__[0]}/weights/v0.1/alex.pth", map_location="cpu")

    def features(x):
        x = (2 * x - 1 - torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1)) / torch.tensor(
            [0.458, 0.448, 0.450]
        ).view(1, 3, 1, 1)
        for layer, stride, padding, pool in ((0, 4, 2, 0), (3, 1, 2, 1), (6, 1, 1, 1), (8, 1, 1, 0), (10, 1, 1, 0)):
            x = F.max_pool2d(x, 3, 2) if pool else x
            x = F.conv2d(x, weights[f"features.{layer}.weight"], weights[f"features.{layer}.bias"], stride, padding)
            x = F.relu(x)
            yield x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10)

    x, y = (torch.cat([tensor(pair[i]) for pair in PAIRS[:3]]) for i in (0, 1))
    want = sum(
        F.conv2d((a - b) ** 2, linear[f"lin{i}.model.1.weight"]).mean((1, 2, 3))
        for i, (a, b) in enumerate(zip(features(x), features(y), strict=True))
    )
    got = [m.value for m in measure(x, y, ["lpips"])["lpips"]]
    assert got == pytest.approx(want.tolist(), abs=1e-5)
    assert np.ptp(got) > 1e-3
    assert measure(x, x, ["lpips"])["lpips"][0].value == 0
    smallest = torch.rand(1, 3, 31, 31)
    assert measure(smallest, 1 - smallest, ["lpips"])["lpips"][0].value > 0


@pytest.mark.parametrize("name", ["psnr", "ssim", "ssim_uniform"])
def test_a_picture_in_many_bands_measures_as_in_one(name, monkeypatch):
    x, y = (torch.cat([tensor(pair[i])[..., :100, :] for pair in PAIRS[:3]]) for i in (0, 1))
    whole = [m.value for m in measure(x, y, [name])[name]]
    for values in (1, 128 * 9, 128 * 89):
        monkeypatch.setattr("sifm_core.images._BAND", values)
        monkeypatch.setattr("sifm_core.metrics.ssim._AT_ONCE", values)
        assert [m.value for m in measure(x, y, [name])[name]] == pytest.approx(whole, rel=1e-6)

"""Every purifier of the table under one contract, each against an oracle of its own, chains and their spelling."""

import io
import itertools

import numpy as np
import pytest
import scipy.ndimage
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler, StableDiffusionUpscalePipeline, UNet2DConditionModel
from PIL import Image as Pil
from safetensors.torch import load_file, save_file
from skimage import data

import fakes
from sifm_core import pipeline, purify
from sifm_core.editors import load_editor
from sifm_core.errors import InputError, SifmError
from sifm_core.images import resize, to_uint8
from sifm_core.purify import PURIFIERS, Stage, adverse_cleaner, at, gridpure, impress, latents, noisy_upscale, parse

CLASSICAL = list(PURIFIERS)[: list(PURIFIERS).index("vae_round_trip")]
PHOTOGRAPHS = torch.from_numpy(
    np.stack([data.astronaut()[20:68, 180:220], data.chelsea()[100:148, 130:170]]) / 255
).permute(0, 3, 1, 2)
PHOTOGRAPHS = PHOTOGRAPHS.float().contiguous()


class World:
    """An editor that knows the clean picture: its latents are pixels, and its noise predictor is always right."""

    num_train_timesteps, toy = 1000, None
    latent_scale, latent_shift, dtype, device = 2.0, 0.25, torch.float32, torch.device("cpu")

    def __init__(self, truth, prediction="noise", size=32):
        self.truth, self.prediction, self.size = self.encode(truth), prediction, size
        self.alphas = torch.linspace(0.999, 0.001, 1000)

    def work_size(self, height, width):
        return self.size, self.size

    def encode(self, x):
        return (x - self.latent_shift) * self.latent_scale

    def decode(self, z):
        return z / self.latent_scale + self.latent_shift

    def prepare(self, prompts, x=None):
        assert set(prompts) == {""}

    def mix(self, t, like):
        t = t.reshape(-1, 1, 1, 1)
        if self.prediction == "flow":
            return 1 - t / 1000, t / 1000
        alpha = self.alphas[t].to(like)
        return alpha.sqrt(), (1 - alpha).sqrt()

    def denoise(self, z, noise, t, cond):
        assert not z.any()  # the source must not be shown to the network
        signal, spread = self.mix(t, noise)
        truth = self.truth[: len(noise)]
        return self.target(truth, (spread * noise - signal * truth) / spread, t)

    def target(self, z, noise, t):
        signal, spread = self.mix(t, noise)
        return {"noise": noise, "flow": noise - z, "sample": z, "v": signal * noise - spread * z}[self.prediction]


@pytest.mark.parametrize("name", CLASSICAL)
def test_contract_of_the_classical_purifiers(name):
    kind, before = PURIFIERS[name], PHOTOGRAPHS.clone()
    changes = []
    for strength in (0, 0.25, 0.5, 1):
        chain = [at(name, strength)]
        after = purify.apply(PHOTOGRAPHS, chain, seed=3)
        assert after.shape == PHOTOGRAPHS.shape
        assert after.dtype == torch.float32
        assert after.min() >= 0
        assert after.max() <= 1
        assert torch.equal(after, purify.apply(PHOTOGRAPHS, chain, seed=3))
        single = torch.cat([purify.apply(one[None], chain, seed=3) for one in PHOTOGRAPHS])
        assert torch.allclose(after, single, atol=1e-6)
        changes.append(float((after - PHOTOGRAPHS).abs().mean()))
    assert changes == sorted(changes)
    assert changes[0] < 0.01  # JPEG at 100 still rounds
    assert changes[1] > changes[0]
    assert torch.equal(PHOTOGRAPHS, before)
    assert kind.least <= kind.standard <= kind.greatest
    assert 0 < (kind.standard - kind.mildest) / (kind.strongest - kind.mildest) <= 1


def test_jpeg_equals_a_file():
    file = io.BytesIO()
    Pil.fromarray(to_uint8(PHOTOGRAPHS[0])).save(file, "JPEG", quality=75)
    assert np.array_equal(to_uint8(purify.apply(PHOTOGRAPHS[:1], "jpeg")), np.array(Pil.open(file)))
    assert len(file.getvalue()) < PHOTOGRAPHS[0].numel()


def test_blur_and_median_equal_scipy():
    got = purify.apply(PHOTOGRAPHS, "blur:1.5")
    want = scipy.ndimage.gaussian_filter(PHOTOGRAPHS.double().numpy(), (0, 0, 1.5, 1.5), mode="mirror")
    assert np.abs(got.numpy() - want).max() < 1e-5
    got = purify.apply(PHOTOGRAPHS, "median:5")[..., 2:-2, 2:-2]
    want = scipy.ndimage.median_filter(PHOTOGRAPHS.numpy(), (1, 1, 5, 5))[..., 2:-2, 2:-2]
    assert np.abs(got.numpy() - want).max() < 1e-6


def test_noise_has_its_deviation_and_its_seed():
    grey = torch.full((2, 3, 64, 64), 0.5)
    noise = purify.apply(grey, "gaussian_noise:0.05", seed=[1, 2]) - grey
    assert noise.std() == pytest.approx(0.05, rel=0.03)
    assert not torch.equal(noise[0], noise[1])
    assert torch.equal(purify.apply(grey[:1], "gaussian_noise:0.05", seed=2) - grey[:1], noise[1:])
    twice = purify.apply(grey, "gaussian_noise:0.05,gaussian_noise:0.05") - grey
    assert twice.std() == pytest.approx(0.05 * 2**0.5, rel=0.03)  # stages draw independently


def test_bit_depth_and_geometry():
    assert len(torch.unique(purify.apply(PHOTOGRAPHS, "bit_depth:2"))) == 4
    assert torch.equal(purify.apply(PHOTOGRAPHS, "bit_depth:8"), PHOTOGRAPHS)
    small = resize(PHOTOGRAPHS, (24, 20))
    assert torch.equal(purify.apply(PHOTOGRAPHS, "resize:0.5"), resize(small, (48, 40)))
    middle = PHOTOGRAPHS[..., 6:42, 5:35]
    assert torch.equal(purify.apply(PHOTOGRAPHS, "crop_resize:0.75"), resize(middle, (48, 40)))


def bilateral_oracle(x):
    """(H, W, 3) in 0 to 255, pixel by pixel from the definition."""
    height, width, _ = x.shape
    padded, out = np.pad(x, ((2, 2), (2, 2), (0, 0)), mode="reflect"), np.zeros_like(x)
    for i, j in itertools.product(range(height), range(width)):
        total = weights = 0
        for a, b in itertools.product(range(-2, 3), repeat=2):
            if a * a + b * b <= 4:
                near = padded[i + 2 + a, j + 2 + b]
                weight = np.exp(-0.5 * (np.abs(near - x[i, j]).sum() / 8) ** 2 - 0.5 * (a * a + b * b) / 64)
                total, weights = total + weight * near, weights + weight
        out[i, j] = total / weights
    return out


def guided_oracle(guide, x):
    """(H, W, 3) twice: a ridge regression of x on the guide in every window, then the mean of the fits over windows."""
    height, width, _ = x.shape
    edge = ((4, 4), (4, 4), (0, 0))
    wide_guide, wide_x = (np.pad(a, edge, mode="symmetric") for a in (guide, x))
    fits = np.zeros((height, width, 4, 3))
    for i, j in itertools.product(range(height), range(width)):
        window = wide_guide[i : i + 9, j : j + 9].reshape(-1, 3)
        values = wide_x[i : i + 9, j : j + 9].reshape(-1, 3)
        centred = window - window.mean(0)
        slope = np.linalg.solve(centred.T @ centred + 81 * 16 * np.eye(3), centred.T @ values)
        fits[i, j] = np.vstack([slope, values.mean(0) - window.mean(0) @ slope])
    fits = np.pad(fits, (*edge[:2], (0, 0), (0, 0)), mode="symmetric")
    mean = np.lib.stride_tricks.sliding_window_view(fits, (9, 9), axis=(0, 1)).mean((-2, -1))
    return np.einsum("hwc,hwcd->hwd", guide, mean[:, :, :3]) + mean[:, :, 3]


def test_adverse_cleaner_equals_its_definition():
    image = PHOTOGRAPHS[:1, :, :20, :18] + 0.02 * torch.randn(1, 3, 20, 18, generator=torch.Generator().manual_seed(0))
    image = image.clamp(0, 1)
    guide = 255 * image[0].permute(1, 2, 0).double().numpy()
    want = guide
    for _ in range(3):
        want = bilateral_oracle(want)
    for _ in range(4):
        want = guided_oracle(guide, want)
    got = 255 * adverse_cleaner.purify(image, 3)[0].permute(1, 2, 0).numpy()
    assert np.abs(got - want.clip(0, 255)).max() < 0.02
    assert np.abs(got - guide).mean() > 0.5


@pytest.mark.parametrize("prediction", ["noise", "v", "flow", "sample"])
def test_diffusion_with_a_perfect_network_gives_the_truth(prediction):
    truth = resize(PHOTOGRAPHS, (32, 32))
    protected = (truth + 0.1).clamp(0, 1)
    world = World(truth, prediction)
    after = latents.noise_and_denoise(world, world.encode(protected), 0.3, seed=5)
    assert torch.allclose(after, world.truth, atol=1e-4)
    whole = purify.apply(protected, "diffpure:0.3", editor=world)
    assert torch.allclose(whole, truth, atol=1e-4)


def test_diffusion_equals_the_schedulers_own_steps_without_a_source(ip2p_folder):
    editor = load_editor(ip2p_folder, device="cpu")
    z, top = torch.randn(2, 4, 8, 8), 151
    got = latents.noise_and_denoise(editor, z, top / 999, seed=[3, 4])
    scheduler, unet = DDIMScheduler.from_config(editor.pipe.scheduler.config), editor.pipe.unet
    scheduler.set_timesteps(100)
    noise = torch.stack([torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(s)) for s in (3, 4)])
    want = scheduler.add_noise(z, noise, torch.tensor([top]))
    text = editor.prepare(["", ""]).prompt
    with torch.no_grad():
        for t in range(top, 0, -10):
            channels = torch.cat([want, torch.zeros_like(want)], 1)
            want = scheduler.step(unet(channels, t, encoder_hidden_states=text).sample, t, want).prev_sample
    assert torch.allclose(got, want, atol=1e-4)


@pytest.mark.parametrize("family", ["ip2p", "sd3"])
def test_model_purifiers_on_real_pipelines(family, request):
    editor = load_editor(request.getfixturevalue(f"{family}_folder"), device="cpu", size=16)
    image = resize(PHOTOGRAPHS, (20, 28))
    for chain in ("vae_round_trip", "diffpure:0.05", "gridpure:2", "vae_round_trip:2,jpeg"):
        after = purify.apply(image, chain, editor=editor, seed=[1, 2])
        assert after.shape == image.shape
        assert torch.isfinite(after).all()
        assert not torch.equal(after, image)
        alone = purify.apply(image[1:], chain, editor=editor, seed=2)
        assert torch.allclose(after[1:], alone, atol=1e-4)
    for chain in ("vae_round_trip@0", "diffpure@0", "gridpure@0", "impress@0", "noisy_upscale@0"):
        assert torch.equal(purify.apply(image, chain, editor=editor), image)


def test_vae_round_trip_is_the_autoencoders(ip2p_folder):
    editor = load_editor(ip2p_folder, device="cpu", size=16)
    image = resize(PHOTOGRAPHS, (16, 16))
    vae = editor.pipe.vae
    with torch.no_grad():
        want = vae.decode(vae.encode(2 * image - 1).latent_dist.mode()).sample / 2 + 0.5
    assert torch.allclose(purify.apply(image, "vae_round_trip", editor=editor), want.clamp(0, 1), atol=1e-5)


@pytest.mark.parametrize("size", [(32, 32), (33, 50), (70, 100), (20, 90)])
def test_gridpure_covers_every_pixel_once(size, monkeypatch):
    image = resize(PHOTOGRAPHS, size)
    seen = []
    monkeypatch.setattr(gridpure, "noise_and_denoise", lambda model, z, share, seed: seen.append((share, seed)) or z)
    after = purify.apply(image, "gridpure:3", editor=World(image))
    assert torch.allclose(after, image, atol=1e-5)  # with a purifier that does nothing, so does the grid
    assert {share for share, _ in seen} == {0.01}
    assert len({str(seed) for _, seed in seen}) == len(seen)  # every tile of every pass draws for itself


def test_gridpure_keeps_a_tenth_of_its_input(monkeypatch):
    image = torch.full((1, 3, 32, 32), 0.5)
    monkeypatch.setattr(
        gridpure, "noise_and_denoise", lambda model, z, share, seed: model.encode(torch.zeros(1)) + 0 * z
    )
    after = purify.apply(image, "gridpure:2", editor=World(image))
    assert torch.allclose(after, torch.full_like(after, 0.5 * 0.1**2), atol=1e-6)


def test_impress_finds_a_picture_that_the_autoencoder_reproduces(monkeypatch):
    image = resize(PHOTOGRAPHS, (32, 32))
    world = World(image)

    def blocky(z):
        small = torch.nn.functional.avg_pool2d(World.decode(world, z), 2)
        return torch.nn.functional.interpolate(small, scale_factor=2.0)

    monkeypatch.setattr(world, "decode", blocky)

    def error(x):
        return float((latents.decode(world, world.encode(x)) - x).square().mean())

    monkeypatch.setattr(impress, "lpips", lambda x, y: 0 * x.sum((1, 2, 3)))
    after = purify.apply(image, "impress:60", editor=world)
    assert error(after) < 0.2 * error(image)
    monkeypatch.setattr(impress, "lpips", lambda x, y: 1e4 * (x - y).square().mean((1, 2, 3)))
    near = purify.apply(image, "impress:60", editor=world)
    assert (near - image).square().mean() < 0.1 * (after - image).square().mean()
    alone = purify.apply(image[1:], "impress:60", editor=world)
    assert torch.allclose(near[1:], alone, atol=1e-4)


def test_long_purifiers_say_how_far_they_are_and_stop_when_asked(ip2p_folder, monkeypatch):
    monkeypatch.setattr(impress, "lpips", lambda x, y: 0 * x.sum((1, 2, 3)))
    editor = load_editor(ip2p_folder, device="cpu", size=16)
    image, seen = resize(PHOTOGRAPHS, (20, 16)), []
    pipeline.edit(
        image, editor, prompt="a", purify="diffpure:0.02,jpeg,gridpure:2,impress:3", steps=1, on_step=seen.append
    )
    phases = {phase: [(s.i, s.n) for s in seen if s.phase == phase] for phase in dict.fromkeys(s.phase for s in seen)}
    assert list(phases) == ["diffpure", "gridpure", "impress", "edit"]
    assert phases["diffpure"] == [(1, 2), (2, 2)], "20 of 1000 timesteps, 10 at a time"
    assert phases["gridpure"] == [(1, 4), (2, 4), (3, 4), (4, 4)], "two passes over two tiles"
    assert phases["impress"] == [(1, 3), (2, 3), (3, 3)]

    def stop(step):
        raise KeyboardInterrupt(step.phase)

    for chain in ("diffpure:0.02", "gridpure:2", "impress:3"):
        with pytest.raises(KeyboardInterrupt, match=chain.partition(":")[0]):
            purify.apply(image, chain, editor=editor, on_step=stop)


def test_impress_works_where_the_editor_is(monkeypatch):
    """Pictures come on the CPU. Of tensors on "meta" there is nothing to bring back, which ends it after its steps."""

    class Elsewhere:
        device = torch.device("meta")

        def work_size(self, height, width):
            return height, width

        def encode(self, image):
            assert image.device == self.device
            return image

        decode = encode

    monkeypatch.setattr(impress, "lpips", lambda one, two: (one - two).square().mean((1, 2, 3)))
    steps = []
    with pytest.raises(NotImplementedError, match="meta"):
        impress.purify(resize(PHOTOGRAPHS, (32, 32)), 2, editor=Elsewhere(), on_step=steps.append)
    assert len(steps) == 2


def test_impress_without_lpips_weights_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    image = resize(PHOTOGRAPHS, (32, 32))
    with pytest.raises(SifmError, match=r"put torchvision's alexnet.*\.pth"):
        purify.apply(image, "impress:1", editor=World(image))


def test_noisy_upscale_runs_the_pipeline_and_keeps_the_size(tmp_path, monkeypatch):
    torch.manual_seed(0)
    blocks = {"block_out_channels": (8, 8, 8), "norm_num_groups": 4, "layers_per_block": 1}
    vae = AutoencoderKL(
        **blocks,
        latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
    )
    unet = UNet2DConditionModel(
        **blocks,
        in_channels=7,
        out_channels=4,
        num_class_embeds=1000,
        cross_attention_dim=16,
        attention_head_dim=4,
        down_block_types=("DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
    )
    StableDiffusionUpscalePipeline(
        vae=vae,
        text_encoder=fakes.CLIPTextModel(fakes.clip_config()),
        tokenizer=fakes.clip_tokenizer(),
        unet=unet,
        low_res_scheduler=DDPMScheduler(),
        scheduler=DDIMScheduler(),
    ).save_pretrained(tmp_path)
    monkeypatch.setattr(noisy_upscale, "STEPS", 2)
    image = resize(PHOTOGRAPHS, (24, 16))
    steps = []
    after = purify.apply(image, "noisy_upscale:0.1", upscaler=str(tmp_path), seed=[1, 2], on_step=steps.append)
    assert after.shape == image.shape and [(step.phase, step.i, step.n) for step in steps] == [
        ("noisy_upscale", 1, 2),
        ("noisy_upscale", 2, 2),
    ]
    assert torch.equal(after, purify.apply(image, "noisy_upscale:0.1", upscaler=str(tmp_path), seed=[1, 2]))
    alone = purify.apply(image[1:], "noisy_upscale:0.1", upscaler=str(tmp_path), seed=2)
    assert torch.allclose(after[1:], alone, atol=1e-4)
    file = tmp_path / "text_encoder" / "model.safetensors"
    weights = load_file(file)
    save_file({name: weights[name] for name in sorted(weights)[1:]}, file, {"format": "pt"})
    noisy_upscale._load.cache_clear()
    with pytest.raises(SifmError, match="the files of text_encoder lack weights"):
        purify.apply(image, "noisy_upscale", upscaler=str(tmp_path))
    with pytest.raises(SifmError, match=r"expected a StableDiffusionUpscalePipeline at .*nowhere"):
        purify.apply(image, "noisy_upscale", upscaler=str(tmp_path / "nowhere"))


def test_parse():
    assert parse("") == ()
    assert parse("jpeg") == (Stage("jpeg", 75),)
    assert parse(" jpeg:60 , resize:0.5,blur@0.5") == (Stage("jpeg", 60), Stage("resize", 0.5), Stage("blur", 1.0))
    assert at("jpeg", 0.5) == Stage("jpeg", 65)
    assert at("median", 1) == Stage("median", 9)
    chain = parse("jpeg:75,gaussian_noise:0.05")
    assert ",".join(map(str, chain)) == "jpeg:75,gaussian_noise:0.05"
    assert parse(",".join(map(str, chain))) == chain


@pytest.mark.parametrize(
    "chain, match",
    [
        ("jepg:75", "did you mean jpeg"),
        ("jpeg:high", "expected a number"),
        ("jpeg:", "expected a number"),
        ("jpeg:nan", "expected a number"),
        ("jpeg:0", "expected quality from 1 to 100; the standard is 75"),
        ("jpeg@75", "strength from 0 to 1"),
        ("resize:0", "from 0.01 to 1"),
        ("vae_round_trip", "expected an editor"),
        ("diffpure", "expected an editor"),
        ("gridpure", "expected an editor"),
        ("impress", "expected an editor"),
    ],
)
def test_bad_chains(chain, match):
    with pytest.raises(InputError, match=match):
        purify.apply(PHOTOGRAPHS, chain)


def test_a_chain_is_its_stages_in_order():
    one = purify.apply(purify.apply(PHOTOGRAPHS, "resize:0.5"), "jpeg:30")
    assert torch.equal(purify.apply(PHOTOGRAPHS, "resize:0.5,jpeg:30"), one)
    assert not torch.equal(purify.apply(PHOTOGRAPHS, "jpeg:30,resize:0.5"), one)
    assert purify.apply(PHOTOGRAPHS, "") is PHOTOGRAPHS

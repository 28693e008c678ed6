import io
import os
import stat
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image as Pil
from PIL import ImageCms, PngImagePlugin
from skimage import data

from sifm_core import images
from sifm_core.errors import BudgetError, ImageError, InputError

RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (40, 56, 3), dtype=np.uint8)
GREY = COLOUR[..., 0]
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def write(path, array, mode=None, **options):
    picture = Pil.fromarray(array)
    (picture.convert(mode) if mode else picture).save(path, **options)
    return path


def levels(image):
    """(1, 3, H, W) in [0, 1] -> int (H, W, 3), failing when a value is not exactly k/255."""
    exact = image[0].permute(1, 2, 0) * 255
    assert torch.equal((exact.round() / 255), image[0].permute(1, 2, 0))
    return exact.round().int().numpy()


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff", "gif", "webp"])
def test_lossless_files_give_exact_values(tmp_path, suffix):
    options = {"webp": {"lossless": True}}.get(suffix, {})
    array = np.array(Pil.fromarray(COLOUR).quantize(64).convert("RGB")) if suffix == "gif" else COLOUR
    picture = images.load_picture(write(tmp_path / f"a.{suffix}", array, **options))
    assert np.array_equal(levels(picture.pixels), array)
    assert picture.pixels.dtype == torch.float32
    assert picture.alpha is None


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, orientation):
    exif = Pil.Exif()
    exif[0x0112] = orientation
    upright = np.zeros((40, 56, 3), np.uint8)
    upright[:20, :28] = (255, 0, 0)
    upright[20:, 28:] = (0, 0, 255)
    undo = [None, None, Pil.Transpose.FLIP_LEFT_RIGHT, Pil.Transpose.ROTATE_180, Pil.Transpose.FLIP_TOP_BOTTOM]
    undo += [Pil.Transpose.TRANSPOSE, Pil.Transpose.ROTATE_90, Pil.Transpose.TRANSVERSE, Pil.Transpose.ROTATE_270]
    stored = Pil.fromarray(upright)
    stored = stored if orientation == 1 else stored.transpose(undo[orientation])
    stored.save(tmp_path / "a.png", exif=exif)
    loaded = images.load_image(tmp_path / "a.png")
    assert np.array_equal(levels(loaded), upright)
    images.save_png(loaded, tmp_path / "b.png")
    assert not Pil.open(tmp_path / "b.png").getexif()  # or viewers would turn it twice, and the place would leak


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "PA"])
def test_alpha_is_kept_and_written_back(tmp_path, mode):
    alpha = np.where(GREY > 100, 255, 0).astype(np.uint8)
    if mode == "RGBA":
        source, want = Pil.fromarray(np.dstack([COLOUR, alpha])), COLOUR
    elif mode == "LA":
        source, want = Pil.fromarray(np.dstack([GREY, alpha])), np.dstack([GREY] * 3)
    else:
        index = np.where(alpha > 0, 1, 0).astype(np.uint8)
        source = Pil.fromarray(index)
        source.putpalette([10, 20, 30, 200, 100, 50])
        want = np.array([[10, 20, 30], [200, 100, 50]], np.uint8)[index]
        if mode == "PA":
            source = source.convert("PA")
            source.putalpha(Pil.fromarray(alpha))
    path = tmp_path / ("a.tiff" if mode == "PA" else "a.png")
    source.save(path, **({"transparency": 0} if mode == "P" else {}))
    picture = images.load_picture(path)
    assert picture.mode == mode
    assert np.array_equal(levels(picture.pixels), want)  # colours under transparent pixels survive
    assert np.array_equal((picture.alpha * 255).round()[0, 0].numpy(), alpha)
    images.save_png(picture.pixels, tmp_path / "b.png", like=picture)
    saved = Pil.open(tmp_path / "b.png")
    assert saved.mode == ("LA" if mode == "LA" else "RGBA"), "grey stays grey"
    assert np.array_equal(np.array(saved.convert("RGBA")), np.dstack([want, alpha]))


def test_grey_one_bit_and_sixteen_bit_become_rgb(tmp_path):
    assert np.array_equal(levels(images.load_image(write(tmp_path / "l.png", GREY))), np.dstack([GREY] * 3))
    assert set(np.unique(levels(images.load_image(write(tmp_path / "1.png", GREY, "1"))))) == {0, 255}
    deep = np.linspace(0, 65535, 40 * 56).astype(np.uint16).reshape(40, 56)
    got = levels(images.load_image(write(tmp_path / "16.png", deep)))
    assert np.array_equal(got, np.dstack([np.round(deep / 257).astype(int)] * 3))
    assert (got.min(), got.max()) == (0, 255)


def test_sixteen_bit_colour_is_within_one_level(tmp_path):
    deep = RNG.integers(0, 65536, (20, 30, 3)).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in deep)

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 30, 20, 16, 2, 0, 0, 0))
    (tmp_path / "a.png").write_bytes(
        b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    )
    assert np.abs(levels(images.load_image(tmp_path / "a.png")) - deep.astype(int) / 257).max() <= 1


def test_profile_of_rgb_is_kept_and_values_untouched(tmp_path):
    profile = SRGB[:60] + b"\1" + SRGB[61:]  # still an RGB profile, but not byte-equal to any built-in one
    picture = images.load_picture(write(tmp_path / "a.png", COLOUR, icc_profile=profile))
    assert np.array_equal(levels(picture.pixels), COLOUR)
    images.save_png(picture.pixels, tmp_path / "b.png", like=picture)
    assert Pil.open(tmp_path / "b.png").info["icc_profile"] == profile


def test_profile_that_rgb_cannot_carry_is_applied_and_dropped(tmp_path):
    picture = images.load_picture(write(tmp_path / "a.png", GREY, icc_profile=_grey_profile(gamma=1.0)))
    assert picture.icc is None
    u = GREY / 255
    srgb = np.where(u <= 0.0031308, 12.92 * u, 1.055 * u ** (1 / 2.4) - 0.055)
    assert np.abs(levels(picture.pixels) - srgb[..., None] * 255).max() < 1


def _grey_profile(gamma):
    """A minimal ICC v2 greyscale profile."""

    def tag(kind, body):
        return kind + b"\0\0\0\0" + body

    white = tag(b"XYZ ", struct.pack(">iii", 63190, 65536, 54061))
    curve = tag(b"curv", struct.pack(">IH", 1, round(gamma * 256))) + b"\0\0"
    text = b"grey\0"
    desc = tag(b"desc", struct.pack(">I", len(text)) + text + b"\0" * 78)
    text = tag(b"text", b"none\0\0\0\0")
    bodies = [(b"desc", desc + b"\0" * (-len(desc) % 4)), (b"wtpt", white), (b"kTRC", curve), (b"cprt", text)]
    offset = 128 + 4 + 12 * len(bodies)
    table, payload = struct.pack(">I", len(bodies)), b""
    for name, body in bodies:
        table += name + struct.pack(">II", offset + len(payload), len(body))
        payload += body
    size = 128 + len(table) + len(payload)
    head = struct.pack(">I4sI4s4s4s", size, b"lcms", 0x02100000, b"mntr", b"GRAY", b"XYZ ") + b"\0" * 12 + b"acsp"
    head = (head + b"\0" * 28 + struct.pack(">iii", 63190, 65536, 54061)).ljust(128, b"\0")
    return head + table + payload


def test_cmyk_and_a_broken_profile(tmp_path):
    path = write(tmp_path / "a.tiff", COLOUR, "CMYK", icc_profile=b"\0" * 16 + b"CMYK" + b"junk" * 40)
    picture = images.load_picture(path)
    assert picture.icc is None
    assert picture.mode == "CMYK"
    assert np.abs(levels(picture.pixels) - COLOUR).max() <= 2


def animated(path):
    frames = [Pil.fromarray(RNG.integers(0, 256, (32, 32, 3), dtype=np.uint8)) for _ in range(3)]
    frames[0].save(path, save_all=True, append_images=frames[1:])


@pytest.mark.parametrize("suffix", ["gif", "png", "webp", "tiff"])
def test_animations_are_refused(tmp_path, suffix):
    animated(tmp_path / f"a.{suffix}")
    with pytest.raises(ImageError, match="3 frames"):
        images.load_picture(tmp_path / f"a.{suffix}")


def test_phone_photograph_with_a_second_frame_is_accepted(tmp_path):
    first, second = Pil.fromarray(COLOUR), Pil.fromarray(COLOUR[:20, :20])
    first.save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=[second])
    assert images.load_image(tmp_path / "a.jpg").shape == (1, 3, 40, 56)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tiff", "bmp", "gif"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
@pytest.mark.filterwarnings("ignore")
def test_truncated_files_are_refused(tmp_path, suffix, share):
    path = write(tmp_path / f"a.{suffix}", data.astronaut())
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(ImageError, match=r"a\.\w+: expected .*; "):
        images.load_picture(path)


@pytest.mark.filterwarnings("ignore")  # Pillow's own about what it skips
def test_random_damage_never_gives_another_error(tmp_path):
    rng = np.random.default_rng(1)
    for suffix in ("png", "jpg", "webp", "tiff", "bmp", "gif"):
        path = write(tmp_path / f"a.{suffix}", COLOUR)
        whole = np.frombuffer(path.read_bytes(), np.uint8)
        for _ in range(60):
            damaged = whole.copy()
            damaged[rng.integers(0, min(len(whole), rng.choice([40, 200, len(whole)])), 4)] = rng.integers(0, 256, 4)
            path.write_bytes(damaged.tobytes())
            try:
                image = images.load_image(path)
            except ImageError:
                continue
            images.check_image(image)


def test_what_is_no_picture_is_refused(tmp_path):
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "empty.png").write_bytes(b"")
    write(tmp_path / "small.png", COLOUR[:15])
    Pil.fromarray(RNG.random((32, 32)).astype(np.float32)).save(tmp_path / "float.tiff")
    Pil.fromarray(np.full((32, 32), 70000, np.int32)).save(tmp_path / "deep.tiff")
    cases = {
        "missing.png": "no such file",
        ".": "folder",
        "text.png": "PNG, JPEG",
        "empty.png": "PNG, JPEG",
        "small.png": "at least 16x16",
        "float.tiff": "no agreed range",
        "deep.tiff": "more than 16 bits",
    }
    for name, match in cases.items():
        with pytest.raises(ImageError, match=match):
            images.load_picture(tmp_path / name)


@pytest.mark.parametrize(
    "bad",
    [
        torch.zeros(3, 8, 8),
        torch.zeros(1, 4, 8, 8),
        torch.zeros(1, 3, 0, 8),
        torch.zeros(1, 3, 8, 8, dtype=torch.uint8),
        torch.full((1, 3, 8, 8), 1.5),
        torch.full((1, 3, 8, 8), -0.1),
        torch.full((1, 3, 8, 8), float("nan")),
        np.zeros((1, 3, 8, 8)),
        None,
    ],
)
def test_check_image_refuses(bad):
    with pytest.raises(ImageError, match=r"expected .*, but got"):
        images.check_image(bad)


@pytest.mark.parametrize("eps", [1 / 255, 0.03, 8 / 255, 0.1])
def test_rounding_stays_in_budget_and_is_the_nearest_such(eps):
    x0 = torch.randint(0, 256, (2, 3, 24, 24)) / 255
    x0[0, :, 0] = 0
    x0[0, :, 1] = 1
    x_adv = x0 + (torch.rand_like(x0) * 2 - 1) * eps * 1.2
    rounded = images.round_to_budget(x_adv, x0, eps)
    assert (rounded * 255 - x0 * 255).round().abs().max() <= eps * 255 + 1e-9
    allowed = torch.arange(256) / 255  # the definition, by exhaustion
    inside = (allowed - x0[..., None]).abs() <= eps + 1e-6
    distance = (allowed - x_adv[..., None]).abs().masked_fill(~inside, 9)
    best = distance.amin(-1)
    assert ((rounded - x_adv).abs() - best).abs().max() < 1e-6
    assert torch.equal((rounded * 255).round() / 255, rounded)


def test_rounding_keeps_masked_pixels_and_a_float32_budget_edge():
    x0 = torch.full((1, 3, 16, 16), 100 / 255)
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., 8:] = 1
    rounded = images.round_to_budget(torch.ones_like(x0), x0, 8 / 255, mask)
    assert torch.equal(rounded[..., :8], x0[..., :8])
    assert torch.equal(rounded[..., 8:], torch.full((1, 3, 16, 8), 108 / 255))  # all 8 levels, not 7
    half = images.round_to_budget(torch.ones_like(x0), x0, 8 / 255, mask / 2)
    assert torch.equal(half[..., 8:], torch.full((1, 3, 16, 8), 104 / 255))


def test_rounding_refuses_what_cannot_be_right():
    x0 = torch.full((1, 3, 16, 16), 100 / 255)
    for eps in (0.0, 0.003, -1.0, float("nan"), float("inf")):
        with pytest.raises(InputError, match="eps"):
            images.round_to_budget(x0, x0, eps)
    with pytest.raises(ImageError, match="8-bit"):
        images.round_to_budget(x0, x0 + 0.001, 0.03)
    with pytest.raises(ImageError, match="NaN"):
        images.round_to_budget(x0 * float("nan"), x0, 0.03)
    with pytest.raises(ImageError, match="shape"):
        images.round_to_budget(x0[..., 1:], x0, 0.03)


def test_budget_is_verified_from_the_file(tmp_path):
    x0 = torch.randint(0, 256, (1, 3, 32, 32)) / 255
    rounded = images.round_to_budget(x0 + 0.1, x0, 0.03)
    path = tmp_path / "new" / "folder" / "a.png"
    images.save_png(rounded, path)
    assert images.verify_budget(path, x0, 0.03) == pytest.approx(7 / 255, abs=1e-7)
    with pytest.raises(BudgetError, match=r"holds 0\.0275 \(7\.0\)"):
        images.verify_budget(path, x0, 6 / 255)
    with pytest.raises(BudgetError, match="shape"):
        images.verify_budget(path, x0[..., 1:], 0.03)
    Pil.open(path).save(tmp_path / "lossy.jpg", quality=50)
    with pytest.raises(BudgetError, match="changed after saving"):
        images.verify_budget(tmp_path / "lossy.jpg", x0, 0.03)


@pytest.mark.parametrize("name", ["a.jpg", "a.JPEG", "a.webp", "a.tiff", "a"])
def test_only_png_is_written(tmp_path, name):
    with pytest.raises(InputError, match=r"expected a \.png file"):
        images.save_png(torch.zeros(1, 3, 16, 16), tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_saving_is_all_or_nothing(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    images.save_png(torch.zeros(1, 3, 16, 16), path)
    before = path.read_bytes()
    os.link(path, tmp_path / "opened before")
    images.save_png(torch.ones(1, 3, 16, 16), path)
    assert path.read_bytes() != before
    assert (tmp_path / "opened before").read_bytes() == before  # replaced, not written over
    (tmp_path / "opened before").unlink()
    before = path.read_bytes()

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(InputError, match="No space left"):
        images.save_png(torch.zeros(1, 3, 16, 16), path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_unwritable_place_is_an_input_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        images.save_png(torch.zeros(1, 3, 16, 16), tmp_path / "file" / "a.png")


def test_saved_files_are_deterministic_readable_by_all_and_carry_metadata(tmp_path):
    image = torch.rand(1, 3, 20, 24)
    metadata = {"sifm": {"eps": 0.03, "prompt": "schön"}, "note": "plain ✓"}
    images.save_png(image, tmp_path / "a.png", metadata=metadata)
    images.save_png(image[0], tmp_path / "b.png", metadata=metadata)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    text = Pil.open(tmp_path / "a.png").text
    assert text == {"sifm": '{"eps": 0.03, "prompt": "sch\\u00f6n"}', "note": "plain ✓"}
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE((tmp_path / "a.png").stat().st_mode) == 0o666 & ~umask
    with pytest.raises(InputError, match="keys"):
        images.png_bytes(image, metadata={"": "x"})


def test_to_uint8_rounds_and_refuses_batches():
    image = (
        torch.tensor([0.0, 1.0, 0.4999 / 255, 0.5001 / 255, 254.6 / 255, 0.5]).reshape(1, 1, 1, 6).expand(1, 3, 1, 6)
    )
    assert images.to_uint8(image)[0, :, 0].tolist() == [0, 255, 0, 1, 255, 128]
    assert np.array_equal(images.to_uint8(torch.from_numpy(COLOUR).permute(2, 0, 1) / 255), COLOUR)
    with pytest.raises(ImageError, match="batch of 2"):
        images.to_uint8(torch.zeros(2, 3, 4, 4))
    assert np.array_equal(np.array(Pil.open(io.BytesIO(images.png_bytes(image)))), images.to_uint8(image))


@pytest.mark.parametrize("size", [(20, 28), (17, 91), (120, 40)])
def test_resize_equals_pillow_and_is_differentiable(size):
    image = torch.from_numpy(COLOUR.copy()).permute(2, 0, 1)[None].double() / 255
    got = images.resize(image.float(), size)[0]
    channels = [Pil.fromarray(c.astype(np.float32)) for c in image[0].numpy()]
    want = [np.array(c.resize(size[::-1], Pil.Resampling.BICUBIC)).clip(0, 1) for c in channels]
    assert np.abs(got.numpy() - np.stack(want)).max() < 1e-5
    image.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: images.resize(x, (9, 11)), (image[..., :12, :13] * 0.5 + 0.25,))
    assert images.resize(image, (40, 56)) is image


def test_perturbation_view():
    x0 = torch.full((2, 3, 8, 8), 0.5)
    x_adv = x0.clone()
    x_adv[0, 0, 0, 0] += 0.03
    x_adv[0, 0, 0, 1] -= 0.015
    view = images.perturbation_view(x_adv, x0)
    assert view[0, 0, 0, :3].tolist() == pytest.approx([1, 0.25, 0.5], abs=1e-5)
    assert torch.equal(view[1], x0[1])
    assert images.perturbation_view(x_adv, x0, gain=100)[0, 0, 0, :3].tolist() == pytest.approx([1, 0, 0.5])


def test_colour_chunks_and_dpi_are_kept(tmp_path):
    info = PngImagePlugin.PngInfo()
    chunks = {
        b"gAMA": struct.pack(">I", 100000),
        b"cICP": bytes([9, 16, 0, 1]),
        b"sRGB": b"\1",
        b"cHRM": bytes(range(32)),
    }
    for kind, body in chunks.items():
        info.add(kind, body)
    picture = images.load_picture(write(tmp_path / "a.png", COLOUR, pnginfo=info, dpi=(300, 150)))
    images.save_png(picture.pixels, tmp_path / "b.png", like=picture)
    assert images.load_picture(tmp_path / "b.png").chunks == chunks
    saved = Pil.open(tmp_path / "b.png")
    assert saved.info["gamma"] == 1.0 and saved.info["dpi"] == pytest.approx((300, 150), abs=0.02)
    exif = Pil.Exif()
    exif[0x0112] = 6
    turned = images.load_picture(write(tmp_path / "c.jpg", COLOUR, dpi=(200, 72), exif=exif))
    assert turned.dpi == pytest.approx((72, 200), abs=0.5)


def test_a_profile_that_is_applied_takes_the_other_words_for_colour_with_it(tmp_path):
    info = PngImagePlugin.PngInfo()
    info.add(b"gAMA", struct.pack(">I", 100000))
    path = write(tmp_path / "a.png", GREY, pnginfo=info, icc_profile=_grey_profile(gamma=1.0))
    assert images.load_picture(path).chunks == {} and Pil.open(path).info["gamma"] == 1.0


@pytest.mark.parametrize("compressed", [True, False])
def test_a_png_is_read_whatever_text_it_carries(tmp_path, compressed):
    info = PngImagePlugin.PngInfo()
    for i in range(40):
        info.add_itxt(f"workflow{i}", "x" * 2_000_000, zip=compressed)
    path = write(tmp_path / "a.png", COLOUR, pnginfo=info, icc_profile=SRGB + b"\0" * 2_000_000)
    picture = images.load_picture(path)
    assert np.array_equal(levels(picture.pixels), COLOUR) and len(picture.icc) == len(SRGB) + 2_000_000


def test_too_many_pixels_are_named_with_the_limit(tmp_path, monkeypatch, recwarn):
    path = write(tmp_path / "a.png", COLOUR)
    monkeypatch.setattr(Pil, "MAX_IMAGE_PIXELS", 40 * 56 - 1)
    images.load_picture(path)  # Pillow warns from here on, and refuses twice as many
    assert not [warning for warning in recwarn if "bomb" in str(warning.message)]
    monkeypatch.setattr(Pil, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ImageError, match=r"a\.png: expected at most 2,000 pixels, but it has more; make it smaller"):
        images.load_picture(path)


def test_pipes_devices_and_impossible_names_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    for name, match in (
        (tmp_path / "pipe.png", "a pipe or a device"),
        ("/dev/zero", "a pipe or a device"),
        (tmp_path / ("x" * 300), "too long"),
        (tmp_path / "a.png" / "b.png", "no such file"),
        ("a\0b.png", "expected a file name"),
    ):
        with pytest.raises(ImageError, match=match):
            images.load_picture(name)


def test_a_transparent_picture_is_what_is_seen_on_its_background(tmp_path):
    alpha = np.where(GREY > 200, 0, np.where(GREY > 100, 255, GREY)).astype(np.uint8)
    Pil.fromarray(np.dstack([COLOUR, alpha])).save(tmp_path / "a.png")
    picture = images.load_picture(tmp_path / "a.png", "#20c0ff")
    want = Pil.new("RGBA", (56, 40), "#20c0ff")
    want.alpha_composite(Pil.open(tmp_path / "a.png"))
    assert np.abs(levels(picture.pixels) - np.asarray(want)[..., :3].astype(int)).max() <= 1
    assert np.array_equal(levels(picture.stored), COLOUR)
    images.save_png(picture.pixels, tmp_path / "same.png", like=picture)
    assert np.array_equal(np.asarray(Pil.open(tmp_path / "same.png")), np.dstack([COLOUR, alpha]))
    images.save_png(picture.pixels, tmp_path / "opaque.png", like=picture.opaque())
    assert np.array_equal(np.asarray(Pil.open(tmp_path / "opaque.png")), levels(picture.pixels))
    mask, noise = picture.alpha, 0.03 * torch.randn_like(picture.pixels).sign()
    adv = images.round_to_budget(picture.pixels + noise, picture.pixels, 0.03, mask)
    images.save_png(adv, tmp_path / "b.png", like=picture)
    assert images.verify_budget(tmp_path / "b.png", picture.stored, 0.03, mask=(mask > 0).float()) > 6 / 255
    assert np.array_equal(np.asarray(Pil.open(tmp_path / "b.png"))[..., 3], alpha)
    seen = images.load_image(tmp_path / "b.png", "#20c0ff")
    assert (seen - adv).abs().max() < 2.01 / 255, "what is saved is seen as it was computed, but for rounding"
    assert torch.equal(torch.where(mask == 1, seen, 0), torch.where(mask == 1, adv, 0))


def test_nothing_to_see_is_named(tmp_path):
    Pil.new("RGBA", (20, 20), (9, 9, 9, 0)).save(tmp_path / "a.png")
    with pytest.raises(ImageError, match=r"a\.png: .*every pixel is transparent"):
        images.load_picture(tmp_path / "a.png", "white")
    for wrong in ("whit", "#12345", "#00000080", ""):
        with pytest.raises(InputError, match="background: expected a colour"):
            images.load_picture(tmp_path / "a.png", wrong)


@pytest.mark.parametrize("shade", [0.0, 1.0])
def test_black_and_white_have_a_gradient_through_resizing(shade):
    x = torch.full((1, 3, 40, 60), shade, requires_grad=True)
    for size in ((20, 30), (17, 23), (80, 90)):
        (grad,) = torch.autograd.grad(images.resize(x, size).sum(), x)
        assert bool((grad > 0).all()) and float(grad.sum()) == pytest.approx(3 * size[0] * size[1], rel=1e-4)
    ringing = torch.zeros(1, 3, 40, 60)
    ringing[..., 30:] = 1
    ringing.requires_grad_()
    small = images.resize(ringing, (37, 53))
    plain = torch.nn.functional.interpolate(ringing, (37, 53), mode="bicubic", antialias=True)
    (grad,) = torch.autograd.grad(small.sum(), ringing)
    inside = ((plain > -1e-6) & (plain < 1 + 1e-6)).float().detach()
    assert 0 < inside.mean() < 1 and small.min() == 0 and small.max() == 1
    assert torch.allclose(grad, torch.autograd.grad((plain * inside).sum(), ringing)[0], atol=1e-5)


def test_a_picture_in_many_bands_gives_the_same_bytes(tmp_path, monkeypatch):
    x0 = torch.randint(0, 256, (2, 3, 33, 40)) / 255
    mask, adv = torch.rand(1, 1, 33, 40), x0 + 0.05 * torch.randn(2, 3, 33, 40)

    def made():
        rounded = images.round_to_budget(adv, x0, 0.03, mask)
        return rounded, images.change(rounded, x0, mask), images.png_bytes(rounded[:1]), images.on_grid(adv.clamp(0, 1))

    whole = made()
    monkeypatch.setattr(images, "_BAND", 240)
    banded = made()
    assert torch.equal(whole[0], banded[0]) and whole[2] == banded[2] and torch.equal(whole[3], banded[3])
    assert whole[1] == pytest.approx(banded[1])
    assert images.on_grid(x0) is not x0 and images.on_grid(x0).data_ptr() == x0.data_ptr()

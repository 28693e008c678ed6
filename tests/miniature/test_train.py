"""Training: the solved encoder is the PCA it claims to be, and a smoke run makes an editor that loads."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from sifm_core import pipeline
from sifm_core.editors import BUILTIN, load_editor
from sifm_core.editors.qwen_image21 import read
from sifm_core.editors.sight import patches
from sifm_core.images import load_image
from sifm_core.miniature import (
    codec,
    codec16,
    gate,
    pool,
    text,
    train,
    train_judges,
    train_qwen,
    train_sd3,
    train_vae,
    training,
    world,
)


@pytest.mark.parametrize(("channels", "scale", "shift"), [(16, 1.0, None), (20, 1.0, None), (16, 1.5305, 0.0609)])
def test_the_encoder_is_exactly_the_patch_code(channels, scale, shift):
    images = train_vae.pictures(200, np.random.default_rng(0))
    code, kept = codec.patch_pca(images, channels)
    vae = codec.build(channels, scale=scale, shift=shift).eval()
    codec.write_encoder(vae, code)
    with torch.no_grad():
        z = (vae.encode(images[:8]).latent_dist.mode() - (shift or 0)) * scale
    patches = torch.nn.functional.unfold(images[:8], 4, stride=4).transpose(1, 2)
    expected = (patches @ code.basis.T + code.offset).transpose(1, 2).reshape(z.shape)
    torch.testing.assert_close(z, expected, atol=4e-3, rtol=0)
    torch.testing.assert_close(code.encode(images[:8]), expected, atol=1e-4, rtol=0)
    assert abs(expected.mean()) < 0.2
    assert 0.8 < expected.std() < 1.2
    assert kept > 0.97
    torch.testing.assert_close(code.encode(code.decode(expected)), expected, atol=1e-4, rtol=0)
    assert (code.decode(expected) - images[:8]).abs().mean() < 0.05


def test_qwens_encoder_is_exactly_its_code():
    images = train_qwen.doubled(train_vae.pictures(60, np.random.default_rng(0)))
    code, kept = codec16.patch_pca(images)
    vae = codec16.build(code).eval()
    codec16.write_encoder(vae, code)
    rgba = torch.cat([images[:4], torch.ones(4, 1, 128, 128)], dim=1)
    with torch.no_grad():
        raw = vae.encode(rgba[:, :, None]).latent_dist.mode()[:, :, 0]
    z = (raw - code.mean[:, None, None]) / code.std[:, None, None]
    torch.testing.assert_close(z, code.encode(images[:4]), atol=1e-3, rtol=0)
    assert kept > 0.97 and (code.decode(z) - images[:4]).abs().mean() < 0.05


def test_qwen3_vl_reads_all_rows_at_once_as_one_by_one():
    processor, x = train_qwen.build_processor(), torch.rand(2, 3, train_qwen.SIDE, train_qwen.SIDE)
    torch.manual_seed(0)
    encoder = train_qwen.build_text_encoder(processor.tokenizer)
    for parameter in encoder.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    pipe = train_qwen.build_pipeline(train_qwen.build_transformer(), encoder, processor, None)
    said, nothing = train_qwen.prompts(pipe, {0, 1, 31})
    reader = train_qwen.Reader(encoder, processor)
    for ids in (*(each.ids[:2] for each in said if len(each.ids) > 1), nothing.expand(2, -1)):
        alone = read(encoder, ids, *patches(x, processor.image_processor))
        assert torch.equal(reader(ids, x), alone)
    assert alone.std() > 0.1 and len({each.ids.shape[1] for each in said}) == len(said) > 1


def test_a_small_qwen_trains_resumes_and_is_an_editor(tmp_path, monkeypatch):
    monkeypatch.setattr(train_qwen, "PICTURES", 60)
    common = ["--out", str(tmp_path), "--batch", "2", "--threads", str(torch.get_num_threads())]
    train.main(["qwen-vae", *common, "--steps", "1"])
    train.main(["qwen", *common, "--steps", "1", "--scenes", "8"])
    monkeypatch.setattr(pool, "draw", lambda *_: pytest.fail("the pictures are drawn once"))
    train.main(["qwen", *common, "--steps", "2", "--scenes", "8"])
    editor, x = load_editor(tmp_path / "miniature-qwen"), torch.rand(1, 3, 64, 64)
    assert pipeline.edit(x, editor, prompt="make it night", steps=1).shape == x.shape
    size = sum(file.stat().st_size for file in (tmp_path / "miniature-qwen").rglob("*") if file.is_file())
    assert size < 12 * 2**20 and editor.timeless == ("reference",) and editor.toy == 64
    tokens = [train_qwen.build_processor().tokenizer.get_vocab() for _ in range(2)]
    assert tokens[0] == tokens[1], "a training that resumes finds its words under their numbers"


def test_several_processes_draw_the_same_pictures_whatever_their_number(monkeypatch):
    monkeypatch.setattr(pool, "ProcessPoolExecutor", lambda n, context: ThreadPoolExecutor(n))
    monkeypatch.setattr(pool, "_PART", 3)
    two, three = (pool.Pool(7, 2, 1, 5, None, processes=n) for n in (2, 3))
    assert all(torch.equal(*columns) for columns in zip(two.drawn, three.drawn, strict=True))
    assert len(two.source) == 7 and two.index.tolist() == [k for k in range(7) for _ in range(2)]
    for k, i in enumerate(two.index):  # each target is an edit of its own source
        assert (two.target[k].float() - two.source[i].float()).abs().mean() < 120
    again = pool.draw(2, 1, (1, (5, 6)))
    assert (two.source[6:].numpy() == again[0]).all() and (two.target[12:].numpy() == again[2]).all()


def test_a_training_ends_in_time_with_its_learning_rate_down(tmp_path, monkeypatch):
    clock, asked = iter(range(0, 10_000, 15)), []
    monkeypatch.setattr(training.time, "time", lambda: next(clock))
    network = torch.nn.Linear(2, 2)
    settings = {"seed": 0, "log": print, "checkpoint": tmp_path / "c.pt", "minutes": 2, "steps": 1000, "save": 3}

    def loss():
        if len(asked) == 5:
            raise KeyboardInterrupt
        return network(torch.ones(1, 2)).sum(), {}

    for _ in range(2):  # the first is broken off, and its time counts
        with suppress(KeyboardInterrupt):
            training.fit(network, loss, rate=lambda step, done: asked.append(done) or 0.1, **settings)
    assert asked == [0.125, 0.25, 0.375, 0.5, 0.625, 0.5, 0.625, 0.75, 0.875]


def test_the_tokenizer_is_the_same_whenever_it_is_built():
    """Else a training that resumes finds its words under other numbers."""
    assert text.build_tokenizer().get_vocab() == text.build_tokenizer().get_vocab()


def test_smoke_training_makes_editors_and_judges(tmp_path, monkeypatch):
    monkeypatch.setattr(train_judges, "GROUP", 3)
    draw = train_vae.pictures
    monkeypatch.setattr(train_vae, "pictures", lambda n, rng: draw(min(n, 60), rng))
    common = ["--out", str(tmp_path), "--batch", "4", "--steps", "2", "--threads", str(torch.get_num_threads())]
    for what in ("ip2p", "sd3"):
        train.main([what, *common, "--scenes", "8"])
        editor = load_editor(tmp_path / f"miniature-{what}")
        x = torch.rand(2, 3, 64, 64)
        edited = editor.edit(x, editor.prepare(["make it night", "a night scene"]), seed=0, steps=4)
        assert edited.shape == x.shape
        assert torch.isfinite(edited).all()
        assert "8 scenes, 32 edits" in (tmp_path / f"{what}.log").read_text()
        grid = load_image(tmp_path / f"{what}.png")
        assert grid.shape == (1, 3, 8 * 128, 3 * 128)
        source, target, _ = grid.chunk(3, dim=3)
        assert (source - target).abs().mean() > 0.02
    train.main(["judges", *common])
    for name in ("conv", "patch"):
        assert (tmp_path / "judges" / f"{name}.safetensors").exists()


def test_judges_cases_are_kept_by_what_made_them(tmp_path, monkeypatch):
    monkeypatch.setattr(train_judges, "GROUP", 2)
    monkeypatch.setattr(train_judges, "KINDS", ("clean",))
    folder = Path(BUILTIN["miniature-ip2p"])
    for kind in ("miniature-ip2p", "miniature-hq-edit"):
        shutil.copytree(folder, tmp_path / kind)
    shutil.copy(folder / "sifm.json", tmp_path / "miniature-hq-edit" / "sifm.json")
    collect = lambda *names: train_judges.collect([tmp_path / n for n in names], 1, 0, print, tmp_path)  # noqa: E731
    first = collect("miniature-ip2p")
    made = list(tmp_path.glob("judge-outputs-*.pt"))
    monkeypatch.setattr(train_judges, "_edited", None)
    assert len(made) == 1 and torch.equal(collect("miniature-ip2p")["edited"], first["edited"]), "not made again"
    settings = json.loads((tmp_path / "miniature-hq-edit" / "sifm.json").read_text()) | {"steps": 1}
    (tmp_path / "miniature-hq-edit" / "sifm.json").write_text(json.dumps(settings))
    with pytest.raises(TypeError):  # another editor's cases are made anew
        collect("miniature-hq-edit")


def test_the_gate_is_json_where_a_kind_of_edit_is_missing(monkeypatch, capsys):
    monkeypatch.setattr(gate, "edits", lambda editor, x, prompts, seeds: x)
    cpu = SimpleNamespace(family="ip2p", device=torch.device("cpu"))
    monkeypatch.setattr(gate, "load_editor", lambda name, **given: cpu)
    monkeypatch.setattr(gate, "reconstruction", lambda *a: 30.0)
    monkeypatch.setattr(gate, "CONTROLS", {})
    gate.main(["--images", "2", "--attacks", "--json"])
    document = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert None in document["rows"][0].values() and document["rows"][0]["n"] == 2


def test_the_gates_attacks_see_pictures_at_the_editors_own_size(qwen21_folder, monkeypatch):
    editor, x = load_editor(qwen21_folder, device="cpu", size=128), gate.fresh(2)
    x, seen = torch.stack([item.image for item in x]), []
    look = lambda editor, cond, seeds: lambda x, k: seen.append(tuple(x.shape)) or x.mean((2, 3))  # noqa: E731
    monkeypatch.setitem(gate._MOVED, "encoder", look)
    found = gate.attack("encoder", editor, x, ["make it night"] * 2, eps=0.03, steps=2, seed=0)
    assert set(seen) == {(2, 3, 128, 128)} and found.shape == x.shape
    assert 0 < (found - x).abs().max() <= 0.03


def test_a_killed_run_goes_on_where_its_checkpoint_stands(tmp_path, monkeypatch):
    monkeypatch.setattr(train_vae, "SAVE", 2)
    monkeypatch.setattr(train_vae, "pictures", lambda n, rng: torch.rand(min(n, 8), 3, 64, 64) * 2 - 1)
    monkeypatch.setattr(train_vae, "BATCH", 1)
    recipe, told = train_vae.Recipe(channels=16, seed=0), []
    for _ in range(2):
        train_vae.train(tmp_path / "vae", recipe, steps=3, log=told.append, checkpoint=tmp_path / "c.pt")
    assert "resumed at step 2" in told


def test_a_checkpoint_holds_the_weights(tmp_path):
    settings = {"rate": lambda *_: 0.0, "seed": 0, "log": print, "checkpoint": tmp_path / "c.pt", "save": 1}
    first, second = (torch.nn.Linear(2, 2) for _ in range(2))
    for network, steps in ((first, 2), (second, 3)):  # the second goes on from the first's
        loss = lambda network=network: (network(torch.ones(1, 2)).sum(), {})  # noqa: E731
        done = training.fit(network, loss, steps=steps, weight_decay=0.0, **settings)
    assert torch.equal(second.weight, first.weight) and torch.allclose(done.weight, first.weight)


def test_the_path_to_the_target_starts_at_the_source_and_ends_at_the_target():
    """At the sampler's start nothing of the target is in the latent; the Euler steps to a known target stay on it."""
    source, target = torch.full((4000, 1, 2, 2), 3.0), torch.full((4000, 1, 2, 2), -3.0)
    first = train_sd3.start()
    z, sigma = train_sd3.noised(source, target, first)
    start = (sigma == first).flatten()
    assert 0.45 < start.float().mean() < 0.55
    mean = (z / (1 - sigma)).flatten(1).mean(1)
    assert abs(mean[start].mean() - 3) < 0.1
    late = (sigma < 0.1 * first).flatten()
    assert mean[late].mean() < -2.5
    sampler = train_sd3.build_scheduler()
    sampler.set_timesteps(train_sd3.SETTINGS["steps"])
    walk = (1 - first) * source[:8] + first * torch.randn(8, 1, 2, 2)
    for level, following in zip(sampler.sigmas[2:-1], sampler.sigmas[3:], strict=True):
        walk = walk + (following - level) * (walk - target[:8]) / level
    torch.testing.assert_close(walk, target[:8])


def test_threshold_separates():
    shares = np.array([[0.1, 0.2, 0.3, 0.7, 0.8, 0.9]] * 2).T
    truth = np.array([[0, 0, 0, 1, 1, 1], [1, 1, 1, 0, 0, 0]]).T
    thresholds = train_judges.choose_thresholds(shares, truth)
    assert 0.3 < thresholds[0] <= 0.7 < 0.9 < thresholds[1]
    measured = train_judges.measure(shares, truth, thresholds)
    assert (measured["mismatch"]["sensitivity"], measured["mismatch"]["specificity"]) == (1.0, 1.0)
    assert (measured["degradation"]["sensitivity"], measured["degradation"]["specificity"]) == (0.0, 1.0)


def test_threshold_clears_most_negatives_even_at_the_cost_of_sensitivity():
    share = np.concatenate([np.linspace(0, 1, 100), np.linspace(0.5, 1, 20)])
    truth = np.repeat([0, 1], [100, 20])
    threshold = train_judges.choose_threshold(share, truth)
    assert (share[:100] < threshold).mean() >= 0.95
    assert (share[:100] < threshold - 0.02).mean() < 0.95


def test_the_map_of_what_nothing_explains_adds_up_to_the_renderers_measure():
    """By it the judges learn where a picture is degraded."""
    item = gate.fresh(1)[0]
    edit = item.truth(item.instruction).edit
    target = torch.from_numpy(world.render(item.scene, edit))
    spoilt = target.clone()
    spoilt[:, :16, :16] = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(0))
    clean, case = (train_judges._case(item.scene, item.image, picture, edit) for picture in (target, spoilt))
    assert clean["rough"].max() < 0.02 < 0.2 < case["rough"][0, :4, :4].mean()
    assert case["rough"][0, 4:, 4:].mean() < 0.05
    torch.testing.assert_close(case["rough"].square().mean().sqrt(), case["measures"][3], atol=2e-3, rtol=0)


def test_what_was_not_tried_has_no_rate():
    measured = train_judges.measure(np.full((4, 2), 0.9), np.zeros((4, 2)), (0.5, 0.95))
    assert (measured["mismatch"]["sensitivity"], measured["mismatch"]["specificity"]) == (None, 0.0)
    assert measured["degradation"] == {
        "positives": 0, "negatives": 4, "sensitivity": None, "specificity": 1.0, "balanced agreement": None
    }  # fmt: skip

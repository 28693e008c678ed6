"""Training: the solved encoder is the PCA it claims to be, and a smoke run makes an editor that loads."""

import numpy as np
import torch

from sifm_core.editors import load_editor
from sifm_core.miniature import codec, train, train_judges, train_vae


def test_the_encoder_is_exactly_the_patch_code():
    images = train_vae.pictures(200, np.random.default_rng(0))
    basis, offset, kept = codec.patch_pca(images)
    vae = codec.build().eval()
    codec.write_encoder(vae, basis, offset)
    with torch.no_grad():
        z = vae.encode(images[:8]).latent_dist.mode()
    patches = torch.nn.functional.unfold(images[:8], 4, stride=4).transpose(1, 2)
    expected = (patches @ basis.T + offset).transpose(1, 2).reshape(z.shape)
    torch.testing.assert_close(z, expected, atol=2e-3, rtol=0)
    assert kept > 0.97


def test_smoke_training_makes_an_editor_and_resumes(tmp_path):
    common = ["--out", str(tmp_path), "--batch", "4"]
    train.main(["vae", *common])
    train.main(["ip2p", *common, "--steps", "2", "--scenes", "8"])
    train.main(["decoder", *common, "--steps", "2"])
    editor = load_editor(tmp_path / "miniature-ip2p")
    x = torch.rand(2, 3, 64, 64)
    edited = editor.edit(x, editor.prepare(["make it night"] * 2), seed=0, steps=2)
    assert edited.shape == x.shape
    assert torch.isfinite(edited).all()
    log = (tmp_path / "ip2p.log").read_text()
    assert "8 scenes, 40 edits" in log


def test_threshold_separates():
    share = np.array([0.1, 0.2, 0.3, 0.7, 0.8, 0.9])
    threshold, sensitivity, specificity = train_judges.choose_threshold(share, np.array([0, 0, 0, 1, 1, 1]))
    assert 0.3 < threshold <= 0.7
    assert (sensitivity, specificity) == (1.0, 1.0)


def test_threshold_clears_most_negatives_even_at_the_cost_of_sensitivity():
    share = np.concatenate([np.linspace(0, 1, 100), np.linspace(0.5, 1, 20)])
    truth = np.repeat([0, 1], [100, 20])
    threshold, sensitivity, specificity = train_judges.choose_threshold(share, truth)
    assert specificity >= 0.94
    assert threshold > 0.9
    assert sensitivity < 0.5

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPModel

import fakes
import tiny_clip
from sifm_core.errors import ImageError, InputError
from sifm_core.metrics.clip_score import clip_score


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_clip.save(tmp_path_factory.mktemp("clip"))


def test_score_is_the_cosine_of_the_embeddings(folder):
    image, texts = torch.rand(2, 3, 32, 32), ["a cat", "dog"]
    got = clip_score(image, texts, model=folder)
    clip, tokenizer = CLIPModel.from_pretrained(folder), fakes.clip_tokenizer()
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
    deviation = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
    for metric, picture, text in zip(got, image, texts, strict=True):
        with torch.no_grad():
            output = clip(
                input_ids=tokenizer(text, return_tensors="pt").input_ids,
                pixel_values=((picture - mean) / deviation)[None],
            )
        want = torch.cosine_similarity(output.image_embeds, output.text_embeds).item()
        assert metric.value == pytest.approx(want, abs=1e-4)
        assert metric.definition == f"clip:{folder}:cosine"
    assert got[0].value != got[1].value


def test_other_sizes_and_long_texts_are_taken(folder):
    (metric,) = clip_score(torch.rand(1, 3, 50, 70), "word " * 100, model=folder)
    assert -1 <= metric.value <= 1


def test_a_missing_model_is_none_with_its_reason(tmp_path):
    for model in (str(tmp_path / "nowhere"), "nobody/no-such-clip"):
        first, second = clip_score(torch.rand(2, 3, 32, 32), ["a", "b"], model=model)
        assert first == second
        assert first.value is None
        assert "unavailable" in first.reason
        assert model in first.reason


def test_a_model_with_missing_weights_gives_no_score_and_says_which(folder, tmp_path):
    spoilt = shutil.copytree(folder, tmp_path / "spoilt")
    weights = load_file(spoilt / "model.safetensors")
    save_file({k: v for k, v in weights.items() if k != "visual_projection.weight"}, spoilt / "model.safetensors")
    (metric,) = clip_score(torch.rand(1, 3, 32, 32), ["a"], model=str(spoilt))
    assert metric.value is None and "spoilt lack weights of a CLIPModel: visual_projection.weight" in metric.reason


def test_bad_input(folder):
    with pytest.raises(InputError, match="one text per picture"):
        clip_score(torch.rand(2, 3, 32, 32), ["a"], model=folder)
    with pytest.raises(ImageError):
        clip_score(torch.rand(3, 32, 32), ["a"], model=folder)

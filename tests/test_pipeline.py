"""The four verbs on the tiny random editor: sizes, budget, bytes, progress, and arguments refused before any work."""

from __future__ import annotations

import inspect

import pytest
import torch

import fakes
from sifm_core import methods, pipeline
from sifm_core.editors import load_editor
from sifm_core.errors import ImageError, InputError
from sifm_core.pipeline import prompt_distance
from sifm_core.types import Step, Verdict
from toy import ToyEditor

FAST = {"steps": 3, "timesteps": 2}


@pytest.fixture(scope="module")
def editor(ip2p_folder):
    return load_editor(ip2p_folder, device="cpu", size=16, steps=2)


def immunize(image, editor, **changes):
    return pipeline.immunize(image, editor, **{"prompt": "a b", **FAST, **changes})


@pytest.mark.parametrize("size", [(16, 16), (37, 61)])
def test_protected_picture_is_of_the_same_size_on_the_grid_and_uses_the_budget(editor, size):
    image = fakes.images(2, size)
    done = immunize(image, editor, eps=0.03)
    levels = done.image * 255
    assert done.image.shape == image.shape
    assert torch.equal(levels, levels.round())
    assert float((done.image - image).abs().max()) == pytest.approx(done.linf)
    assert 5 / 255 < done.linf <= 0.03


def test_a_batch_gives_the_same_bytes_as_its_pictures_alone(editor):
    image, prompts = fakes.images(3, 32), ["a", "b c", "d"]
    options = {"method": "photoguard_encoder", "steps": 3}
    batch = pipeline.immunize(image, editor, prompt=prompts, **options)
    for i, prompt in enumerate(prompts):
        alone = pipeline.immunize(image[i : i + 1], editor, prompt=prompt, **options)
        assert torch.equal(batch.image[i : i + 1], alone.image)


def test_same_seed_same_bytes_another_seed_others(editor):
    image = fakes.images(1, 24)
    one, again, other = (immunize(image, editor, seed=s).image for s in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_history_has_every_step_and_no_pictures(editor):
    seen: list[Step] = []
    done = immunize(fakes.images(), editor, on_step=seen.append)
    assert [step.i for step in done.history] == [1, 2, 3]
    assert [step.loss for step in done.history] == [step.loss for step in seen]
    assert all(step.preview is None for step in done.history)
    assert all(step.preview is not None for step in seen)


def test_controls_keep_the_same_rules_and_take_no_gradient(editor):
    image = fakes.images(2, 20)
    done = pipeline.immunize(image, editor, prompt="a", method="random_noise", eps=0.03, pattern="block4")
    assert done.history == ()
    assert 0 < float((done.image - image).abs().max()) <= 0.03
    assert torch.equal(done.image * 255, (done.image * 255).round())


@pytest.mark.parametrize("shape", ["plain", "channel"])
def test_mask_leaves_the_rest_alone(editor, shape):
    image = fakes.images(1, 32)
    mask = torch.zeros(32, 32)
    mask[:, :16] = 1
    done = immunize(image, editor, mask=mask if shape == "plain" else mask[None, None])
    assert torch.equal(done.image[..., 16:], image[..., 16:])
    assert not torch.equal(done.image[..., :16], image[..., :16])


@pytest.mark.parametrize("verb", ["immunize", "edit"])
def test_what_the_callback_raises_comes_through(editor, verb):
    class Stop(Exception):
        pass

    def stop(step: Step) -> None:
        raise Stop

    with pytest.raises(Stop):
        if verb == "edit":
            pipeline.edit(fakes.images(), editor, prompt="a", on_step=stop)
        else:
            immunize(fakes.images(), editor, on_step=stop)


def test_works_inside_inference_mode(editor):
    image = fakes.images(1, 24)
    outside = immunize(image, editor)
    with torch.inference_mode():
        inside = immunize(fakes.images(1, 24), editor)
    assert torch.equal(outside.image, inside.image)


@pytest.mark.parametrize("name", methods.METHODS)
def test_no_option_of_a_method_is_called_like_an_argument_of_the_verb(name):
    assert not methods.options(name).keys() & inspect.signature(pipeline.immunize).parameters.keys()


def test_edit_returns_the_size_it_got_on_the_grid(editor):
    image = fakes.images(2, (21, 40))
    edited = pipeline.edit(image, editor, prompt=["a", "b"], seed=[1, 2])
    assert edited.shape == image.shape
    assert torch.equal(edited * 255, (edited * 255).round())
    alone = pipeline.edit(image[1:], editor, prompt="b", seed=2)
    assert float((edited[1:] - alone).abs().max()) <= 1 / 255
    assert torch.equal(alone, pipeline.edit(image[1:], editor, prompt="b", seed=2))
    assert not torch.equal(alone, pipeline.edit(image[1:], editor, prompt="b", seed=3))


class Parrot:
    """A judge that says what it saw."""

    name = "parrot:one"

    def judge(self, cases, *, on_step=None):
        return [
            Verdict(self.name, "ok", bool((c.source != c.edited).any()), False, reasons=f"{c.prompt} {c.truth}")
            for c in cases
        ]


@pytest.mark.parametrize("folder", ["ip2p_folder", "sd3_folder"])
def test_prompts_are_apart_by_the_angle_between_the_means_of_their_words(folder, request):
    editor = load_editor(request.getfixturevalue(folder), device="cpu")
    far = prompt_distance(editor, "a b c", "x y")
    means = []
    for prompt in ("a b c", "x y"):
        cond = editor.prepare([prompt])
        means.append(cond.prompt[0][editor.words(cond)[0]].double().mean(dim=0))
    expected = 1 - float(means[0] @ means[1] / means[0].norm() / means[1].norm())
    assert far.value == pytest.approx(expected, abs=1e-9) and 0 < far.value <= 2
    assert prompt_distance(editor, "x y", "a b c").value == pytest.approx(far.value)
    assert prompt_distance(editor, "a b c", "a b c").value == pytest.approx(0, abs=1e-12)
    assert prompt_distance(editor, "a b c", "a b c").definition == far.definition


def test_prompts_that_cannot_be_compared_are_null_with_the_reason(editor):
    too_long, nothing = prompt_distance(editor, "a " * 40, "b"), prompt_distance(editor, "", "b")
    assert too_long.value is None and "reads 16 tokens" in too_long.reason
    assert nothing.value is None and "finds no words in ''" in nothing.reason
    assert prompt_distance(ToyEditor(), "a", "b").value > 0


def test_judge_passes_the_whole_case_on():
    one, two = fakes.images(1, 16, 0), fakes.images(1, 16, 1)
    (different,) = pipeline.judge(one, two[0], " night ", [Parrot()], truth=7)
    (equal,) = pipeline.judge(one, one, "night", [Parrot()])
    assert (different.success, different.reasons) == (True, "night 7")
    assert equal.success is False


NAN = fakes.images(1, 16).index_fill(-1, torch.tensor([3]), float("nan"))
WRONG = {
    "not a tensor": ({"image": "cat.png"}, "load_image"),
    "nan": ({"image": NAN}, "nan"),
    "8-bit values": ({"image": fakes.images() * 255}, "[0, 1]"),
    "one channel": ({"image": fakes.images()[:, :1]}, "(B, 3, H, W)"),
    "no batch axis": ({"image": fakes.images()[0]}, "(B, 3, H, W)"),
    "empty prompt": ({"prompt": "  "}, "prompt"),
    "prompts for another batch": ({"prompt": ["a", "b"]}, "one prompt or 1"),
    "prompt of another type": ({"prompt": 3}, "prompt"),
    "unknown method": ({"method": "sfim"}, "did you mean sifm"),
    "unknown option": ({"timestep": 3}, "did you mean timesteps"),
    "option of another method": ({"method": "random_noise", "timesteps": 3}, "pattern"),
    "eps 0": ({"eps": 0}, "eps"),
    "eps negative": ({"eps": -0.03}, "eps"),
    "eps above 1": ({"eps": 7.65}, "eps"),
    "eps nan": ({"eps": float("nan")}, "eps"),
    "eps text": ({"eps": "0.03"}, "eps"),
    "eps under one level": ({"eps": 0.003}, "1/255"),
    "alpha 0": ({"alpha": 0}, "alpha"),
    "no steps": ({"steps": 0}, "steps"),
    "steps negative": ({"steps": -1}, "steps"),
    "steps a fraction": ({"steps": 1.5}, "steps"),
    "seed negative": ({"seed": -1}, "seed"),
    "mask of another size": ({"mask": torch.ones(8, 8)}, "16 wide and 16 high"),
    "mask out of range": ({"mask": 255 * torch.ones(16, 16)}, "mask"),
    "mask all zero": ({"mask": torch.zeros(16, 16)}, "mask"),
    "masks for another batch": ({"mask": torch.ones(2, 1, 16, 16)}, "mask"),
}


@pytest.mark.parametrize("changes, said", WRONG.values(), ids=WRONG)
def test_immunize_refuses_before_any_work(changes, said):
    arguments = {"image": fakes.images(), "prompt": "a", **changes}
    with pytest.raises(InputError) as caught:
        pipeline.immunize(arguments.pop("image"), editor="never loaded", **arguments)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    "changes, said",
    [({"prompt": ""}, "prompt"), ({"image": NAN}, "nan"), ({"seed": [1, 2]}, "seed"), ({"seed": 0.5}, "seed")],
)
def test_edit_refuses_before_any_work(changes, said):
    arguments = {"image": fakes.images(), "prompt": "a", **changes}
    with pytest.raises(InputError, match=said):
        pipeline.edit(arguments.pop("image"), editor="never loaded", **arguments)


def test_edit_refuses_unknown_options_with_near_names(editor):
    with pytest.raises(InputError, match="guidance_scale"):
        pipeline.edit(fakes.images(), editor, prompt="a", guidance_scal=3.0)


def test_measure_and_judge_refuse_pictures_of_different_size():
    one, two = fakes.images(1, 48), fakes.images(1, (48, 50))
    with pytest.raises(InputError, match="48, 50"):
        pipeline.measure(one, two)
    with pytest.raises(ImageError, match=r"48x48.*50x48"):
        pipeline.judge(one, two, "a", [Parrot()])
    with pytest.raises(InputError, match="judges"):
        pipeline.judge(one, one, "a", [])
    with pytest.raises(InputError, match="judges"):
        pipeline.judge(one, one, "a", "miniature:conv")

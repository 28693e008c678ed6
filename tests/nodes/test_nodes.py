"""Every node's `execute`, as ComfyUI calls it: in inference mode, with ComfyUI's own memory management."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from sifm_core import loop, methods
from sifm_core.types import Metric, Verdict

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.usefixtures("comfy")


@pytest.fixture(autouse=True)
def inside_a_prompt(comfy):
    with torch.inference_mode():
        yield


def picture(n: int = 1, height: int = 24, width: int = 32) -> torch.Tensor:
    levels = torch.randint(0, 256, (n, height, width, 3), generator=torch.Generator().manual_seed(n))
    return levels / 255


SETTINGS = {"prompt": "abc", "eps": 0.03, "steps": 3, "seed": 0, "alpha": 2 / 255}


def widgets(name: str) -> dict:
    """What the frontend would send for untouched widgets."""
    from nodes._inputs import method_inputs
    from nodes.immunize import HOOKED, TAKEN

    shown = method_inputs(name, skip=HOOKED if name == "sifm" else TAKEN)
    return {widget.id: widget.default for widget in shown if hasattr(widget, "default")}


def forget() -> None:
    """What follows is computed, not remembered."""
    import shutil

    from nodes._store import home

    shutil.rmtree(home(), ignore_errors=True)


def immunize(editor, image, **changes):
    """SIFM with untouched widgets, computed anew in every call."""
    from nodes.immunize import SifmImmunize

    forget()
    return SifmImmunize.execute(image=image, editor=editor, **SETTINGS | widgets("sifm") | changes)


def test_every_node_is_complete():
    from nodes import node_list

    ids = [node.GET_SCHEMA().node_id for node in node_list()]
    assert len(set(ids)) == len(ids) >= 10
    for node in node_list():
        info = node.GET_NODE_INFO_V1()
        assert info["name"].startswith("SIFM_") and info["category"] == "SIFM"
        assert info["description"] and info["search_aliases"]
        json.dumps(info)


def test_immunize_protects_within_the_budget_on_the_grid(editor):
    image = picture(2)
    out = immunize(editor, image)
    protected, perturbation, protection = out[0], out[1], out[2]
    assert protected.shape == perturbation.shape == image.shape
    assert 0 < (protected - image).abs().max() <= 0.03
    assert torch.equal(protected, (protected * 255).round() / 255)
    assert protection.settings["eps"] == 0.03 and protection.settings["method"] == "sifm"
    curve = out.ui["sifm_curve"][0]
    assert len(curve["loss"]) == 3 and all(math.isfinite(x) for x in curve["loss"])
    json.dumps(out.ui)


def test_a_batch_gives_what_its_pictures_give_alone(editor):
    image = picture(2)
    both, one = immunize(editor, image)[0], immunize(editor, image[1:])[0]
    assert torch.equal(both[1:], one)


def test_the_mask_keeps_pixels(editor):
    image, mask = picture(1), torch.zeros(1, 24, 32)
    mask[:, :, :16] = 1
    change = (immunize(editor, image, mask=mask)[0] - image).abs()
    assert change[:, :, 16:].max() == 0 < change[:, :, :16].max()


def test_the_hook_decides_what_is_disturbed(editor):
    from nodes.hook import SifmFeatureHook

    hook, matches = SifmFeatureHook.execute(editor, {"layers": "mid"}, "200,400", "literal").args
    assert matches == "mid_block"
    custom, matches = SifmFeatureHook.execute(
        editor, {"layers": "custom", "patterns": "mid_block,\n down_blocks.0.resnets.*"}, "5", "per_layer"
    ).args
    assert custom["layers"] == "mid_block,down_blocks.0.resnets.*"
    assert matches.splitlines() == ["down_blocks.0.resnets.0", "mid_block"]
    a, b = (immunize(editor, picture(1), hook=h) for h in (hook, custom))
    assert a[2].settings["options"]["timesteps"] == "200,400"
    assert not torch.equal(a[0], b[0])


def test_presets_are_those_of_the_editors(editor, sd3_editor):
    from nodes.hook import PRESETS, SifmFeatureHook
    from sifm_core.errors import InputError

    families = [editor.editor.layer_presets, sd3_editor.editor.layer_presets]
    assert set(PRESETS) == {name for presets in families for name in presets}
    hook, matches = SifmFeatureHook.execute(sd3_editor, {"layers": "early"}, "10", "literal").args
    assert hook["layers"] == "early" and matches == "transformer_blocks.0"
    with pytest.raises(InputError, match="early"):
        SifmFeatureHook.execute(editor, {"layers": "early"}, "10", "literal")


@pytest.mark.parametrize("name", [name for name in methods.METHODS if name != "sifm"])
def test_every_baseline_runs_with_untouched_widgets(editor, name):
    from nodes.immunize import SifmBaselineImmunize

    out = SifmBaselineImmunize.execute(picture(1), editor, **SETTINGS, method={"method": name} | widgets(name))
    assert 0 < (out[0] - picture(1)).abs().max() <= 0.03


def test_a_target_image_of_any_size_is_fitted(editor):
    from nodes.immunize import SifmBaselineImmunize

    method = {"method": "photoguard_encoder", "target_image": picture(1, 50, 40)} | widgets("photoguard_encoder")
    aimed = SifmBaselineImmunize.execute(picture(1), editor, **SETTINGS, method=method)[0]
    method.pop("target_image")
    assert not torch.equal(aimed, SifmBaselineImmunize.execute(picture(1), editor, **SETTINGS, method=method)[0])


def test_widgets_stand_for_the_options_of_the_signature():
    from nodes._inputs import method_options

    assert "prompts" not in method_options("sifm", widgets("sifm"))
    typed = method_options("sifm", widgets("sifm") | {"prompts": "make it red\n\n make it blue ", "lam": 2.0})
    assert typed["prompts"] == ["make it red", "make it blue"] and typed["lam"] == 2.0
    assert method_options("sifm", {"prompts": "one"})["prompts"] == ["one"]
    assert method_options("sifm", {"timesteps": "200\n400"})["timesteps"] == "200,400"


@pytest.fixture
def small_device(editor, sd3_editor, monkeypatch):
    """A device that holds what was loaded last and nothing else; what is not on it cannot run. Counts the loads."""
    from comfy import model_management

    there, loads = set(), []

    def load(patchers, **_):
        there.clear()
        there.update(patchers)
        loads.append(len(patchers))

    def guard(patcher):
        def look(module, args):
            assert patcher in there, f"{type(patcher.model.network).__name__} is not on the device"

        return [module.register_forward_pre_hook(look) for module in patcher.model.network.modules()]

    monkeypatch.setattr(model_management, "load_models_gpu", load)
    hooks = [hook for each in (editor, sd3_editor) for part in each._text + each._rest for hook in guard(part)]
    for each in (editor, sd3_editor):
        monkeypatch.setattr(each.editor, "_prompts", {})
    yield loads
    for hook in hooks:
        hook.remove()


TEXTS = {
    "further prompts": ("sifm", {"prompts": "further one\nfurther two"}),
    "no text beside the prompt": ("sifm", {"branch": "all"}),
    "a subject": ("semantic_attack", {"subject": "cat"}),
    "the notebook's edit without a prompt": ("photoguard_diffusion", {"official_quirks": True}),
}
TEXTS |= {name: (name, {}) for name in methods.METHODS}
TEXTS["sifm_plus"] = ("sifm_plus", {"instructions": "red\na dog"})  # what so small a tokenizer can read


@pytest.mark.parametrize("family", ["editor", "sd3_editor"])
@pytest.mark.parametrize(("method", "options"), TEXTS.values(), ids=TEXTS)
def test_texts_that_a_method_asks_for_are_read_where_memory_is_short(
    small_device, request, family: str, method: str, options: dict
):
    from nodes.immunize import SifmBaselineImmunize

    chosen = request.getfixturevalue(family)
    settings = SETTINGS | {"steps": 1}
    if method == "sifm":
        out = immunize(chosen, picture(1), steps=1, **options)
    else:
        forget()
        choice = {"method": method} | widgets(method) | options
        out = SifmBaselineImmunize.execute(picture(1), chosen, **settings, method=choice)
    assert 0 < (out[0] - picture(1)).abs().max() <= 0.03
    assert len(small_device) == (4 if {"subject", "instructions"} & {*options} else 2), (
        "there, away for a new text, and back"
    )


def test_two_editors_are_on_the_device_together(small_device, editor, sd3_editor):
    both = immunize(editor, picture(1), also=sd3_editor, steps=2)
    assert small_device == [len(editor._text), len(sd3_editor._text), len(editor._rest) + len(sd3_editor._rest)]
    (other,) = both[2].settings["also"]
    assert (other["editor"], other["editor_fingerprint"]) == (sd3_editor.editor.name, sd3_editor.editor.fingerprint)
    assert other["rows"] > 0
    assert "1.loss" in both[2].history[0] and not torch.equal(both[0], immunize(editor, picture(1), steps=2)[0])


LOOP = {
    "l2": {"ball": "l2", "alpha": 0.02},
    "decaying": {"schedule": "cosine", "random_start": "yes"},
    "adam": {"update": "adam", "alpha": 0.01},
    "transforms": {"eot": "none, jpeg:50-90, resize:0.5"},
    "terms": {"part_norms": True},
}


@pytest.mark.parametrize("name", ["SifmImmunize", "SifmBaselineImmunize"])
def test_saved_graphs_find_the_loops_widgets_where_they_were(comfy, name):
    from nodes import immunize as module

    made = {made.id: made for made in getattr(module, name).define_schema().inputs}
    folded = ["also", "ball", "schedule", "update", "eot", "random_start", "rows"]
    assert list(made)[3:8] == ["eps", "steps", "seed", "alpha", "mask"]
    assert list(made)[-8:] == [*folded, "mask_marks"], "what is new comes last"
    assert [made[setting].default for setting in ("eps", "steps", "alpha")] == [0.03, 100, 2 / 255]
    defaults = [made[setting].default for setting in folded[1:]]
    assert defaults == ["linf", "constant", "auto", "", "auto", 0]
    assert made.keys() >= set(loop.LOOP), "a setting that no widget sets"


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("node", ["sifm", "photoguard_encoder"])
@pytest.mark.parametrize("name", LOOP)
def test_every_option_of_the_loop_keeps_its_budget_in_the_file(
    editor, tmp_path, monkeypatch, name: str, node: str, masked: bool
):
    import folder_paths
    from PIL import Image

    from nodes.immunize import SifmBaselineImmunize
    from nodes.save import SifmSaveProtected

    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    image, mask = picture(2), torch.linspace(0, 1, 32).expand(1, 24, 32)
    options = LOOP[name] | ({"mask": mask} if masked else {})
    if node == "sifm":
        out, plain = immunize(editor, image, **options), immunize(editor, image)
    else:
        options = {key: value for key, value in options.items() if key != "part_norms"}
        method = {"method": node} | widgets(node)
        out, plain = (
            SifmBaselineImmunize.execute(image, editor, **SETTINGS | o, method=dict(method)) for o in (options, {})
        )
    if name != "terms" or masked:
        assert not torch.equal(out[0], plain[0])
    elif node == "sifm":
        assert {"norm", "dist", "grad", "grad_norm", "grad_dist", "saturated"} <= out[2].history[1].keys()
        assert out.ui["sifm_curve"][0]["log"][1]["grad_norm"] > 0
    SifmSaveProtected.PREPARE_CLASS_CLONE(None).execute(out[2], "x")
    for file, original in zip(sorted(tmp_path.glob("x*.png")), image, strict=True):
        saved = Image.open(file)
        delta = (torch.tensor(np.asarray(saved)) / 255 - original).double()
        size = delta.square().mean().sqrt() if name == "l2" else delta.abs().max()
        assert 0 < float(size) <= 0.03 + 1e-6
        assert not masked or not delta[:, 0].any()
        assert json.loads(saved.text["sifm"])["ball"] == LOOP[name].get("ball", "linf")


@pytest.mark.parametrize("ball", ["linf", "l2"])
def test_saving_checks_the_ball_and_the_mask_that_were_asked_for(editor, tmp_path, monkeypatch, ball):
    import folder_paths

    from nodes.save import Protection, SifmSaveProtected
    from sifm_core.errors import BudgetError

    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    save = SifmSaveProtected.PREPARE_CLASS_CLONE(None).execute
    original = torch.full((1, 3, 24, 32), 100 / 255)
    one = original.clone()
    one[..., 0, 0] += 60 / 255  # an RMS of 0.0085, a largest change of 0.235
    settings, mask = {"eps": 0.01, "ball": ball}, torch.ones(1, 1, 24, 32)
    if ball == "l2":
        save(Protection(original, one, settings), "x")
    else:
        with pytest.raises(BudgetError):
            save(Protection(original, one, settings), "x")
    mask[..., 0, 0] = 0
    with pytest.raises(BudgetError):
        save(Protection(original, original + (one - original) / 60, settings, mask=mask), "x")


def test_wrong_transforms_are_said_before_anything_runs():
    from nodes.immunize import SifmBaselineImmunize, SifmImmunize

    for node in (SifmImmunize, SifmBaselineImmunize):
        given = {"prompt": "a"} | ({"method": {"method": "mist"}} if node is SifmBaselineImmunize else {})
        assert "did you mean jpeg" in node.validate_inputs(**given, eot="jpg:75")
        assert "quality" in node.validate_inputs(**given, eot="none, jpeg:175")
        assert node.validate_inputs(**given, eot="none, jpeg:50-75") is True and node.validate_inputs(**given) is True


def test_a_method_that_needs_no_instruction_takes_an_empty_prompt(editor):
    from nodes.immunize import SifmBaselineImmunize

    assert SifmBaselineImmunize.validate_inputs(prompt=" ", method={"method": "sifm_plus"}) is True
    assert "type an instruction" in SifmBaselineImmunize.validate_inputs(prompt=" ", method={"method": "mist"})
    method = {"method": "sifm_plus"} | widgets("sifm_plus") | {"instructions": "red"}
    out = SifmBaselineImmunize.execute(picture(1), editor, **SETTINGS | {"prompt": ""}, method=method)
    assert 0 < (out[0] - picture(1)).abs().max() <= 0.03


def test_checkpointing_and_no_t5_reach_the_editor(folder, sd3_folder, editor):
    from nodes.load import SifmLoadEditor
    from sifm_core.errors import InputError

    saving = SifmLoadEditor.execute("miniature-ip2p", folder=str(folder), checkpointing=True)[0]
    assert saving.editor.net.is_gradient_checkpointing and not editor.editor.net.is_gradient_checkpointing
    assert torch.equal(immunize(saving, picture(1))[0], immunize(editor, picture(1))[0])
    small = SifmLoadEditor.execute("sd3-medium", folder=str(sd3_folder), t5=False)[0]
    assert small.editor.pipe.text_encoder_3 is None and immunize(small, picture(1))[0].shape == (1, 24, 32, 3)
    with pytest.raises(InputError, match="t5"):
        SifmLoadEditor.execute("miniature-ip2p", folder=str(folder), t5=False)


def test_an_editor_that_was_evicted_in_inference_mode_works_again(editor):
    from comfy import model_management

    before = immunize(editor, picture(1))[0]
    model_management.unload_all_models()
    for patcher in editor._rest:
        patcher.model.double().float()  # what a move between devices does: new tensors, made in inference mode
    assert any(p.is_inference() for patcher in editor._rest for p in patcher.model.parameters())
    assert torch.equal(immunize(editor, picture(1))[0], before)


@pytest.mark.parametrize("at", [1, 3])
def test_an_interrupt_stops_at_the_next_step(editor, monkeypatch, at):
    from comfy import model_management

    look, steps = model_management.throw_exception_if_processing_interrupted, []

    def watch():
        steps.append(1)
        if len(steps) == at:
            model_management.interrupt_current_processing()
        look()

    monkeypatch.setattr(model_management, "throw_exception_if_processing_interrupted", watch)
    with pytest.raises(model_management.InterruptProcessingException):
        immunize(editor, picture(1), steps=50)
    assert len(steps) == at
    assert not any(module._forward_hooks for module in editor.editor.net.modules())
    monkeypatch.undo()
    assert immunize(editor, picture(1))[0].shape == (1, 24, 32, 3)


def test_progress_and_previews_go_out_during_the_work(editor, monkeypatch):
    import comfy.utils

    sent = []
    monkeypatch.setattr(
        comfy.utils, "PROGRESS_BAR_HOOK", lambda value, total, preview, **_: sent.append((value, preview))
    )
    immunize(editor, picture(1), steps=11)
    previews = {value: preview for value, preview in sent if preview}
    assert set(previews) == {1, 5, 10, 11}
    kind, shown, _ = previews[11]
    assert kind == "JPEG" and shown.height >= 240 and shown.width == shown.height * 2 * 32 // 24


def test_the_attack_has_the_size_of_its_picture_and_repeats_itself(editor):
    from nodes.edit import SifmAttackerEdit

    image = picture(2)
    edits = []
    for seed in (0, 0, 1):
        forget()
        edits.append(SifmAttackerEdit.execute(image, editor, "abc", seed, steps=0, guidance_scale=0.0)[0])
    assert edits[0].shape == image.shape
    assert torch.equal(edits[0], edits[1]) and not torch.equal(edits[0], edits[2])
    more = SifmAttackerEdit.execute(image, editor, "abc", 0, steps=4, guidance_scale=3.0, image_guidance_scale=2.0)[0]
    assert not torch.equal(more, edits[0])


def test_saved_files_keep_the_budget_and_say_what_they_are(editor, tmp_path, monkeypatch):
    import folder_paths
    from PIL import Image

    from nodes.save import SifmSaveProtected

    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    out = immunize(editor, picture(2))
    node = SifmSaveProtected.PREPARE_CLASS_CLONE(None)
    saved = node.execute(out[2], "here/pic")
    assert torch.equal(saved[0], out[0])
    files = sorted((tmp_path / "here").glob("*.png"))
    assert [file.parent.name for file in files] == ["here", "here"] and len(saved.ui["images"]) == len(
        saved.ui["text"]
    ) == 2
    about = json.loads(Image.open(files[1]).text["sifm"])
    assert about["eps"] == 0.03 and about["editor_fingerprint"] == editor.editor.fingerprint
    assert len({about["original"], about["protected"]}) == 2


def test_a_saved_file_names_no_instruction_and_no_folder(editor, sd3_editor, tmp_path, monkeypatch):
    import folder_paths
    from PIL import Image

    from nodes.save import SifmSaveProtected

    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    out = immunize(editor, picture(1), prompt="a sly b", prompts="a sly c", also=sd3_editor)
    assert "sly c" in str(out[2].settings["options"])
    SifmSaveProtected.PREPARE_CLASS_CLONE(None).execute(out[2], "pic")
    (file,) = tmp_path.glob("pic*.png")
    said = Image.open(file).text["sifm"]
    assert "sly" not in said and not any(each.editor.name in said for each in (editor, sd3_editor))
    about = json.loads(said)
    assert about["also"][0].keys() == {"editor_fingerprint", "rows"} and about["options"]["lam"] > 0


def test_a_result_outside_its_budget_is_not_passed_on(editor, tmp_path, monkeypatch):
    import folder_paths

    from nodes.save import Protection, SifmSaveProtected
    from sifm_core.errors import BudgetError

    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    good = immunize(editor, picture(1))[2]
    bad = Protection(good.original, 1 - good.image, good.settings)
    with pytest.raises(BudgetError):
        SifmSaveProtected.PREPARE_CLASS_CLONE(None).execute(bad, "x")


def test_metrics_are_the_engines(editor):
    from nodes.measure import SifmPairwiseMetrics
    from sifm_core import pipeline

    a, b = picture(2, 64, 64), picture(2, 64, 64).flip(1)
    metrics, text = SifmPairwiseMetrics.execute(a, b).args
    truth = pipeline.measure(a.movedim(-1, 1).clone(), b.movedim(-1, 1).clone())
    assert [m.value for m in metrics["ssim"]] == pytest.approx([m.value for m in truth["ssim"]])
    assert text.count("\n") == len(metrics) + 1 and "picture 2" in text


def verdict(mismatch: bool | None) -> Verdict:
    """A judge's answer, or none."""
    found = () if mismatch is None else (mismatch, False)
    return Verdict("miniature:conv", "ok" if found else "refused", *found)


class FakeJudge:
    """Says mismatch where the edit is darker than the source; keeps what it was asked."""

    name = "fake:judge"

    def __init__(self):
        self.cases = []

    def judge(self, cases, *, on_step=None):
        self.cases += cases
        return [verdict(bool(case.edited.mean() < case.source.mean())) for case in cases]


def test_the_judge_sees_every_arm_blind_and_in_order(monkeypatch):
    import nodes.judge

    fake = FakeJudge()
    monkeypatch.setattr(nodes.judge, "load_judge", lambda spec, **options: fake)
    source = picture(2)
    out = nodes.judge.SifmMllmJudge.execute(
        source, "make it red", source * 0.5, {"judge": "miniature", "model": "conv"}, control_edit=source * 0.5 + 0.5
    )
    seen, text = out.args
    assert {arm: [each.verdict.success for each in listed] for arm, listed in seen.items()} == {
        "protected": [True, True],
        "control": [False, False],
    }
    assert [case.truth for case in fake.cases] == [None] * 4
    assert text.count("\n") == 5
    cards = out.ui["sifm_cards"]
    said = [(card["method"], card["failed"]) for card in cards]
    assert said == [("noise control", False)] * 2 + [("protected", True)] * 2
    assert len({card["source"]["filename"] for card in cards}) == 2, "a picture is kept once, whoever is shown with it"
    assert len({card["edited"]["filename"] for card in cards}) == 4
    json.dumps(cards)


def test_a_card_shows_the_picture_as_it_is_and_a_large_one_smaller(tmp_path, monkeypatch):
    import folder_paths
    from PIL import Image

    from nodes import _shown

    monkeypatch.setattr(folder_paths, "temp_directory", str(tmp_path))
    image = picture(1)[0].movedim(-1, 0)
    file = _shown.picture(image)
    path = tmp_path / file["subfolder"] / file["filename"]
    assert file["type"] == "temp" and Image.open(path).getpixel((3, 5)) == tuple(
        image[:, 5, 3].mul(255).round().int().tolist()
    )
    large = _shown.picture(image.repeat(1, 64, 64))
    with Image.open(tmp_path / large["subfolder"] / large["filename"]) as small:
        assert max(small.size) == 512 and small.width * image.shape[1] == small.height * image.shape[2]


def test_a_question_without_an_answer_is_unclear_in_the_table_and_never_ok():
    from nodes.judge import _row

    assert _row("protected", 0, Verdict("human:anna", "ok", False, None))[2:4] == ["no", "unclear"]
    assert _row("protected", 0, Verdict("a", "refused"))[2:4] == ["refused", "refused"]
    assert _row("protected", 0, Verdict("a", "truncated", True, True))[2:4] == ["truncated", "truncated"]


def test_edits_of_another_number_or_size_are_refused(monkeypatch):
    import nodes.judge
    from sifm_core.errors import ImageError

    monkeypatch.setattr(nodes.judge, "load_judge", lambda spec, **options: FakeJudge())
    with pytest.raises(ImageError, match="2 of 32x24"):
        nodes.judge.SifmMllmJudge.execute(picture(2), "x", picture(1), {"judge": "miniature", "model": "conv"})


def test_no_widget_of_the_judge_takes_a_key(monkeypatch):
    from nodes.judge import SifmMllmJudge

    monkeypatch.setenv("SOME_API_KEY", "sk-secret")
    shown = json.dumps(SifmMllmJudge.GET_NODE_INFO_V1())
    assert "SOME_API_KEY" in shown and "sk-secret" not in shown


def test_paid_judges_get_their_settings_and_a_ledger(monkeypatch, tmp_path):
    import folder_paths

    import nodes.judge

    asked = []
    monkeypatch.setattr(folder_paths, "user_directory", str(tmp_path))
    monkeypatch.setattr(nodes.judge, "load_judge", lambda spec, **options: asked.append((spec, options)) or FakeJudge())
    choice = {
        "judge": "openai",
        "model": "llava",
        "base_url": "http://h/v1",
        "key_variable": "A_API_KEY",
        "max_cost": 0.0,
    }
    nodes.judge.SifmMllmJudge.execute(picture(1), "x", picture(1), choice)
    spec, options = asked[0]
    assert (spec, options["base_url"]) == ("openai:llava", "http://h/v1")
    assert options["key_variable"] == "A_API_KEY" and options["max_cost"] is None
    assert options["cache"].parent.is_dir()


def arms(protected: list, clean: list, control: list | None = None) -> dict:
    from nodes._cards import Seen

    given = {"protected": protected, "clean": clean} | ({"control": control} if control else {})
    return {arm: [Seen(verdict(v)) for v in values] for arm, values in given.items()}


def test_the_aggregate_counts_what_both_judges_say_and_pairs_it_with_the_clean_edit():
    from nodes.bench import SifmIsrAggregate

    first = [arms([True, True], [False, True], [False, False]), arms([True, False], [False, False], [True, False])]
    second = [arms([True, True], [False, True], [False, False]), arms([False, None], [False, False], [True, False])]
    metrics = [{"ssim": [Metric(0.5, "d"), Metric(0.7, "d")]}, {"ssim": [Metric(None, "d", "why"), Metric(0.9, "d")]}]
    out = SifmIsrAggregate.execute({"judge_0": first, "judge_1": second}, metrics=metrics)
    rates = out.ui["sifm_isr"][0]["rates"]
    assert rates["protected"]["rate"] == pytest.approx(2 / 3) == out[1]
    assert rates["protected"]["unclear"] == 1
    assert rates["protected"]["net"] == pytest.approx(1 / 3)
    assert rates["control"]["rate"] == rates["clean"]["rate"] == 0.25
    assert out.ui["sifm_isr"][0]["metrics"]["protected"]["ssim"] == pytest.approx(0.7)
    assert "67%" in out[0] and "no evidence" in out[0]
    assert [record["success"] for record in out.ui["sifm_isr"][0]["records"][:4]] == [True, True, False, None]
    cards = out.ui["sifm_cards"]
    assert [card["method"] for card in cards[::4]] == ["unprotected", "noise control", "protected"]
    assert [card["failed"] for card in cards[-4:]] == [True, True, False, None]
    assert [[said["word"] for said in card["said"]] for card in cards[-2:]] == [
        ["mismatch", "works"],
        ["works", "unclear"],
    ]
    json.dumps(out.ui)


def test_nothing_judged_is_no_rate():
    from nodes.bench import SifmIsrAggregate

    out = SifmIsrAggregate.execute({"judge_0": [arms([None], [None])]})
    assert math.isnan(out[1])
    assert "| -" in out[0]


def test_judges_of_different_pictures_do_not_mix():
    from nodes.bench import SifmIsrAggregate
    from sifm_core.errors import InputError

    with pytest.raises(InputError, match="same pictures"):
        SifmIsrAggregate.execute({"judge_0": [arms([True], [True])], "judge_1": [arms([True, True], [True, True])]})


def test_the_benchmark_comes_as_lists_of_one_length():
    from nodes.bench import SifmLoadBenchmark
    from sifm_core.errors import InputError
    from sifm_core.miniature import benchmark

    images, prompts, categories, ids, unseen = SifmLoadBenchmark.execute("landscape", 2, 3).args
    assert len(images) == len(prompts) == 3 == len(set(ids))
    assert set(categories) == {"landscape"}
    item = benchmark.load(ids=[ids[0]])[0]
    assert torch.equal(images[0][0].movedim(-1, 0), item.image) and prompts[0] == item.instruction
    assert unseen[0].splitlines() == list(item.unseen) and len(unseen) == 3
    with pytest.raises(InputError, match="start"):
        SifmLoadBenchmark.execute("artwork", 90, 1)
    required = SifmLoadBenchmark.INPUT_TYPES()["required"]
    assert min(required[name][1]["max"] for name in ("start", "count")) >= 10_000, "one's own benchmark may be larger"


def test_a_changed_model_file_is_noticed(folder):
    from nodes.load import SifmLoadEditor

    before = SifmLoadEditor.fingerprint_inputs("miniature-ip2p", str(folder))
    assert before == SifmLoadEditor.fingerprint_inputs("miniature-ip2p", str(folder)) != []
    file = next(folder.glob("unet/*.safetensors"))
    file.touch()
    assert SifmLoadEditor.fingerprint_inputs("miniature-ip2p", str(folder)) != before


def test_models_in_comfyuis_folder_are_offered(folder, tmp_path, monkeypatch):
    import folder_paths

    from nodes.load import SifmLoadEditor

    (tmp_path / "my-editor").symlink_to(folder)
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "diffusers", ([str(tmp_path)], set()))
    options = SifmLoadEditor.INPUT_TYPES()["required"]["editor"][1]["options"]
    assert options[0] == "miniature-ip2p" and "my-editor" in options
    assert SifmLoadEditor.execute("my-editor")[0].editor.name == "my-editor"
    assert SifmLoadEditor.validate_inputs(str(tmp_path)) is not True


@pytest.mark.parametrize("language", ["zh", "ja"])
def test_a_translation_has_every_text_that_the_nodes_have(language):
    from nodes import node_list

    infos = {node.GET_SCHEMA().node_id: node.GET_NODE_INFO_V1() for node in node_list()}
    translated = json.loads((ROOT / "locales" / language / "nodeDefs.json").read_text())
    assert set(translated) == set(infos)
    for name, words in translated.items():
        info = infos[name]
        assert words["display_name"] and words["description"] != info["description"], name
        given = {key: spec for part in ("required", "optional") for key, spec in info["input"].get(part, {}).items()}
        assert set(words["inputs"]) == set(given), name
        untold = [key for key, spec in given.items() if len(spec) > 1 and spec[1].get("tooltip")]
        assert not [key for key in untold if not words["inputs"][key].get("tooltip")], name
        assert len(words["outputs"]) == len(info["output"]), name
        told = [str(i) for i, text in enumerate(info["output_tooltips"] or ()) if text]
        assert not [i for i in told if not words["outputs"][i].get("tooltip")], name


def test_the_extension_says_the_same_in_every_language():
    words = (ROOT / "web" / "words.js").read_text()
    said = {text for file in ROOT.glob("web/*.js") for text in re.findall(r'say\("([^"]+)"\)', file.read_text())}
    assert len(said) > 10
    for text in said:
        written = [f'"{text}":', f"{text}:"]
        assert max(words.count(form) for form in written) >= 2, f"{text!r} is not in both languages"

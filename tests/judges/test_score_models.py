"""Judges that give numbers: thresholds from controls, numbers and thresholds kept, and the packages that give them."""

from __future__ import annotations

import json
import sys
import types

import pytest
import torch

from judges.servers import case
from sifm_core import cli, controls
from sifm_core.errors import InputError, JudgeError
from sifm_core.judges import load_judge, score_models
from sifm_core.judges.calibration import Gold, counted, cross_fitted, fitted
from sifm_core.types import Case, Verdict


@pytest.fixture
def editscore(monkeypatch, tmp_path):
    """A package of EditScore's interface that finds brightness good, and a folder that looks like its weights."""
    opened = []

    class EditScore:
        def __init__(self, **settings):
            opened.append(settings)

        def evaluate(self, pictures, instruction):
            if instruction == "crash":
                raise ValueError("no\x1b[31m")
            source, edited = (p.convert("L").getpixel((0, 0)) / 25.5 for p in pictures)
            quality = float("nan") if instruction == "nan" else edited
            said = {"PQ_reasoning": "guess_if_cannot_parse | It is nice."} if instruction == "prose" else {}
            print("Failed to find the json content in the string.")
            return {"prompt_following": edited, "consistency": 10 - source, "perceptual_quality": quality, **said}

    module = types.ModuleType("editscore")
    module.EditScore = EditScore
    module.__spec__ = types.SimpleNamespace(name="editscore")
    monkeypatch.setitem(sys.modules, "editscore", module)
    monkeypatch.setattr(score_models, "_fastest", lambda: "cuda")
    folder = tmp_path / "weights"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "qwen2_5_vl"}')
    return folder, opened


@pytest.fixture
def editreward(monkeypatch, tmp_path):
    class EditRewardInferencer:
        def __init__(self, config_path, checkpoint_path, device):
            assert config_path.endswith("own.yaml") and device == "cpu"

        def reward(self, prompts, image_src, image_paths):
            assert len(prompts) == len(image_src) == len(image_paths) == 1
            return torch.tensor([[image_paths[0].convert("L").getpixel((0, 0)) / 255 - 0.5, 1.0]])

    package, module = types.ModuleType("EditReward"), types.ModuleType("EditReward.inference_edit")
    package.__spec__ = types.SimpleNamespace(name="EditReward")
    module.EditRewardInferencer = EditRewardInferencer
    monkeypatch.setitem(sys.modules, "EditReward", package)
    monkeypatch.setitem(sys.modules, "EditReward.inference_edit", module)
    folder = tmp_path / "reward"
    folder.mkdir()
    (folder / "own.yaml").write_text(f'output_dim: 2\nmodel_name_or_path: "{base(tmp_path, "qwen2_5_vl")}" # of 2025\n')
    return folder


def base(tmp_path, kind):
    """A folder that looks like a vision-language model's."""
    folder = tmp_path / "base"
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": kind}))
    return folder


def grey(level, prompt="x"):
    return Case(torch.full((3, 8, 8), 0.2), torch.full((3, 8, 8), float(level)), prompt)


def test_without_a_threshold_the_number_is_kept_and_nothing_is_decided(editscore):
    folder, opened = editscore
    (verdict,) = load_judge(f"score:editscore:{folder}").judge([grey(0.6)])
    assert (verdict.state, verdict.success, verdict.semantic_mismatch) == ("error", None, None)
    assert verdict.scores["semantic_mismatch"] == {"value": pytest.approx(6.0, abs=0.1), "threshold": None}
    assert "sifm calibrate" in verdict.reasons and opened[0]["backbone"] == "qwen25vl"


def test_with_thresholds_numbers_below_them_are_failures_of_their_axis(editscore):
    folder, _ = editscore
    judge = load_judge(f"score:editscore:{folder}#5,7.5")
    bright, middle, dark = judge.judge([grey(0.9), grey(0.6), grey(0.1)])
    assert [v.state for v in (bright, middle, dark)] == ["ok"] * 3
    assert (bright.success, middle.word, dark.word) == (False, "degraded", "mismatch and degraded")
    assert middle.scores["perceptual_degradation"]["threshold"] == 7.5 and middle.judge.endswith("#5,7.5")
    assert judge.served != load_judge(f"score:editscore:{folder}#5,7").served


def test_one_number_for_both_says_that_an_edit_failed_and_not_how(editreward):
    good, bad = load_judge(f"score:editreward:{editreward}#-0.1", device="cpu").judge([grey(0.9), grey(0.1)])
    assert (good.success, bad.success) == (False, True)
    assert (bad.semantic_mismatch, bad.perceptual_degradation, bad.word) == (None, None, "failed")
    from sifm_core.verdicts import consensus, failure_axis

    assert consensus([bad]) is True and failure_axis([bad]) == "mixed" and failure_axis([good]) == "none"


@pytest.mark.parametrize(
    "prompt, state", [("crash", "error"), ("nan", "unparsable"), ("prose", "unparsable"), (" ", "error")]
)
def test_a_case_that_the_model_cannot_score_costs_one_verdict(editscore, capsys, prompt, state):
    folder, _ = editscore
    wrong, right = load_judge(f"score:editscore:{folder}#5,5").judge([grey(0.5, prompt), grey(0.9)])
    assert (wrong.state, wrong.success, right.state) == (state, None, "ok") and "\x1b" not in wrong.reasons
    assert capsys.readouterr().out == "", "what its package prints is not what was asked for"


def test_what_is_missing_is_said(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="kind of score model 'edit-score': did you mean editscore"):
        load_judge("score:edit-score:x")
    with pytest.raises(JudgeError, match="expected a folder"):
        load_judge("score:editscore:nowhere")
    monkeypatch.setattr(score_models, "find_spec", lambda name: None)
    with pytest.raises(JudgeError, match="pip install editscore"):
        load_judge(f"score:editscore:{tmp_path}")
    assert "pip install editscore or pip install git" in score_models.absent()
    with pytest.raises(InputError, match="base_url"):
        load_judge("score:editscore:x", base_url="http://127.0.0.1:1")


def test_weights_of_another_shape_are_named(editscore, editreward):
    folder, _ = editscore
    (folder / "config.json").write_text("[]")
    with pytest.raises(JudgeError, match=r"expected an EditScore, the adapter_config\.json of one or a merged one"):
        load_judge(f"score:editscore:{folder}")
    (editreward / "other.yaml").write_text("")
    with pytest.raises(JudgeError, match=r"the one \.yaml"):
        load_judge(f"score:editreward:{editreward}")


@pytest.mark.parametrize("kind, backbone", [("qwen2_5_vl", "qwen25vl"), ("qwen3_vl", "qwen3vl")])
def test_an_editscore_as_it_is_published_is_opened_beside_the_model_that_it_names(editscore, tmp_path, kind, backbone):
    folder, opened = editscore
    (folder / "config.json").unlink()
    adapter = {"peft_type": "LORA", "base_model_name_or_path": str(base(tmp_path, kind))}
    (folder / "adapter_config.json").write_text(json.dumps(adapter))
    load_judge(f"score:editscore:{folder}")
    (settings,) = opened
    assert settings == {
        "backbone": backbone, "model_name_or_path": str(tmp_path / "base"), "lora_path": str(folder), "seed": 0
    }  # fmt: skip


def test_nothing_that_a_checkpoint_is_built_on_is_fetched(editscore, editreward):
    folder, opened = editscore
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "nobody/Qwen2.5-VL-7B"}')
    (editreward / "own.yaml").write_text("model_name_or_path: nobody/Qwen2.5-VL-7B\n")
    for spec in (f"score:editscore:{folder}", f"score:editreward:{editreward}"):
        with pytest.raises(JudgeError, match=r"built on nobody/Qwen2\.5-VL-7B, which is not on"):
            load_judge(spec)
    assert opened == []


def test_a_package_is_opened_offline_and_leaves_the_hub_as_it_was(editscore, monkeypatch):
    import huggingface_hub.constants as hub

    folder, _ = editscore
    seen = []
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(sys.modules["editscore"], "EditScore", lambda **_: seen.append(hub.HF_HUB_OFFLINE))
    load_judge(f"score:editscore:{folder}")
    assert seen == [True] and hub.HF_HUB_OFFLINE is False


def test_a_machine_without_cuda_is_told_before_the_model_is_opened(editscore, monkeypatch):
    folder, opened = editscore
    monkeypatch.setattr(score_models, "_fastest", lambda: "cpu")
    with pytest.raises(JudgeError, match="CUDA alone"):
        load_judge(f"score:editscore:{folder}")
    assert opened == []


def test_an_editreward_of_the_third_generation_is_opened_by_its_own_class(editreward, tmp_path, monkeypatch):
    module = types.ModuleType("EditReward.inference_qwen3_vl_edit")
    module.EditRewardQwen3Inferencer = sys.modules["EditReward.inference_edit"].EditRewardInferencer
    monkeypatch.delitem(sys.modules, "EditReward.inference_edit")
    monkeypatch.setitem(sys.modules, "EditReward.inference_qwen3_vl_edit", module)
    base(tmp_path, "qwen3_vl")
    (verdict,) = load_judge(f"score:editreward:{editreward}#0", device="cpu").judge([grey(0.9)])
    assert verdict.success is False


# ---- thresholds


def scored(value, axis="success"):
    return Verdict("j", "error", scores={axis: {"value": value, "threshold": None}})


def golds(known):
    return [Gold("k", case("x"), failed, False, picture) for picture, failed in enumerate(known)]


@pytest.mark.parametrize(
    "values, failed, cut",
    [
        ([1, 2, 8, 9], [True, True, False, False], 5.0),
        ([1, 2, 3, 9, 10], [True, True, False, False, False], 2.5),
        ([1, 4, 5, 9], [True, False, True, False], 7.0),  # two cuts are as good: the one in the wider gap
        ([9, 8, 1, 2], [True, True, False, False], None),  # nothing is told apart: all or none
    ],
)
def test_the_threshold_tells_failed_controls_from_sound_ones_best(values, failed, cut):
    found = fitted(golds(failed), list(map(scored, values)))
    if cut is None:
        assert found["success"] <= 1 or found["success"] > 9
    else:
        assert found == {"success": cut}


def test_there_is_no_threshold_without_both_kinds_of_control_or_without_numbers():
    assert fitted(golds([True, True]), [scored(1), scored(2)]) == {}
    assert fitted(golds([True, False]), [Verdict("j", "ok", True, False)] * 2) == {}


def test_thresholds_are_counted_on_pictures_that_they_were_not_found_on():
    """Pure noise: a threshold fits its own controls better than chance, and others not."""
    known = golds([i % 2 == 0 for i in range(40)])

    def right(verdicts):
        found = counted("j", known, verdicts)
        return (found.sensitivity["success"].value + found.specificity["success"].value) / 2

    own, others = 0.0, 0.0
    for seed in range(12):
        noise = torch.rand(len(known), generator=torch.Generator().manual_seed(seed)).tolist()
        verdicts = list(map(scored, noise))
        own += right([v.decided(fitted(known, verdicts)) for v in verdicts]) / 12
        others += right(cross_fitted(known, verdicts)) / 12
    assert own > 0.55 > 0.53 > others


def test_calibrating_names_the_judge_with_its_thresholds_and_the_name_can_be_asked(editscore):
    folder, _ = editscore
    cases = [(level, failed, picture) for picture in range(6) for level, failed in ((0.1, True), (0.9, False))]
    known = [Gold("k", grey(level), failed, failed, picture) for level, failed, picture in cases]
    spec = f"score:editscore:{folder}"
    (tuned,) = controls.calibrated(spec, load_judge(spec), known)
    assert tuned.judge.startswith(f"{spec}#") and tuned.unclear == 0
    assert tuned.sensitivity["success"].value == tuned.specificity["success"].value == 1.0
    assert [v.success for v in load_judge(tuned.judge).judge([g.case for g in known])] == [g.success for g in known]
    plain, again = controls.calibrated(tuned.judge, load_judge(tuned.judge), known)
    assert plain.judge == again.judge == tuned.judge


def test_the_command_prints_the_name_to_ask_by(editscore, capsys):
    folder, _ = editscore
    words = [
        "calibrate",
        "--judge",
        f"score:editscore:{folder}",
        "--judge",
        "miniature:conv",
        "--images",
        "4",
        "--json",
    ]
    assert cli.main(words) == 0
    found = [one["judge"] for one in json.loads(capsys.readouterr().out)]
    assert found[0].startswith(f"score:editscore:{folder}#") and found[1] == "miniature:conv"

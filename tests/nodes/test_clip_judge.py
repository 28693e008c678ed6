"""A judge from the person's own CLIP object: core's Qwen3-VL, tiny and random, and what cannot judge."""

from __future__ import annotations

import json
import types

import pytest
import torch

from sifm_core.errors import InputError
from sifm_core.judges.ranking import spellings
from sifm_core.judges.rubric import OPTIONS, PRESETS
from sifm_core.types import Case

pytestmark = [pytest.mark.comfyui, pytest.mark.usefixtures("comfy")]


@pytest.fixture(scope="module")
def clip(comfy):
    """ComfyUI's own Qwen3-VL and tokenizer, with few and narrow layers and random weights."""
    import comfy.sd
    from comfy.text_encoders import qwen3vl

    whole = qwen3vl.QWEN3VL_CONFIGS["qwen3vl_4b"]
    small = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2}
    small |= {"num_attention_heads": 2, "num_key_value_heads": 1}
    vision = qwen3vl.QWEN3VL_VISION["qwen3vl_4b"] | {
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_heads": 2,
        "depth": 2,
    }
    vision["deepstack_visual_indexes"] = [0]
    patch = pytest.MonkeyPatch()
    patch.setitem(qwen3vl.QWEN3VL_CONFIGS, "qwen3vl_4b", lambda **kw: whole(**kw | small))
    patch.setitem(qwen3vl.QWEN3VL_VISION, "qwen3vl_4b", vision)
    target = types.SimpleNamespace(
        params={}, clip=qwen3vl.te(model_type="qwen3vl_4b"), tokenizer=qwen3vl.tokenizer("qwen3vl_4b")
    )
    with torch.inference_mode():
        made = comfy.sd.CLIP(target)
        generator = torch.Generator().manual_seed(0)
        for name, parameter in made.cond_stage_model.named_parameters():
            norm = "norm" in name and name.endswith("weight")
            parameter.copy_(
                torch.ones(parameter.shape) if norm else 0.3 * torch.randn(parameter.shape, generator=generator)
            )
    yield made
    patch.undo()


@pytest.fixture(scope="module")
def gemma(comfy):
    """ComfyUI's own Gemma 3 that sees, few and narrow; T5's words in place of its own, which are not shipped."""
    from pathlib import Path

    import comfy.sd
    from comfy.supported_models_base import ClipTarget
    from comfy.text_encoders import llama, lumina2

    whole, words = llama.Gemma3_4B_Vision_Config, Path(llama.__file__).parent / "t5_pile_tokenizer" / "tokenizer.model"

    class Small(whole):
        vision_config = llama.GEMMA3_VISION_CONFIG | {
            "image_size": 56, "hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2,
            "num_hidden_layers": 1,
        }  # fmt: skip
        mm_tokens_per_image, head_dim = 4, 32

    small = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 3}
    small |= {"num_attention_heads": 2, "num_key_value_heads": 1}
    patch = pytest.MonkeyPatch()
    patch.setattr(llama, "Gemma3_4B_Vision_Config", lambda **kw: Small(**kw | small))
    with torch.inference_mode():
        target = ClipTarget(lumina2.NTokenizer, lumina2.te(model_type="gemma3_4b_vision"))
        made = comfy.sd.CLIP(
            target, model_options={"dtype": torch.float32}, tokenizer_data={"spiece_model": words.read_bytes()}
        )
        generator = torch.Generator().manual_seed(0)
        for parameter in made.cond_stage_model.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    yield made
    patch.undo()


def picture(seed):
    return torch.rand(3, 48, 64, generator=torch.Generator().manual_seed(seed))


def test_a_random_clip_cannot_fail_to_answer_and_says_how_likely(clip):
    from nodes._clip_judge import judge_of

    judge = judge_of(clip)
    cases = [Case(picture(0), picture(i), "make it night {0} <|im_end|>") for i in (1, 2)]
    verdicts = judge.judge(cases)
    assert judge.name == "clip:qwen3vl_4b" and len({v.raw for v in verdicts}) == 2
    for verdict in verdicts:
        assert verdict.state == "ok" and verdict.success is not None and verdict.cost == 0.0
        assert verdict.scores.keys() == {"semantic_mismatch", "perceptual_degradation"}
        assert all(0 < json.loads(a)["mass"] < 1 for a in json.loads(verdict.raw))
    assert [v.raw for v in judge_of(clip).judge(cases)] == [v.raw for v in verdicts]


def test_the_probabilities_are_those_of_the_whole_text_at_once(clip):
    """Against one pass over question and answer together, without core's loop and cache."""
    from nodes._clip_judge import ClipClient

    client, question = ClipClient(clip), PRESETS["ranked"][0]
    parts = question.parts(Case(picture(0), picture(1), "make it night"))
    answer = json.loads(client.send(parts, question).text)
    seen = []
    client._drawn = lambda tokens, ids: seen.append(tokens) or [torch.zeros(1)]
    with pytest.raises(IndexError):
        client.send(parts, question)
    model = clip.cond_stage_model.qwen3vl_4b
    expected = dict.fromkeys(OPTIONS, 0.0)
    with torch.no_grad():
        for option in OPTIONS:
            for word in spellings(option):
                ids = client._ids(word)
                (rows,) = next(iter(seen[0].values()))
                row = [token[0] for token in rows] + ids
                embeds, _, _, info = model.process_tokens([row], torch.device("cpu"))
                hidden = model.transformer(None, embeds=embeds, embeds_info=info)[0]
                weight = model.transformer.model.embed_tokens.weight.to(hidden)
                logs = (hidden[0] @ weight.T).float().log_softmax(-1)
                places = range(-len(ids) - 1, -1)
                expected[option] += float(sum(logs[at, i] for at, i in zip(places, ids, strict=True)).exp())
    mass = sum(expected.values())
    assert answer["mass"] == pytest.approx(mass, rel=2e-2) and answer["yes"] == pytest.approx(
        expected["yes"] / mass, abs=1e-2
    )


def test_a_gemma_answers_and_heeds_both_pictures_to_their_outer_edges(gemma):
    """Core cuts a square out of a picture's middle for it, which of two side by side leaves two halves."""
    from nodes._clip_judge import judge_of

    source, edited = picture(0), picture(1)
    left, right = source.clone(), edited.clone()
    left[:, :, :12], right[:, :, -12:] = 0.0, 1.0
    cases = [Case(a, b, "make it night") for a, b in ((source, edited), (left, edited), (source, right))]
    verdicts = judge_of(gemma).judge(cases)
    assert [v.state for v in verdicts] == ["ok"] * 3, verdicts[0].reasons
    assert len({v.scores["semantic_mismatch"]["value"] for v in verdicts}) == 3


@pytest.mark.parametrize("size", [(64, 48), (32, 96), (64, 64)])
def test_an_edit_of_another_size_than_its_source_is_judged(clip, size):
    from nodes._clip_judge import judge_of

    (verdict,) = judge_of(clip).judge([Case(picture(0), torch.rand(3, *size), "make it night")])
    assert verdict.state == "ok", verdict.reasons


def test_an_editors_tokenizer_does_not_tell_the_model_to_do_something_else(clip, monkeypatch):
    """Those of Qwen-Image, Boogu and others tell it to describe the picture and to think up another."""
    from nodes._clip_judge import QWEN, judge_of

    assert clip.tokenizer.llama_template_images == QWEN, "as Generate Text asks a plain Qwen3-VL"
    case = Case(picture(0), picture(1), "make it night")
    (plain,) = judge_of(clip).judge([case])
    told = QWEN.replace("<|im_start|>user", "<|im_start|>system\nDescribe it.<|im_end|>\n<|im_start|>user", 1)
    monkeypatch.setattr(clip.tokenizer, "llama_template_images", told)
    (again,) = judge_of(clip).judge([case])
    assert again.raw == plain.raw


def test_a_language_model_without_eyes_judges_nothing(clip, monkeypatch):
    """Core drops a picture without a word where a model has no use for it."""
    from nodes._clip_judge import judge_of

    kind = type(clip.cond_stage_model.qwen3vl_4b.transformer)
    monkeypatch.setattr(kind, "preprocess_embed", lambda *_, **__: (None, None))
    (verdict,) = judge_of(clip).judge([Case(picture(0), picture(1), "make it night")])
    assert (verdict.state, verdict.success, verdict.scores) == ("error", None, {})
    assert "qwen3vl_4b takes no pictures; connect one that does" in verdict.reasons


def test_a_model_that_core_cannot_write_with_is_refused_in_words(comfy):
    """Core's Qwen2.5-VL, a text encoder without its output layer: what it would say is not what it means."""
    import core_models
    from nodes.judge import load

    with pytest.raises(InputError, match="Generate Text cannot write with qwen25_7b; take a Qwen3-VL or a Gemma"):
        load("clip", clip=core_models.vlm())


def test_the_node_takes_it_and_says_whose_family_it_is(clip):
    from nodes.judge import SifmMllmJudge

    shown = torch.rand(1, 48, 64, 3)
    out = SifmMllmJudge.execute(shown, "make it night", shown, {"judge": "clip", "clip": clip}, clean_edit=shown)
    found, text = out.result
    assert [seen.verdict.state for listed in found.values() for seen in listed] == ["ok", "ok"]
    assert "of the family Qwen" in text and "clip" in {o.key for o in _options()}
    assert "sample_token" not in vars(clip.cond_stage_model.qwen3vl_4b.transformer), "core's own is back"


def test_a_clip_that_writes_nothing_is_refused_in_words():
    from nodes.judge import load

    class Plain(torch.nn.Module):
        clip_name = "clip_l"

    with pytest.raises(InputError, match=r"expected a language model, as Generate Text takes it .*; clip_l writes"):
        load("clip", clip=types.SimpleNamespace(cond_stage_model=Plain(), tokenizer=None))


def _options():
    from nodes.judge import SifmMllmJudge

    (combo,) = (one for one in SifmMllmJudge.define_schema().inputs if one.id == "judge")
    return combo.options

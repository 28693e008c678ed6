"""Local models of real classes (LLaVA, Qwen3-VL), tiny and random, through the whole judge."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from judges.servers import QUALITY, SEMANTIC, case
from judges.tiny_qwen import write_qwen
from sifm_core.errors import InputError, JudgeError
from sifm_core.judges import load_judge
from sifm_core.judges.rubric import OPTIONS, PRESETS

TEMPLATE = (
    "{% for m in messages %}{% for c in m['content'] %}{% if c['type'] == 'image' %}<image>"
    "{% else %}{{ c['text'] }}{% endif %}{% endfor %}{% endfor %}"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
        PreTrainedTokenizerFast,
    )

    letters = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    special = {name: len(letters) + i for i, name in enumerate(("<s>", "</s>", "<pad>", "<image>"))}
    bpe = Tokenizer(models.BPE(vocab=letters | special, merges=[]))
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        extra_special_tokens={"image_token": "<image>"},
    )
    size = {"height": 16, "width": 16}
    pictures = CLIPImageProcessor(size=size, crop_size=size, do_center_crop=False)
    processor = LlavaProcessor(
        pictures,
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        chat_template=TEMPLATE,
        num_additional_image_tokens=1,
    )
    common = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=CLIPVisionConfig(image_size=16, patch_size=8, projection_dim=16, **common),
            text_config=LlamaConfig(
                vocab_size=len(letters) + 4, max_position_embeddings=8192, num_key_value_heads=2, **common
            ),
            image_token_index=special["<image>"],
            vision_feature_layer=-1,
        )
    )
    model.generation_config.eos_token_id = special["</s>"]
    model.generation_config.pad_token_id = special["<pad>"]
    folder = tmp_path_factory.mktemp("llava")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def test_a_random_model_babbles_and_no_verdict_is_made_of_it(folder, tmp_path):
    judge = load_judge(
        f"transformers:{folder}", device="cpu", preset="two_calls", max_output_tokens=12, cache=tmp_path / "c.sqlite"
    )
    (verdict,) = judge.judge([case("make it night")])
    assert verdict.state in ("truncated", "unparsable")
    assert verdict.success is None and verdict.cost == 0.0
    assert json.loads(verdict.raw)[0], "the model did say something"
    offline = load_judge(
        f"transformers:{folder}",
        device="cpu",
        preset="two_calls",
        max_output_tokens=12,
        cache=tmp_path / "c.sqlite",
        offline=True,
    )
    assert offline.judge([case("make it night")]) == [verdict]
    (folder / "model.safetensors").touch()
    (folder / "new-weights.safetensors").write_bytes(b"x")
    changed = load_judge(
        f"transformers:{folder}",
        device="cpu",
        preset="two_calls",
        max_output_tokens=12,
        cache=tmp_path / "c.sqlite",
        offline=True,
    )
    assert changed.judge([case("make it night")])[0].state == "unreachable", "other weights, other answers"


def test_an_answer_of_the_model_is_read(folder, monkeypatch):
    judge = load_judge(f"transformers:{folder}", device="cpu", preset="two_calls", max_output_tokens=2000)
    client = judge.client
    seen = []

    def generate(input_ids, pixel_values, **_):
        text = client._processor.decode(input_ids[0], skip_special_tokens=True)
        seen.append((tuple(pixel_values.shape), '"make it night"' in text))
        missed = SEMANTIC | {"verdict": "failure", "instruction_followed": "no"}
        answer = json.dumps(QUALITY if "technical quality" in text else missed)
        ids = client._processor.tokenizer(answer + "</s>", return_tensors="pt", add_special_tokens=False)["input_ids"]
        return torch.cat([input_ids, ids], dim=1)

    monkeypatch.setattr(client._model, "generate", generate)
    (verdict,) = judge.judge([case("make it night")])
    assert seen == [((2, 3, 16, 16), True)] * 2, "two pictures and the instruction, in two calls"
    assert (verdict.state, verdict.semantic_mismatch, verdict.perceptual_degradation) == ("ok", True, False)


def test_a_judge_whose_weights_partly_miss_is_refused(folder, tmp_path):
    spoilt = shutil.copytree(folder, tmp_path / "spoilt")
    weights = load_file(spoilt / "model.safetensors")
    missing = next(name for name in weights if "o_proj" in name)
    save_file(
        {name: weights[name] for name in weights.keys() - {missing}}, spoilt / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(JudgeError, match=r"spoilt lack weights of a Llava.*o_proj"):
        load_judge(f"transformers:{spoilt}", device="cpu")


def test_a_folder_without_a_model_is_a_clear_error(tmp_path):
    with pytest.raises(JudgeError, match="vision-language model"):
        load_judge(f"transformers:{tmp_path}")
    with pytest.raises(JudgeError, match="must be on this machine"):
        load_judge("transformers:nobody/nothing")


# ---- ranked answers


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    return write_qwen(tmp_path_factory.mktemp("qwen3-vl"))


@pytest.mark.parametrize("name", ["qwen", "folder"])
def test_a_random_model_cannot_fail_to_answer_and_its_probabilities_are_kept(name, request, tmp_path):
    spec = f"transformers:{request.getfixturevalue(name)}"
    judge = load_judge(spec, device="cpu", cache=tmp_path / "c.sqlite")
    verdicts = judge.judge([case("make it night", seed=i, size=64) for i in range(3)])
    for verdict in verdicts:
        assert verdict.state == "ok" and verdict.success is not None and verdict.cost == 0.0
        answers = [json.loads(text) for text in json.loads(verdict.raw)]
        assert len(answers) == 4 and all(a["yes"] + a["no"] == pytest.approx(1) and 0 < a["mass"] < 1 for a in answers)
        for axis, pair in zip(("semantic_mismatch", "perceptual_degradation"), (answers[:2], answers[2:]), strict=True):
            mean = sum(a["yes"] for a in pair) / 2
            assert verdict.scores[axis] == {"value": pytest.approx(mean), "threshold": 0.5}
            assert verdict.answer(axis) is (mean < 0.5)
    assert len({v.raw for v in verdicts}) == 3, "it did look"
    assert (
        load_judge(spec, device="cpu", cache=tmp_path / "c.sqlite", offline=True).judge(
            [case("make it night", seed=i, size=64) for i in range(3)]
        )
        == verdicts
    )


@pytest.mark.parametrize("name", ["qwen", "folder"])
def test_ranked_probabilities_are_those_of_writing_the_answer_letter_by_letter(name, request):
    """Against the model's own cache, one token at a time; "yes" is one token of the tiny Qwen, "Yes" is several."""
    client = load_judge(f"transformers:{request.getfixturevalue(name)}", device="cpu").client
    question, seen = PRESETS["ranked"][0], []
    rank = client._rank
    client._rank = lambda inputs: (seen.append(inputs), rank(inputs))[1]
    reply = client.send(question.parts(case("make it night", size=64)), question)
    (inputs,) = seen
    expected = dict.fromkeys(OPTIONS, 0.0)
    for option in OPTIONS:
        for word in (option, option.capitalize(), option.upper()):
            ids = client._processor.tokenizer.encode(word, add_special_tokens=False)
            with torch.inference_mode():
                out, total = client._model(**inputs, use_cache=True), 0.0
                for i in ids:
                    total += float(out.logits[0, -1].double().log_softmax(-1)[i])
                    out = client._model(
                        input_ids=torch.tensor([[i]]), past_key_values=out.past_key_values, use_cache=True
                    )
            expected[option] += 2.718281828459045**total
    answer, mass = json.loads(reply.text), sum(expected.values())
    assert answer["mass"] == pytest.approx(mass, rel=1e-4)
    assert answer["yes"] == pytest.approx(expected["yes"] / mass, rel=1e-4)


def test_a_threshold_in_the_name_draws_the_line_and_stands_in_every_verdict(qwen):
    (before,) = load_judge(f"transformers:{qwen}", device="cpu").judge([case("x", size=64)])
    value = before.scores["semantic_mismatch"]["value"]
    for threshold in (value - 0.01, value + 0.01):
        judge = load_judge(f"transformers:{qwen}#{threshold:.6f},0.25", device="cpu")
        (verdict,) = judge.judge([case("x", size=64)])
        assert verdict.semantic_mismatch is (value < threshold) and verdict.judge.endswith(f"#{threshold:.6f},0.25")
        assert verdict.scores["semantic_mismatch"] == {"value": value, "threshold": round(threshold, 6)}
        assert verdict.scores["perceptual_degradation"]["threshold"] == 0.25
        assert verdict.model_served == f"{qwen}@qwen3_vl" and "other model" not in verdict.reasons
    assert judge.served != load_judge(f"transformers:{qwen}", device="cpu").served


def test_a_template_that_has_the_model_think_is_ranked_after_its_thoughts(tmp_path):
    thinks = write_qwen(tmp_path / "thinks", opening="<think>\n")
    client = load_judge(f"transformers:{thinks}", device="cpu").client
    ends = []
    logits = client._logits
    client._logits = lambda inputs: (ends.append(client._processor.decode(inputs["input_ids"][0])), logits(inputs))[1]
    client.send(PRESETS["ranked"][0].parts(case("x", size=64)), PRESETS["ranked"][0])
    assert ends[0].endswith("assistant\n<think>\n\n</think>\n\n")


def test_a_judge_without_probabilities_is_not_asked_to_rank(monkeypatch):
    monkeypatch.setenv("GEMINI_API_KEY", "k")
    with pytest.raises(InputError, match="preset ranked: gemini"):
        load_judge("gemini:gemini-3.8-flash", preset="ranked")

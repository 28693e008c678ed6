"""A local model of a real class (LLaVA), tiny and random, through the whole judge."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from judges.servers import QUALITY, SEMANTIC, case
from sifm_core.errors import JudgeError
from sifm_core.judges import load_judge

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
    judge = load_judge(f"transformers:{folder}", device="cpu", max_output_tokens=12, cache=tmp_path / "c.sqlite")
    (verdict,) = judge.judge([case("make it night")])
    assert verdict.state in ("truncated", "unparsable")
    assert verdict.success is None and verdict.cost == 0.0
    assert json.loads(verdict.raw)[0], "the model did say something"
    offline = load_judge(
        f"transformers:{folder}", device="cpu", max_output_tokens=12, cache=tmp_path / "c.sqlite", offline=True
    )
    assert offline.judge([case("make it night")]) == [verdict]
    (folder / "model.safetensors").touch()
    (folder / "new-weights.safetensors").write_bytes(b"x")
    changed = load_judge(
        f"transformers:{folder}", device="cpu", max_output_tokens=12, cache=tmp_path / "c.sqlite", offline=True
    )
    assert changed.judge([case("make it night")])[0].state == "unreachable", "other weights, other answers"


def test_an_answer_of_the_model_is_read(folder, monkeypatch):
    judge = load_judge(f"transformers:{folder}", device="cpu", max_output_tokens=2000)
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

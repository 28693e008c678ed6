"""The tiny Qwen3-VL of :mod:`judges.tiny_qwen` as llama.cpp loads it: a model and its projector, two GGUF files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

VISUAL = "model.visual."


def write_gguf(folder: Path, out: Path) -> tuple[Path, Path]:
    """(model.gguf, mmproj.gguf) in ``out``, of a folder as :func:`judges.tiny_qwen.write_qwen` makes it."""
    from safetensors.torch import load_file

    config = json.loads((folder / "config.json").read_text())
    weights = {name: value.float().numpy() for name, value in load_file(folder / "model.safetensors").items()}
    out.mkdir(exist_ok=True)
    return _text(folder, config, weights, out / "model.gguf"), _projector(config, weights, out / "mmproj.gguf")


def _text(folder: Path, config: Mapping[str, Any], weights: Mapping[str, Any], file: Path) -> Path:
    import gguf

    text, tokens = config["text_config"], json.loads((folder / "tokenizer.json").read_text())
    vocabulary = sorted(tokens["model"]["vocab"], key=tokens["model"]["vocab"].get)
    special = {token["content"] for token in tokens["added_tokens"]}
    writer = gguf.GGUFWriter(file, "qwen3vl")
    writer.add_context_length(text["max_position_embeddings"])
    writer.add_embedding_length(text["hidden_size"])
    writer.add_block_count(text["num_hidden_layers"])
    writer.add_feed_forward_length(text["intermediate_size"])
    writer.add_head_count(text["num_attention_heads"])
    writer.add_head_count_kv(text["num_key_value_heads"])
    writer.add_key_length(text["head_dim"])
    writer.add_value_length(text["head_dim"])
    writer.add_layer_norm_rms_eps(text["rms_norm_eps"])
    writer.add_rope_freq_base(text["rope_parameters"]["rope_theta"])
    writer.add_rope_dimension_sections([*text["rope_parameters"]["mrope_section"], 0])
    writer.add_num_deepstack_layers(len(config["vision_config"]["deepstack_visual_indexes"]))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(vocabulary)
    writer.add_token_types([gguf.TokenType.CONTROL if w in special else gguf.TokenType.NORMAL for w in vocabulary])
    writer.add_token_merges([" ".join(pair) for pair in tokens["model"]["merges"]])
    writer.add_eos_token_id(vocabulary.index("<|im_end|>"))
    writer.add_pad_token_id(vocabulary.index("<|endoftext|>"))
    writer.add_chat_template((folder / "chat_template.jinja").read_text())
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3VL, text["num_hidden_layers"])
    for name, value in weights.items():
        if not name.startswith(VISUAL):
            writer.add_tensor(names.get_name(name.replace("language_model.", ""), (".weight", ".bias")), value)
    return _written(writer, file)


def _projector(config: Mapping[str, Any], weights: Mapping[str, Any], file: Path) -> Path:
    import gguf

    vision = config["vision_config"]
    writer = gguf.GGUFWriter(file, "clip")
    writer.add_type(gguf.GGUFType.MMPROJ)
    writer.add_clip_has_vision_encoder(True)
    writer.add_clip_projector_type(gguf.VisionProjectorType.QWEN3VL)
    writer.add_vision_projection_dim(vision["out_hidden_size"])
    writer.add_vision_image_size(round(vision["num_position_embeddings"] ** 0.5) * vision["patch_size"])
    writer.add_vision_patch_size(vision["patch_size"])
    writer.add_vision_embedding_length(vision["hidden_size"])
    writer.add_vision_feed_forward_length(vision["intermediate_size"])
    writer.add_vision_block_count(vision["depth"])
    writer.add_vision_head_count(vision["num_heads"])
    writer.add_vision_spatial_merge_size(vision["spatial_merge_size"])
    writer.add_vision_attention_layernorm_eps(config["text_config"]["rms_norm_eps"])
    writer.add_vision_use_gelu(True)
    writer.add_vision_image_mean([0.5] * 3)
    writer.add_vision_image_std([0.5] * 3)
    writer.add_vision_is_deepstack_layers([i in vision["deepstack_visual_indexes"] for i in range(vision["depth"])])
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.MMPROJ, vision["depth"])
    own = {"merger.linear_fc1": "mm.0", "merger.linear_fc2": "mm.2", "merger.norm": "v.post_ln"}
    for place, index in enumerate(vision["deepstack_visual_indexes"]):
        for part, short in {"norm": "norm", "linear_fc1": "fc1", "linear_fc2": "fc2"}.items():
            own[f"deepstack_merger_list.{place}.{part}"] = f"v.deepstack.{index}.{short}"
    for name, value in weights.items():
        if not name.startswith(VISUAL):
            continue
        stem, _, kind = name.removeprefix(VISUAL).rpartition(".")
        target = f"{own[stem]}.{kind}" if stem in own else names.get_name(f"visual.{stem}.{kind}", (".weight", ".bias"))
        if stem == "patch_embed.proj" and kind == "weight":  # one convolution for each of two frames
            writer.add_tensor(target, value[:, :, 0].copy())
            writer.add_tensor(f"{target}.1", value[:, :, 1].copy())
        else:
            writer.add_tensor(target, value)
    return _written(writer, file)


def _written(writer: Any, file: Path) -> Path:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file
